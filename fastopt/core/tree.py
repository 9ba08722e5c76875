"""Nested parameters: leaves and their names, gradients matched to them, hints for non-arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, KeysView, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.dtypes import SUPPORTED_DTYPES

# -------------------------------------------------------------------------------------------------
# What to do about a leaf of the parameters that is no array.

_BY_LIBRARY = {
    "torch": (
        "A CPU tensor's memory can be updated as tensor.detach().numpy(); otherwise use an "
        "optimizer of torch.optim."
    ),
    "jax": "JAX arrays cannot change in place; use np.array(value), or optax.",
    "tensorflow": "Its tensors cannot change in place; use np.array(value), or keras.optimizers.",
    "fastopt": "Hand it in by itself, not as a part of something.",
}
_BY_LIBRARY["jaxlib"] = _BY_LIBRARY["jax"]


def remedy(value: object) -> str:
    """Return one sentence or two of advice."""
    if value is None:
        return "Leave it out of the tree."
    if isinstance(value, np.generic):
        return "A NumPy scalar cannot change in place; use a 0-d array: np.array(value)."
    if isinstance(value, np.ndarray):
        return "Subclasses compute differently; use np.asarray(value)."
    for kind in type(value).__mro__:  # a user's own torch.nn.Module too
        if (library := kind.__module__.partition(".")[0]) in _BY_LIBRARY:
            return _BY_LIBRARY[library]
    if isinstance(value, Iterator | ValuesView | KeysView):
        return "It is no tree that gradients could be nested like; use list(value)."
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _of_fields(value)
    return "Only arrays can change in place; use np.array(value)."


def _of_fields(value: Any) -> str:
    names = [field.name for field in dataclasses.fields(value)]
    instead = "vars(value)"
    if not hasattr(value, "__dict__"):
        instead = "{" + ", ".join(f"{name!r}: value.{name}" for name in names[:3]) + "}"
    return f"A dataclass is no tree here; use {instead} (dataclasses.asdict copies the arrays)."


# -------------------------------------------------------------------------------------------------
# Nested parameters: their leaves, the leaves' names, and gradients matched to them.


@dataclass(frozen=True, slots=True)
class Leaf:
    """One parameter: where it stands in the tree, its name in a state_dict, its array."""

    root: str  # params
    suffix: str  # ["layers"][0]["W"]
    name: str  # layers.0.W
    array: Array

    @property
    def path(self) -> str:
        """Where the parameter stands, as it is written in Python: params["layers"][0]["W"]."""
        return self.root + self.suffix


class Tree:
    """The user's nested parameters, kept with the structure they had when they were handed in."""

    def __init__(self, params: Any, root: str = "params", prefix: str = "") -> None:
        found, values, self._spec = optree.tree_flatten_with_path(params, none_is_leaf=True)
        self.params = params
        self._flatten_as_params = self._spec.flatten_up_to
        self._order: list[int] | None = None  # see ignore
        self._ignored: tuple[str, ...] = ()
        self._root = root
        self._suffixes = [_suffix(accessor) for accessor in self._spec.accessors()]
        names = [prefix + (".".join(map(str, path)) or "params") for path in found]
        _check_unique(names, self._suffixes, root)
        self.leaves = [
            Leaf(root, suffix, name, _checked(root + suffix, value))
            for suffix, name, value in zip(self._suffixes, names, values, strict=True)
        ]

    def current(self) -> list[Any]:
        """Return what stands at the leaves of the user's tree now."""
        return self._flatten(self.params, self._root)

    def match(self, grads: Any, root: str = "grads") -> list[Any]:
        """Return the gradients in the order of the leaves; ValueError for another structure."""
        return self._flatten(grads, root)

    def ignore(self, positions: Iterable[int]) -> None:
        """Look no more at some leaves, nor at branches that hold no others: they are None then."""
        ignored, count = frozenset(positions), len(self.leaves)

        def is_ignored(node: Any) -> bool:
            found = optree.tree_leaves(node)
            return bool(found) and ignored.issuperset(found)

        numbered = self._spec.unflatten(range(count))
        parts, spec = optree.tree_flatten(numbered, is_ignored, none_is_leaf=True)
        rows = {part: row for row, part in enumerate(parts) if not is_ignored(part)}
        paths = zip(map(_suffix, spec.accessors()), parts, strict=True)
        self._flatten_as_params = spec.flatten_up_to
        self._order = [rows.get(position, -1) for position in range(count)] if ignored else None
        self._ignored = tuple(suffix for suffix, part in paths if is_ignored(part))

    def nest(self, values: Sequence[Any]) -> Any:
        """Return values, in the order of the leaves, nested as the parameters are."""
        return self._spec.unflatten(values)

    def _flatten(self, tree: Any, root: str) -> list[Any]:
        try:
            found = self._flatten_as_params(tree)
        except (ValueError, TypeError) as error:
            raise ValueError(self._difference(tree, root, error)) from None
        order = self._order
        return found if order is None else [None if row < 0 else found[row] for row in order]

    def _difference(self, tree: Any, root: str, error: Exception) -> str:
        """Say how a tree differs from the parameters' structure."""
        spec = optree.tree_structure(tree, none_is_leaf=True)
        mine = {suffix for suffix in self._suffixes if not suffix.startswith(self._ignored)}
        found = {_suffix(accessor) for accessor in spec.accessors()}
        theirs = {suffix for suffix in found if not suffix.startswith(self._ignored)}
        mine.update(s for s in self._ignored if not any(path.startswith(s) for path in found))
        missing = [root + path for path in sorted(mine - theirs)][:3]
        extra = [root + path for path in sorted(theirs - mine)][:3]
        parts = [f"missing {', '.join(missing)}"] * bool(missing)
        parts += [f"unexpected {', '.join(extra)}"] * bool(extra)
        reason = "; ".join(parts) or str(error).partition(";")[0].rstrip(".")[:200]
        return (
            f"{root} must be nested as the parameters were when the optimizer was made: {reason}. "
            + (
                "Construct a new optimizer for other parameters."
                if root == self._root
                else "Use None for a parameter that has no gradient in this step."
            )
        )


