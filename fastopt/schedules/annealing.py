"""Schedules that run along cosines or go up and down: annealing, restarts, one cycle, many.

They are computed from sines of what is left, not from 1 + cos as it is usually written: where the
value comes close to its end that sum cancels and keeps no digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastopt.hyperparameters import NONNEGATIVE, POSITIVE, Number
from fastopt.schedules.decay import on_line
from fastopt.schedules.schedule import COUNT, Schedule

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
