"""The flush of state that is about to become denormal: its thresholds; and the guard against 0/0.

State that no longer receives gradients decays until it is denormal, and then stays there: on a
CPU every later step becomes 10 to 100 times slower, for ever. So state is set to zero before
that, far below where it could move a parameter. How far depends on the optimizer's smallest
denominator ("floor": eps, or the root of an eps inside the root; 1 where nothing is divided; see
``Formula._smallest_denominator``):

* signed state (averages of gradients): below floor * 2**-60 a step is below lr * 2**-60;
* positive state (averages of squares): its root is below floor * 2**-27, so that adding it to the
  floor changes nothing in float32 (floor * 2**-56 in float64).

No threshold exceeds 2**-100 (float32) or 2**-900 (float64), which is so far above the denormal
numbers that looking every few steps is enough. Where an eps is so small that they would be
denormal themselves, what is within a factor of 8 of denormal is flushed all the same. The exception
is positive state whose root, even there, is not small beside such an eps: it is never flushed, and
its denormal numbers make steps slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLUSH_EVERY = 8
"""State is flushed when a parameter's step count is a multiple of this, on every backend alike."""


@dataclass(frozen=True, slots=True)
class Tiny:
    """The small numbers of one dtype and floor.

    ``guard`` stands in for an eps of 0, as the root of the smallest normal number: a zero gradient
    divided by it is 0 instead of NaN, and one whose square underflows makes no step much longer
    than lr. ``signed`` and ``positive`` are the magnitudes below which such state becomes 0 (0:
    never).
    """

    guard: float
    signed: float
    positive: float


@lru_cache(maxsize=256)
def tiny(dtype: np.dtype[Any], floor: float) -> Tiny:
    """Return the small numbers of a state dtype and an optimizer's smallest denominator."""
    normal = float(np.finfo(dtype).smallest_normal)
    highest, square = (2.0**-100, 2.0**-54) if dtype.itemsize == 4 else (2.0**-900, 2.0**-112)
    guard, lowest = normal**0.5, 8.0 * normal
    signed = max(min(highest, floor * 2.0**-60), lowest)
    positive = min(highest, floor * floor * square)
    if positive < lowest:
        positive = lowest if floor == 0.0 or floor >= 4.0 * guard else 0.0
    return Tiny(guard, signed, positive)


def smallest_eps(dtype: np.dtype[Any]) -> float:
    """Return the smallest eps that stays a normal number when a bias correction scales it."""
    return float(np.finfo(dtype).smallest_normal) * 2.0**24


def flush(values: NDArray[Any], signed: bool, tiny: float | NDArray[Any]) -> None:
    """Set to zero what is below ``tiny``; a comparison with NaN is false, so NaN stays."""
    small = (np.abs(values) if signed else values) < tiny
    if small.any():
        np.copyto(values, 0, where=small)
