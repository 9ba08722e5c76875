"""What a hyperparameter may be, and what is said when it is not that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Scheduled = float | Callable[[int], float]
"""A number, or a function of the step number (0 for the first step) that returns one."""


class Check(Protocol):
    """Returns the value in its plain Python form, or raises TypeError or ValueError."""

    def __call__(self, name: str, value: Any) -> Any:
        """Check one hyperparameter's value."""


@dataclass(frozen=True)
class Number:
    """A finite real number between two ends; Python's, NumPy's or a 0-d array."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __call__(self, name: str, value: Any) -> float:
        """Return the number as a float."""
        number = as_float(value)
        if number is None:
            raise TypeError(f"{name} must be a number in {self}; got {value!r}")
        inside = self.low <= number <= self.high and math.isfinite(number)
        at_open_end = (self.low_open and number == self.low) or (
            self.high_open and number == self.high
        )
        if not inside or at_open_end:
            raise ValueError(f"{name} must be a number in {self}; got {value!r}")
        return number

    def __str__(self) -> str:
        left = "(" if self.low_open or self.low == -math.inf else "["
        right = ")" if self.high_open or self.high == math.inf else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def __call__(self, name: str, value: Any) -> bool:
        """Return the flag as a bool."""
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False; got {value!r}")
        return bool(value)


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def __call__(self, name: str, value: Any) -> str:
        """Return the word as it is."""
        if not isinstance(value, str):
            raise TypeError(f"{name} must be one of {', '.join(self.words)}; got {value!r}")
        if value not in self.words:
            raise ValueError(f"{name} must be one of {', '.join(self.words)}; got {value!r}")
        return value


@dataclass(frozen=True)
class Maybe:
    """None, or what another check lets through."""

    check: OneOf

    def __call__(self, name: str, value: Any) -> str | None:
        """Return None, or what the other check returns."""
        return None if value is None else self.check(f"{name}, if it is not None,", value)


@dataclass(frozen=True)
class Pair:
    """Two numbers, each with its own range."""

    first: Number
    second: Number

    def __call__(self, name: str, value: Any) -> tuple[float, float]:
        """Return the pair as a tuple of floats."""
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(f"{name} must be a pair of numbers; got {value!r}")
        return self.first(f"{name}[0]", value[0]), self.second(f"{name}[1]", value[1])


@dataclass(frozen=True)
class Schedulable:
    """A number, or a function of the step number (0 for the first step) that returns one."""

    number: Number

    def __call__(self, name: str, value: Any) -> Scheduled:
        """Return the number as a float, or the function as it is."""
        if callable(value):
            return value  # type: ignore[no-any-return]  # its values are checked at every step
        return self.number(name, value)

    def at(self, name: str, value: Any, step: int) -> float:
        """Return the value in a step, checked; ``value`` is what ``__call__`` returned."""
        return self.number(name, value(step)) if callable(value) else value


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` on, to ``high`` if there is one."""

    low: int
    high: int | None = None

    def __call__(self, name: str, value: Any) -> int:
        """Return the number as an int."""
        return whole(name, value, self.low, self.high)


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return a whole number that is in the range, or raise TypeError or ValueError."""
    upto = "on" if high is None else f"to {high}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a whole number from {low} {upto}; got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be a whole number from {low} {upto}; got {value!r}")
    return int(value)


def as_float(value: Any) -> float | None:
    """Return a real number as a float; None for anything else, truth values and NaN included."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


NONNEGATIVE = Number(low=0.0)
POSITIVE = Number(low=0.0, low_open=True)
FRACTION = Number(low=0.0, high=1.0, high_open=True)
"""A decay rate: 0 forgets everything, 1 would never learn and is excluded."""
FINITE = Number()
EPS = NONNEGATIVE
"""Added to a denominator; 0 is allowed and then stands for the smallest guard against 0/0."""
