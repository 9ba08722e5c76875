"""Schedules made of others, one after the other: a warm-up before one, and several joined."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastopt.hyperparameters import NONNEGATIVE, Schedulable, Scheduled
from fastopt.schedules.decay import on_line
from fastopt.schedules.schedule import COUNT, Ascending, Schedule, listed

PART = Schedulable(NONNEGATIVE)


@dataclass(frozen=True)
class warmup(Schedule):
    """A line up to the first value of a schedule, then the schedule from its step 0 on.

    ::

        schedule(0) * (start_factor + (1 - start_factor) * step / warmup_steps)   before
        schedule(step - warmup_steps)                                   from warmup_steps on

    The schedule's own steps begin after the warm-up, so ``warmup(cosine(lr, 900), 100)`` ends at
    step 1000 and leaves out nothing of the cosine.

    Args:
        schedule: a number, or a function of the step number.
        warmup_steps: how many steps come before, >= 1.
        start_factor: share of ``schedule(0)`` that the first step has, >= 0. With 0 the first step
            changes nothing but the optimizer's state.

    Source: Goyal et al., "Accurate, Large Minibatch SGD" (2017), section 2.2. PyTorch's
    ``SequentialLR`` of a ``LinearLR`` and another one, optax's ``warmup_cosine_decay_schedule`` and
    Hugging Face's ``get_cosine_schedule_with_warmup`` all let the schedule begin after the warm-up
    (the last two are told the sum of both lengths).
    """

    _checks = {"schedule": PART, "warmup_steps": COUNT, "start_factor": NONNEGATIVE}
    schedule: Scheduled
    warmup_steps: int
    start_factor: float = 0.0

    @property
    def _parts(self) -> tuple[Scheduled, ...]:
        return (self.schedule,)

    def _at(self, step: int) -> float:
        own = max(step - self.warmup_steps, 0)
        value: float = PART.at(f"warmup: schedule at its step {own}", self.schedule, own)
        if step >= self.warmup_steps:
            return value
        return value * on_line(self.start_factor, 1.0, step, self.warmup_steps)


def _schedules(name: str, value: Any) -> tuple[Scheduled, ...]:
    return tuple(PART(f"{name}[{i}]", part) for i, part in enumerate(listed(name, value)))


@dataclass(frozen=True)
class join(Schedule):
    """Several schedules, one after the other, each from its own step 0 on.

    Up to ``boundaries[0]`` it is the first one; from ``boundaries[i]`` on it is
    ``schedules[i + 1](step - boundaries[i])``.

    Args:
        schedules: numbers or functions of the step number, at least one.
        boundaries: the first step of each schedule but the first, >= 1, in ascending order; one
            fewer than there are schedules.

    Source: as PyTorch 2.13's ``SequentialLR`` and optax's ``join_schedules``.
    """

    _checks = {"schedules": _schedules, "boundaries": Ascending(low=1)}
    schedules: Sequence[Scheduled]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                "join: boundaries must be one fewer than schedules; got "
                f"{len(self.boundaries)} boundaries for {len(self.schedules)} schedules"
            )

    @property
    def _parts(self) -> tuple[Scheduled, ...]:
        return tuple(self.schedules)

    def _at(self, step: int) -> float:
        number = bisect_right(self.boundaries, step)
        own = step - self.boundaries[number - 1] if number else step
        return PART.at(f"join: schedules[{number}] at its step {own}", self.schedules[number], own)
