"""An optimizer's state as a dict, and back: collected by name, checked as a whole, then written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastopt.checkpoint.names import are_in_groups
from fastopt.checkpoint.settings import (
    Description,
    SavedGroup,
    Setting,
    descriptions,
    policy_differences,
    saved_groups,
)
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import SCALE, OptimizerState, Parameter
from fastopt.core.dtypes import CODE_DTYPES, State, UpdateSpec
from fastopt.core.hyperparameters import ElementScales, bounds_kind, saved_bounds
from fastopt.core.options import FIXED, OF_STATE, STORAGE, SWITCHED
from fastopt.core.param_groups import ParamGroup
from fastopt.core.saved import is_count, mismatch
from fastopt.core.signals import Deferred
from fastopt.core.tree import COUNTERS, Leaf
from fastopt.errors import CheckpointError
from fastopt.version import __version__

# -------------------------------------------------------------------------------------------------
# What a load took over and what it left alone, as something to print and to look into.


@dataclass(frozen=True)
class Differences:
    """Names on one side only, what has another shape or dtype, and settings that are others."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()

    def __add__(self, other: Differences) -> Differences:
        return Differences(
            self.missing + other.missing,
            self.unexpected + other.unexpected,
            self.mismatched + other.mismatched,
            self.settings + other.settings,
        )


def compare_names(
    what: str, prefix: str, here: Collection[str], there: Collection[Any], strict: bool
) -> Differences:
    """Return the names that only one side has; CheckpointError instead if that is not allowed.

    ``here`` are the names that are needed, ``there`` those that were saved.
    """
    missing = [name for name in here if name not in there]
    extra = [str(name) for name in there if name not in here]
    if strict and (missing or extra):
        raise CheckpointError(
            f"{what}: {len(missing)} not in the file {_first(missing)}, {len(extra)} only in the "
            f"file {_first(extra)}; they are matched by name (strict=False takes what fits)"
        )
    return Differences(_with(prefix, missing), _with(prefix, extra))


def _first(names: list[str]) -> list[str]:
    return sorted(names)[:3]


def _with(prefix: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(prefix + name for name in names))


@dataclass(frozen=True)
class LoadReport:
    """What ``load`` or ``load_state_dict`` did.

    Attributes:
        optimizer: the class that was saved, which is the one that loaded.
        version: the version of fastopt that saved it.
        step_count: the steps that were made when it was saved.
        params: whether the parameters' values were taken over too, or only the state.
        also: the names of the companions that were taken over.
        notes: what the user had saved beside, as it was.
        missing: what was needed and not saved: "state:W", "param:W", "also:ema",
            "groups[0].lr"; it stays as it is. Under ``strict=True`` this and the next two are
            empty, but for hyperparameters that the version that saved did not have, or that were
            functions or arrays (bounds, lr_scale), which are not saved, and are none here.
        unexpected: what was saved and not needed.
        mismatched: what has another shape or dtype here than in the file; it stays as it is.
        converted: with ``convert=True`` what was taken over in another dtype:
            "state:W.m: float32 -> float64"; and what became of master weights that only one side
            has.
        settings: every hyperparameter and policy (lr, a schedule, max_grad_norm, on_nonfinite, ...)
            that was saved otherwise than it was here, with both values and which one holds now.
    """

    optimizer: str
    version: str
    step_count: int
    params: bool
    also: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()

    def __str__(self) -> str:
        taken = ["parameters and state" if self.params else "state without parameters"]
        taken += self.also
        lines = [
            f"{self.optimizer} at step {self.step_count}, saved by fastopt {self.version}: "
            + ", ".join(taken)
        ]
        parts = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mismatched": self.mismatched,
            "converted": self.converted,
            "notes": tuple(self.notes),
        }
        lines += [f"{name}: {', '.join(found)}" for name, found in parts.items() if found]
        lines += map(str, self.settings)
        return "\n".join(lines)


