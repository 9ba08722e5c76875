"""A tree of arrays as one flat vector, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fastopt.core import advice, arrays
from fastopt.core import tree as trees
from fastopt.core.arrays import Array
from fastopt.errors import BackendMismatchError

Unravel = Callable[[Any], Any]
"""Gives a tree for a flat vector."""


def ravel(tree: Any) -> tuple[Array, Unravel]:
    """Return all numbers of a tree as one flat vector, and the function that gives trees back.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> flat, unravel = fastopt.ravel({"W": np.ones((3, 2)), "b": np.zeros(2)})
        >>> flat.shape
        (8,)
        >>> unravel(2 * flat)["W"].tolist()
        [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]]

    Args:
        tree: one array, or a tree (dict, list, tuple, namedtuple and subclasses, nested) of NumPy
            or of CuPy arrays of any dtype and order in memory. Mappings are in the order of their
            sorted keys, elements in C order. None is no leaf: it stays where it is. Numbers of
            Python and NumPy are arrays of shape ().

    Returns:
        ``flat``: a new array of shape (n,), which shares no memory with the tree, where its arrays
        are. Its dtype is the common one of all floating and complex leaves (of float32 and float64
        that is float64, of float16 and bfloat16 float32), and whole numbers go into that; the
        common one of all where none is floating; float32 where there is no leaf at all. These are
        the rules of ``jax.flatten_util.ravel_pytree``.

        ``unravel``: takes a vector of this shape and dtype, NumPy or CuPy, and returns a tree
        nested as the given one. A leaf is a **view** of the vector where it has the vector's dtype,
        so that what is written into one is seen in the other: an optimizer can step the vector
        while the program reads the tree. A leaf of another dtype is a **copy**, converted back
        (from complex to real the imaginary part is dropped). It can be pickled where the tree is of
        dicts, lists, tuples and namedtuples alone.

    Raises:
        TypeError: for leaves that are no arrays; by ``unravel`` for another dtype.
        ValueError: by ``unravel`` for another shape.
        BackendMismatchError: for arrays of NumPy and of CuPy, or of two devices, in one tree.
    """
    leaves, nest = trees.flattened(tree)
    found = _as_arrays(tree, leaves)
    xp: Any = arrays.namespace_of(found[0]) if found else np
    dtype = common_dtype([array.dtype for array in found])
    shapes = [array.shape for array in found]
    dtypes = [array.dtype for array in found]
    ends = np.cumsum([0, *map(prod, shapes)]).tolist()
    size = ends[-1]
    with arrays.on_device_of(found[0] if found else np.zeros(0)):
        flat: Array = xp.empty(size, dtype)
        for array, start, end in zip(found, ends, ends[1:], strict=False):
            flat[start:end].reshape(array.shape)[...] = array

    return flat, _Unravel(nest, dtype, shapes, dtypes, ends)


@dataclass(frozen=True)
class _Unravel:
    """Gives a tree for a vector: a class, so that it can be pickled."""

    nest: Callable[[Any], Any]
    dtype: np.dtype[Any]
    shapes: list[tuple[int, ...]]
    dtypes: list[np.dtype[Any]]
    ends: list[int]

    def __call__(self, vector: Any) -> Any:
        dtype, size = self.dtype, self.ends[-1]
        if arrays.kind(vector) is None or vector.dtype != dtype:
            said = type(vector).__name__ if arrays.kind(vector) is None else str(vector.dtype)
            raise TypeError(
                f"unravel takes a NumPy or CuPy array of {dtype}, as ravel gave it; got {said}. "
                f"Convert it: xp.asarray(vector, {dtype.name!r})"
            )
        if vector.shape != (size,):
            raise ValueError(
                f"unravel takes an array of shape {(size,)}, as ravel gave it; got {vector.shape}"
            )
        places = zip(self.ends, self.ends[1:], self.shapes, self.dtypes, strict=False)
        parts = (
            _of_dtype(vector[start:end].reshape(shape), own) for start, end, shape, own in places
        )
        with arrays.on_device_of(vector):
            return self.nest([*parts])


def common_dtype(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype that arrays of these have together; float32 for none.

    Whole numbers and truth values have no say beside floating ones.
    """
    floating = [one for one in dtypes if one.kind not in "biu"]
    names = {one.name for one in floating}
    if {"float16", "bfloat16"} <= names:  # neither holds the other
        floating.append(np.dtype(np.float32))
        floating = [one for one in floating if one.itemsize > 2]
    taken = floating or list(dtypes)
    return np.result_type(*taken) if taken else np.dtype(np.float32)


def _of_dtype(part: Array, dtype: np.dtype[Any]) -> Array:
    if part.dtype == dtype:
        return part
    return (part.real if dtype.kind != "c" else part).astype(dtype)


def _as_arrays(tree: Any, leaves: Sequence[Any]) -> list[Array]:
    """Return leaves as arrays of one place; raise what keeps them from being that."""
    places = trees.paths(tree, "tree") if None in map(arrays.kind, leaves) else []
    held = next((leaf for leaf in leaves if arrays.kind(leaf)), None)
    xp: Any = np if held is None else arrays.namespace_of(held)
    found: list[Array] = []
    for position, leaf in enumerate(leaves):
        one = leaf
        if isinstance(leaf, bool | int | float | complex | np.generic):
            one = xp.asarray(leaf)
        elif arrays.kind(leaf) is None:
            place = _place(places, position, tree)
            raise TypeError(
                f"{place} must be a NumPy or CuPy array or a number; got {type(leaf).__name__}. "
                f"{advice.without_steps(advice.for_parameter(leaf, place))}"
            )
        if arrays.kind(one) == "numpy" and one.dtype.kind not in "biufcV":
            raise TypeError(f"ravel takes arrays of numbers; got one of {one.dtype}")
        found.append(one)
    where = {arrays.location(one) for one in found}
    if len(where) > 1:
        raise BackendMismatchError(
            "ravel makes one vector, so all arrays must be in one place; got "
            f"{' and '.join(sorted(where))}. Make a vector of each, or move them first"
        )
    return found


def _place(places: Sequence[str], position: int, tree: Any) -> str:
    """Return where a leaf stands; None has a place of its own, which is no leaf's."""
    nones = trees.leaves_of(tree)
    standing = [place for place, leaf in zip(places, nones, strict=True) if leaf is not None]
    return standing[position]
