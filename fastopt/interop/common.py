"""What all of interop shares: reading values, matching parameters, and taking state over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np

from fastopt.core import arrays, tree
from fastopt.core.arrays import Array
from fastopt.core.buckets import OptimizerState
from fastopt.core.hyperparameters import ElementScales, Options, Value, learning_rate
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer

Function = TypeVar("Function", bound=Callable[..., Any])


def between_steps(function: Function) -> Function:
    """Return a function of an optimizer that does all it does between two steps of it.

    What another thread steps meanwhile would be half in what is read, and lost in what is written.
    """

    @wraps(function)
    def alone(opt: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(opt, Optimizer):
            raise TypeError(f"opt must be an optimizer of fastopt; got {type(opt).__name__}")
        return opt._alone(lambda: function(opt, *args, **kwargs))

    return cast(Function, alone)


# -------------------------------------------------------------------------------------------------
# What other libraries store, as NumPy arrays and plain numbers, without importing them.


def array_of(value: Any, place: str) -> Array:
    """Return an array, a tensor in host memory or a number as a NumPy array.

    The array may share memory with the tensor. ``place`` is what errors call it.
    """
    place_of = getattr(getattr(value, "device", None), "type", "cpu")
    if isinstance(place_of, str) and place_of != "cpu":
        raise CheckpointError(
            f"{place} is on the device {value.device}; move it to host memory first, with .cpu()"
        )
    try:
        array = _read(value)
    except Exception as error:
        raise CheckpointError(
            f"{place} cannot be read as a NumPy array; got {_described(value)}: {error}"
        ) from error
    if array.dtype.kind in "OUSMmV" and array.dtype.name != "bfloat16":
        raise CheckpointError(f"{place} must be numbers; got {_described(value)}")
    return array


def _read(value: Any) -> Array:
    if arrays.kind(value) == "cupy":
        return arrays.on_host(value)
    if callable(detach := getattr(value, "detach", None)):
        value = detach()  # a tensor that takes part in autograd does not become an array
    if callable(numpy := getattr(value, "numpy", None)):
        value = numpy()
    return np.asarray(value)


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"{type(value).__name__}" if dtype is None else f"{type(value).__name__} of {dtype}"


def plain(value: Any, place: str) -> Any:
    """Return a hyperparameter as a Python value; pairs, and tensors with one element, too."""
    if isinstance(value, bool | int | float | str):
        return value
    if value is None:
        raise CheckpointError(f"{place} is missing; got None")
    if isinstance(value, list | tuple):
        return tuple(plain(one, f"{place}[{k}]") for k, one in enumerate(value))
    array = array_of(value, place)
    if array.size != 1:
        raise CheckpointError(f"{place} must be one number; got {array.dtype} {array.shape}")
    return array.item()


def count_of(value: Any, place: str) -> int:
    """Return a number of steps, which some libraries store as a floating-point number."""
    number = plain(value, place)
    whole = isinstance(number, int | float) and not isinstance(number, bool) and number % 1 == 0
    if not whole or not 0 <= number < 2**63:
        raise CheckpointError(f"{place} must be a whole number from 0 on; got {number!r}")
    return int(number)


# -------------------------------------------------------------------------------------------------
# The learning rate, which has no scale elsewhere: theirs is all of it.


def rate_after(options: Options, theirs: Any) -> Any:
    """Return the learning rate of coming steps, or what schedule gives it.

    ``theirs`` is taken over unless there is a schedule; None: there is none to take over.
    """
    for name in ("lr", "lr_scale"):
        if callable(options[name]):
            return options[name]
    return learning_rate(options) if theirs is None else theirs


def _with_whole_rate(options: Options, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters to take over, of which lr is lr * lr_scale.

    Where a schedule gives one of the two, both stay as they are; so do factors of elements.
    """
    if "lr" not in changes or isinstance(options["lr_scale"], ElementScales):
        return dict(changes)
    if callable(options["lr"]) or callable(options["lr_scale"]):
        return {name: value for name, value in changes.items() if name != "lr"}
    return {**changes, "lr_scale": 1.0}


