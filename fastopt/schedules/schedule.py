"""What all schedules share: their numbers are checked when they are made, and then fixed.

They are frozen dataclasses with names in lower case: a user writes ``cosine(0.1, 1000)`` as a
function's name, and reads the same words back when it is printed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from fastopt.hyperparameters import Check, Whole, whole

COUNT = Whole(1)


class Schedule(ABC):
    """A hyperparameter as a function of the step number.

    A subclass is a frozen dataclass; ``_checks`` has a check for every field, and what it returns
    is what the schedule holds.
    """

    _checks: ClassVar[Mapping[str, Check]]

    def __post_init__(self) -> None:
        for field, check in self._checks.items():
            checked = check(f"{type(self).__name__}: {field}", getattr(self, field))
            object.__setattr__(self, field, checked)

    def __call__(self, step: int) -> float:
        """Return the value of a step, 0 for the first."""
        return self._at(whole(f"{type(self).__name__}: step", step, 0))

    @abstractmethod
    def _at(self, step: int) -> float:
        """Return the value of a step that was checked."""


@dataclass(frozen=True)
class Ascending:
    """A list of step numbers, each larger than the one before."""

    low: int = 0
    repeats: bool = False

    def __call__(self, name: str, value: Any) -> tuple[int, ...]:
        """Return the numbers as a tuple."""
        steps = listed(name, value)
        numbers = tuple(whole(f"{name}[{i}]", step, self.low) for i, step in enumerate(steps))
        pairs = pairwise(numbers)
        if any(later < step or (later == step and not self.repeats) for step, later in pairs):
            raise ValueError(f"{name} must be in ascending order; got {value!r}")
        return numbers


def listed(name: str, value: Any) -> Sequence[Any]:
    """Return a list or tuple, or raise TypeError."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list; got {value!r}")
    return value
