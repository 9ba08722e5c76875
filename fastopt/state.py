"""An optimizer's state as a dict, and back: by name, all or nothing, never cast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastopt import arrays, group_settings
from fastopt.arrays import Array
from fastopt.buckets import Bucket
from fastopt.errors import CheckpointError
from fastopt.group import Group
from fastopt.interrupts import Deferred
from fastopt.saved import check_array, is_count
from fastopt.version import __version__


def collect(name: str, groups: Sequence[Group], clock: Array) -> dict[str, Any]:
    """Return the state_dict of an optimizer of this name."""
    entries = {}
    for bucket in _buckets(groups):
        for leaf, step, slots in bucket.state():
            copies = {slot: arrays.on_host(array) for slot, array in slots.items()}
            entries[leaf.name] = {"step": step, **copies}
    return {
        "fastopt": __version__,
        "optimizer": name,
        "step_count": int(clock[0]),
        "groups": group_settings.collected(groups),
        "state": entries,
    }


def restore(
    name: str, groups: Sequence[Group], clock: Array, saved: Mapping[str, Any], strict: bool
) -> None:
    """Take over a state_dict of an optimizer of this name: look at all of it first, then write."""
    step_count, hyperparameters, entries = _parts(name, saved)
    changes, memories = group_settings.takeover(groups, hyperparameters, entries, strict)
    targets = {
        leaf.name: (bucket, index, slots)
        for bucket in _buckets(groups)
        for index, (leaf, _, slots) in enumerate(bucket.state())
    }
    if strict and targets.keys() != entries.keys():
        missing = sorted(targets.keys() - entries)
        extra = sorted(map(str, entries.keys() - targets))
        raise CheckpointError(
            f"the saved state lacks {len(missing)} parameters {missing[:3]} and has {len(extra)} "
            f"too many {extra[:3]}; state is matched by name "
            "(strict=False takes what fits)"
        )
    common = targets.keys() & entries.keys()
    for key in common:
        _check_entry(key, entries[key], targets[key][2])
    # Everything fits: from here on nothing can fail, and nothing can interrupt.
    with Deferred():
        for key in common:
            bucket, index, slots = targets[key]
            for slot, view in slots.items():
                with arrays.on_device_of(view):
                    view[...] = arrays.like(entries[key][slot], view)
            bucket.set_step(index, int(entries[key]["step"]))
        for group, checked in zip(groups, changes, strict=True):
            group.options.update(checked)
        for restore_memory in memories:
            restore_memory()
        clock[0] = step_count


def _parts(name: str, saved: Mapping[str, Any]) -> tuple[int, list[Any], Mapping[str, Any]]:
    """Return step count, hyperparameters and entries of a state_dict with the right outline."""
    if not isinstance(saved, Mapping) or "optimizer" not in saved:
        raise CheckpointError(f"expected a state_dict of {name}; got {type(saved).__name__}")
    if saved["optimizer"] != name:
        raise CheckpointError(f"the state is of {saved['optimizer']}; this optimizer is {name}")
    step_count, groups, entries = (saved.get(key) for key in ("step_count", "groups", "state"))
    if step_count is None or not is_count(step_count):
        raise CheckpointError(f"step_count must be a whole number from 0 on; got {step_count!r}")
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise CheckpointError(f"groups must be a list of dicts; got {groups!r:.200}")
    if not isinstance(entries, Mapping):
        raise CheckpointError("state must be a dict of the parameters' names")
    return int(step_count), groups, entries


def _check_entry(name: str, entry: Any, slots: Mapping[str, Array]) -> None:
    """Raise CheckpointError unless an entry holds a step and exactly these slots."""
    if not isinstance(entry, Mapping) or entry.keys() != {"step", *slots}:
        got = sorted(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
        raise CheckpointError(f"{name}: expected step and {sorted(slots)}; got {got}")
    if not is_count(entry["step"]):
        raise CheckpointError(f"{name}: step must be a whole number; got {entry['step']!r}")
    for slot, view in slots.items():
        check_array(f"{name}.{slot}", entry[slot], view)


def _buckets(groups: Sequence[Group]) -> Iterator[Bucket]:
    for group in groups:
        yield from group.buckets