# -------------------------------------------------------------------------------------------------
# A momentum buffer that another library keeps times its learning rate: ours are without it.


def divide_buffer(
    slots: Mapping[str, tuple[str, Array]], lr: Any, sign: float, name: str
) -> dict[str, tuple[str, Array]]:
    """Return the slots of a parameter with ``buf`` divided by a learning rate and a sign.

    What rate it was when the buffer was gathered makes no difference: the steps go on as they would
    have there as long as the rate stays what it is now.
    """
    if "buf" not in slots:
        return dict(slots)
    place, array = slots["buf"]
    if callable(lr) or not lr:
        raise CheckpointError(
            f"{place} is kept times the learning rate, which must be a number above 0 to divide by "
            f"it; the lr of {name} is {lr!r}"
        )
    if array.dtype.kind not in "fc":
        raise CheckpointError(f"{place} must be floating; got {array.dtype}")
    wide = array.astype(np.result_type(array.dtype, np.float64))
    with np.errstate(all="ignore"):  # what overflows becomes infinite, as in a step
        divided = (wide / (sign * lr)).astype(array.dtype)
    return {**slots, "buf": (place, divided)}


# -------------------------------------------------------------------------------------------------
# What an optimizer is ready to take over, and the one place where it does.


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
    state = opt._state
    return [_written(state, number) for number in range(len(state.groups))]


def _written(state: OptimizerState, number: int) -> list[Parameter]:
    cut = len(f"{number}.") if state.tree.grouped else 0
    found = {}
    for bucket in (bucket for bucket in state.buckets if bucket.group == number):
        rule = bucket.rule
        if bucket.spec.state != "real" or bucket.spec.widened:
            raise ValueError(
                f"{bucket.parameters[0].leaf.path} has "
                f"state_dtype={state.groups[number]['state_dtype']!r} here, "
                "which other libraries have not; construct the optimizer with state_dtype=None"
            )
        for leaf, _, views in bucket.state():
            slots = {slot: views[slot] for slot in rule.state}
            name = leaf.name
            found[id(leaf.array)] = Parameter(
                name, name[cut:], number, leaf.array, slots, frozenset(rule.signed)
            )
    params = state.tree.params[number] if state.tree.grouped else state.tree.params
    written = [found[key] for key in map(id, _leaves(params)) if key in found]
    if len(written) != len(found):
        lost = next(p.name for p in found.values() if not any(p is w for w in written))
        raise ValueError(
            f"{lost} is no longer the array that the optimizer was given; construct a new optimizer"
        )
    return written


def _leaves(node: Any) -> Iterator[Any]:
    """Yield the leaves of a tree in the order in which it is written."""
    if isinstance(node, Mapping):
        children: Any = node.values()
    elif isinstance(node, list | tuple):
        children = node
    else:
        yield from tree.leaves_of(node)
        return
    for child in children:
        yield from _leaves(child)


def take_over(
    opt: Optimizer, incoming: Mapping[str, Incoming], step_count: int | None, library: str
) -> None:
    """Take over all of it, ``between_steps``; CheckpointError, and no change, if one fails."""
    groups = groups_of(opt)
    settings = [
        _with_whole_rate(options, _settings(group, incoming))
        for options, group in zip(opt.param_groups, groups, strict=True)
    ]
    count = _count(incoming, step_count, library)
    saved = opt._collect_state()
    for parameter in chain.from_iterable(groups):
        options = {**opt.param_groups[parameter.group], **settings[parameter.group]}
        entry = _entry(parameter, incoming[parameter.name], count, type(opt)._fill(options))
        saved["state"][parameter.name].update(entry)
    for group, changes in zip(saved["groups"], settings, strict=True):
        group.update(changes)
    opt._restore_state({**saved, "step_count": count}, strict=True, convert=False)


