"""Checkpoints of state that is shared out: one file, as from a single process.

Rank 0 writes the file, and is sent the others' parts piece by piece; each rank reads of it what
belongs to its share.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt.checkpoint import file, names, state_dict
from fastopt.checkpoint.file import Companions, Encoder
from fastopt.checkpoint.state_dict import ORDER, LoadReport
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import SCALE, memory_names
from fastopt.core.quantization import BLOCK
from fastopt.core.tree import Leaf, Tree
from fastopt.distributed.base import raised
from fastopt.distributed.shares import Kept, Part
from fastopt.errors import RankError

if TYPE_CHECKING:
    from fastopt.distributed.base import Words
    from fastopt.distributed.sharded import Sharded
    from fastopt.optimizers.base import Optimizer

PIECE = 1 << 22
"""Bytes that are sent and written at a time."""


class Slot(NamedTuple):
    """An array of the state: of which parameter, and which one."""

    name: str
    slot: str


class Source(NamedTuple):
    """Where the bytes of an array of the file come from: so many of each of these ranks."""

    slot: Slot
    ranks: list[tuple[int, int]]


# -------------------------------------------------------------------------------------------------
# Saving.


def save(
    sharded: Sharded,
    path: str | os.PathLike[str],
    params: bool,
    also: Companions | None,
    notes: Mapping[str, Any] | None,
    keep_previous: bool,
) -> None:
    """Write a checkpoint of all ranks, whole or not at all."""
    mine: dict[Slot, Array] = {}

    def describe() -> Words:
        sharded.innermost._engine.synchronize()
        mine.update(_slots(sharded))
        return {"entries": _entries(sharded)}

    told = sharded._agree("saves", describe)
    plans: list[_Plan] = []

    def plan() -> Words:
        if sharded.rank:
            return {}
        plans.append(_Plan(sharded, [one["entries"] for one in told], params, also, notes))
        return {"sources": [[*one.slot, one.ranks] for one in plans[0].sources]}

    said = sharded._agree("saves", plan)[0]["sources"]
    sources = [Source(Slot(*slot), [tuple(one) for one in ranks]) for *slot, ranks in said]
    if sharded.rank:
        for source in sources:
            for _ in _pieces(sharded, source, mine):
                pass
        sharded._agree("saves", None)
        sharded._agree("saves", None)
        return
    _write(sharded, path, plans[0], mine, keep_previous)


def _write(
    sharded: Sharded,
    path: str | os.PathLike[str],
    plan: _Plan,
    mine: Mapping[Slot, Array],
    keep_previous: bool,
) -> None:
    """Write the file, on rank 0."""
    came = _everything(sharded, plan, mine)
    agreed = False

    def pieces() -> Iterator[tuple[str, int, Any]]:
        nonlocal agreed
        yield from came
        agreed = True
        sharded._agree("saves", None)  # all ranks have sent what they have

    try:
        file.write_pieces(path, plan.manifest, plan.described, pieces(), keep_previous)
    except BaseException as error:
        if sharded._ranks.lost is not None:
            raise
        if not agreed:
            for _ in came:  # the others send what they have, and then ask
                pass
            sharded._agree("saves", partial(raised, error))
        if isinstance(error, RankError):
            raise
        sharded._agree("saves", partial(raised, error))
    sharded._agree("saves", None)


def _slots(sharded: Sharded) -> dict[Slot, Array]:
    """Return the state that this rank has, as it stands in a checkpoint."""
    return {
        Slot(leaf.name, slot): state_dict.shown(array)
        for bucket in sharded.innermost._state.buckets
        for leaf, _, slots in bucket.state()
        for slot, array in slots.items()
    }


def _entries(sharded: Sharded) -> list[Any]:
    """Return what this rank knows of the state of each parameter that it has a part of.

    Rank 0 says what it knows of all: of an array without elements no rank has a part.
    """
    found = []
    for bucket in sharded.innermost._state.buckets:
        scales = (
            {slot + SCALE for slot in bucket.arena.slots} if bucket.arena.scales is not None else ()
        )
        for leaf, step, slots in bucket.state():
            position = sharded._positions[leaf.name]
            if sharded.rank and position not in sharded._parts:
                continue
            order = state_dict.order_of_blocks(leaf.array, bucket.spec)
            described = [
                [slot, one.dtype.name, one.shape, slot in scales]
                for slot, one in ((k, state_dict.shown(v)) for k, v in slots.items())
            ]
            found.append([leaf.name, position in sharded._parts, step, order, described])
    return found


class _Describer(Encoder):
    """Collects arrays as they are: of the state there is no more than dtype and shape."""

    def kept(self, array: Array) -> Array:
        """Return an array as it is collected."""
        return array


class _Plan:
    """What rank 0 writes: the manifest, the arrays, and where their bytes come from."""

    def __init__(
        self,
        sharded: Sharded,
        told: Sequence[Sequence[Any]],
        params: bool,
        also: Companions | None,
        notes: Mapping[str, Any] | None,
    ) -> None:
        opt = sharded.innermost
        tree = sharded._tree
        sharded._check_tree()
        entries: dict[str, Any] = {}
        stand_ins: dict[int, Source] = {}
        by_name: dict[str, list[tuple[int, Any]]] = {}
        for rank, ranks_entries in enumerate(told):
            for name, *entry in ranks_entries:
                by_name.setdefault(name, []).append((rank, entry))
        for position in sharded._order:
            leaf = tree.leaves[position]
            having = [(rank, entry) for rank, entry in by_name[leaf.name] if entry[0]]
            _, (_, step, order, described) = (having or by_name[leaf.name])[0]
            slots = {}
            for number, (slot, dtype, shape, is_scale) in enumerate(described):
                own = [(rank, entry[3][number]) for rank, entry in having]
                full = tuple(shape)
                if not sharded._kept[position].whole and full != ():
                    full = (
                        (-(-sharded._layout.parameters[position].size // BLOCK),)
                        if is_scale
                        else (*leaf.array.shape, *full[1:])
                    )
                stand_in = np.broadcast_to(np.zeros((), file.dtype_of(dtype)), full)
                itemsize = stand_in.dtype.itemsize
                every = [(rank, itemsize * math.prod(one[2])) for rank, one in own]
                # What is remembered of an array is the same on all ranks.
                ranks = every[:1] if full == () and len(every) > 1 else every
                if full == () and not ranks:
                    ranks = [(0, itemsize)]
                stand_ins[id(stand_in)] = Source(Slot(leaf.name, slot), ranks)
                slots[slot] = stand_in
            entries[leaf.name] = {"step": step, **order, **slots}
        policy = opt._policy._asdict()
        content = state_dict.with_entries(type(opt).__name__, opt._state, policy, entries)
        for number, group in enumerate(content["groups"]):
            if "params" in group:
                positions = sharded._positions_of[number]
                leaves = [tree.leaves[position] for position in positions]
                group["params"] = [leaf.name for leaf in leaves if not leaf.is_counter]
        content["params"] = _parameters(sharded) if params else None
        found = file.content_of(content, also, notes, _Describer())
        self.manifest = found.manifest
        self.described = {key: (one.dtype.name, one.shape) for key, one in found.arrays.items()}
        self.order = file.order_of(self.manifest, self.described)
        self.arrays = found.arrays
        self.source_of = {
            key: stand_ins[id(one)] for key, one in found.arrays.items() if id(one) in stand_ins
        }
        self.sources = [self.source_of[key] for key in self.order if key in self.source_of]
        self._entries = entries  # the stand-ins, whose numbers are in use


def _parameters(sharded: Sharded) -> dict[str, Array]:
    """Return all parameters by name, those that nobody trains last."""
    leaves = sharded._tree.leaves
    every = sharded._tree.everything()
    counters = [k for k, leaf in enumerate(leaves) if leaf.is_counter]
    return {leaves[k].name: every[k] for k in (*sharded._order, *counters)}


def _everything(
    sharded: Sharded, plan: _Plan, mine: Mapping[Slot, Array]
) -> Iterator[tuple[str, int, Any]]:
    """Yield all arrays of the file piece by piece, with their offsets."""
    for key in plan.order:
        if key in plan.source_of:
            for offset, piece in _pieces(sharded, plan.source_of[key], mine):
                yield key, offset, piece
            continue
        data = _bytes_of(plan.arrays[key])
        for offset in range(0, data.size, PIECE):
            yield key, offset, data[offset : offset + PIECE]


def _pieces(
    sharded: Sharded, source: Source, mine: Mapping[Slot, Array]
) -> Iterator[tuple[int, Array]]:
    """Send rank 0 what this rank has of an array; on rank 0, yield all of it with the offsets."""
    ranks = sharded._ranks
    nothing: list[Array | None] = [None] * ranks.size
    at = 0
    for rank, count in source.ranks:
        with ranks.sending():
            data = _bytes_of(mine[source.slot]) if rank == ranks.rank else None
        for offset in range(0, count, PIECE):
            size = min(PIECE, count - offset)
            with ranks.sending():
                if data is not None:
                    piece = data[offset : offset + size]
                    if ranks.rank:
                        ranks.exchange([piece, *nothing[1:]], nothing).wait()
                elif ranks.rank == 0:
                    piece = np.empty(size, np.uint8)
                    incoming = [piece if k == rank else None for k in range(ranks.size)]
                    ranks.exchange(nothing, incoming).wait()
            if ranks.rank == 0:
                yield at + offset, piece
        at += count


def _bytes_of(array: Array) -> Array:
    """Return the bytes of an array in C order, in host memory."""
    host = arrays.on_host(array) if arrays.kind(array) == "cupy" else array
    return np.ascontiguousarray(host).reshape(-1).view(np.uint8)


# -------------------------------------------------------------------------------------------------
# Loading.


def looked_at(
    sharded: Sharded, content: Mapping[str, Any], strict: bool, also: Companions | None
) -> tuple[Callable[[], None], LoadReport]:
    """Look at what is in a checkpoint of all; return what takes over this rank's share of it.

    The parameters are taken over whole. The report comes with it.
    """
    opt = sharded.innermost
    sharded._check_tree()
    seen = names.as_here(sharded._tree, content, strict)
    own = sliced(seen, sharded._tree, sharded._parts, sharded._kept, remembered_of(opt))
    params = partial(state_dict.arrays_restorer, _parameters(sharded))
    about = type(opt).__name__, opt._state, opt._policy._asdict()
    return file.restorer(*about, own, strict, also, params=params)


def remembered_of(opt: Optimizer) -> set[str]:
    """Return the names of numbers that an optimizer remembers of each array."""
    return {name for b in opt._state.buckets for name in memory_names(b.rule, "array")}


def sliced(
    saved: Mapping[str, Any],
    tree: Tree,
    parts: Mapping[int, Part],
    kept: Sequence[Kept],
    remembered: Collection[str],
) -> dict[str, Any]:
    """Return of a state_dict of all parameters what a rank needs for its share.

    ``remembered`` are the names of numbers that a rule remembers of each array.
    """
    entries = dict(saved["state"])
    absent = set()
    for position, leaf in enumerate(tree.leaves):
        entry = entries.get(leaf.name)
        if not isinstance(entry, Mapping) or (kept[position].whole and position in parts):
            continue
        if kept[position].absent:
            absent.add(leaf.name)
            del entries[leaf.name]
            continue
        part = parts.get(position, Part(position, 0, 0))
        entries[leaf.name] = {
            name: value if name in remembered else _slice(name, value, leaf, part)
            for name, value in entry.items()
            if name != ORDER
        }
    groups = [
        {**group, "params": [name for name in group["params"] if name not in absent]}
        if isinstance(group, Mapping) and "params" in group
        else group
        for group in saved["groups"]
    ]
    return {**saved, "state": entries, "groups": groups}


def _slice(name: str, value: Any, leaf: Leaf, part: Part) -> Any:
    """Return the part of what is saved of a slot; what does not fit the parameter as it is."""
    if not isinstance(value, np.ndarray):
        return value
    shape, complex_ = leaf.array.shape, leaf.array.dtype.kind == "c"
    if value.shape == shape or (complex_ and value.shape == (*shape, 2)):
        flat = value.reshape(-1, *value.shape[len(shape) :])
        per = 1 + complex_
        if not part.size and not arrays.layout_of(leaf.array).plain:
            return value[:0]  # none of a whole array that another rank has
        return flat[part.start // per : part.stop // per]
    if name.endswith(SCALE) and value.ndim == 1:
        return value[part.start // BLOCK : -(-part.stop // BLOCK)]
    return value
