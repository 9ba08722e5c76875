"""Bounds of parameters: what may be given, and what the backends are told of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.formats import BOUNDS, Kind
from fastopt.hyperparameters import as_float
from fastopt.tree import Leaf, Tree


@dataclass(frozen=True)
class BoundsCheck:
    """None, or a pair of a lower and an upper bound, each a number, None, or a tree of those."""

    def __call__(self, name: str, value: Any) -> tuple[Any, Any] | None:
        """Return the pair, with numbers as floats and None for no bound."""
        if value is None:
            return None
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(
                f"{name} must be None or a pair (lower, upper), each a number, None, or a tree of "
                f"arrays nested as the parameters; got {value!r:.200}"
            )
        lower, upper = (_number(f"{name}[{k}]", one) for k, one in enumerate(value))
        if isinstance(lower, float) and isinstance(upper, float) and lower > upper:
            raise ValueError(f"{name}: the lower must be at most the upper; got {value!r}")
        return None if lower is None and upper is None else (lower, upper)


def _number(name: str, value: Any) -> Any:
    """Return a number as a float; what is no number as it is."""
    number = as_float(value)
    if number is not None and math.isnan(number):
        raise ValueError(f"{name} must not be NaN; None is no bound")
    return value if number is None else number


def kind_of(bounds: tuple[Any, Any] | None) -> Kind:
    """Return whether there are bounds, and whether they are the same for all parameters."""
    if bounds is None:
        return "none"
    return "numbers" if all(isinstance(b, float | None) for b in bounds) else "arrays"


def saved_form(bounds: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
    """Return what stands in a state_dict: bounds that are arrays do not."""
    return bounds if kind_of(bounds) == "numbers" else None


def numbers(bounds: tuple[Any, Any], dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return bounds that are numbers as numbers of the parameters' dtype, none as infinite."""
    lower, upper = bounds
    low = -math.inf if lower is None else float(_inside(np.array([lower]), dtype, 1)[0])
    high = math.inf if upper is None else float(_inside(np.array([upper]), dtype, -1)[0])
    return low, high


def of_leaves(
    bounds: tuple[Any, Any],
    tree: Tree,
    leaves: Sequence[Leaf],
    positions: Sequence[int],
    owner: str,
) -> list[tuple[Any, Any]]:
    """Return the bounds of some leaves of a tree, as host arrays in the shape of the leaf.

    Raises ValueError for another structure or shape, TypeError for other things than numbers and
    real arrays, and ValueError if a lower bound exceeds the upper.
    """
    sides = []
    for side, given, none in zip(BOUNDS, bounds, (-math.inf, math.inf), strict=True):
        root = f"{owner}: bounds, {side}"
        spread = (
            [given] * (max(positions) + 1)
            if isinstance(given, float | None)
            else tree.match(given, root)
        )
        sides.append(
            [
                _of_leaf(root, spread[at], leaf, none)
                for at, leaf in zip(positions, leaves, strict=True)
            ]
        )
    for leaf, lower, upper in zip(leaves, *sides, strict=True):
        if (lower > upper).any():
            raise ValueError(f"{owner}: the lower bound of {leaf.path} exceeds the upper")
    return list(zip(*sides, strict=True))


def _of_leaf(root: str, given: Any, leaf: Leaf, none: float) -> Any:
    place = root + leaf.suffix
    value = _number(place, none if given is None else given)
    if isinstance(value, float):
        value = np.full(leaf.array.shape, value)
    if arrays.kind(value) is None or value.dtype.kind != "f":
        raise TypeError(
            f"{place} must be a number, None or a real array; got {type(value).__name__}"
        )
    if value.shape != leaf.array.shape:
        raise ValueError(
            f"{place} must have the shape of {leaf.path}, {leaf.array.shape}; got {value.shape}"
        )
    host = arrays.on_host(value)
    if np.isnan(host).any():
        raise ValueError(f"{place} must not hold NaN; infinity is no bound")
    return _inside(host, leaf.array.dtype, 1 if none < 0 else -1)


def _inside(values: Any, dtype: np.dtype[Any], towards: int) -> Any:
    """Return bounds in a dtype, rounded up (1) or down (-1), so that they are kept in any dtype."""
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    beyond = rounded < values if towards > 0 else rounded > values
    stepped = np.nextafter(rounded, np.array(towards * np.inf, dtype))
    return np.where(beyond, stepped, rounded).astype(dtype)
