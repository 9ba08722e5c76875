"""Nested parameters: their leaves, the leaves' names, and gradients matched to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.formats import SUPPORTED_DTYPES


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

    def _flatten(self, tree: Any, root: str) -> list[Any]:
        try:
            return self._flatten_as_params(tree)
        except (ValueError, TypeError) as error:
            raise ValueError(self._difference(tree, root, error)) from None

    def _difference(self, tree: Any, root: str, error: Exception) -> str:
        """Say how a tree differs from the parameters' structure."""
        spec = optree.tree_structure(tree, none_is_leaf=True)
        theirs = {_suffix(accessor) for accessor in spec.accessors()}
        missing = [root + path for path in sorted(set(self._suffixes) - theirs)][:3]
        extra = [root + path for path in sorted(theirs - set(self._suffixes))][:3]
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


def _suffix(accessor: optree.PyTreeAccessor) -> str:
    return "".join(_step_text(entry) for entry in accessor)


def _step_text(entry: optree.PyTreeEntry) -> str:
    """Return one step of a path as it is written in Python: ["W"], [0] or .name."""
    if isinstance(entry, optree.NamedTupleEntry):
        return f".{entry.field}"
    key = entry.entry
    return f"[{json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)}]"


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
            f"{_remedy(value)}"
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


def _remedy(value: Any) -> str:
    """Say what to do about a leaf that is no array."""
    if value is None:
        return "Leave it out of the tree."
    if isinstance(value, np.generic):
        return "A NumPy scalar cannot change in place; use a 0-d array: np.array(value)."
    if isinstance(value, np.ndarray):
        return "Subclasses compute differently; use np.asarray(value)."
    return "Only arrays can change in place; use np.array(value)."


def check_apart(leaves: Sequence[Leaf]) -> None:
    """Raise ValueError if two parameters share memory: each would be updated twice."""
    spans = sorted(
        (*arrays.extent(leaf.array), position)
        for position, leaf in enumerate(leaves)
        if leaf.array.size
    )
    reaching: list[tuple[int, int]] = []
    for low, high, position in spans:
        reaching = [(end, other) for end, other in reaching if end > low]
        for _, other in reaching:
            one, two = leaves[other], leaves[position]
            if arrays.device(one.array) == arrays.device(two.array) and arrays.share_memory(
                one.array, two.array
            ):
                same = "are the same array" if one.array is two.array else "share memory"
                raise ValueError(
                    f"{one.path} and {two.path} {same}, so they would be updated twice; "
                    "hand in each parameter once"
                )
        reaching.append((high, position))
