"""What is too small to matter in a dtype: the guard against 0/0, and the flush to zero.

State that no longer receives gradients decays until it is denormal, and then stays there: on a CPU
every later step becomes 10 to 100 times slower, for ever. So state is set to zero well before that,
far below where it could move a parameter. How far depends on the optimizer's smallest denominator
("floor": eps, or the root of an eps inside the root; 1 where nothing is divided):

* signed state (averages of gradients): below floor * 2**-60 a step is below lr * 2**-60;
* positive state (averages of squares): its root is below floor * 2**-27, so that adding it to the
  floor changes nothing in float32 (floor * 2**-56 in float64).

Where such a threshold is not itself a comfortable normal number, as with a tiny eps, nothing is
flushed. In no dtype does the threshold exceed 2**-100 (float32) or 2**-900 (float64). It is so far
above the denormal numbers that looking every few steps is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

FLUSH_EVERY = 8
"""State is flushed when a parameter's step count is a multiple of this, on every backend alike."""


@dataclass(frozen=True, slots=True)
class Tiny:
    """The small numbers of one dtype and floor.

    ``guard`` stands in for an eps of 0: no root of a normal number notices it in a sum, and a zero
    gradient divided by it is 0 instead of NaN. ``signed`` and ``positive`` are the magnitudes below
    which such state becomes 0 (0: never).
    """

    guard: float
    signed: float
    positive: float


@lru_cache(maxsize=256)
def tiny(dtype: np.dtype[Any], floor: float) -> Tiny:
    """Return the small numbers of a state dtype and an optimizer's smallest denominator."""
    single = dtype.itemsize == 4
    guard, highest, lowest = (
        (2.0**-100, 2.0**-100, 2.0**-113) if single else (2.0**-600, 2.0**-900, 2.0**-1000)
    )
    signed = min(highest, floor * 2.0**-60)
    positive = min(highest, floor * floor * (2.0**-54 if single else 2.0**-112))
    return Tiny(
        guard,
        signed if signed >= lowest else 0.0,
        positive if positive >= lowest else 0.0,
    )
