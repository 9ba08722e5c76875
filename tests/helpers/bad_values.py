"""Values that hyperparameters refuse, and the errors that say so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Other:
    """A number of another library: what is looked at of its tensors and arrays."""

    value: float
    dtype: str = "torch.float32"
    shape: tuple[int, ...] = ()

    def __float__(self) -> float:
        return self.value


NO_NUMBERS = [True, np.True_, "0.1", None, 1j, [0.1], (0.1,), {}, np.ones(2), np.array("1")]
NO_NUMBERS += [np.array(True), np.array([True]), object(), b"1", bytearray(b"1"), np.str_("1")]
NO_NUMBERS += [np.complex64(1), np.array([1j]), np.ones(0), np.ones((2, 1)), np.timedelta64(1)]
NO_NUMBERS += [Other(0.1, "torch.bool"), Other(0.1, "torch.complex64"), Other(0.1, shape=(3,))]
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float32("nan"), np.array(np.inf), 10**400]
NO_FLAGS = [0, 1, 0.0, "True", None, [True], np.array(True), np.array([True]), "no"]

Bad = list[tuple[Any, type[Exception]]]


def number(*outside: float, schedule: bool = False) -> Bad:
    """Return the bad values of a number: of another type, not finite, out of its range."""
    bad: Bad = [(value, TypeError) for value in NO_NUMBERS]
    bad += [(value, ValueError) for value in (*NOT_FINITE, *outside)]
    return bad if schedule else [*bad, (lambda t: 0.1, TypeError)]


def several(count: int, *outside: float) -> Bad:
    """Return the bad values of so many numbers: of another form, or with one bad number."""
    no_pairs = [0.9, "ab", None, {0.9, 0.99}, np.array([0.9, 0.9]), (), (0.9,)]
    bad: Bad = [(value, TypeError) for value in [*no_pairs, (0.9,) * (count + 1)]]
    for value, kind in number(*outside, schedule=True):
        rows = [(0.9,) * k + (value,) + (0.9,) * (count - 1 - k) for k in range(count)]
        bad += [(row, kind) for row in (*rows, list(rows[-1]))]
    return bad


def pair(*outside: float) -> Bad:
    """Return the bad values of a pair."""
    return several(2, *outside)


def is_many(value: Any) -> bool:
    """Return whether a value is a container, which lr_scale may be at construction."""
    return isinstance(value, list | tuple | dict) or getattr(value, "ndim", 0) > 0


FLAG: Bad = [(value, TypeError) for value in NO_FLAGS]
FRACTIONS = (-1e-300, -0.5, 1.0, 1.5, 10)
SEEDS_OUTSIDE: Bad = [(-1, ValueError), (2**64, ValueError)]
