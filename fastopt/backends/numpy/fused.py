"""Whole steps of the NumPy backend over arrays as they usually are: nothing runs but ufuncs.

What ``NumpyKernel`` looks up, allocates and converts in every step is prepared here once: views,
work arrays, scalars. The bits are those of ``NumpyKernel.update``, which does everything else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import numpy as np

from fastopt import backends
from fastopt.backends.interface import COMMON_SCALARS
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Counts, Parameter
from fastopt.core.denormals import flush
from fastopt.core.signals import Deferred
from fastopt_kernels import Rule

PIECE_BYTES = 131_072
"""Bytes of an array that are updated at a time. What Adam then reads and writes, five times as
much, stays in the second cache."""

GATHERED_BELOW = 8_192
"""Elements of a parameter below which it is copied together with its neighbours, there and back:
that takes less than a dozen more calls do."""

PARALLEL_FROM = 400_000
"""Elements of a bucket from which on threads help: ufuncs let go of Python's lock."""

_LOOK = attrgetter("dtype", "shape", "flags.carray")
"""``carray``: in C order, aligned and writable."""


class Piece(NamedTuple):
    """What is updated in one go: a range of one parameter, or some small ones, gathered.

    These are the parameters from ``first`` to before ``last``; ``param`` is the range itself, or
    the memory in which they are gathered, and ``targets`` are then their views of it.
    """

    first: int
    last: int
    place: slice
    param: Array
    state: tuple[Array, ...]
    targets: Sequence[Array]


