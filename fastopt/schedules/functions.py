"""Schedules as functions of the step number: decay, annealing, cycles, warm-up, several joined."""

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
    Number,
    Schedulable,
    Scheduled,
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
    def _parts(self) -> tuple[Scheduled, ...]:
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
    """``lr * (1 - step / total_steps)^power``, and 0 from step ``total_steps`` on.

    Args:
        lr: value of the first step, >= 0.
        total_steps: the first step with the value 0, >= 1.
        power: > 0; 1 for a line.

    Source: as PyTorch 2.13's ``PolynomialLR``.
    """

    _checks = {"lr": NONNEGATIVE, "total_steps": COUNT, "power": POSITIVE}
    lr: float
    total_steps: int
    power: float = 1.0

    def _at(self, step: int) -> float:
        left = max(self.total_steps - step, 0) / self.total_steps
        return self.lr * math.pow(left, self.power)


@dataclass(frozen=True)
class inverse_sqrt(Schedule):
    """``lr * min(t / warmup_steps, sqrt(warmup_steps / t))`` with ``t = step + 1``.

    Grows in a line to ``lr`` at the step number ``warmup_steps - 1``, then falls with the root of
    the number of steps, without an end.

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


# -------------------------------------------------------------------------------------------------
# Schedules that run along cosines or go up and down: annealing, restarts, one cycle, many.
#
# They are computed from sines of what is left, not from 1 + cos as it is usually written: where the
# value comes close to its end that sum cancels and keeps no digits.

SHARE = Number(low=0.0, high=1.0)


@dataclass(frozen=True)
class cosine(Schedule):
    """``lr_min + (lr - lr_min) * (1 + cos(pi * step / total_steps)) / 2``, then ``lr_min``.

    Args:
        lr: value of the first step, >= 0.
        total_steps: the first step with the value ``lr_min``, >= 1.
        lr_min: value from there on, >= 0.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (ICLR
    2017), equation 5, as PyTorch 2.13's ``CosineAnnealingLR`` up to its T_max, after which that one
    comes back up. optax's ``cosine_decay_schedule`` agrees.
    """

    _checks = {"lr": NONNEGATIVE, "total_steps": COUNT, "lr_min": NONNEGATIVE}
    lr: float
    total_steps: int
    lr_min: float = 0.0

    def _at(self, step: int) -> float:
        done = min(step, self.total_steps)
        return _on_cosine(self.lr, self.lr_min, done, self.total_steps)


@dataclass(frozen=True)
class cosine_restarts(Schedule):
    """``cosine`` again and again: from ``lr`` towards ``lr_min``, then at ``lr`` anew.

    Args:
        lr: value of the first step of every period, >= 0.
        first_period: how many steps the first period has, >= 1.
        multiplier: how many times as long each period is as the one before, a whole number >= 1.
        lr_min: value that each period comes close to, >= 0.

    Source: Loshchilov and Hutter (ICLR 2017), as PyTorch 2.13's ``CosineAnnealingWarmRestarts``.
    """

    _checks = {
        "lr": NONNEGATIVE,
        "first_period": COUNT,
        "multiplier": COUNT,
        "lr_min": NONNEGATIVE,
    }
    lr: float
    first_period: int
    multiplier: int = 1
    lr_min: float = 0.0

    def _at(self, step: int) -> float:
        if self.multiplier == 1:
            done, period = step % self.first_period, self.first_period
        else:
            # Period n begins at first_period * (multiplier^n - 1) / (multiplier - 1).
            reached = step * (self.multiplier - 1) // self.first_period + 1
            power = _largest_power(self.multiplier, reached)
            period = self.first_period * power
            done = step - self.first_period * ((power - 1) // (self.multiplier - 1))
        return _on_cosine(self.lr, self.lr_min, done, period)


@dataclass(frozen=True)
class one_cycle(Schedule):
    """Up along half a cosine, then down along another one, to far below the start.

    From ``max_lr / div_factor`` to ``max_lr`` at the step number ``pct_start * total_steps - 1``,
    and on to ``max_lr / div_factor / final_div_factor`` at the step number ``total_steps - 1``,
    where it stays.

    Args:
        max_lr: largest value, >= 0.
        total_steps: how many steps the cycle has, >= 1.
        pct_start: share of the steps that go up, in [0, 1].
        div_factor: how many times the first value is below the largest, > 0.
        final_div_factor: how many times the last value is below the first, > 0.

    Source: Smith and Topin, "Super-Convergence" (2018), as PyTorch 2.13's ``OneCycleLR`` with two
    phases and cosines. That one raises an error after its end, and along lines falls below 0 there.
    """

    _checks = {
        "max_lr": NONNEGATIVE,
        "total_steps": COUNT,
        "pct_start": SHARE,
        "div_factor": POSITIVE,
        "final_div_factor": POSITIVE,
    }
    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def _at(self, step: int) -> float:
        peak, last = self.pct_start * self.total_steps - 1.0, self.total_steps - 1
        step = min(step, last)
        first = self.max_lr / self.div_factor
        if step <= peak:  # a peak at 0 is a cycle that only goes down
            return _on_cosine(first, self.max_lr, step, peak) if peak else self.max_lr
        return _on_cosine(self.max_lr, first / self.final_div_factor, step - peak, last - peak)


@dataclass(frozen=True)
class cyclic(Schedule):
    """Up and down along lines, without an end: ``base_lr``, ``max_lr``, ``base_lr``, ...

    Args:
        base_lr: value of the steps 0, 2 * step_size_up, ..., >= 0.
        max_lr: value halfway between them, >= 0; may be the smaller one.
        step_size_up: how many steps it takes up, and down again, >= 1.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (WACV 2017), as PyTorch
    2.13's ``CyclicLR`` in its mode "triangular".
    """

    _checks = {"base_lr": NONNEGATIVE, "max_lr": NONNEGATIVE, "step_size_up": COUNT}
    base_lr: float
    max_lr: float
    step_size_up: int

    def _at(self, step: int) -> float:
        place = step % (2 * self.step_size_up)
        done = min(place, 2 * self.step_size_up - place)
        return on_line(self.base_lr, self.max_lr, done, self.step_size_up)


def _on_cosine(start: float, end: float, done: float, total: float) -> float:
    """Return where half a cosine from start to end is after a part of it; exact at both ends."""
    return start * _rise((total - done) / total) + end * _rise(done / total)


def _rise(share: float) -> float:
    """Return (1 - cos(pi * share)) / 2 without its cancellation."""
    return math.sin(math.pi / 2 * share) ** 2


def _largest_power(base: int, limit: int) -> int:
    """Return the largest power of the base, 1 included, that is not above the limit."""
    # The logarithm's rounding can put it one off; whole numbers decide.
    power: int = base ** max(int(math.log(limit) / math.log(base)) - 1, 0)
    while power * base <= limit:
        power *= base
    return power


# -------------------------------------------------------------------------------------------------
# Schedules made of others, one after the other: a warm-up before one, and several joined.

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
        name = f"join: schedules[{number}] at its step {own}"
        value: float = PART.at(name, self.schedules[number], own)
        return value
