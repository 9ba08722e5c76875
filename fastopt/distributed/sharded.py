"""Sharded: every rank has all parameters and a share of the state, and updates what it has."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from fastopt.backends import array_namespace
from fastopt.checkpoint import state_dict
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket
from fastopt.core.dtypes import dtype_of
from fastopt.core.hyperparameters import ElementScales, Options
from fastopt.core.norms import TILE, tile_counts, tiles_of, total_norm
from fastopt.core.param_groups import GivenGroup, shown_in
from fastopt.core.tree import Origin, Tree
from fastopt.distributed import files
from fastopt.distributed.base import Layout, OverRanks, described_of, exchanged
from fastopt.distributed.ranks import Ranks
from fastopt.distributed.shares import Kept, Section
from fastopt.distributed.sums import FastSums, Sums, gather, views_of
from fastopt.engine import build, parameters
from fastopt.engine.policy import Outcome, Policy, Verdict, judge, refusal
from fastopt.engine.step import Prepared
from fastopt.errors import RankError
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.schedule_free import ScheduleFree
from fastopt_kernels import ArrayRule

if TYPE_CHECKING:
    import os

    from fastopt.checkpoint.file import Companions
    from fastopt.checkpoint.state_dict import LoadReport


_FOLLOWER = parameters.Follower("Sharded: ", "opt", "Shares of others would have to be cut anew")


class Sharded(OverRanks):
    """An optimizer whose state is shared out over the ranks: each has 1 / n of it (ZeRO-1).

    ::

        from mpi4py import MPI
        opt = fastopt.distributed.Sharded(fastopt.Adam(params, lr=1e-3), MPI.COMM_WORLD)
        for batch in batches:                        # every rank has its own
            opt.step(gradients(params, batch))       # the mean over the ranks
        opt.save("run.safetensors")

    Every rank has all parameters, and sums, clips and updates its share of them: ranges of their
    elements, whole arrays for rules on whole arrays (Muon, Adafactor), for arrays that are not in
    C order, and where ``adaptive_clip`` or ``centralize`` look at whole ones. Then ranks send each
    other what they have updated. A step moves the bytes that one of ``DataParallel`` moves, and has
    its bits, for every number of ranks; so have norms, trust ratios and whatever else is summed
    over arrays that are cut, since ranks exchange the sums of tiles.

    The optimizer that it is given is not stepped any more: drop it, as in the example, and its
    state goes with it (memory that was never written to takes no room). ``opt.param_groups`` and
    ``opt.lr`` are those of the shares, and hooks are called with the share's optimizer: what they
    write into parameters is not sent to the others. State that is there already is shared out.

    Args:
        opt: the optimizer, the same with the same settings on every rank.
        comm: a communicator of mpi4py, or ``fastopt.distributed.nccl()`` for CuPy arrays.
        time_limit: seconds that the others wait for a rank, > 0; 1800 if it is None. That of
            ``nccl()`` is set there.
        fast: add up as MPI or NCCL do it, when the step is made: the last bits then depend on the
            number of ranks, and every rank has memory for sums of all parameters.

    Raises:
        TypeError: for what is no optimizer or no communicator, and for optimizers that cannot be
            shared out: with members, schedule-free ones, those that take estimates of the Hessian,
            with bounds or ``lr_scale`` that are arrays. ``DataParallel`` takes most of these.
        ValueError: where there are fewer whole arrays than ranks, and nothing else.
        RankError: where ranks differ in the optimizer, its settings, names, shapes, dtypes, state.

    What is collective is as for ``DataParallel``.
    """

    def __init__(
        self, opt: Optimizer, comm: Any, *, time_limit: float | None = None, fast: bool = False
    ) -> None:
        super().__init__(opt, comm, time_limit, fast)
        tree = opt._state.tree
        kept = _kept(opt)
        layout = self._lay_out(tree, [one.whole for one in kept])
        shares: list[Optimizer] = []

        def take() -> dict[str, Any]:
            shares.append(_share_of(opt, layout, kept, self.rank))
            return {}

        self._agree("constructs", take)
        self._opt = self._innermost = shares[0]
        self._kept = kept
        self._params_tree = tree
        self._positions = {leaf.name: k for k, leaf in enumerate(tree.leaves)}
        self._ignored: frozenset[int] = frozenset()
        self._positions_of = [tuple(group.positions) for group in opt._state.groups]
        self._order = [p for bucket in opt._state.buckets for p in bucket.positions]
        self._group_of = {p: b.group for b in opt._state.buckets for p in b.positions}
        self._described = described_of(tree)
        self._agree("constructs", lambda: self._get_ready(layout))
        self._broadcast()

    def _get_ready(self, layout: Layout) -> dict[str, Any]:
        """Allocate and compile what steps need; other ranks hear of it if that fails."""
        self._follow(layout)
        self.innermost.warmup()
        return {}

    def _follow(self, layout: Layout) -> None:
        """Go by this layout from now on."""
        self._layout = layout
        self._turns = [*range(len(layout.sections))]
        self._extents = Extents(self._params_tree.leaves)
        self._parts = layout.parts(self.rank)
        like = self._params_tree.leaves[0].array
        with arrays.on_device_of(like):
            xp = array_namespace(like)
            if self._fast:
                sizes = [0 if p.leaf.is_counter else p.size for p in layout.parameters]
                full = [xp.zeros(n, dtype) for n, dtype in zip(sizes, layout.wide, strict=True)]
                own = views_of(full, self._parts)
                self._sums = FastSums(self._ranks, layout.sections, own, full, False)
            else:
                own = [
                    xp.zeros(self._parts[k].size if k in self._parts else 0, dtype)
                    for k, dtype in enumerate(layout.wide)
                ]
                self._sums = Sums(self._ranks, layout.sections, own)
        engine = self.innermost._engine
        sizes = [parameter.size for parameter in layout.parameters]
        positions = [self._positions[leaf.name] for leaf in self.innermost._state.tree.leaves]
        engine.other_parts = _OtherParts(self._ranks, layout.sections, sizes, positions)

    # What can be read ---------------------------------------------------------------------------

    @property
    def _tree(self) -> Tree:
        return self._params_tree

    @property
    def params(self) -> Any:
        """The parameters as the optimizer was given them."""
        return self._params_tree.params

    @property
    def nbytes(self) -> int:
        """The bytes of this rank's share of the state."""
        return sum(bucket.arena.nbytes for bucket in self.innermost._state.buckets)

    def _explain(self, *_: Any) -> NoReturn:
        raise TypeError(
            "Sharded cannot explain a step, since no rank has all of the state; DataParallel can, "
            "or an optimizer that has loaded what save has written"
        )

    def _check_tree(self) -> None:
        frozen = frozenset(
            number
            for number, group in enumerate(self.innermost._state.groups)
            if not group["trainable"]
        )
        if frozen != self._ignored:
            self._params_tree.ignore(p for n in frozen for p in self._positions_of[n])
            self._ignored = frozen
        for number, group in enumerate(self.innermost._state.groups):
            if _looks_at_whole(group) and not all(
                self._kept[position].whole for position in self._positions_of[number]
            ):
                raise ValueError(
                    f"{group.owner}: adaptive_clip and centralize look at whole arrays, and these "
                    "have been cut; set them when the optimizer is constructed"
                )
        super()._check_tree()

    # The step -----------------------------------------------------------------------------------

    def _collected(self) -> Any:
        with self._ranks.sending():
            self._sums.complete()
        given, tree = self._given(), self.innermost._state.tree
        grads: list[Array | None] = []
        for leaf in tree.leaves:
            position = self._positions[leaf.name]
            flat = self._sums.own[position] if given[position] else None
            if flat is None:
                grads.append(None)
            elif self._kept[position].whole and position in self._parts:
                grads.append(self._layout.parameters[position].in_shape(flat))
            else:
                own = flat.view(dtype_of(flat.dtype, leaf.array.dtype))
                grads.append(own.reshape(leaf.array.shape))
        return tree.nest(grads)

    def _commit(self, prepared: Prepared) -> Outcome:
        with self._ranks.sending():  # the others wait for what is updated here
            outcome = super()._commit(prepared)
            if outcome:
                self._gather(self._given())
        return outcome

    def _given(self) -> list[bool]:
        """Return which parameters have a gradient and are trained."""
        groups = self.innermost._state.groups
        return [
            has and k in self._group_of and bool(groups[self._group_of[k]]["trainable"])
            for k, has in enumerate(self._sums.given)
        ]

    def _verdict(self, matched: Sequence[Any], scale: float, policy: Policy) -> Verdict:
        """Return the verdict on the gradients of all ranks, the same on all.

        ``matched`` are those of this rank's share, in the order of its leaves, transformed.
        """
        opt, given = self.innermost, self._given()
        if not policy.measures:
            return Verdict(True, scale, None)
        wanted = [k for k in self._order if given[k]]
        counts = [tile_counts([self._layout.parameters[k].size])[0] for k in wanted]

        mine = {
            self._positions[leaf.name]: grad
            for leaf, grad in zip(opt._state.tree.leaves, matched, strict=bool(matched))
        }  # empty where nothing that this rank has is trained

        def squares(factor: float) -> list[Array]:
            own = {k: tiles_of(mine[k], factor) for k in wanted if k in self._parts}
            return _completed(self._ranks, self._layout.sections, own, wanted, counts)

        found: list[list[Array]] = []

        def kept(factor: float) -> list[Array]:
            found.append(squares(factor))
            return found[-1]

        measured = total_norm(kept)
        steps = int(opt._state.counts.steps[0])
        looks = policy.on_nonfinite != "propagate"
        verdict = judge(policy, measured, scale, looks and self._squares_in_single(given))
        if not verdict.made and policy.on_nonfinite == "raise":
            self._refuse_gradients(wanted, found[0], verdict, steps)
        return verdict

    def _squares_in_single(self, given: Sequence[bool]) -> bool:
        """Return whether float32 averages squares of some gradient, on whatever rank that is."""
        state = self.innermost._state
        own = any(
            bucket.rule.averages_squares
            and bucket.spec.real.itemsize == 4
            and any(given[self._positions[p.leaf.name]] for p in bucket.parameters)
            for bucket in state.buckets
        )
        return any(one[0] for one in exchanged(self._ranks, np.array([float(own)])))

    def _refuse_gradients(
        self, wanted: Sequence[int], tiles: Sequence[Array], verdict: Verdict, steps: int
    ) -> NoReturn:
        """Raise FloatingPointError for the largest gradient, or the first one not finite."""
        with np.errstate(all="ignore"):
            sums = [float(one.sum()) for one in tiles]
        at = max(range(len(sums)), key=lambda k: (not math.isfinite(sums[k]), sums[k], -k))
        place = self._params_tree.leaves[wanted[at]].place
        norm = math.sqrt(sums[at]) if math.isfinite(sums[at]) else math.inf
        raise refusal(f"grads{place}", norm * abs(verdict.scale), verdict, steps)

    def _gather(self, given: Sequence[bool]) -> None:
        """Send the others what this rank has updated, and take over what they have."""
        flats = []
        beside = []
        for k, parameter in enumerate(self._layout.parameters):
            array = parameter.leaf.array
            with arrays.on_device_of(array):
                flat = arrays.flat_view(array, parameter.layout)
                if flat is None:
                    flat = parameter.layout.in_memory_order(array).flatten()
                    if given[k] and k not in self._parts:
                        beside.append((parameter, flat))
                flats.append(flat.view(self._layout.stored[k]))
        gather(self._sums, flats, given)
        for parameter, flat in beside:
            with arrays.on_device_of(flat):
                parameter.leaf.array[...] = parameter.layout.in_shape(flat)

    # Checkpoints --------------------------------------------------------------------------------

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        params: bool = True,
        also: Companions | None = None,
        notes: Mapping[str, Any] | None = None,
        keep_previous: bool = True,
    ) -> None:
        """Write one file, what the optimizer's ``save`` writes for a single process.

        Rank 0 writes, and is sent the others' shares piece by piece, so that no rank holds all of
        the state; what ``also`` and ``notes`` hold are rank 0's. If anything fails on any rank, or
        any is killed, the file from before is as it was.
        """
        with self._alone("save"):
            files.save(self, path, params, also, notes, keep_previous)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        also: Companions | None = None,
    ) -> LoadReport:
        """Take over what ``save`` of any optimizer of this class wrote, on any number of ranks.

        Every rank reads the file, and of it what belongs to its share: all of it or, on an error on
        any rank, nothing on any. See ``Optimizer.load``; state of another dtype is converted there
        (``convert=True``), before it is shared out.
        """
        return self._load(path, lambda content: files.looked_at(self, content, strict, also))

    # Other parameters ---------------------------------------------------------------------------

    def rebind(self, params: Any) -> Self:
        """Go on with other arrays in the places of the parameters; see ``Optimizer.rebind``.

        Every rank does this for itself.
        """
        tree = parameters.nested_alike(self._params_tree, params, _FOLLOWER)
        for old, new in zip(self._params_tree.leaves, tree.leaves, strict=True):
            there, here = old.array, new.array
            alike = here.shape == there.shape and here.dtype == there.dtype
            if arrays.kind(here) != arrays.kind(there) or not alike:
                raise ValueError(
                    f"{new.path} must stay {there.dtype} of shape {there.shape}; got {here.dtype} "
                    f"of shape {here.shape}"
                )
        layout = self._lay_out(tree, [one.whole for one in self._kept])
        before = self._layout
        if any(
            not one.whole and not arrays.layout_of(leaf.array).plain
            for one, leaf in zip(self._kept, tree.leaves, strict=True)
        ):
            raise ValueError("Sharded: arrays that have been cut have to stay in C order")
        local = _local_arrays(tree, layout, self._kept, self.rank)
        nested = [local[self._positions[leaf.name]] for leaf in self.innermost._state.tree.leaves]
        self.innermost.rebind(self.innermost._state.tree.nest(nested))
        self._params_tree, self._ignored = tree, frozenset()
        own = self._sums
        self._follow(layout)
        if before.sections == layout.sections:
            self._sums = own
        return self

    def resize(self, name: str, array: Any, keep: Any = None) -> NoReturn:
        """Raise TypeError: shares of other rows would have to be cut anew."""
        raise TypeError("Sharded: save, and load into an optimizer of the new arrays, not strictly")

    def add_param_group(self, group: Mapping[str, Any]) -> NoReturn:
        """Raise TypeError: shares of more parameters would have to be cut anew."""
        raise TypeError("Sharded: save, and load into an optimizer with the group, not strictly")

    @staticmethod
    def _refuse(opt: Optimizer, owner: str) -> None:
        OverRanks._refuse(opt, owner)
        name = type(opt).__name__
        why = None
        if opt._members is not None:
            why = "members are fits by themselves: give each rank some of them"
        elif isinstance(opt, ScheduleFree):
            why = "its parameters are another point's in evaluation, of which a rank has a share"
        elif any(_has_arrays(group) for group in opt._state.groups):
            why = "bounds and lr_scale are arrays, which are not shared out"
        if why is not None:
            raise TypeError(f"{owner}: {name} cannot be shared out: {why}. DataParallel takes it")


