"""Schedules as functions of the step number: what all have in common, and those of one way."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    POSITIVE,
    Check,
    Flag,
    ScheduledNumber,
    Whole,
    whole,
)

# -------------------------------------------------------------------------------------------------
# What all schedules share: their numbers are checked when they are made, and then fixed.
#
# They are frozen dataclasses with names in lower case: a user writes ``cosine(0.1, 1000)`` as a
# function's name, and reads the same words back when it is printed.

COUNT = Whole(1)


class Schedule(ABC):
    """A hyperparameter as a function of the step number.

    A subclass is a frozen dataclass; ``_checks`` has a check for every field, and what it returns
    is what the schedule holds.
    """

    _checks: ClassVar[Mapping[str, Check]]

    @property
    def foreseeable(self) -> bool:
        """Whether the value of a step is the same whenever it is asked for."""
        functions = filter(callable, self._parts)
        return all(getattr(part, "foreseeable", False) is True for part in functions)

    @property
    def _parts(self) -> tuple[ScheduledNumber, ...]:
        """The schedules that this one is made of."""
        return ()

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


# -------------------------------------------------------------------------------------------------
# Schedules that go down, or up, and do not turn: steps, powers, lines, roots.


@dataclass(frozen=True)
class constant(Schedule):
    """The same value at every step.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.constant(0.1)
        >>> [round(lr(step), 4) for step in (0, 100)]
        [0.1, 0.1]

    Args:
        lr: the value, >= 0.
    """

    _checks = {"lr": NONNEGATIVE}
    lr: float

    def _at(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class step_decay(Schedule):
    """``lr * gamma^floor(step / step_size)``: multiplied by gamma every ``step_size`` steps.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.step_decay(0.1, step_size=30)
        >>> [round(lr(step), 4) for step in (0, 29, 30, 60)]
        [0.1, 0.1, 0.01, 0.001]

    Args:
        lr: value of the first steps, >= 0.
        step_size: how many steps each value lasts, >= 1.
        gamma: factor, >= 0.

    Source: as PyTorch 2.13's ``StepLR``.
    """

    _checks = {"lr": NONNEGATIVE, "step_size": COUNT, "gamma": NONNEGATIVE}
    lr: float
    step_size: int
    gamma: float = 0.1

    def _at(self, step: int) -> float:
        return _times_power(self.lr, self.gamma, step // self.step_size)


@dataclass(frozen=True)
class multistep(Schedule):
    """``lr * gamma^(number of milestones <= step)``: multiplied by gamma at each milestone.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.multistep(0.1, milestones=[30, 80])
        >>> [round(lr(step), 4) for step in (0, 30, 80)]
        [0.1, 0.01, 0.001]

    Args:
        lr: value before the first milestone, >= 0.
        milestones: step numbers, >= 0, in ascending order; one that stands there twice counts
            twice.
        gamma: factor, >= 0.

    Source: as PyTorch 2.13's ``MultiStepLR``.
    """

    _checks = {"lr": NONNEGATIVE, "milestones": Ascending(repeats=True), "gamma": NONNEGATIVE}
    lr: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def _at(self, step: int) -> float:
        return _times_power(self.lr, self.gamma, bisect_right(self.milestones, step))


@dataclass(frozen=True)
class exponential(Schedule):
    """``lr * gamma^step``.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.exponential(0.1, gamma=0.5)
        >>> [round(lr(step), 4) for step in (0, 1, 2)]
        [0.1, 0.05, 0.025]

    Args:
        lr: value of the first step, >= 0.
        gamma: factor of every step, >= 0. Above 1 the value grows, to infinity in the end, which
            the optimizer then refuses.

    Source: as PyTorch 2.13's ``ExponentialLR``.
    """

    _checks = {"lr": NONNEGATIVE, "gamma": NONNEGATIVE}
    lr: float
    gamma: float

    def _at(self, step: int) -> float:
        return _times_power(self.lr, self.gamma, step)


@dataclass(frozen=True)
class linear(Schedule):
    """``lr * factor``, where the factor goes from ``start_factor`` to ``end_factor`` in a line.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.linear(0.1, start_factor=0.5, end_factor=1.0, total_steps=10)
        >>> [round(lr(step), 4) for step in (0, 5, 10, 20)]
        [0.05, 0.075, 0.1, 0.1]

    Args:
        lr: what the factors multiply, >= 0.
        start_factor: factor of the first step, >= 0.
        end_factor: factor from step ``total_steps`` on, >= 0.
        total_steps: the first step with ``end_factor``, >= 1.

    Source: as PyTorch 2.13's ``LinearLR``, whose ``total_iters`` this is.
    """

    _checks = {
        "lr": NONNEGATIVE,
        "start_factor": NONNEGATIVE,
        "end_factor": NONNEGATIVE,
        "total_steps": COUNT,
    }
    lr: float
    start_factor: float
    end_factor: float
    total_steps: int

    def _at(self, step: int) -> float:
        done, total = min(step, self.total_steps), self.total_steps
        return self.lr * on_line(self.start_factor, self.end_factor, done, total)


@dataclass(frozen=True)
class polynomial(Schedule):
    """``lr_min + (lr - lr_min) * (1 - step / total_steps)^power``, then ``lr_min``.

    With ``cycle`` it has no end: ``total_steps`` is multiplied by ``ceil(step / total_steps)``, so
    that after each ``total_steps`` steps, at ``lr_min``, it goes up again, to half of the way at
    first for a line, and to more each time.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.polynomial(0.1, total_steps=10)
        >>> [round(lr(step), 4) for step in (0, 5, 10)]
        [0.1, 0.05, 0.0]

    Args:
        lr: value of the first step, >= 0.
        total_steps: the first step with the value ``lr_min``, >= 1.
        power: > 0; 1 for a line.
        lr_min: value at the end, >= 0.
        cycle: begin anew instead of staying there.

    Source: as PyTorch 2.13's ``PolynomialLR``, whose end is 0, optax's ``polynomial_schedule``, and
    Keras 3's ``PolynomialDecay`` with its ``end_learning_rate`` and ``cycle``.
    """

    _checks = {
        "lr": NONNEGATIVE,
        "total_steps": COUNT,
        "power": POSITIVE,
        "lr_min": NONNEGATIVE,
        "cycle": Flag(),
    }
    lr: float
    total_steps: int
    power: float = 1.0
    lr_min: float = 0.0
    cycle: bool = False

    def _at(self, step: int) -> float:
        total = self.total_steps
        if self.cycle:
            total *= max(-(-step // total), 1)
        share = math.pow(max(total - step, 0) / total, self.power)
        return on_line(self.lr_min, self.lr, share, 1.0)


@dataclass(frozen=True)
class inverse_time(Schedule):
    """``lr / (1 + gamma * step / step_size)``: falls as one over the number of steps.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.inverse_time(0.1, gamma=0.5, step_size=10)
        >>> [round(lr(step), 4) for step in (0, 10, 20)]
        [0.1, 0.0667, 0.05]

    Args:
        lr: value of the first step, >= 0.
        gamma: how fast it falls, >= 0: after ``step_size / gamma`` steps it is half of lr.
        step_size: the unit in which steps are counted, >= 1.
        staircase: count whole units alone, so that each value lasts ``step_size`` steps.

    Source: Robbins and Monro, "A Stochastic Approximation Method" (1951), whose steps fall as 1/n;
    as Keras 3's ``InverseTimeDecay``, whose decay_rate and decay_steps are gamma and step_size.
    """

    _checks = {"lr": NONNEGATIVE, "gamma": NONNEGATIVE, "step_size": COUNT, "staircase": Flag()}
    lr: float
    gamma: float
    step_size: int = 1
    staircase: bool = False

    def _at(self, step: int) -> float:
        units = step // self.step_size if self.staircase else step / self.step_size
        return self.lr / (1.0 + self.gamma * units)


@dataclass(frozen=True)
class rex(Schedule):
    """``lr_min + (lr - lr_min) * (1 - z) / (1/2 + (1 - z) / 2)``, with ``z = step / total_steps``.

    Falls slowly at first and ever faster to the end: above a line all the way.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.rex(0.1, total_steps=10)
        >>> [round(lr(step), 4) for step in (0, 5, 10)]
        [0.1, 0.0667, 0.0]

    Args:
        lr: value of the first step, >= 0.
        total_steps: the first step with the value ``lr_min``, >= 1.
        lr_min: value from there on, >= 0.

    Source: Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved
    Schedule" (MLSys 2022), whose end is 0. Codes that divide by 0.1 + 0.9 * (1 - z) instead fall
    later.
    """

    _checks = {"lr": NONNEGATIVE, "total_steps": COUNT, "lr_min": NONNEGATIVE}
    lr: float
    total_steps: int
    lr_min: float = 0.0

    def _at(self, step: int) -> float:
        total = self.total_steps
        left = max(total - step, 0)
        return on_line(self.lr_min, self.lr, 2 * left, total + left)


@dataclass(frozen=True)
class inverse_sqrt(Schedule):
    """``lr * min(t / warmup_steps, sqrt(warmup_steps / t))`` with ``t = step + 1``.

    Grows in a line to ``lr`` at the step number ``warmup_steps - 1``, then falls with the root of
    the number of steps, without an end.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.inverse_sqrt(0.1, warmup_steps=10)
        >>> [round(lr(step), 4) for step in (0, 9, 39)]
        [0.01, 0.1, 0.05]

    Args:
        lr: largest value, >= 0.
        warmup_steps: >= 1; 1 for none.

    Source: Vaswani et al., "Attention Is All You Need" (2017), equation 3, whose factor
    d_model^(-1/2) is lr * sqrt(warmup_steps) here. fairseq counts from 0 instead of 1 and can start
    above 0.
    """

    _checks = {"lr": NONNEGATIVE, "warmup_steps": COUNT}
    lr: float
    warmup_steps: int

    def _at(self, step: int) -> float:
        t = step + 1
        return self.lr * min(t / self.warmup_steps, math.sqrt(self.warmup_steps / t))


def on_line(start: float, end: float, done: float, total: float) -> float:
    """Return where the line from start to end is after a part of it; exact at both ends."""
    return start * ((total - done) / total) + end * (done / total)


def _times_power(lr: float, gamma: float, exponent: int) -> float:
    try:
        return lr * math.pow(gamma, exponent)
    except OverflowError:
        return math.inf
