"""DataParallel: every rank has everything, and steps with the mean of all gradients."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastopt.backends import array_namespace
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Parameter
from fastopt.core.hyperparameters import Flag
from fastopt.core.options import NonfinitePolicy
from fastopt.core.tree import Tree
from fastopt.distributed.base import OverRanks, Words, described_of, laid_out
from fastopt.distributed.ranks import Ranks
from fastopt.distributed.sums import LARGE, FastSums, Sums, gather
from fastopt.engine.extra import NOTHING, Extra
from fastopt.engine.policy import Outcome
from fastopt.engine.step import Prepared
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Around, Optimizer

if TYPE_CHECKING:
    import os

    from fastopt.checkpoint.file import Companions
    from fastopt.checkpoint.state_dict import LoadReport


class DataParallel(OverRanks):
    """An optimizer of which every rank has a copy, all stepping with the same mean of gradients.

    ::

        from mpi4py import MPI
        opt = fastopt.distributed.DataParallel(fastopt.Adam(params, lr=1e-3), MPI.COMM_WORLD)
        for batch in batches:                        # every rank has its own
            opt.step(gradients(params, batch))       # the mean over the ranks
        opt.save("run.safetensors")

    Every rank makes the optimizer of its own parameters; at the construction they become those of
    rank 0. Each step moves 2 (n - 1) / n times the bytes of the gradients over each rank's
    connection, as an all-reduce does; more of half precision, whose sums are float32. The sums are
    made in the order in which micro-batches are numbered (``add``), in the parameter's dtype, those
    of float16 and bfloat16 in float32: the bits are the same for every number of ranks, and those
    of one process with ``fastopt.Accumulator``.

    Args:
        opt: the optimizer, the same with the same settings on every rank. Between steps it is used
            as ever: ``opt.lr``, hooks, ``EMA(opt)``.
        comm: a communicator of mpi4py, or ``fastopt.distributed.nccl()`` for CuPy arrays.
        time_limit: seconds that the others wait for a rank, > 0; 1800 if it is None. That of
            ``nccl()`` is set there.
        fast: add up as MPI or NCCL do it (an all-reduce when the step is made): the last bits
            then depend on the number of ranks.

    Raises:
        TypeError: for what is no optimizer or no communicator, and for optimizers that take
            estimates of the Hessian (Sophia, AdaHessian).
        RankError: where ranks differ in the optimizer, its settings, names, shapes or dtypes, or
            in state that was loaded before.

    What is collective, to be called on all ranks at once: the construction, ``add``, ``step``,
    ``reset``, ``save``, ``load``, ``broadcast``. If it fails on one, that one raises its own error,
    the others RankError, and nothing has changed on any.
    """

    def __init__(
        self, opt: Optimizer, comm: Any, *, time_limit: float | None = None, fast: bool = False
    ) -> None:
        super().__init__(opt, comm, time_limit, fast)
        self._agree("constructs", self._get_ready, same=True)
        self.broadcast()

    def _get_ready(self) -> Words:
        """Allocate and compile what steps need; other ranks hear of it if that fails."""
        opt = self.innermost
        self._follow(self._tree)
        opt.warmup()
        return {"the state": state_digest(opt)}

    def _follow(self, tree: Tree) -> None:
        """Get ready for the parameters of a tree."""
        self._laid_out_for = tree
        self._positions = {leaf.name: k for k, leaf in enumerate(tree.leaves)}
        self._positions_of = [tuple(one.positions) for one in self.innermost._state.groups]
        self._described = described_of(tree)
        self._layout = laid_out(tree, [False] * len(tree.leaves), self.size)
        self._extents = Extents(tree.leaves)
        like = tree.leaves[0].array
        with arrays.on_device_of(like):
            xp = array_namespace(like)
            self._full: list[Array] = [
                xp.zeros(0 if p.leaf.is_counter else p.size, dtype)
                for p, dtype in zip(self._layout.parameters, self._layout.wide, strict=True)
            ]
        own = [full[:0] for full in self._full]
        for section in self._layout.sections:
            for part in section.parts[self.rank]:
                own[part.position] = self._full[part.position][part.start : part.stop]
        where = self._ranks, self._layout.sections, own
        self._sums = FastSums(*where, self._full, True) if self._fast else Sums(*where)

    def _check_tree(self) -> None:
        tree = self._tree
        if tree is not self._laid_out_for:
            if described_of(tree) == self._described:  # rebound: other arrays of the same shapes
                self._laid_out_for = tree
                self._layout = laid_out(tree, [False] * len(tree.leaves), self.size)
                self._extents = Extents(tree.leaves)
            elif self._count:  # resized, or with one more group
                raise RuntimeError(
                    f"DataParallel: the parameters became others after {self._count} "
                    "micro-batches, whose sums do not fit them; do that between steps"
                )
            else:
                self._follow(tree)
        super()._check_tree()

    def broadcast(self) -> Self:
        """Give the parameters of all ranks the values of rank 0's; their state stays."""
        with self._alone("broadcast"):
            self._agree("broadcasts", None)
            with self._ranks.sending():
                broadcast(self._ranks, self._layout.parameters)
        return self

    def _finish(
        self,
        scale: float,
        on_nonfinite: NonfinitePolicy | None,
        around: Around | None,
        value: float | None,
    ) -> Outcome:
        given = self._sums.given
        with self._ranks.sending():
            self._sums.complete()
            if not self._fast:
                gather(self._sums, self._full, given)
        sums = [
            parameter.in_shape(full) if has else None
            for parameter, full, has in zip(self._layout.parameters, self._full, given, strict=True)
        ]
        opt, extra = self.innermost, NOTHING if value is None else Extra(value)
        nested = self._tree.nest(sums)

        def step(agreeing: Any) -> Outcome:
            def make(_: Any) -> Outcome:
                engine = opt._engine
                policy = opt._policy if on_nonfinite is None else opt._policy_with(on_nonfinite)
                agreeing()

                def prepare() -> Prepared:
                    matched = engine.ready_on_host(nested, scale)
                    return engine.prepare(matched, scale, policy, {}, extra)

                prepared = self._agreed(prepare, opt._state.counts.steps.item(0))
                outcome = engine.commit(prepared)
                self._busy = None  # the step is made: hooks may save
                return outcome

            own = make if around is None else lambda inner: around(lambda: make(inner))
            return opt._step(nested, scale, on_nonfinite, own, extra)

        return self._reported(step)

    # Checkpoints -------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        params: bool = True,
        also: Companions | None = None,
        notes: Mapping[str, Any] | None = None,
        keep_previous: bool = True,
    ) -> None:
        """Write what the optimizer's ``save`` writes, on rank 0; the others wait for it.

        It is the file of a single process, and is loaded on any number of ranks, or without any.
        """

        def work() -> Words:
            if self.rank == 0:
                self.innermost.save(
                    path, params=params, also=also, notes=notes, keep_previous=keep_previous
                )
            return {}

        with self._alone("save"):
            self._agree("saves", work)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        also: Companions | None = None,
        convert: bool = False,
    ) -> LoadReport:
        """Do what the optimizer's ``load`` does on every rank, each of which reads the file.

        All ranks take it over or, on an error on any, none; the files must be the same.
        """
        from fastopt.checkpoint import convert as conversion
        from fastopt.checkpoint import file, names, state_dict

        ask = Flag()("load: convert", convert)
        opt = self.innermost
        found: list[tuple[Callable[[], None], LoadReport]] = []

        def looked_at(content: Mapping[str, Any]) -> None:
            state = opt._state
            changes: tuple[str, ...] = ()
            seen = names.as_here(state.tree, content, strict)
            opt._engine.before_load(state_dict.saved_steps(seen))
            if ask:
                seen, changes = conversion.converted(state, seen)
            params = partial(state_dict.parameters_restorer, state)
            about = type(opt).__name__, state, opt._policy._asdict()
            commit, report = file.restorer(*about, seen, strict, also, params)
            found.append((commit, replace(report, converted=changes)))

        with self._alone("load"), ExitStack() as stack:

            def look() -> Words:
                content = stack.enter_context(file.mapped(path))
                try:
                    opt._alone(partial(looked_at, content))
                except CheckpointError as error:
                    raise file.explained(path, error, whole=True) from error
                return {"the checkpoint": file.fingerprint(path)}

            self._agree("loads", look, same=True)
            commit, report = found[0]
            opt._alone(commit)
            opt._engine.after_load(opt._policy)
            self._clear()
        return report