def _settings(group: list[Parameter], incoming: Mapping[str, Incoming]) -> dict[str, Any]:
    """Return the hyperparameters that all parameters of a group come with.

    Those of which nothing is known there, frozen ones, come with none.
    """
    known = [p for p in group if incoming[p.name].slots is not None or incoming[p.name].settings]
    together = dict(incoming[known[0].name].settings) if known else {}
    for parameter in known:
        given = incoming[parameter.name].settings
        for name in sorted(together.keys() | given.keys()):
            if repr(together.get(name)) != repr(given.get(name)):  # NaN is itself here
                raise CheckpointError(
                    f"{known[0].name} comes with {name}={together.get(name)!r}, {parameter.name} "
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
    parameter: Parameter, given: Incoming, count: int, fill: Mapping[str, Value]
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


def _filled(view: Array, value: Value) -> Array:
    """Return a slot's array of a number, or of one for each member, which the first axis counts."""
    filled: Array = np.zeros(view.shape, view.dtype)
    _reals(filled).reshape(np.size(value), -1).T[...] = value
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


# -------------------------------------------------------------------------------------------------
# Which of their parameters is which of ours: by the user's word, by name, or by position.

Names = Mapping[str, int | str]
"""Our name of each parameter to theirs: a name, or a position, 0 for the first."""


def match(
    ours: Sequence[Sequence[Parameter]],
    theirs: Sequence[Sequence[str | None]],
    names: Names | None,
    spelled: Callable[[str], str] = str,
) -> dict[str, int]:
    """Return the position of their parameter for each name of ours.

    Both are given group by group, theirs by name, None where there is none. ``spelled`` turns a
    name of ours into their spelling. By position, the groups must be of the same sizes.
    """
    mine, other = list(chain.from_iterable(ours)), list(chain.from_iterable(theirs))
    if names is not None:
        return _by_word(mine, other, names)
    if len(mine) != len(other):
        raise CheckpointError(
            f"the optimizer has {len(mine)} parameters, and the state is of {len(other)}"
        )
    place = {name: position for position, name in enumerate(other) if name is not None}
    for spellings in ([spelled(p.name) for p in mine], [spelled(p.own_name) for p in mine]):
        if place.keys() == set(spellings) and len(set(spellings)) == len(mine):
            return {p.name: place[s] for p, s in zip(mine, spellings, strict=True)}
        if known := sorted(place.keys() & set(spellings)):
            odd = sorted(place.keys() ^ set(spellings)) or ["but some names are there twice"]
            raise CheckpointError(
                f"some parameters have the same name on both sides ({known[0]}) and some have not "
                f"({', '.join(odd[:4])}); say which is which: names={{ours: theirs, ...}}"
            )
    if [len(group) for group in ours] != [len(group) for group in theirs]:
        raise CheckpointError(
            f"without names parameters are matched by position, but the groups have "
            f"{[len(group) for group in ours]} parameters here and "
            f"{[len(group) for group in theirs]} there; say which is which: "
            "names={ours: position, ...}"
        )
    return {p.name: position for position, p in enumerate(mine)}


def _by_word(
    ours: Sequence[Parameter], theirs: Sequence[str | None], names: Names
) -> dict[str, int]:
    """Return the positions that the user gave, if they pair all of ours with all of theirs."""
    if not isinstance(names, Mapping):
        raise TypeError(f"names must be a dict of our names to theirs; got {type(names).__name__}")
    wanted = {parameter.name for parameter in ours}
    if names.keys() != wanted:
        odd = sorted(map(str, names.keys() ^ wanted))
        raise ValueError(
            f"names must have each parameter of the optimizer, as in its state_dict, and no other; "
            f"it differs in {', '.join(odd[:3])}"
        )
    found = {name: _position(given, theirs) for name, given in names.items()}
    if sorted(found.values()) != list(range(len(theirs))):
        raise ValueError(
            f"names must pair each of their {len(theirs)} parameters with one of ours; got the "
            f"positions {sorted(found.values())}"
        )
    return found


def _position(given: object, theirs: Sequence[str | None]) -> int:
    if isinstance(given, str) and theirs.count(given) == 1:
        return theirs.index(given)
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(theirs):
        return given
    known = [name for name in theirs if name is not None]
    raise ValueError(
        f"names: {given!r} is no position from 0 to {len(theirs) - 1}"
        + (f", and none of their names, {', '.join(known[:3])}, ..." if known else "")
    )
