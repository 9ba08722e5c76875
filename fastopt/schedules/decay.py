"""Schedules that go down, or up, and do not turn: steps, powers, lines, roots."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fastopt.hyperparameters import NONNEGATIVE, POSITIVE
from fastopt.schedules.schedule import COUNT, Ascending, Schedule


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
