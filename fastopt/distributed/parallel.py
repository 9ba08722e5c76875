"""DataParallel: every rank has everything, and steps with the mean of all gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from fastopt.backends import array_namespace
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.hyperparameters import Flag
from fastopt.core.tree import Tree
from fastopt.distributed.base import OverRanks, Words, described_of
from fastopt.distributed.sums import FastSums, Sums, gather, views_of
from fastopt.optimizers.base import Optimizer

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
        self._agree("constructs", self._get_ready)
        self._broadcast()

    def _get_ready(self) -> Words:
        """Allocate and compile what steps need; other ranks hear of it if that fails."""
        self._follow(self._tree)
        self.innermost.warmup()
        return {}

    def _follow(self, tree: Tree) -> None:
        """Get ready for the parameters of a tree."""
        self._laid_out_for = tree
        self._positions = {leaf.name: k for k, leaf in enumerate(tree.leaves)}
        self._positions_of = [tuple(one.positions) for one in self.innermost._state.groups]
        self._described = described_of(tree)
        self._layout = self._lay_out(tree, [False] * len(tree.leaves))
        self._extents = Extents(tree.leaves)
        like = tree.leaves[0].array
        with arrays.on_device_of(like):
            xp = array_namespace(like)
            self._full: list[Array] = [
                xp.zeros(0 if p.leaf.is_counter else p.size, dtype)
                for p, dtype in zip(self._layout.parameters, self._layout.wide, strict=True)
            ]
        self._turns = [*range(len(self._layout.sections))]
        own = views_of(self._full, self._layout.parts(self.rank))
        where = self._ranks, self._layout.sections, own
        self._sums = FastSums(*where, self._full, True) if self._fast else Sums(*where)

    def _check_tree(self) -> None:
        tree = self._tree
        if tree is not self._laid_out_for:
            if described_of(tree) == self._described:  # rebound: other arrays of the same shapes
                self._laid_out_for = tree
                self._layout = self._lay_out(tree, [False] * len(tree.leaves))
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
            self._broadcast()
        return self

    def _collected(self) -> Any:
        given = self._sums.given
        with self._ranks.sending():
            self._sums.complete()
            if not self._fast:
                gather(self._sums, self._full, given)
        sums = [
            parameter.in_shape(full) if has else None
            for parameter, full, has in zip(self._layout.parameters, self._full, given, strict=True)
        ]
        return self._tree.nest(sums)

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
        ask, look_at = Flag()("load: convert", convert), self.innermost._looked_at
        return self._load(path, lambda content: look_at(content, strict, also, ask))
