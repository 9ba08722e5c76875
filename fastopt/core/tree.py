"""Nested parameters: leaves and their names, gradients matched to them, hints for non-arrays."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    KeysView,
    MutableMapping,
    MutableSequence,
    Sequence,
    ValuesView,
)
from dataclasses import dataclass
from operator import is_
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


def hint(value: object) -> str:
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
    """One parameter: where it stands in the user's tree, its name in a state_dict, its array."""

    path: str  # params["layers"][0]["W"], of a list of groups params[0]["params"]["W"]
    place: str  # ["layers"][0]["W"], or [0]["W"]: what stands behind the name of its gradients
    name: str  # layers.0.W
    array: Array


class Tree:
    """The user's nested parameters, kept with the structure they had when they were handed in.

    With ``grouped`` the parameters are a list of trees, one for each parameter group, and so are
    all trees that are matched to them.
    """

    def __init__(self, params: Any, grouped: bool = False) -> None:
        found, values, self._spec = optree.tree_flatten_with_path(params, none_is_leaf=True)
        self.params = params
        self.grouped = grouped
        self._flatten_as_params = self._spec.flatten_up_to
        self._order: list[int] | None = None  # see ignore
        self._ignored: tuple[str, ...] = ()
        self._places = [_written(accessor) for accessor in self._spec.accessors()]
        names = [_name(path, grouped) for path in found]
        paths = [self._path("params", place) for place in self._places]
        _check_unique(names, paths)
        self.leaves = [
            Leaf(path, place, name, _checked(path, value))
            for path, place, name, value in zip(paths, self._places, names, values, strict=True)
        ]

    def current(self) -> list[Any]:
        """Return what stands at the leaves of the user's tree now."""
        try:
            found = self._flatten_as_params(self.params)
        except (ValueError, TypeError) as error:
            raise ValueError(self._difference(self.params, "params", error)) from None
        return found if self._order is None else self._in_order(found)

    def everything(self) -> list[Any]:
        """Return what stands at the leaves now, those that are ignored too."""
        return self.leaves_in(self.params)

    def match(self, grads: Any, root: str = "grads") -> list[Any]:
        """Return what is nested as the parameters in the order of the leaves.

        Raises ValueError for another structure; ``root`` is what the message calls the tree.
        """
        if self.grouped:
            grads = self._as_list(grads, root)
        try:
            found = self._flatten_as_params(grads)
        except (ValueError, TypeError) as error:
            raise ValueError(self._difference(grads, root, error)) from None
        return found if self._order is None else self._in_order(found)

    def match_group(self, number: int, given: Any, root: str) -> list[Any]:
        """Return what is nested as the tree of one group of a list, in the order of its leaves."""
        part = self._spec.children()[number]
        try:
            return part.flatten_up_to(given)
        except (ValueError, TypeError) as error:
            places = [_written(accessor) for accessor in part.accessors()]
            raise ValueError(_said_difference(places, (), given, root, error)) from None

    def groups(self) -> Iterator[range]:
        """Yield the positions of each group's leaves, where the parameters are a list of groups."""
        start = 0
        for part in self._spec.children():
            yield range(start, start + part.num_leaves)
            start += part.num_leaves

    def ignore(self, positions: Iterable[int]) -> None:
        """Look no more at some leaves, nor at branches that hold no others: they are None then."""
        ignored, count = frozenset(positions), len(self.leaves)

        def is_ignored(node: Any) -> bool:
            found = optree.tree_leaves(node)
            return bool(found) and ignored.issuperset(found)

        numbered = self._spec.unflatten(range(count))
        parts, spec = optree.tree_flatten(numbered, is_ignored, none_is_leaf=True)
        rows = {part: row for row, part in enumerate(parts) if not is_ignored(part)}
        places = zip(map(_written, spec.accessors()), parts, strict=True)
        self._flatten_as_params = spec.flatten_up_to
        self._order = [rows.get(position, -1) for position in range(count)] if ignored else None
        self._ignored = tuple(place for place, part in places if is_ignored(part))

    def leaves_in(self, params: Any) -> list[Any]:
        """Return what stands at the leaves of other parameters; ValueError for other nesting."""
        try:
            return self._spec.flatten_up_to(params)
        except (ValueError, TypeError) as error:
            raise ValueError(self._difference(params, "params", error)) from None

    def holds(self, params: Any) -> bool:
        """Return whether these parameters are the arrays that stand here."""
        try:
            found = self._spec.flatten_up_to(params)
        except (ValueError, TypeError):
            return False
        return all(map(is_, found, (leaf.array for leaf in self.leaves)))

    def with_array(self, position: int, array: Array) -> Tree:
        """Return the tree with another array at a leaf; the user's own is as it was."""
        leaf = self.leaves[position]
        changed = copy.copy(self)
        changed.leaves = [*self.leaves]
        changed.leaves[position] = dataclasses.replace(leaf, array=_checked(leaf.path, array))
        return changed

    def put(self, position: int) -> None:
        """Put the array of a leaf where it belongs in the user's own tree.

        What stands in a tuple cannot be replaced: then ``params`` is another tree.
        """
        array, accessor = self.leaves[position].array, self._spec.accessors()[position]
        if not len(accessor):
            self.params = array
            return
        inside = self.params
        for entry in accessor[:-1]:
            inside = entry(inside)
        key = accessor[-1].entry
        if inside[key] is array:
            return
        if isinstance(inside, MutableMapping | MutableSequence):
            inside[key] = array
        else:
            found = self.everything()
            found[position] = array
            self.params = self.nest(found)

    def nest(self, values: Iterable[Any]) -> Any:
        """Return values, in the order of the leaves, nested as the parameters are."""
        return self._spec.unflatten(values)

    def _in_order(self, found: Sequence[Any]) -> list[Any]:
        return [None if row < 0 else found[row] for row in self._order or ()]

    def _as_list(self, grads: Any, root: str) -> list[Any]:
        if not isinstance(grads, list | tuple) or len(grads) != len(self.params):
            size = f" of {len(grads)}" if isinstance(grads, list | tuple) else ""
            raise ValueError(
                f"{root} must be a list of {len(self.params)} trees, one for each parameter "
                f"group; got {type(grads).__name__}{size}"
            )
        return list(grads)

    def _path(self, root: str, place: str) -> str:
        """Return where something stands; the trees of groups are entries of dicts in the list."""
        if not self.grouped or root != "params":
            return root + place
        number, _, rest = place.partition("]")
        return f'{root}{number}]["params"]{rest}'

    def _difference(self, given: Any, root: str, error: Exception) -> str:
        """Say how a tree differs from the parameters' structure."""
        return _said_difference(self._places, self._ignored, given, root, error, self._path)