# -------------------------------------------------------------------------------------------------
# The share of a rank as an optimizer of its own.


def _kept(opt: Optimizer) -> list[Kept]:
    """Return how each parameter is shared out.

    Where a rule needs whole arrays, the ranks that have none of one do not know it. Of all other
    arrays every rank has a part, which may be empty, so that sums over arrays are made together.
    """
    found = [Kept()] * len(opt._state.tree.leaves)
    for bucket in opt._state.buckets:
        group = opt._state.groups[bucket.group]
        for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
            if isinstance(bucket.rule, ArrayRule):
                found[position] = Kept(absent=True)
                continue
            cuts = parameter.layout.plain and not _looks_at_whole(group)
            found[position] = Kept(whole=not cuts)
    return found


def _looks_at_whole(group: Options) -> bool:
    clip = group["adaptive_clip"]
    return (clip is not None and clip != math.inf) or bool(group["centralize"])


def _has_arrays(group: Options) -> bool:
    bounds = group["bounds"]
    sides = bounds if isinstance(bounds, tuple | list) else ()
    numbers = all(side is None or isinstance(side, int | float) for side in sides)
    return isinstance(group["lr_scale"], ElementScales | np.ndarray) or not numbers


def _local_arrays(tree: Tree, layout: Layout, kept: Sequence[Kept], rank: int) -> dict[int, Array]:
    """Return what a rank's optimizer has of each array, by position: views of the parameters."""
    parts = layout.parts(rank)
    found = {}
    for position, (parameter, how) in enumerate(zip(layout.parameters, kept, strict=True)):
        array, part = parameter.leaf.array, parts.get(position)
        if parameter.leaf.is_counter or (how.whole and part is not None):
            found[position] = array
        elif how.absent:
            continue
        elif part is None:
            found[position] = array.reshape(-1)[:0] if parameter.layout.plain else array[:0]
        else:
            per = 2 if array.dtype.kind == "c" else 1
            found[position] = array.reshape(-1)[part.start // per : part.stop // per]
    return found


def _share_of(opt: Optimizer, layout: Layout, kept: Sequence[Kept], rank: int) -> Optimizer:
    """Return an optimizer of a rank's share of another one's parameters, with its state."""
    state, kind = opt._state, type(opt)
    mine = _local_arrays(state.tree, layout, kept, rank)
    if all(state.tree.leaves[k].is_counter for k in mine):
        raise ValueError(
            f"Sharded: rank {rank} gets no array, since {kind.__name__} needs whole ones and there "
            "are fewer than ranks; take fewer ranks, or DataParallel"
        )
    parts = layout.parts(rank)
    grouped = state.tree.grouped
    trees: list[OrderedDict[str, Array]] = [OrderedDict() for _ in state.groups if grouped]
    alone: OrderedDict[str, Array] = OrderedDict()
    order: list[int] = []
    ranges = list(state.tree.groups()) if grouped else [range(len(kept))]
    for number, positions in enumerate(ranges):
        for position in positions:
            if position in mine:
                name = state.tree.leaves[position].name
                key = name.partition(".")[2] if grouped else name
                (trees[number] if grouped else alone)[key] = mine[position]
                order.append(position)
    tree = Tree(trees if grouped else alone, grouped)
    where = {position: k for k, position in enumerate(order)}
    tree.leaves = [
        replace(
            state.tree.leaves[position],
            array=leaf.array,
            origin=Origin(
                state.tree.leaves[position].array.shape,
                parts[position].start if position in parts else 0,
            ),
        )
        for leaf, position in zip(tree.leaves, order, strict=True)
    ]
    groups = []
    for number, group in enumerate(state.groups):
        here = [where[position] for position in group.positions if position in where]
        seen = shown_in(tree, number, here, group["params"] is state.tree.params)
        groups.append(GivenGroup(here, seen, group.plain, group.owner[len(kind.__name__) :]))
    made = kind.__new__(kind)
    made._begin(
        opt._made_with,
        opt._policy,
        *build.assemble(kind, tree, groups, opt._made_with),
    )
    if opt._steps or opt.skipped_steps:
        saved = files.sliced(opt.state_dict(), state.tree, parts, kept, files.remembered_of(made))
        commit, _ = state_dict.state_restorer(
            kind.__name__, made._state, opt._policy._asdict(), saved, strict=True
        )
        commit()
        made._state.counts.skipped = opt._state.counts.skipped
    made._before_step, made._after_step = opt._before_step, opt._after_step
    return made


# -------------------------------------------------------------------------------------------------
# Sums over arrays of which each rank has parts.


class _OtherParts:
    """Completes the sums of tiles of a bucket's arrays over the ranks."""

    def __init__(
        self,
        ranks: Ranks,
        sections: Sequence[Section],
        sizes: Sequence[int],
        positions: Sequence[int],
    ) -> None:
        self._ranks, self._sections, self._sizes = ranks, sections, sizes
        self._positions = positions  # of the local leaves among all

    def _of(self, bucket: Bucket) -> list[int]:
        return [self._positions[local] for local in bucket.positions]

    def sizes(self, bucket: Bucket) -> list[int]:
        """Return how many real numbers the arrays have as a whole."""
        return [self._sizes[position] for position in self._of(bucket)]

    def tiles(self, bucket: Bucket, own: Array) -> Array:
        """Return the sums of all tiles of a bucket's arrays, given those of the parts here."""
        positions = self._of(bucket)
        counts = tile_counts(self.sizes(bucket))
        local = np.cumsum([0, *tile_counts(p.size for p in bucket.parameters)])
        rows = []
        for row in own:
            mine = {position: row[local[k] : local[k + 1]] for k, position in enumerate(positions)}
            rows.append(
                np.concatenate(
                    [
                        np.zeros(0),
                        *_completed(self._ranks, self._sections, mine, positions, counts),
                    ]
                )
            )
        return np.array(rows).reshape(len(own), sum(counts))


def _completed(
    ranks: Ranks,
    sections: Sequence[Section],
    own: Mapping[int, Array],
    wanted: Sequence[int],
    counts: Sequence[int],
) -> list[Array]:
    """Return the sums of all tiles of some arrays, of which each rank has those of its parts."""
    found = {k: np.zeros(count) for k, count in zip(wanted, counts, strict=True)}
    parts = [
        [p for section in sections for p in section.parts[rank] if p.position in found]
        for rank in range(ranks.size)
    ]
    mine = [np.zeros(0), *(own[p.position] for p in parts[ranks.rank])]
    vectors = exchanged(ranks, np.concatenate(mine))
    for rank, (of, vector) in enumerate(zip(parts, vectors, strict=True)):
        if sum(-(-part.size // TILE) for part in of) != len(vector):
            raise RankError(
                f"settings differ: rank {rank} has not measured the arrays in this step that rank "
                f"{ranks.rank} has (trainable)",
                (rank,),
            )
        at = 0
        for part in of:
            count = -(-part.size // TILE)
            first = part.start // TILE
            found[part.position][first : first + count] = vector[at : at + count]
            at += count
    return list(found.values())