# -------------------------------------------------------------------------------------------------
# What schedules remember, for the checkpoint: found in them, looked at, and then written back.
#
# A schedule with a memory has ``state_dict()`` and ``_restorer(saved)``, which checks a saved state
# and returns the function that takes it over. A schedule made of others has them as ``_parts``.

_KEY = "schedule"  # of the one entry that stands for a schedule in a state_dict


def memory_of(schedule: Any) -> dict[str, Any] | None:
    """Return what is saved of a schedule; None of a function that has no memory."""
    states = [part.state_dict() for part in _remembering(schedule)]
    return {_KEY: states[0] if len(states) == 1 else states} if states else None


def is_memory(saved: Any) -> bool:
    """Return whether a saved hyperparameter is the memory of a schedule."""
    return isinstance(saved, Mapping) and saved.keys() == {_KEY}


def restorers(
    groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]], strict: bool
) -> list[Callable[[], None]]:
    """Return what writes all groups' memories back; raises CheckpointError if one does not fit.

    A memory whose schedule is not there is refused if ``strict``, and left out if not.
    """
    found: dict[int, Any] = {}  # by schedule, which several groups may share
    writes = []
    for number, (group, given) in enumerate(zip(groups, saved, strict=True)):
        for name, schedule, memory in _memories(group, given):
            place = f"groups[{number}]: {name}"
            for part, state in _pairs(place, schedule, memory, strict):
                writes.append(_restorer(place, part, state))
                if found.setdefault(id(part), state) != state:
                    raise CheckpointError(
                        f"{place}: {part!r} is used in several places, and what was saved for them "
                        "differs; give each a schedule of its own"
                    )
    return writes


