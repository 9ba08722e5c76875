"""The nested tuples of an optax state: which transformations have state, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from fastopt.arrays import Array
from fastopt.errors import CheckpointError
from fastopt.interop.values import array_of

Cell = Any
"""The state of one transformation, a named tuple; told by the name of its class."""

INJECTED = frozenset({"InjectHyperparamsState", "InjectStatefulHyperparamsState"})
_INNER = {"MaskedState": "inner_state", **dict.fromkeys(INJECTED, "inner_state")}
_PARTED = frozenset({"PartitionState", "MultiTransformState"})


def sequences(state: Any, place: str = "opt_state") -> list[list[Cell]]:
    """Return the states of transformations in the order in which they act.

    There are several sequences where parameters are parted, each with what acts on all of them.
    Injected hyperparameters come before what they are for.
    """
    kind = type(state).__name__
    if _is_named(state):
        if kind in _PARTED:
            parts = state.inner_states.items()
            return [one for key, part in parts for one in sequences(part, f"{place}[{key!r}]")]
        if kind not in _INNER:
            return [[state]]
        inner = sequences(getattr(state, _INNER[kind]), f"{place}.{_INNER[kind]}")
        return [[*([state] * (kind in INJECTED)), *one] for one in inner]
    if isinstance(state, Mapping):
        steps = [sequences(part, f"{place}[{key!r}]") for key, part in state.items()]
    elif isinstance(state, list | tuple):
        steps = [sequences(part, f"{place}[{k}]") for k, part in enumerate(state)]
    else:
        raise CheckpointError(
            f"{place}: expected the nested tuples of an optax state, whose states are known by "
            f"their class; got {kind}"
        )
    whole: list[list[Cell]] = [[]]
    for choices in steps:
        whole = [[*before, *after] for before in whole for after in choices]
    return whole


def unique(found: list[list[Cell]]) -> list[Cell]:
    """Return each state once."""
    return list({id(cell): cell for cell in chain.from_iterable(found)}.values())


def _is_named(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def leaves(tree: Any, place: str, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str, Array]]:
    """Yield the name (``layers.0.W``), the place and the value of every array in a tree.

    What a mask has left out is skipped.
    """
    for name, where, leaf in _leaves(tree, place, path):
        yield name, where, array_of(leaf, where)


def _leaves(tree: Any, place: str, path: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    if tree is None:
        return
    if isinstance(tree, Mapping):
        children = [(str(key), f"{place}[{key!r}]", part) for key, part in tree.items()]
    elif _is_named(tree):
        children = [(f, f"{place}.{f}", getattr(tree, f)) for f in tree._fields]
    elif isinstance(tree, list | tuple):
        children = [(str(k), f"{place}[{k}]", part) for k, part in enumerate(tree)]
    else:
        yield ".".join(path) or "params", place, tree
        return
    for key, where, part in children:
        yield from _leaves(part, where, (*path, key))


def arrays_by_name(params_like: Any) -> dict[str, Any]:
    """Return what stands at the leaves of a tree, by name."""
    return {name: leaf for name, _, leaf in _leaves(params_like, "params_like", ())}