class FusedBucket:
    """One bucket of parameters as they usually are."""

    def __init__(self, bucket: Bucket, extents: Extents) -> None:
        real = bucket.spec.real
        self._rule = cast(Rule, bucket.rule)
        self._real = real
        self._positions = bucket.positions
        self._extents = extents
        self._arrays = [parameter.leaf.array for parameter in bucket.parameters]
        self._flat = [parameter.flat for parameter in bucket.parameters]
        self._addresses = arrays.addresses(self._arrays)
        self._at = [parameter.address for parameter in bucket.parameters]
        self._looks = [(real, parameter.layout.shape, True) for parameter in bucket.parameters]
        self._signed = [slot in self._rule.signed for slot in self._rule.state]
        self._pieces = list(_pieces(bucket, PIECE_BYTES // real.itemsize))
        self._large = sum(flat.size for flat in self._flat) >= PARALLEL_FROM
        self._most = max((piece.param.size for piece in self._pieces), default=0)
        self._memory = self._work()
        # 0-d arrays: a ufunc takes twice as long with floats.
        self._row = np.zeros(len(COMMON_SCALARS) + len(self._rule.scalars), real)
        self._scalars = [self._row[k : k + 1].reshape(()) for k in range(self._row.size)]

    def of_leaves(self, leaves: list[Any]) -> list[Any]:
        """Return what belongs to this bucket's parameters, given what belongs to all leaves."""
        if len(leaves) == len(self._positions):
            return leaves
        return [leaves[position] for position in self._positions]

    def usual(self, params: list[Any], grads: list[Any]) -> bool:
        """Return whether parameters are what and where they were, and gradients such as they are.

        By passes over all arrays that stay within C.
        """
        return (
            all(map(is_, params, self._arrays))
            and self._addresses() == self._at
            and [*map(_LOOK, params)] == self._looks
            and all(map(is_, map(type, grads), repeat(np.ndarray)))
            and [*map(_LOOK, grads)] == self._looks
            and self._extents.apart(grads)
        )

    def update(self, grads: list[Any], row: Sequence[float] | Array, scale: float) -> None:
        """Update all parameters with a row of scalars, for gradients that are scaled."""
        self._row[:] = row
        head = self._row[: len(COMMON_SCALARS)]
        if scale != 1.0:
            head[0] *= self._real.type(scale)  # what stands there is 1 or -1
        common = head.tolist()
        if self._large and (helpers := backends.available_threads(_threads()) - 1):
            self._share(grads, common, helpers)
        else:
            for piece in self._pieces:
                self._update(piece, grads, common, self._memory)

    def _share(self, grads: list[Any], common: list[float], helpers: int) -> None:
        """Deal the pieces out to this thread and others; one that has not begun is not awaited."""
        pieces = iter(self._pieces)  # whose next is one step of Python, so that each goes to one
        work = partial(self._work_on, pieces, grads, common)
        futures = [_pool().submit(work, self._work()) for _ in range(helpers)]
        work(self._memory)
        for future in futures:
            if not future.cancel():
                future.result()

    def _work_on(
        self, pieces: Iterable[Piece], grads: list[Any], common: list[float], memory: Array
    ) -> None:
        with np.errstate(all="ignore"):  # which every thread has of its own
            for piece in pieces:
                self._update(piece, grads, common, memory)

    def _work(self) -> Array:
        """Return memory for a gradient that is gathered or scaled, its square, and a product."""
        return np.empty((3, self._most), self._real)

    def _update(self, piece: Piece, grads: list[Any], common: list[float], memory: Array) -> None:
        """Update one piece: in ufuncs what ``NumpyKernel._apply`` does for plain options."""
        first, last, place, param, state, targets = piece
        grad_scale, l2, decay, tiny_signed, tiny_positive = common
        scaled, square, product = memory[:, : param.size]
        if targets:
            np.concatenate(self._flat[first:last], None, param)
            grad = np.concatenate(grads[first:last], None, scaled)
        else:
            grad = grads[first].reshape(-1)[place]
        numbers = self._scalars
        if grad_scale != 1.0:
            grad = np.multiply(grad, numbers[0], scaled)
        if l2 != 0.0:
            grad = np.add(grad, np.multiply(param, numbers[1], product), scaled)
        if decay != 0.0:
            np.subtract(param, np.multiply(param, numbers[2], product), param)
        if self._rule.squares:
            self._rule.numpy(param, grad, np.multiply(grad, grad, square), *state, *numbers[5:])
        else:
            self._rule.numpy(param, grad, *state, *numbers[5:])
        if tiny_signed != 0.0 or tiny_positive != 0.0:
            for values, signed in zip(state, self._signed, strict=True):
                flush(values, signed, tiny_signed if signed else tiny_positive)
        if targets:
            [*map(np.copyto, self._flat[first:last], targets)]


def _pieces(bucket: Bucket, most: int) -> Iterator[Piece]:
    """Yield the pieces of a bucket, of at most so many elements."""
    rows, parameters = bucket.arena.exact, bucket.parameters

    def state(first: int, size: int) -> tuple[Array, ...]:
        return tuple(slot[first : first + size] for slot in rows)

    for run in gathered(parameters, min(most, GATHERED_BELOW), most):
        first, last = run.start, run.stop
        begin = parameters[first].offset
        if len(run) == 1:
            flat = parameters[first].flat
            for start in range(0, flat.size, most):
                place = slice(start, min(start + most, flat.size))
                param = flat[place]
                yield Piece(first, last, place, param, state(begin + start, param.size), ())
        else:
            ends = [parameters[k].offset + parameters[k].size - begin for k in run]
            memory = np.empty(ends[-1], bucket.spec.real)
            targets = [memory[a:b] for a, b in zip([0, *ends], ends, strict=False)]
            yield Piece(first, last, slice(None), memory, state(begin, ends[-1]), targets)


def gathered(parameters: Sequence[Parameter], small: int, most: int) -> Iterator[range]:
    """Cut parameters into runs of small ones with at most ``most`` elements; others stand alone."""
    start = 0
    while start < len(parameters):
        stop, end = start + 1, parameters[start].offset + most
        if parameters[start].size <= small:
            while stop < len(parameters) and parameters[stop].size <= small:
                if parameters[stop].offset + parameters[stop].size > end:
                    break
                stop += 1
        yield range(start, stop)
        start = stop


class FusedStep:
    """Whole steps of some buckets."""

    def __init__(
        self, buckets: Sequence[FusedBucket], own: Sequence[Bucket], counts: Counts
    ) -> None:
        self._buckets = buckets
        self._steps = [bucket.steps for bucket in own]
        self._counts = counts

    def __call__(
        self,
        params: list[Any],
        grads: list[Any],
        rows: Sequence[Sequence[float] | Array],
        scale: float,
        limit: float | None,
    ) -> bool:
        """Look, update and count; False, with nothing done, if an array is not as usual."""
        if limit is not None:
            return False
        given = [bucket.of_leaves(grads) for bucket in self._buckets]
        for bucket, own in zip(self._buckets, given, strict=True):
            if not bucket.usual(bucket.of_leaves(params), own):
                return False
        # Other code's np.seterr(all="raise") must not stop a step in its middle.
        with np.errstate(all="ignore"), Deferred():
            for bucket, own, row in zip(self._buckets, given, rows, strict=True):
                bucket.update(own, row, scale)
            for steps in (*self._steps, self._counts.steps):
                steps += 1
            self._counts.grad_norm = None
        return True


def fused(buckets: Sequence[Bucket], extents: Extents, counts: Counts) -> FusedStep | None:
    """Return what makes whole steps of these buckets; None if one is not made of plain arrays."""
    if not all(map(_plain, buckets)):
        return None
    return FusedStep([FusedBucket(bucket, extents) for bucket in buckets], buckets, counts)


def _plain(bucket: Bucket) -> bool:
    """Return whether a bucket's arrays are flat as they stand, and its options are scalars."""
    spec = bucket.spec
    options = (
        *(spec.master, spec.stochastic, spec.modulus, spec.fragments, spec.members),
        *(spec.limits, spec.limit_scalars, spec.random_scalars),
    )
    return not any(options) and all(
        type(p.leaf.array) is np.ndarray and p.dtype == spec.real and p.layout.plain
        for p in bucket.parameters
    )


# Threads -----------------------------------------------------------------------------------------


def _threads() -> int:
    """Return how many threads there are for steps, this one included: as Numba counts them."""
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    if asked.isdigit() and asked != "0":
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(_threads() - 1, 1), "fastopt")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # no thread is there any more
