"""An optimizer's state as a dict, and back: by name, all or nothing, never cast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastopt import arrays, group_settings, stored_state
from fastopt.arrays import Array
from fastopt.buckets import Bucket
from fastopt.errors import CheckpointError
from fastopt.group import Group
from fastopt.interrupts import Deferred
from fastopt.load_report import Differences, compare_names
from fastopt.saved import is_count, misfit
from fastopt.version import __version__

EXPONENT = "exponent"
"""What an earlier version kept beside the state of a parameter: a power of two, see ``_misfit``."""


def collect(name: str, groups: Sequence[Group], clock: Array) -> dict[str, Any]:
    """Return the state_dict of an optimizer of this name."""
    entries = {}
    for bucket in _buckets(groups):
        for leaf, step, slots in bucket.state():
            copies = {
                slot: stored_state.shown(arrays.on_host(array)) for slot, array in slots.items()
            }
            order = stored_state.order_of_blocks(leaf.array, bucket.format)
            entries[leaf.name] = {"step": step, **order, **copies}
    return {
        "fastopt": __version__,
        "optimizer": name,
        "step_count": int(clock[0]),
        "groups": group_settings.collected(groups),
        "state": entries,
    }


def restorer(
    name: str, groups: Sequence[Group], clock: Array, saved: Mapping[str, Any], strict: bool
) -> tuple[Callable[[], None], Differences]:
    """Look at all of a state_dict of an optimizer of this name; return what takes it over."""
    step_count, hyperparameters, entries = _parts(name, saved)
    # What another version does not know, it cannot have saved: there the report is enough.
    complete = strict and saved.get("fastopt") == __version__
    settings, differences = group_settings.restorer(
        groups, hyperparameters, entries, strict, complete
    )
    targets = {
        leaf.name: (bucket, index, slots, stored_state.order_of_blocks(leaf.array, bucket.format))
        for bucket in _buckets(groups)
        for index, (leaf, _, slots) in enumerate(bucket.state())
    }
    differences += compare_names("state", "state:", targets, entries, strict)
    counts, writes, misfits = [], [], []
    for key, (bucket, index, slots, order) in targets.items():
        if key not in entries:
            continue
        entry = entries[key]
        if wrong := _misfit(key, entry, slots, order):
            misfits.append(wrong)
            continue
        counts.append((bucket, index, int(entry["step"])))
        writes += [
            (view, arrays.like(stored_state.raw(entry[slot]), view)) for slot, view in slots.items()
        ]
    if strict and misfits:
        raise CheckpointError(
            f"{misfits[0]}. State is never reshaped, and cast only with convert=True."
        )
    differences += Differences(mismatched=tuple(misfits))

    def commit() -> None:
        with Deferred():
            put(writes)
            for bucket, index, count in counts:
                bucket.set_step(index, count)
            settings()
            clock[0] = step_count

    return commit, differences


def put(writes: Iterable[tuple[Array, Array]]) -> None:
    """Write arrays into others of the same shape, dtype and device."""
    for target, values in writes:
        with arrays.on_device_of(target):
            target[...] = values


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


def _misfit(
    name: str,
    entry: Any,
    slots: Mapping[str, Array],
    order: Mapping[str, Any],
) -> str | None:
    """Return what of an entry has another shape or dtype than these slots; None if nothing.

    Raises CheckpointError unless the entry holds a step and exactly these slots, as arrays.
    """
    if isinstance(entry, Mapping) and (other := stored_state.misfit(name, entry, slots, order)):
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
        misfit(f"state:{name}.{slot}", view, stored_state.raw(entry[slot]))
        for slot, view in slots.items()
    )
    return next(filter(None, wrong), None)


def _buckets(groups: Sequence[Group]) -> Iterator[Bucket]:
    for group in groups:
        yield from group.buckets