def _said_difference(
    places: Iterable[str],
    ignored: tuple[str, ...],
    given: Any,
    root: str,
    error: Exception,
    path: Callable[[str, str], str] = str.__add__,
) -> str:
    spec = optree.tree_structure(given, none_is_leaf=True)
    mine = {place for place in places if not place.startswith(ignored)}
    found = {_written(accessor) for accessor in spec.accessors()}
    theirs = {place for place in found if not place.startswith(ignored)}
    mine.update(s for s in ignored if not any(place.startswith(s) for place in found))
    missing = [path(root, place) for place in sorted(mine - theirs)][:3]
    extra = [path(root, place) for place in sorted(theirs - mine)][:3]
    parts = [f"missing {', '.join(missing)}"] * bool(missing)
    parts += [f"unexpected {', '.join(extra)}"] * bool(extra)
    reason = "; ".join(parts) or str(error).partition(";")[0].rstrip(".")[:200]
    return (
        f"{root} must be nested as the parameters were when the optimizer was made: {reason}. "
        + (
            "Construct a new optimizer for other parameters."
            if root == "params"
            else "Use None for a parameter that has no gradient in this step."
        )
    )


def _name(path: tuple[Any, ...], grouped: bool) -> str:
    """Return a parameter's name in a state_dict: its keys, joined with dots.

    An array that is a tree by itself is called params.
    """
    if len(path) == grouped:
        path = (*path, "params")
    return ".".join(map(str, path))


def paths(tree: Any, root: str) -> list[str]:
    """Return where each leaf of a tree stands, as it is written in Python."""
    spec = optree.tree_structure(tree, none_is_leaf=True)
    return [root + _written(accessor) for accessor in spec.accessors()]


def _written(accessor: optree.PyTreeAccessor) -> str:
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


def _check_unique(names: Sequence[str], paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        if name in seen:
            raise ValueError(
                f"{seen[name]} and {path} would both be called {name!r} in a checkpoint; rename "
                "one of their keys"
            )
        seen[name] = path


def _checked(path: str, value: Any) -> Array:
    """Return a leaf that can be updated in place; raise what keeps it from that otherwise."""
    if arrays.kind(value) is None:
        raise TypeError(
            f"{path} must be a numpy.ndarray or cupy.ndarray; got {type(value).__name__}. "
            f"{hint(value)}"
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