def broadcast(ranks: Ranks, parameters: Sequence[Parameter]) -> None:
    """Give parameters on all ranks the values of rank 0's."""
    for parameter in parameters:
        array = parameter.leaf.array
        with arrays.on_device_of(array):
            flat = arrays.flat_view(array, parameter.layout)
            place = parameter.layout.in_memory_order(array).flatten() if flat is None else flat
            _broadcast(ranks, place)
            if flat is None and ranks.rank:
                array[...] = parameter.layout.in_shape(place)


def _broadcast(ranks: Ranks, flat: Array) -> None:
    """Give a flat array on all ranks the values of rank 0's."""
    step = LARGE // flat.dtype.itemsize
    for first in range(0, flat.size, step):
        piece = flat[first : first + step]
        nothing: list[Array | None] = [None] * ranks.size
        if ranks.rank == 0:
            outgoing: Sequence[Array | None] = [None, *[piece] * (ranks.size - 1)]
            ranks.exchange(outgoing, nothing).wait()
        else:
            ranks.exchange(nothing, [piece, *nothing[1:]]).wait()


def state_digest(opt: Optimizer) -> int:
    """Return a number that tells states apart; 0 before the first step."""
    seen = 0
    opt._engine.synchronize()
    for bucket in opt._state.buckets if opt._steps else ():
        for part in bucket.arena.parts:
            seen = zlib.crc32(np.ascontiguousarray(arrays.on_host(part)).view(np.uint8).data, seen)
    return seen
