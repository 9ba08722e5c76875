"""The variables of an optimizer of keras, told apart by their names or by their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastopt.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.interop.values import array_of, count_of, plain

State = dict[str, dict[str, tuple[str, Array]]]
Layout = Sequence[Mapping[str, str]]


@dataclass
class Variables:
    """What the variables say: the step count, the learning rate, and each parameter's state.

    The state is by the parameter's name in keras, or by "#" and its position where keras' names
    are not known, in the order of the parameters there; then by our slots.
    """

    step: int
    lr: float | None = None
    state: State = field(default_factory=dict)


def variables_in(given: Any, kept: Layout, layout: Layout, count: int) -> Variables:
    """Return what the variables say, if they are all known.

    ``layout`` is that of the class, ``kept`` the part of it that the optimizer keeps, ``count`` the
    number of its parameters.
    """
    values = _by_key(given)
    if all(isinstance(key, int) for key in values):
        return _by_order({int(key): value for key, value in values.items()}, kept, count)
    slots = {kind: slot for kinds in layout for kind, slot in kinds.items()}
    return _by_name({str(key): value for key, value in values.items()}, slots)


def _by_key(given: Any) -> dict[str | int, Any]:
    """Return the variables by path or name, or by their number if that is what there is."""
    if isinstance(given, Mapping):
        keys = [str(key) for key in given]
        if keys and all(key.isdecimal() for key in keys):
            return {int(key): given[key] for key in given}
        return {str(key): given[key] for key in given}
    if not isinstance(given, list | tuple):
        raise CheckpointError(
            "expected optimizer.variables, or a dict of their values by path or by number; got "
            f"{type(given).__name__}"
        )
    by_path: dict[str | int, Any] = {}
    for one in given:
        path = getattr(one, "path", getattr(one, "name", None))
        if isinstance(path, str):
            by_path[path] = one
    return by_path if len(by_path) == len(given) else dict(enumerate(given))


def _by_order(values: dict[int, Any], kept: Layout, count: int) -> Variables:
    """Tell the variables apart by their order: the counts, then the state kind by kind."""
    owned = count * sum(len(kinds) for kinds in kept)
    if sorted(values) != list(range(len(values))) or len(values) - owned not in (1, 2):
        raise CheckpointError(
            f"expected {owned + 2} variables, iteration, learning_rate (not if a schedule gives "
            f"it) and {owned} of state; got {len(values)}"
        )
    head = len(values) - owned
    lr = _rate(values[1], "variable 1, learning_rate") if head == 2 else None
    found = Variables(count_of(values[0], "variable 0, iteration"), lr)
    for number, (position, slot) in enumerate(_order(kept, count), head):
        value = (f"variable {number}", array_of(values[number], f"variable {number}"))
        found.state.setdefault(f"#{position}", {})[slot] = value
    return found


def _order(kept: Layout, count: int) -> Iterator[tuple[int, str]]:
    for kinds in kept:
        for position in range(count):
            for slot in kinds.values():
                yield position, slot


def _rate(value: Any, place: str) -> float:
    rate = plain(value, place)
    if not isinstance(rate, float):
        raise CheckpointError(f"{place} must be a floating-point number; got {rate!r}")
    return rate


def _by_name(values: dict[str, Any], slots: Mapping[str, str]) -> Variables:
    """Tell the variables apart by the ends of their names."""
    step, lr, state = None, None, State()
    for path, value in values.items():
        name = path.rpartition("/")[2].partition(":")[0]
        if name == "iteration":
            step = count_of(value, path)
        elif name == "learning_rate":
            lr = _rate(value, path)
        else:
            owner, slot = _owner(name, path, slots)
            if slot in state.setdefault(owner, {}):
                raise CheckpointError(f"{path} and {state[owner][slot][0]} are the same state")
            state[owner][slot] = (path, array_of(value, path))
    if step is None:
        raise CheckpointError("the variables lack iteration, the number of steps made")
    return Variables(step, lr, state)


def _owner(name: str, path: str, slots: Mapping[str, str]) -> tuple[str, str]:
    """Return the parameter and the slot that a variable of state is of."""
    for kind in slots:
        if name.endswith(f"_{kind}"):
            return name.removesuffix(f"_{kind}"), slots[kind]
    raise CheckpointError(
        f"{path} is no state of this optimizer, which has {', '.join(sorted(slots))}"
    )
