"""Bounds of a fit, in the forms that SciPy has and those that trees add."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastopt.core import arrays
from fastopt.core.hyperparameters import as_float, bounds_of_leaves
from fastopt.fits.problem import Points

_FORMS = (
    "a pair (lower, upper) of numbers for everything; for an x0 of n numbers also a sequence of n "
    "pairs or scipy.optimize.Bounds(lower, upper); for a tree a tree of pairs, one for each array, "
    "or a pair of trees of numbers and arrays"
)


class Bounds(NamedTuple):
    """The bounds of each leaf: as an optimizer takes them, and as arrays of the leaf's dtype."""

    option: tuple[Any, Any]
    lower: list[Any]
    upper: list[Any]


def bounds_of(given: Any, points: Points) -> Bounds | None:
    """Return what is given as bounds for each leaf; None for no bounds. Members have the same.

    Raises TypeError for another form; ValueError for another length or shape, NaN, and a lower
    bound above the upper one.
    """
    if given is None:
        return None
    leaves = points.start
    if any(leaf.dtype.kind == "c" for leaf in leaves):
        raise ValueError("complex numbers have no order, so x0 must be real where there are bounds")
    shapes = [leaf.shape[points.members is not None :] for leaf in leaves]  # of one member
    if (pair := _numbers(given)) is not None:
        each: list[tuple[Any, Any]] = [pair] * len(leaves)
    elif points.is_array:
        each = [_of_array(given, shapes[0], "x")]
    else:
        found = _of_leaves(given, points)
        each = [
            _of_array(one, shape, path)
            for one, shape, path in zip(found, shapes, points.paths, strict=True)
        ]
    lowers, uppers = (
        points.nest([_full(one[side], leaf) for one, leaf in zip(each, leaves, strict=True)])
        for side in (0, 1)
    )
    both = bounds_of_leaves((lowers, uppers), points.tree, range(len(leaves)), 0, "minimize")
    # An optimizer takes numbers in its scalars, and arrays in memory that it reads.
    alike = all(all(isinstance(s, float) for s in one) for one in each) and len({*each}) == 1
    return Bounds(
        each[0] if alike else (lowers, uppers),
        *([both[k][side] for k in range(len(leaves))] for side in (0, 1)),
    )


def _of_leaves(given: Any, points: Points) -> list[Any]:
    """Return what stands for each leaf in a tree, or in a pair of trees."""
    try:
        return points.match(given, "bounds")
    except ValueError as error:
        if isinstance(given, tuple | list) and len(given) == 2:
            try:
                sides = [_of_side(side, points) for side in given]
            except ValueError:
                pass  # it is neither
            else:
                return [*zip(*sides, strict=True)]
        raise ValueError(f"bounds must be {_FORMS}. {error}") from None


def _of_side(given: Any, points: Points) -> list[Any]:
    """Return one side of the bounds of each leaf, from one number for all or a tree."""
    if given is None or as_float(given) is not None:
        return [given] * len(points.start)
    return points.match(given, "bounds")


def _numbers(given: Any) -> tuple[float, float] | None:
    """Return a pair of numbers or None as numbers; None for anything else."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        return None
    if any(getattr(one, "shape", ()) or isinstance(one, tuple | list) for one in given):
        return None
    low, high = (_number(one, none) for one, none in zip(given, (-np.inf, np.inf), strict=True))
    return None if low is None or high is None else (low, high)


def _number(value: Any, none: float) -> float | None:
    return none if value is None else as_float(value)


def _of_array(given: Any, shape: tuple[int, ...], path: str) -> tuple[Any, Any]:
    """Return the lower and upper bounds of one array."""
    none = (-np.inf, np.inf)
    if given is None:
        return none
    size = int(np.prod(shape))
    if hasattr(given, "lb") and hasattr(given, "ub"):  # scipy.optimize.Bounds
        return _side(given.lb, shape, path), _side(given.ub, shape, path)
    if (pair := _numbers(given)) is not None:
        return pair
    pairs = [*given] if hasattr(given, "__len__") else []
    if len(pairs) == size and all(_is_pair(one) for one in pairs):
        columns = [[_number(pair[k], none[k]) for pair in pairs] for k in (0, 1)]
        if not any(one is None for column in columns for one in column):
            lower, upper = (np.array(column, np.float64).reshape(shape) for column in columns)
            return lower, upper
    if len(pairs) == 2:
        low, high = (none[k] if pairs[k] is None else pairs[k] for k in (0, 1))
        return _side(low, shape, path), _side(high, shape, path)
    raise TypeError(f"the bounds of {path}, of shape {shape}, must be {_FORMS}; got {given!r:.200}")


def _is_pair(value: Any) -> bool:
    return hasattr(value, "__len__") and len(value) == 2


def _side(given: Any, shape: tuple[int, ...], path: str) -> Any:
    """Return one side of an array's bounds: a number, or an array of its shape."""
    if arrays.kind(given) == "cupy":
        given = arrays.on_host(given)
    try:
        host = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"the bounds of {path} must be {_FORMS}; got {given!r:.200}") from None
    if not host.ndim:
        return float(host)
    try:
        return np.broadcast_to(host, shape).copy()
    except ValueError:
        raise ValueError(
            f"the bounds of {path} must be numbers or have its shape, {shape}; got {host.shape}. "
            "With starts= they are those of every start; where each has its own, fit what the "
            "parameter is above its own bound"
        ) from None


def _full(value: Any, leaf: Any) -> Any:
    return np.broadcast_to(value, leaf.shape).copy()