def paths(tree: Any, root: str) -> list[str]:
    """Return where each leaf of a tree stands, as it is written in Python."""
    spec = optree.tree_structure(tree, none_is_leaf=True)
    return [root + _suffix(accessor) for accessor in spec.accessors()]


def _suffix(accessor: optree.PyTreeAccessor) -> str:
    return "".join(_step_text(entry) for entry in accessor)


def _step_text(entry: optree.PyTreeEntry) -> str:
    """Return one step of a path as it is written in Python: ["W"], [0] or .name."""
    if isinstance(entry, optree.NamedTupleEntry):
        return f".{entry.field}"
    key = entry.entry
    if not isinstance(key, str):
        return f"[{key!r}]"
    if key.isidentifier():
        return f'["{key}"]'
    import json  # two milliseconds, for what has to be quoted

    return f"[{json.dumps(key, ensure_ascii=False)}]"


def _check_unique(names: Sequence[str], suffixes: Sequence[str], root: str) -> None:
    seen: dict[str, str] = {}
    for name, suffix in zip(names, suffixes, strict=True):
        if name in seen:
            raise ValueError(
                f"{root}{seen[name]} and {root}{suffix} would both be called {name!r} in a "
                "checkpoint; rename one of their keys"
            )
        seen[name] = suffix


def _checked(path: str, value: Any) -> Array:
    """Return a leaf that can be updated in place; raise what keeps it from that otherwise."""
    if arrays.kind(value) is None:
        raise TypeError(
            f"{path} must be a numpy.ndarray or cupy.ndarray; got {type(value).__name__}. "
            f"{remedy(value)}"
        )
    array: Array = value
    if array.dtype.name not in SUPPORTED_DTYPES or not array.dtype.isnative:
        raise TypeError(
            f"{path} must be of one of the dtypes {', '.join(SUPPORTED_DTYPES)}, in native byte "
            f"order; got {array.dtype!s} ({array.dtype.str}). Convert it with .astype before."
        )
    if not getattr(array.flags, "writeable", True):
        raise ValueError(f"{path} is read-only, and parameters change in place; give a copy")
    if arrays.address(array) % array.dtype.alignment:
        raise ValueError(f"{path} is not aligned to its element size; give a copy")
    if arrays.overlaps_itself(array):
        raise ValueError(
            f"{path} holds elements that share memory (strides {array.strides}, "
            f"shape {array.shape}), so an update would be applied twice; give a copy"
        )
    return array