def left_out(group: Mapping[str, Any], saved: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the names of saved memories that do not fit, and what a group has in these places."""
    return [
        (name, schedule)
        for name, schedule, memory in _memories(group, saved)
        if len(list(_remembering(schedule))) != len(_states(memory))
    ]


def _memories(group: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield what memories were saved, those in pairs too, and where, with what has the place now.

    The name, or that of a part (``betas[0]``).
    """
    for name, value in saved.items():
        if name not in group:
            continue
        if is_memory(value):
            yield name, group[name], value[_KEY]
        elif isinstance(group[name], tuple) and isinstance(value, list | tuple):
            for k, (own, part) in enumerate(zip(group[name], value, strict=False)):
                if is_memory(part):
                    yield f"{name}[{k}]", own, part[_KEY]


def _states(memory: Any) -> list[Any]:
    return memory if isinstance(memory, list) and len(memory) > 1 else [memory]


def _pairs(place: str, schedule: Any, saved: Any, strict: bool) -> Iterator[tuple[Any, Any]]:
    parts = list(_remembering(schedule))
    states = _states(saved)
    if len(parts) == len(states):
        yield from zip(parts, states, strict=True)
    elif strict:
        raise CheckpointError(
            f"{place}: {len(states)} schedules with a memory were saved, and {schedule!r} has "
            f"{len(parts)} (strict=False keeps ours)"
        )


def _restorer(place: str, schedule: Any, state: Any) -> Callable[[], None]:
    try:
        write: Callable[[], None] = schedule._restorer(state)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from error
    return write


def _remembering(schedule: Any) -> Iterator[Any]:
    """Yield the schedules with a memory that a schedule is or is made of."""
    if hasattr(type(schedule), "_restorer"):
        yield schedule
    for part in schedule._parts if hasattr(type(schedule), "_parts") else ():
        yield from _remembering(part)


# -------------------------------------------------------------------------------------------------
# The hyperparameters of groups in a state_dict, and which of them go to which group.

Changes = dict[str, Any]


def collected(state: OptimizerState) -> list[dict[str, Any]]:
    """Return each group's hyperparameters; of a schedule its memory, None if it has none.

    Groups that share a tree have no other names, so they have those of their parameters, as
    "params".
    """
    listed = []
    for number, group in enumerate(state.groups):
        shared = len(state.groups) > 1 and not state.tree.grouped
        names = {"params": _names(state, number)} if shared else {}
        plain = group.plain.items()
        listed.append({name: _saved(name, value) for name, value in plain} | names)
    return listed


def _saved(name: str, value: Any) -> Any:
    if callable(value):
        return memory_of(value)
    if isinstance(value, ElementScales):
        return None  # as bounds that are arrays
    if name == "bounds":
        return saved_bounds(value)
    return tuple(_saved(name, one) for one in value) if isinstance(value, tuple) else value


def settings_restorer(
    state: OptimizerState,
    saved: Sequence[SavedGroup],
    names: Collection[str],
    strict: bool,
    complete: bool,
) -> tuple[Callable[[], None], Differences]:
    """Look at all saved groups; return what takes them over, schedules' memories included.

    ``names`` are the saved parameters'; ``complete`` says that no hyperparameter may be missing.

    Lists of as many groups, with a tree each, are matched by their order. Others are matched by
    their parameters: if not each of our groups was one when the state was saved, all keep what they
    have, since a group's settings are not those of other parameters.
    """
    options = state.groups
    named = any("params" in group.values for group in saved)
    as_listed = not named and (state.tree.grouped or len(options) == 1)
    if not (as_listed and len(saved) == len(options)):
        mine = [_names(state, number) for number in range(len(options))]
        theirs = _members(len(options), [group.values for group in saved], names)
        order = _order(mine, theirs, names, strict)
        if order is None:
            return lambda: None, _unmatched(options, mine, saved, theirs)
        saved = [_without_names(saved[place]) for place in order]
    changes = [
        _changes(number, group, given.values, strict, complete)
        for number, (group, given) in enumerate(zip(options, saved, strict=True))
    ]
    values = [given.values for given in saved]
    memories = restorers(options, values, strict)
    differences = _differences(options, values)
    for number, (group, given, taken) in enumerate(zip(options, saved, changes, strict=True)):
        found = given.differences(f"groups[{number}]", group.plain, taken)
        differences += _of_settings(tuple(found))

    def commit() -> None:
        for group, changed in zip(options, changes, strict=True):
            group.update(changed)
        for write in memories:
            write()

    return commit, differences


def _without_names(group: SavedGroup) -> SavedGroup:
    return replace(group, values={k: v for k, v in group.values.items() if k != "params"})


def _of_settings(found: tuple[Setting, ...]) -> Differences:
    """Return settings that differ; what was only described, and is not so here, is missing."""
    lost = (
        setting.name
        for setting in found
        if isinstance(setting.saved, Description) and not isinstance(setting.here, Description)
    )
    return Differences(missing=tuple(dict.fromkeys(lost)), settings=found)


def _unmatched(
    groups: Sequence[ParamGroup],
    mine: Sequence[Collection[str]],
    saved: Sequence[SavedGroup],
    theirs: Sequence[Collection[str]],
) -> Differences:
    """Return what each of our groups has otherwise than those that its parameters were in."""
    listed: list[Setting] = []
    for number, (group, names) in enumerate(zip(groups, mine, strict=True)):
        for given, members in zip(saved, theirs, strict=True):
            if not set(names).isdisjoint(members):
                listed += given.differences(f"groups[{number}]", group.plain, {})
    return _of_settings(tuple({str(one): one for one in listed}.values()))


def _differences(groups: Sequence[ParamGroup], saved: Sequence[Mapping[str, Any]]) -> Differences:
    """Return the hyperparameters that were not saved, and the memories that find no schedule."""
    pairs = list(enumerate(zip(groups, saved, strict=True)))
    return Differences(
        missing=tuple(
            f"groups[{number}].{name}"
            for number, (group, given) in pairs
            for name in sorted(group.plain.keys() - given)
        ),
        mismatched=tuple(
            f"groups[{number}].{name}: expected the memory of {schedule!r}; got another"
            for number, (group, given) in pairs
            for name, schedule in left_out(group, given)
        )
        + tuple(
            f"groups[{number}].{name}: expected {group[name]!r}; got {given[name]!r:.200}"
            for number, (group, given) in pairs
            for name in _other_state(group, given)
        ),
    )


def _other_state(group: ParamGroup, saved: Mapping[str, Any]) -> list[str]:
    """Return the settings that were others, and with them what the saved state means."""
    known = filter(saved.__contains__, OF_STATE)
    return [k for k in known if repr(saved[k]) != repr(group[k])]  # an array has no truth value


def _kept_as_they_are(group: ParamGroup, saved: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings that cannot become what was saved of them, and do not touch the state."""
    yield from (k for k in FIXED if k not in OF_STATE)
    yield from (k for k in SWITCHED if (saved.get(k) is None) != (group[k] is None))
    if bounds_kind(group["bounds"]) != "numbers":
        yield "bounds"
    if isinstance(group["lr_scale"], ElementScales):
        yield "lr_scale"


def _names(state: OptimizerState, number: int) -> list[str]:
    return [leaf.name for leaf in state.leaves_of(number) if not leaf.is_counter]


def _members(
    ours: int, saved: Sequence[Mapping[str, Any]], names: Collection[str]
) -> list[list[str]]:
    """Return the names of the parameters of each saved group."""
    if any("params" in group for group in saved):
        return [_saved_names(number, group) for number, group in enumerate(saved)]
    if len(saved) == 1:
        return [list(names)]
    if not saved or not are_in_groups(names, saved):
        raise CheckpointError(
            f"the optimizer has {ours} parameter groups; the state has {len(saved)}"
        )
    return [
        [name for name in names if name.startswith(f"{number}.")] for number in range(len(saved))
    ]


def _order(
    mine: Sequence[Collection[str]],
    theirs: Sequence[Collection[str]],
    names: Collection[str],
    strict: bool,
) -> list[int] | None:
    """Return which saved group holds each of my groups' parameters; None if these differ."""
    together = [name for group in theirs for name in group]
    if strict and (len(together) != len(names) or set(together) != set(names)):
        raise CheckpointError("the saved groups do not hold each parameter of the state once")
    places: dict[frozenset[str], list[int]] = {}
    for number, group in enumerate(theirs):
        places.setdefault(frozenset(group), []).append(number)
    # Some groups may have no state, and are the same ones then in the same order.
    left = [places.get(frozenset(group), []) for group in mine]
    found = [numbers.pop(0) for numbers in left if numbers]
    return found if len(found) == len(mine) == len(theirs) else None


def _saved_names(number: int, group: Mapping[str, Any]) -> list[str]:
    given = group.get("params")
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise CheckpointError(
            f"groups[{number}]: expected params, a list of names, as of groups that share a tree; "
            f"got {given!r:.200}"
        )
    return given


def _changes(
    number: int, group: ParamGroup, saved: Mapping[str, Any], strict: bool, complete: bool
) -> Changes:
    """Return the hyperparameters to take over; schedules, on either side, are left as they are."""
    if strict and (others := _other_state(group, saved)):
        name = others[0]
        converting = "; convert=True stores state as it is here" if name in STORAGE else ""
        raise CheckpointError(
            f"groups[{number}].{name}: expected {group[name]!r}; got {saved[name]!r:.200}. "
            "Construct the optimizer with that of the saved one (strict=False keeps ours"
            f"{converting})"
        )
    if complete and (missing := group.plain.keys() - saved):
        raise CheckpointError(f"groups[{number}] lacks {sorted(missing)} (strict=False keeps ours)")
    looked_at = saved.keys() - OF_STATE
    given = {k: _number_saved(v) if k in group else v for k, v in saved.items() if k in looked_at}
    try:
        return group.resumed(given, {*_kept_as_they_are(group, saved)})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"groups[{number}]: {error}") from error


def _number_saved(value: Any) -> Any:
    """Return a saved hyperparameter, with None for a schedule's memory, in a pair too."""
    if isinstance(value, list | tuple):
        return [_number_saved(one) for one in value]
    return None if is_memory(value) else value


# -------------------------------------------------------------------------------------------------
# State in 16 and 8 bits as it stands in a state_dict, and whether what was saved is stored alike.
#
# The codes of 16 bits are bfloat16 arrays. Those of 8 bits are uint8 arrays in the parameter's
# shape (complex numbers are pairs, on a last axis), and ``<slot>_scale`` has the scales of their
# blocks. Blocks are consecutive in memory, so where a parameter is not in C order the entry has its
# "order".

ORDER = "order"


def shown(array: Array) -> Array:
    """Return a slot as it stands in a state_dict: codes of 16 bits as bfloat16."""
    return array.view(_bfloat16()) if array.dtype == CODE_DTYPES["bfloat16"] else array


def raw(array: Array) -> Array:
    """Return a slot of a state_dict as it is stored."""
    return array.view(CODE_DTYPES["bfloat16"]) if array.dtype.name == "bfloat16" else array


def order_of_blocks(param: Array, spec: UpdateSpec) -> dict[str, list[int]]:
    """Return what an entry says of the memory order of a parameter: nothing if it is C order.

    The axes by decreasing stride, ~axis for one that runs backwards.
    """
    order = arrays.layout_of(param).order if spec.state == "int8" else []
    return {ORDER: order} if order else {}


def storage_mismatch(
    name: str, saved: Mapping[str, Any], slots: Mapping[str, Array], order: Mapping[str, Any]
) -> str | None:
    """Return in what an entry is stored otherwise than these slots; None if it is stored alike."""
    for slot, array in slots.items():
        here, there = kind_of(array), kind_of(saved.get(slot))
        if there is not None and here != there and not slot.endswith(SCALE):
            ours, theirs = (
                str(found.dtype.name) if kind == "real" else kind
                for found, kind in ((array, here), (saved[slot], there))
            )
            return (
                f"state:{name}.{slot}: expected {ours}; got {theirs}. Construct the optimizer with "
                "the state_dtype of the saved one, or convert"
            )
    theirs, ours = (str(found.get(ORDER, "in C order")) for found in (saved, order))
    if theirs != ours:  # as text: arrays have no truth value
        return (
            f"state:{name}: expected axes by decreasing stride {ours}; got {theirs:.200}. Blocks "
            "of 8-bit state are consecutive in memory, so give the parameter the order it had"
        )
    return None


def kind_of(array: Any) -> State | None:
    """Return how the numbers of a slot are stored, as a UpdateSpec says it; None for no array."""
    if not isinstance(array, np.ndarray) and arrays.kind(array) is None:
        return None
    kinds: dict[str, State] = {dtype.name: kind for kind, dtype in CODE_DTYPES.items()}
    kinds["bfloat16"] = "bfloat16"  # as it is ``shown``
    return kinds.get(array.dtype.name, "real")


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "state in bfloat16 becomes NumPy arrays of that dtype, which ml_dtypes has; pip "
            "install ml_dtypes"
        ) from error
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


