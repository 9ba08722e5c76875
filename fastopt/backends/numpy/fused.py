"""Whole steps of the NumPy backend over arrays as they usually are: nothing runs but ufuncs.

What ``NumpyKernel`` looks up, allocates and converts in every step is prepared here once: views,
work arrays, scalars. The bits are those of ``NumpyKernel.update``, which does everything else.

Inside a training loop a step finds little of what it needs in the processor's caches, so that what
counts is how much there is of it: few functions, few objects, no loop that C can run instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from math import inf, sqrt
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import numpy as np

from fastopt import backends
from fastopt.backends.interface import COMMON_SCALARS
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import NOT_MEASURED, Bucket, Counts, Parameter
from fastopt.core.denormals import flush
from fastopt.core.norms import (
    SQUARES_OVERFLOW,
    TOO_SMALL,
    clip_factor,
    squares_here,
    total_of,
)
from fastopt.core.signals import Deferred
from fastopt_kernels import Rule

try:  # what np.errstate does, in a tenth of its time
    from numpy._core.umath import _extobj_contextvar, _make_extobj

    _set_errors: Callable[[Any], Any] = _extobj_contextvar.set
    _restore_errors: Callable[[Any], Any] = _extobj_contextvar.reset
    _IGNORED: Any = _make_extobj(all="ignore")
except ImportError:  # pragma: no cover - NumPy 1, or a NumPy without that private module
    _IGNORED = "ignore"

    def _set_errors(errors: Any) -> Any:
        return np.seterr(all=errors)

    def _restore_errors(before: Any) -> Any:
        np.seterr(**before)


PIECE_BYTES = 1_048_576
"""Bytes of an array that are updated at a time. What Adam then reads and writes, five times as
much, stays in the third cache; of pieces that would stay in the second one there are so many that
threads wait for Python's lock most of the time (20 million take 1.45 times as long)."""

GATHERED_BELOW = 8_192
"""Elements of a parameter below which it is copied together with its neighbours, there and back:
that takes less than a dozen more calls do."""

PARALLEL_FROM = 400_000
"""Elements of a bucket from which on threads help: ufuncs let go of Python's lock."""

_LOOK = attrgetter("dtype", "shape", "flags.num")
_PLAIN = attrgetter("dtype", "shape", "flags.carray")
"""``carray``: in C order, aligned and writable."""
_VALUE = attrgetter("value")
_ONE = np.array(1)


class Piece(NamedTuple):
    """What is updated in one go: a range of one parameter, or some small ones, gathered.

    These are the parameters from ``first`` to before ``last``; ``param`` is the range itself, or
    the memory in which they are gathered: ``sources`` are then the parameters, and ``targets``
    their views of it.
    """

    first: int
    last: int
    place: slice
    param: Array
    state: tuple[Array, ...]
    sources: Sequence[Array] = ()
    targets: Sequence[Array] = ()


