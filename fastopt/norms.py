"""The norm of many gradients together: float64, in one order, on every backend.

The order of a sum decides its last bits, so it is laid down here and is the same for every backend
and number of threads. The squares of a gradient are summed in pieces of ``PIECE`` elements: in each
piece lane j adds the elements j, j + 64, j + 128, ... one after another, and then the lanes are
added in halves: 32 to 32, 16 to 16, and so on. The pieces' sums are summed in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array

PIECE = 4_096
LANES = 64

SMALLER = 2.0**-600
"""Finite gradients multiplied by this have a finite sum of squares, in float64 too."""

TOO_SMALL = 2.0**-900
"""A sum of squares below this may have lost some of them to underflow."""

Squares = Callable[[float], Iterable[Array]]
"""Given a factor, returns each bucket's sums of the squares of (factor * gradient), by pieces."""


class Norm(NamedTuple):
    """The norm of all gradients, and whether every one of their elements is finite."""

    value: float
    finite: bool


def total_norm(squares: Squares) -> Norm:
    """Return the root of the sum of squares; finite whenever the norm itself is.

    The squares of float64 gradients can overflow or underflow where their norm does not. Then they
    are summed once more, multiplied by a power of two, which is exact.
    """
    total, unit = total_of(squares(1.0)), 1.0
    if total == math.inf:
        total, unit = total_of(squares(SMALLER)), 1.0 / SMALLER
    elif total < TOO_SMALL:
        total, unit = total_of(squares(1.0 / SMALLER)), SMALLER
    return Norm(math.sqrt(total) * unit, math.isfinite(total))


def array_norms(
    sizes: Sequence[int], squares: Callable[[float], Array], real: np.dtype[Any]
) -> list[float]:
    """Return the norm of each of some gradients of these sizes, computed in ``real``.

    ``squares`` gives the sums of squares of (factor * gradient), by pieces; 0 for no gradient.
    """
    found = _by_array(sizes, squares(1.0))
    units = np.ones(len(found))
    again = ((SMALLER, found == np.inf), (1.0 / SMALLER, found < TOO_SMALL))
    for factor, beyond in again if real.itemsize == 8 else ():
        if beyond.any():
            found[beyond] = _by_array(sizes, squares(factor))[beyond]
            units[beyond] = 1.0 / factor
    with np.errstate(all="ignore"):
        return (np.sqrt(found) * units).tolist()  # type: ignore[no-any-return]  # of float


def _by_array(sizes: Sequence[int], pieces: Array) -> Array:
    ends = np.cumsum(piece_counts(sizes)).tolist()
    return np.array([pieces[a:b].sum() for a, b in zip([0, *ends], ends, strict=False)], float)


def total_of(parts: Iterable[Array]) -> float:
    """Return the sum of the sums of all pieces."""
    sums = np.concatenate([np.zeros(0), *parts])
    padded = np.zeros(-(-sums.size // LANES) * LANES)
    padded[: sums.size] = sums
    return float(lane_sums(padded.reshape(1, -1, LANES))[0])


def lane_sums(rows: Array) -> Array:
    """Return the sum of each piece; ``rows`` has the shape (pieces, rows, LANES)."""
    if arrays.kind(rows) == "numpy":
        # One row after another, as the last axis stands closest in memory.
        lanes = rows.sum(axis=1)
    else:
        lanes = rows[:, 0]  # CuPy's sum has an order of its own
        for number in range(1, rows.shape[1]):
            lanes = lanes + rows[:, number]
    width = LANES // 2
    while width:
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
        width //= 2
    return lanes[:, 0]  # type: ignore[no-any-return]


def piece_counts(sizes: Iterable[int]) -> list[int]:
    """Return how many pieces arrays of these sizes have."""
    return [-(-size // PIECE) for size in sizes]