# -------------------------------------------------------------------------------------------------
# An optimizer's state as a dict, and back: by name, all or nothing, never cast.

EXPONENT = "exponent"
"""A power of two that an earlier version kept with the state of a parameter, see ``_mismatch``."""


def collect_state(name: str, state: OptimizerState, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state_dict of an optimizer of this name and policy."""
    entries = {}
    for bucket in state.buckets:
        for leaf, step, slots in bucket.state():
            copies = {slot: shown(arrays.on_host(array)) for slot, array in slots.items()}
            order = order_of_blocks(leaf.array, bucket.spec)
            entries[leaf.name] = {"step": step, **order, **copies}
    return with_entries(name, state, policy, entries)


def with_entries(
    name: str, state: OptimizerState, policy: Mapping[str, Any], entries: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state_dict whose entries of parameters are these."""
    memory = {"memory": dict(state.memory)} if state.memory else {}
    described = [descriptions(group.plain) for group in state.groups]
    return {
        "fastopt": __version__,
        "optimizer": name,
        "step_count": int(state.counts.steps[0]),
        "groups": collected(state),
        "state": entries,
        **memory,
        **_missed(state),
        "policy": dict(policy),
        **({"described": described} if any(described) else {}),
    }


def _missed(state: OptimizerState) -> dict[str, Any]:
    """Return how many steps each member has missed that others made, if any has."""
    members = state.counts.members
    if members is None or not members.apart:
        return {}
    by_name = {
        parameter.leaf.name: row.copy()
        for bucket in state.buckets
        if bucket.missed is not None
        for parameter, row in zip(bucket.parameters, bucket.missed, strict=True)
    }
    return {"missed": {"steps": members.missed.copy(), "state": by_name}}


def _missed_restorer(state: OptimizerState, saved: Mapping[str, Any]) -> Callable[[], None]:
    """Look at what a state_dict says of missed steps; return what takes it over."""
    members, missed = state.counts.members, saved.get("missed")
    if missed is not None and members is None:
        raise CheckpointError(
            "the state is of members that have made different steps; construct the optimizer with "
            "members="
        )
    found = {} if missed is None else missed
    if not isinstance(found, Mapping) or not isinstance(found.get("state", {}), Mapping):
        raise CheckpointError(f"missed must be a dict of steps and state; got {missed!r:.200}")
    known = [p.leaf.name for bucket in state.buckets for p in bucket.parameters]
    by_name = {name: found.get("state", {}).get(name) for name in known}
    every = {"steps": found.get("steps"), **by_name}
    count = 0 if members is None else len(members.missed)
    for name, steps in every.items():
        if steps is not None and not _are_counts(steps, count):
            raise CheckpointError(
                f"missed: {name} must be {count} whole numbers from 0 on, one for each member; got "
                f"{steps!r:.200}"
            )

    def commit() -> None:
        if members is None:
            return
        members.missed[:] = 0 if every["steps"] is None else every["steps"]
        for bucket in state.buckets:
            bucket.missed = None
            if members.apart:
                bucket.allow_misses()
            for index, parameter in enumerate(bucket.parameters):
                if members.apart and (steps := by_name[parameter.leaf.name]) is not None:
                    bucket.miss(index, np.asarray(steps))

    return commit


def _are_counts(steps: Any, count: int) -> bool:
    given = np.asarray(steps)
    return given.shape == (count,) and given.dtype.kind in "iu" and bool((given >= 0).all())


def state_restorer(
    name: str,
    state: OptimizerState,
    policy: Mapping[str, Any],
    saved: Mapping[str, Any],
    strict: bool,
) -> tuple[Callable[[], None], Differences]:
    """Look at all of a state_dict of an optimizer of this name; return what takes it over."""
    step_count, hyperparameters, entries = _parts(name, saved)
    has_policy = "policy" in saved  # earlier versions saved none, and described nothing
    groups = saved_groups(hyperparameters, saved.get("described"), has_policy)
    # What another version does not know, it cannot have saved: there the report is enough.
    complete = strict and saved.get("fastopt") == __version__
    settings, differences = settings_restorer(state, groups, entries, strict, complete)
    if has_policy:
        differences += Differences(settings=tuple(policy_differences(policy, saved["policy"])))
    targets = {
        leaf.name: (bucket, index, slots, order_of_blocks(leaf.array, bucket.spec))
        for bucket in state.buckets
        for index, (leaf, _, slots) in enumerate(bucket.state())
    }
    differences += compare_names("state", "state:", targets, entries, strict)
    memory = _saved_memory(saved)
    differences += compare_names("memory", "memory:", state.memory, memory, strict)
    memory = {name: memory.get(name, value) for name, value in state.memory.items()}
    counts, writes, mismatches = [], [], []
    for key, (bucket, index, slots, order) in targets.items():
        if key not in entries:
            continue
        entry = entries[key]
        if wrong := _mismatch(key, entry, slots, order):
            mismatches.append(wrong)
            continue
        counts.append((bucket, index, int(entry["step"])))
        writes += [(view, arrays.like(raw(entry[slot]), view)) for slot, view in slots.items()]
    if strict and mismatches:
        raise CheckpointError(
            f"{mismatches[0]}. State is never reshaped, and cast only with convert=True."
        )
    differences += Differences(mismatched=tuple(mismatches))
    missed = _missed_restorer(state, saved)

    def commit() -> None:
        with Deferred():
            put(writes)
            missed()
            for bucket, index, count in counts:
                bucket.set_step(index, count)
            settings()
            state.memory.take(memory)
            state.counts.steps[0] = step_count

    return commit, differences


def saved_steps(saved: Any) -> dict[str, Any]:
    """Return the step counts of a state_dict by name, as far as it is one."""
    entries = saved.get("state") if isinstance(saved, Mapping) else None
    pairs = entries.items() if isinstance(entries, Mapping) else ()
    # Whatever else is wrong with it is found where it is taken over.
    return {name: e["step"] for name, e in pairs if isinstance(e, Mapping) and "step" in e}


def put(writes: Iterable[tuple[Array, Array]]) -> None:
    """Write arrays into others of the same shape, dtype and device."""
    for target, values in writes:
        with arrays.on_device_of(target):
            target[...] = values


def _parts(name: str, saved: Mapping[str, Any]) -> tuple[int, list[Any], Mapping[str, Any]]:
    """Return step count, hyperparameters and entries of a state_dict with the right outline."""
    if not isinstance(saved, Mapping) or "optimizer" not in saved:
        raise CheckpointError(f"expected a state_dict of {name}; got {type(saved).__name__}")
    owner = saved["optimizer"]
    if not isinstance(owner, str) or owner != name:
        raise CheckpointError(f"the state is of {owner!s:.200}; this optimizer is {name}")
    step_count, groups, entries = (saved.get(key) for key in ("step_count", "groups", "state"))
    if step_count is None or not is_count(step_count):
        raise CheckpointError(f"step_count must be a whole number from 0 on; got {step_count!r}")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise CheckpointError(f"groups must be a list of dicts; got {groups!r:.200}")
    if not isinstance(entries, Mapping):
        raise CheckpointError("state must be a dict of the parameters' names")
    return int(step_count), groups, entries


def _number(value: Any) -> float:
    """Return a number, finite or not, as a float; TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(type(value).__name__)
    return float(value)


def _saved_memory(saved: Mapping[str, Any]) -> dict[str, float]:
    """Return what a state_dict says that the rule remembered of all arrays together."""
    memory = saved.get("memory", {})
    if not isinstance(memory, Mapping):
        raise CheckpointError(f"memory must be a dict of numbers; got {type(memory).__name__}")
    found = {}
    for name, value in memory.items():
        try:
            found[name] = _number(value)
        except (TypeError, OverflowError) as error:
            raise CheckpointError(f"memory: {name} must be a number; got {value!r:.200}") from error
    return found


def _mismatch(
    name: str,
    entry: Any,
    slots: Mapping[str, Array],
    order: Mapping[str, Any],
) -> str | None:
    """Return what of an entry has another shape or dtype than these slots; None if nothing.

    Raises CheckpointError unless the entry holds a step and exactly these slots, as arrays.
    """
    if isinstance(entry, Mapping) and (other := storage_mismatch(name, entry, slots, order)):
        return other
    if not isinstance(entry, Mapping) or entry.keys() - {EXPONENT} != {"step", *order, *slots}:
        got = sorted(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise CheckpointError(f"{name}: expected step and {sorted(slots)}; got {got}")
    if not is_count(entry["step"]):
        raise CheckpointError(f"{name}: step must be a whole number; got {entry['step']!r}")
    exponent = entry.get(EXPONENT, 0)
    if isinstance(exponent, bool) or not isinstance(exponent, int | np.integer):
        raise CheckpointError(f"{name}: {EXPONENT} must be a whole number; got {exponent!r}")
    if exponent:
        return (
            f"state:{name}: it is that of gradients times 2^{exponent}, as scale_safe of an "
            "earlier version kept it, which this one does not read. Load without it "
            "(strict=False takes over the rest) or train anew; for gradients whose squares float32 "
            "does not hold there is state_dtype='float64' now"
        )
    for slot in slots:
        if not isinstance(entry[slot], np.ndarray):
            got = type(entry[slot]).__name__
            raise CheckpointError(f"{name}.{slot}: expected a NumPy array; got {got}")
    wrong = (
        mismatch(f"state:{name}.{slot}", view, raw(entry[slot])) for slot, view in slots.items()
    )
    return next(filter(None, wrong), None)


# -------------------------------------------------------------------------------------------------
# The parameters' own values in a checkpoint: read from the user's arrays, written back.


def collect_parameters(state: OptimizerState) -> dict[str, Array]:
    """Return the parameters by name; ValueError if one is no longer the user's."""
    found = {}
    for parameter, now in _with_current(state):
        if now is not parameter.leaf.array:
            parameter.check_array(now)  # raises, and says what to do
        found[parameter.leaf.name] = parameter.leaf.array
    for leaf, now in _counters(state):
        counter = np.asarray(now) if isinstance(now, np.generic) else now
        if arrays.kind(counter) != arrays.kind(leaf.array) or counter.dtype.kind not in COUNTERS:
            raise ValueError(
                f"{leaf.path} was an array of {leaf.array.dtype} when the optimizer was made; got "
                f"{type(now).__name__}. Write into it (params[...][...] = value)"
            )
        found[leaf.name] = counter
    return found


def _counters(state: OptimizerState) -> Iterator[tuple[Leaf, Any]]:
    """Yield every leaf that is not trained, of whole numbers, with what stands in its place now.

    That is the user's, who may have put something else there.
    """
    for leaf, now in zip(state.tree.leaves, state.tree.everything(), strict=True):
        if leaf.is_counter:
            yield leaf, now


def parameters_restorer(
    state: OptimizerState, saved: Mapping[str, Any], strict: bool
) -> tuple[Callable[[], None], Differences]:
    """Look at all saved parameters; return what writes them.

    Raises CheckpointError for what does not fit, ValueError for parameters that are no longer the
    user's, or cannot be written any more.
    """
    targets = {}
    for parameter, now in _with_current(state):
        parameter.check_array(now)
        targets[parameter.leaf.name] = parameter.leaf.array
    for leaf, now in _counters(state):
        if arrays.kind(now) is None or not getattr(now.flags, "writeable", True):
            raise ValueError(
                f"{leaf.path} is written in place here, and is no array that this can be done "
                f"with; got {type(now).__name__}. Put an array there that is not read-only"
            )
        targets[leaf.name] = now
    return arrays_restorer(targets, saved, strict)


def arrays_restorer(
    targets: Mapping[str, Array], saved: Mapping[str, Any], strict: bool
) -> tuple[Callable[[], None], Differences]:
    """Look at saved parameters by name; return what writes them into these arrays."""
    differences = compare_names("parameters", "param:", targets, saved, strict)
    writes, mismatches = [], []
    for name, array in targets.items():
        if name not in saved:
            continue
        if not isinstance(saved[name], np.ndarray):
            raise CheckpointError(f"param:{name}: expected an array; got {saved[name]!r}")
        if wrong := mismatch(f"param:{name}", array, saved[name]):
            mismatches.append(wrong)
        else:
            writes.append((array, arrays.like(saved[name], array)))
    if strict and mismatches:
        raise CheckpointError(
            f"{mismatches[0]}. Parameters are never reshaped, and cast only with convert=True."
        )
    return lambda: put(writes), differences + Differences(mismatched=tuple(mismatches))


def _with_current(state: OptimizerState) -> Iterator[tuple[Parameter, Any]]:
    """Yield every parameter with what stands in its place in the user's tree now."""
    now = state.tree.everything()
    for bucket in state.buckets:
        for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
            yield parameter, now[position]
