"""What an optimizer is ready to take over, and the one place where it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import optree

from fastopt.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.group import Group
from fastopt.optimizer import Optimizer


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of ours, and the state that is kept of it.

    ``name`` is that in a state_dict, ``own_name`` that in its own tree: without the number of the
    group that comes first where the optimizer was given a list of groups.
    """

    name: str
    own_name: str
    group: int
    array: Array
    slots: Mapping[str, Array]
    signed: frozenset[str]


@dataclass(slots=True)
class Incoming:
    """What there is for one parameter.

    ``step`` None stands for a count that the other library does not keep; ``slots`` hold the values
    together with what errors call them, and are None if nothing is kept yet: no gradient has come.
    """

    step: int | None
    slots: Mapping[str, tuple[str, Array]] | None
    settings: Mapping[str, Any] = field(default_factory=dict)


def groups_of(opt: Optimizer) -> list[list[Parameter]]:
    """Return the parameters group by group, in the order in which the user wrote them.

    Dicts keep their own order, which is not the one of ``state_dict``: that sorts their keys.
    """
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt must be an optimizer of fastopt; got {type(opt).__name__}")
    return [_written(number, group, opt._grouped) for number, group in enumerate(opt._groups)]


def _written(number: int, group: Group, grouped: bool) -> list[Parameter]:
    cut = len(f"{number}.") if grouped else 0
    found = {}
    for bucket in group.buckets:
        rule = bucket.rule
        if bucket.format.state != "real" or bucket.format.widened:
            state_dtype = group.options["state_dtype"]
            raise ValueError(
                f"{bucket.parameters[0].leaf.path} has state_dtype={state_dtype!r} here, "
                "which other libraries have not; construct the optimizer with state_dtype=None"
            )
        for leaf, _, views in bucket.state():
            slots = {slot: views[slot] for slot in rule.state}
            name = leaf.name
            found[id(leaf.array)] = Parameter(
                name, name[cut:], number, leaf.array, slots, frozenset(rule.signed)
            )
    written = [found[key] for key in map(id, _leaves(group.tree.params)) if key in found]
    if len(written) != len(found):
        lost = next(p.name for p in found.values() if not any(p is w for w in written))
        raise ValueError(
            f"{lost} is no longer the array that the optimizer was given; construct a new optimizer"
        )
    return written


def _leaves(node: Any) -> Iterator[Any]:
    """Yield the leaves of a tree in the order in which it is written."""
    if isinstance(node, dict):
        children: Any = node.values()
    elif isinstance(node, list | tuple):
        children = node
    else:
        yield from optree.tree_leaves(node, none_is_leaf=True)
        return
    for child in children:
        yield from _leaves(child)


def take_over(
    opt: Optimizer, incoming: Mapping[str, Incoming], step_count: int | None, library: str
) -> None:
    """Take over all of it, by ``load_state_dict``; CheckpointError, and no change, if one fails."""
    groups = groups_of(opt)
    settings = [_settings(group, incoming) for group in groups]
    count = _count(incoming, step_count, library)
    saved = opt.state_dict()
    for parameter in chain.from_iterable(groups):
        options = {**opt.param_groups[parameter.group], **settings[parameter.group]}
        entry = _entry(parameter, incoming[parameter.name], count, type(opt)._fill(options))
        saved["state"][parameter.name].update(entry)
    for group, changes in zip(saved["groups"], settings, strict=True):
        group.update(changes)
    opt.load_state_dict({**saved, "step_count": count})


def _settings(group: list[Parameter], incoming: Mapping[str, Incoming]) -> dict[str, Any]:
    """Return the hyperparameters that all parameters of a group come with."""
    first = group[0] if group else None
    together = dict(incoming[first.name].settings) if first else {}
    for parameter in group:
        given = incoming[parameter.name].settings
        for name in sorted(together.keys() | given.keys()):
            if repr(together.get(name)) != repr(given.get(name)):  # NaN is itself here
                raise CheckpointError(
                    f"{group[0].name} comes with {name}={together.get(name)!r}, {parameter.name} "
                    f"with {name}={given.get(name)!r}, but both are in one group of the optimizer; "
                    "construct it with a group for each"
                )
    return together


def _count(incoming: Mapping[str, Incoming], step_count: int | None, library: str) -> int:
    known = [one.step for one in incoming.values() if one.step is not None]
    if step_count is None:
        if any(one.step is None for one in incoming.values()):
            raise CheckpointError(
                f"{library} counts no steps here, and schedules and the first step depend on them; "
                "say how many have been made: step_count=..."
            )
        return max(known)
    if isinstance(step_count, bool) or not isinstance(step_count, int | np.integer):
        raise TypeError(f"step_count must be a whole number; got {step_count!r}")
    if step_count < max([0, *known]):
        raise CheckpointError(
            f"step_count={step_count!r}, but {library} has made {max([0, *known])} steps"
        )
    return int(step_count)


def _entry(
    parameter: Parameter, given: Incoming, count: int, fill: Mapping[str, float]
) -> dict[str, Any]:
    """Return a parameter's entry of a state_dict."""
    if given.slots is None:
        empty = {slot: _filled(view, fill.get(slot, 0.0)) for slot, view in parameter.slots.items()}
        return {"step": 0, **empty}
    step = count if given.step is None else given.step
    if given.slots.keys() != parameter.slots.keys():
        places = sorted(place for place, _ in given.slots.values())
        raise CheckpointError(
            f"{parameter.name}: the optimizer keeps {sorted(parameter.slots)}; got "
            f"{', '.join(places) or 'nothing'}. Construct it with the settings of the other run."
        )
    slots = {slot: _fitting(parameter, slot, *given.slots[slot]) for slot in parameter.slots}
    for slot, array in slots.items():
        if step == 0 and slot not in fill and array.any():
            raise CheckpointError(
                f"{given.slots[slot][0]} is the state of steps that {parameter.name} has made, and "
                "their count is 0"
            )
    return {"step": step, **slots}


def _filled(view: Array, value: float) -> Array:
    filled: Array = np.zeros(view.shape, view.dtype)
    _reals(filled)[...] = value
    return filled


def _reals(array: Array) -> Array:
    """Return a NumPy array, complex as pairs of real numbers: each is averaged on its own."""
    return array.reshape(-1).view(array.real.dtype) if array.dtype.kind == "c" else array


def _fitting(parameter: Parameter, slot: str, place: str, array: Array) -> Array:
    """Return a value that has the shape, dtype and sign of a slot; CheckpointError otherwise."""
    view = parameter.slots[slot]
    if array.shape != view.shape or array.dtype != view.dtype:
        raise CheckpointError(
            f"{place}, which would be {slot} of {parameter.name}: expected {view.dtype} "
            f"{view.shape}; got {array.dtype} {array.shape}. State is never cast or reshaped here; "
            "convert it before if that is what is meant"
        )
    array = np.ascontiguousarray(array).reshape(array.shape)
    if slot not in parameter.signed and (_reals(array) < 0).any():
        raise CheckpointError(
            f"{place}, which would be {slot} of {parameter.name}, holds negative numbers, and "
            f"{slot} is made of squares: it is something else"
        )
    return array
