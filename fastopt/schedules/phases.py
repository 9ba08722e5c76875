"""Schedules in phases, and made of others: a warm-up before one, several joined or multiplied."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastopt.core.hyperparameters import NONNEGATIVE, OneOf, Schedulable, ScheduledNumber, Whole
from fastopt.schedules.cycles import SHAPES
from fastopt.schedules.functions import COUNT, Ascending, Schedule, listed, on_line

PART = Schedulable(NONNEGATIVE)


def value_of(name: str, part: ScheduledNumber, step: int) -> float:
    """Return the value of a part at its own step, checked."""
    return NONNEGATIVE(f"{name} at its step {step}", part(step)) if callable(part) else part


@dataclass(frozen=True)
class wsd(Schedule):
    """Warm-up, stable, decay: a line up to ``lr``, which stays, and comes down at the end.

    ::

        lr * (start_factor + (1 - start_factor) * step / warmup_steps)       at first
        lr                                                                   from warmup_steps on
        lr + (lr_min - lr) * z                                               in the last decay_steps

    with ``z = (step - (total_steps - decay_steps)) / decay_steps`` for ``shape="linear"``,
    ``(1 - cos(pi * z)) / 2`` in its place for "cosine", and ``sqrt(z)`` for "sqrt", which comes
    down fast at first.

    To train on, give a larger ``total_steps``: up to the decay the steps are the same.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.wsd(0.1, total_steps=100, warmup_steps=10, decay_steps=20)
        >>> [round(lr(step), 4) for step in (0, 10, 80, 90, 100)]
        [0.0, 0.1, 0.1, 0.05, 0.0]

    Args:
        lr: largest value, >= 0.
        total_steps: the first step with the value ``lr_min``, >= 1.
        warmup_steps: how many steps come before ``lr``, >= 0.
        decay_steps: how many steps the decay has, >= 1.
        lr_min: value from ``total_steps`` on, >= 0.
        shape: "linear", "cosine" or "sqrt" (also known as 1-sqrt).
        start_factor: share of ``lr`` that the first step has, >= 0.

    Source: Hu et al., "MiniCPM" (2024); the shape "sqrt": Haegele et al., "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations" (2024). Steps are counted as in
    Hugging Face's ``get_wsd_schedule``.
    """

    _checks = {
        "lr": NONNEGATIVE,
        "total_steps": COUNT,
        "warmup_steps": Whole(0),
        "decay_steps": COUNT,
        "lr_min": NONNEGATIVE,
        "shape": OneOf(("linear", "cosine", "sqrt")),
        "start_factor": NONNEGATIVE,
    }
    lr: float
    total_steps: int
    warmup_steps: int
    decay_steps: int
    lr_min: float = 0.0
    shape: str = "linear"
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise ValueError(
                "wsd: total_steps must be at least warmup_steps + decay_steps; got "
                f"total_steps={self.total_steps} for {self.warmup_steps} + {self.decay_steps}"
            )

    def _at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.lr * on_line(self.start_factor, 1.0, step, self.warmup_steps)
        done = min(max(step - (self.total_steps - self.decay_steps), 0), self.decay_steps)
        return SHAPES[self.shape](self.lr, self.lr_min, done, self.decay_steps)


@dataclass(frozen=True)
class warmup(Schedule):
    """A line up to the first value of a schedule, then the schedule from its step 0 on.

    ::

        schedule(0) * (start_factor + (1 - start_factor) * step / warmup_steps)   before
        schedule(step - warmup_steps)                                   from warmup_steps on

    The schedule's own steps begin after the warm-up, so ``warmup(cosine(lr, 900), 100)`` ends at
    step 1000 and leaves out nothing of the cosine.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.warmup(schedules.cosine(0.1, total_steps=100), warmup_steps=10)
        >>> [round(lr(step), 4) for step in (0, 5, 10, 60)]
        [0.0, 0.05, 0.1, 0.05]

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
    schedule: ScheduledNumber
    warmup_steps: int
    start_factor: float = 0.0

    @property
    def _parts(self) -> tuple[ScheduledNumber, ...]:
        return (self.schedule,)

    def _at(self, step: int) -> float:
        own = max(step - self.warmup_steps, 0)
        value = value_of("warmup: schedule", self.schedule, own)
        if step >= self.warmup_steps:
            return value
        return value * on_line(self.start_factor, 1.0, step, self.warmup_steps)


def _schedules(name: str, value: Any) -> tuple[ScheduledNumber, ...]:
    return tuple(PART(f"{name}[{i}]", part) for i, part in enumerate(listed(name, value)))


@dataclass(frozen=True)
class join(Schedule):
    """Several schedules, one after the other, each from its own step 0 on.

    Up to ``boundaries[0]`` it is the first one; from ``boundaries[i]`` on it is
    ``schedules[i + 1](step - boundaries[i])``.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.join(
        ...     [schedules.constant(0.1), schedules.exponential(0.1, gamma=0.5)], [10]
        ... )
        >>> [round(lr(step), 4) for step in (9, 10, 11)]
        [0.1, 0.1, 0.05]

    Args:
        schedules: numbers or functions of the step number, at least one.
        boundaries: the first step of each schedule but the first, >= 1, in ascending order; one
            fewer than there are schedules.

    Source: as PyTorch 2.13's ``SequentialLR`` and optax's ``join_schedules``.
    """

    _checks = {"schedules": _schedules, "boundaries": Ascending(low=1)}
    schedules: Sequence[ScheduledNumber]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                "join: boundaries must be one fewer than schedules; got "
                f"{len(self.boundaries)} boundaries for {len(self.schedules)} schedules"
            )

    @property
    def _parts(self) -> tuple[ScheduledNumber, ...]:
        return tuple(self.schedules)

    def _at(self, step: int) -> float:
        number = bisect_right(self.boundaries, step)
        own = step - self.boundaries[number - 1] if number else step
        return value_of(f"join: schedules[{number}]", self.schedules[number], own)


@dataclass(frozen=True, init=False, repr=False)
class product(Schedule):
    """Two schedules or more, multiplied: ``a(step) * b(step) * ...``

    ::

        product(cosine(0.1, 1000), linear(1.0, 0.0, 1.0, 100))       rises while it falls
        product(0.5, schedule)                                       half of it

    All of them begin at step 0, unlike those of ``warmup`` and ``join``.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.product(
        ...     schedules.cosine(0.1, total_steps=100), schedules.step_decay(1.0, step_size=50)
        ... )
        >>> [round(lr(step), 4) for step in (0, 49, 50)]
        [0.1, 0.0516, 0.005]

    Args:
        factors: numbers or functions of the step number, each >= 0; two or more.

    Source: as PyTorch 2.13's ``ChainedScheduler`` of schedulers that multiply.
    """

    _checks = {"factors": _schedules}
    factors: Sequence[ScheduledNumber]

    def __init__(self, *factors: ScheduledNumber) -> None:
        object.__setattr__(self, "factors", factors)
        self.__post_init__()
        if len(factors) < 2:
            raise TypeError(
                f"product: factors must be two or more schedules or numbers; got {len(factors)}"
            )

    def __repr__(self) -> str:
        return f"product({', '.join(map(repr, self.factors))})"

    @property
    def _parts(self) -> tuple[ScheduledNumber, ...]:
        return tuple(self.factors)

    def _at(self, step: int) -> float:
        named = enumerate(self.factors)
        return math.prod(value_of(f"product: factors[{k}]", one, step) for k, one in named)