class FusedBucket:
    """The updates of one bucket of parameters as they usually are."""

    def __init__(self, bucket: Bucket) -> None:
        self.count: int = len(bucket.parameters)
        self._rule = cast(Rule, bucket.rule)
        self._real = bucket.spec.real
        self._signed = [slot in self._rule.signed for slot in self._rule.state]
        # 0-d arrays: a ufunc takes twice as long with floats.
        self._row = np.zeros(len(COMMON_SCALARS) + len(self._rule.scalars), self._real)
        scalars = [self._row[k : k + 1].reshape(()) for k in range(self._row.size)]
        self._common, self._of_rule = scalars[: len(COMMON_SCALARS)], scalars[len(COMMON_SCALARS) :]
        self._pieces = list(_pieces(bucket, PIECE_BYTES // self._real.itemsize))
        self._own_memory = self._memory()
        self._prepared = [(piece, _cut(self._own_memory, piece)) for piece in self._pieces]
        self._large = sum(piece.param.size for piece in self._pieces) >= PARALLEL_FROM

    def update(self, grads: Sequence[Array], row: Sequence[float] | Array, scale: float) -> None:
        """Update all parameters with a row of scalars, for gradients that are scaled."""
        self._row[:] = row
        common = [*row[: len(COMMON_SCALARS)]]
        if scale != 1.0:
            self._row[0] *= self._real.type(scale)  # what stands there is 1 or -1
            common[0] = self._row.item(0)
        if self._large and (helpers := backends.available_threads(backends.most_threads()) - 1):
            self._share(grads, common, helpers)
        else:
            for piece, work in self._prepared:
                self._update(piece, work, grads, common)

    def _update(
        self,
        piece: Piece,
        work: tuple[Array, ...],
        grads: Sequence[Array],
        common: Sequence[float],
    ) -> None:
        """Update one piece: in ufuncs what ``NumpyKernel._apply`` does for plain options."""
        first, last, place, param, state, sources, targets = piece
        grad_scale, l2, decay, tiny_signed, tiny_positive = common
        rule, of_rule = self._rule, self._of_rule
        scale_by, l2_by, decay_by, *_ = self._common
        scaled, square, product = work
        if targets:
            np.concatenate(sources, 0, param)
            grad = np.concatenate(grads[first:last], None, scaled)
        else:
            grad = grads[first].reshape(-1)[place]
        if grad_scale != 1.0:
            grad = np.multiply(grad, scale_by, scaled)
        if l2 != 0.0:
            grad = np.add(grad, np.multiply(param, l2_by, product), scaled)
        if decay != 0.0:
            np.subtract(param, np.multiply(param, decay_by, product), param)
        if rule.takes_square:
            rule.numpy(param, grad, np.multiply(grad, grad, square), *state, *of_rule)
        else:
            rule.numpy(param, grad, *state, *of_rule)
        if tiny_signed != 0.0 or tiny_positive != 0.0:
            for values, signed in zip(state, self._signed, strict=True):
                flush(values, signed, tiny_signed if signed else tiny_positive)
        if targets:
            [*map(np.copyto, sources, targets)]

    def _memory(self) -> Array:
        """Return memory for a gradient that is gathered or scaled, its square, and a product."""
        most = max((piece.param.size for piece in self._pieces), default=0)
        return np.empty((3, most), self._real)

    def _share(self, grads: Sequence[Array], common: Sequence[float], helpers: int) -> None:
        """Deal the pieces out to this thread and others; one that has not begun is not awaited."""
        pieces = iter(self._pieces)  # whose next is one step of Python, so that each goes to one
        futures = [
            _pool().submit(self._work_on, pieces, self._memory(), grads, common)
            for _ in range(helpers)
        ]
        try:
            self._work_on(pieces, self._own_memory, grads, common)
        finally:  # what has begun comes to its end before anything else happens to the arrays
            begun = [future for future in futures if not future.cancel()]
            wait(begun)
        for future in begun:
            future.result()

    def _work_on(
        self,
        pieces: Iterable[Piece],
        memory: Array,
        grads: Sequence[Array],
        common: Sequence[float],
    ) -> None:
        before = _set_errors(_IGNORED)  # every thread has its own
        try:
            for piece in pieces:
                self._update(piece, _cut(memory, piece), grads, common)
        finally:
            _restore_errors(before)


def _cut(memory: Array, piece: Piece) -> tuple[Array, ...]:
    """Return of each part of some memory what a piece needs."""
    return tuple(memory[:, : piece.param.size])


def _pieces(bucket: Bucket, most: int) -> Iterator[Piece]:
    """Yield the pieces of a bucket, of at most so many elements."""
    rows, parameters = bucket.arena.numbers, bucket.parameters

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
                yield Piece(first, last, place, param, state(begin + start, param.size))
        else:
            ends = [parameters[k].offset + parameters[k].size - begin for k in run]
            memory = np.empty(ends[-1], bucket.spec.real)
            targets = [memory[a:b] for a, b in zip([0, *ends], ends, strict=False)]
            sources = [parameters[k].flat for k in run]
            own = state(begin, ends[-1])
            yield Piece(first, last, slice(None), memory, own, sources, targets)


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

    def __init__(self, buckets: Sequence[Bucket], extents: Extents, counts: Counts) -> None:
        self._buckets = [FusedBucket(bucket) for bucket in buckets]
        self._norm = counts.norm
        self._in_single = any(
            bucket.rule.averages_squares and bucket.spec.real.itemsize == 4 for bucket in buckets
        )
        self._counted = [counts.steps, *(bucket.steps for bucket in buckets)]
        self._extents = extents
        self._owners = extents.owners
        self._positions = [position for bucket in buckets for position in bucket.positions]
        parameters = [parameter for bucket in buckets for parameter in bucket.parameters]
        self._arrays = [parameter.leaf.array for parameter in parameters]
        self._types = [np.ndarray] * len(parameters)
        self._words = arrays.address_words(self._arrays)
        self._at = [parameter.address for parameter in parameters]
        kinds = [(parameter.dtype, parameter.layout.shape) for parameter in parameters]
        flags = [array.flags.num for array in self._arrays]
        self._params = [(*kind, own) for kind, own in zip(kinds, flags, strict=True)]
        self._grads = [(*kind, np.empty(kind[1], np.uint8).flags.num) for kind in kinds]
        self._plain = [(*kind, True) for kind in kinds]

    def __call__(
        self,
        params: list[Any],
        grads: list[Any],
        rows: Sequence[Sequence[Any]],
        scale: float,
        limit: float | None,
    ) -> bool:
        """Look, update and count; False, with nothing done, if an array is not as usual."""
        if len(params) != len(self._positions) or len(self._buckets) > 1:
            params = [params[position] for position in self._positions]
            grads = [grads[position] for position in self._positions]
        # By passes over all arrays that stay within C.
        if not (
            all(map(is_, params, self._arrays))
            and [*map(_VALUE, self._words)] == self._at
            and [*map(_LOOK, params)] == self._params
            and [*map(type, grads)] == self._types
            and (
                (
                    self._owners is not None
                    and [*map(_LOOK, grads)] == self._grads  # each with memory of its own
                    and self._owners.isdisjoint(map(id, grads))
                )
                or ([*map(_PLAIN, grads)] == self._plain and self._extents.apart(grads))
            )
        ):
            return False
        norm = NOT_MEASURED
        if limit is not None:
            found = self._judged(grads, scale, limit)
            if found is None:
                return False
            norm, scale = found
        with Deferred():
            before = _set_errors(_IGNORED)  # other code's must not stop a step in its middle
            try:
                first = 0
                for bucket, row in zip(self._buckets, rows, strict=True):
                    last = first + bucket.count
                    bucket.update(grads[first:last], row, scale)
                    first = last
                for steps in self._counted:
                    np.add(steps, _ONE, steps)
                self._norm.fill(norm)
            finally:
                _restore_errors(before)
        return True

    def _judged(
        self, grads: Sequence[Array], scale: float, limit: float
    ) -> tuple[float, float] | None:
        """Return the norm and what scales gradients down to a limit; None for a closer look.

        It says of an ordinary norm what ``judge`` (engine/policy.py) does: change both.
        """
        before = _set_errors(_IGNORED)
        try:
            total = total_of([squares_here([grad.reshape(-1) for grad in grads], 1.0)])
        finally:
            _restore_errors(before)
        if not TOO_SMALL <= total < inf:
            return None
        norm = sqrt(total) * abs(scale)
        factor = clip_factor(limit, norm)
        if self._in_single and not norm * factor < SQUARES_OVERFLOW:
            return None
        return norm, scale * factor


def fused(buckets: Sequence[Bucket], extents: Extents, counts: Counts) -> FusedStep | None:
    """Return what makes whole steps of these buckets; None if one is not made of plain arrays."""
    return FusedStep(buckets, extents, counts) if all(map(_is_plain, buckets)) else None


def _is_plain(bucket: Bucket) -> bool:
    """Return whether a bucket's arrays are flat as they stand, and its options are scalars."""
    spec = bucket.spec
    options = (
        *(spec.master, spec.stochastic, spec.modulus, spec.fragments, spec.members),
        *(spec.constants, spec.limit_scalars, spec.random_scalars, bucket.rule.memory),
    )
    return not any(options) and all(
        type(p.leaf.array) is np.ndarray
        and p.dtype == spec.real
        and p.layout.plain
        and p.leaf.array.flags.carray  # it may have become read-only since
        for p in bucket.parameters
    )


# Threads -----------------------------------------------------------------------------------------


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(backends.most_threads() - 1, 1), "fastopt")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # no thread is there any more
