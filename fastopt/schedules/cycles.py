"""Schedules that go up and down, or along cosines: annealing, restarts, one cycle, many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastopt.core.hyperparameters import (
    NONNEGATIVE,
    POSITIVE,
    Flag,
    Maybe,
    Number,
    OneOf,
)
from fastopt.schedules.functions import COUNT, Schedule, on_line

# They are computed from sines of what is left, not from 1 + cos as it is usually written: where the
# value comes close to its end that sum cancels and keeps no digits.

SHARE = Number(low=0.0, high=1.0)


@dataclass(frozen=True)
class cosine(Schedule):
    """``lr_min + (lr - lr_min) * (1 + cos(pi * step / total_steps)) / 2``, then ``lr_min``.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.cosine(0.1, total_steps=100)
        >>> [round(lr(step), 4) for step in (0, 50, 100, 200)]
        [0.1, 0.05, 0.0, 0.0]

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

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.cosine_restarts(0.1, first_period=10)
        >>> [round(lr(step), 4) for step in (0, 5, 9, 10)]
        [0.1, 0.05, 0.0024, 0.1]

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
    where it stays. With ``three_phase`` it comes back to ``max_lr / div_factor`` in between, at the
    step number ``2 * pct_start * total_steps - 2``.

    A momentum or beta1 that goes the other way, from 0.95 to 0.85 and back, is
    ``one_cycle(0.85, total_steps, div_factor=0.85 / 0.95, final_div_factor=1)``.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.one_cycle(0.1, total_steps=100)
        >>> [round(lr(step), 4) for step in (0, 29, 99)]
        [0.004, 0.1, 0.0]

    Args:
        max_lr: value at the peak, >= 0.
        total_steps: how many steps the cycle has, >= 1.
        pct_start: share of the steps that go up, in [0, 1]; in [0, 0.5] with ``three_phase``.
        div_factor: how many times the first value is below the peak, > 0.
        final_div_factor: how many times the last value is below the first, > 0.
        anneal: "cosine", or "linear" for lines.
        three_phase: up, down to the first value, and on to the last one.

    Source: Smith and Topin, "Super-Convergence" (2018), as PyTorch 2.13's ``OneCycleLR``, whose
    anneal_strategy is ``anneal``. That one raises an error after its end, and along lines falls
    below 0 there.
    """

    _checks = {
        "max_lr": NONNEGATIVE,
        "total_steps": COUNT,
        "pct_start": SHARE,
        "div_factor": POSITIVE,
        "final_div_factor": POSITIVE,
        "anneal": OneOf(("cosine", "linear")),
        "three_phase": Flag(),
    }
    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: str = "cosine"
    three_phase: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(
                "one_cycle: pct_start must be a number in [0, 0.5] with three_phase, since as many "
                f"steps go up as come down again; got {self.pct_start!r}"
            )

    def _at(self, step: int) -> float:
        peak, last = self.pct_start * self.total_steps - 1.0, self.total_steps - 1.0
        first = self.max_lr / self.div_factor
        ends = [(peak, self.max_lr), (last, first / self.final_div_factor)]
        if self.three_phase:
            ends.insert(1, (2.0 * peak, first))
        begin, start, done = 0.0, first, min(float(step), last)
        for end, value in ends[:-1]:
            if done <= end:
                return self._annealed(start, value, done - begin, end - begin)
            begin, start = end, value
        return self._annealed(start, ends[-1][1], done - begin, last - begin)

    def _annealed(self, start: float, end: float, done: float, total: float) -> float:
        if not total:  # a peak at step 0 is a cycle that only goes down
            return end
        return SHAPES[self.anneal](start, end, done, total)


@dataclass(frozen=True)
class cyclic(Schedule):
    """Up and down along lines, without an end: ``base_lr``, ``max_lr``, ``base_lr``, ...

    The difference ``max_lr - base_lr`` is multiplied by a factor: 1 in the mode "triangular", 1/2
    to the number of cycles before this one in "triangular2", ``gamma^step`` in "exp_range".

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.cyclic(0.01, 0.1, step_size_up=10)
        >>> [round(lr(step), 4) for step in (0, 5, 10, 20)]
        [0.01, 0.055, 0.1, 0.01]

    Args:
        base_lr: value at the beginning of each cycle, >= 0.
        max_lr: value at the peak of a cycle with the factor 1, >= 0; may be the smaller one.
        step_size_up: how many steps it takes up, >= 1.
        step_size_down: how many it takes down again, >= 1; None for as many.
        mode: "triangular", "triangular2" or "exp_range".
        gamma: base of the factor in "exp_range", in [0, 1]; other modes have none.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (WACV 2017), as PyTorch
    2.13's ``CyclicLR``.
    """

    _checks = {
        "base_lr": NONNEGATIVE,
        "max_lr": NONNEGATIVE,
        "step_size_up": COUNT,
        "step_size_down": Maybe(COUNT),
        "mode": OneOf(("triangular", "triangular2", "exp_range")),
        "gamma": SHARE,
    }
    base_lr: float
    max_lr: float
    step_size_up: int
    step_size_down: int | None = None
    mode: str = "triangular"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode != "exp_range" and self.gamma != 1.0:
            raise ValueError(
                f"cyclic: gamma must be left out in the mode {self.mode!r}, and has a part in "
                f'"exp_range" alone; got {self.gamma!r}'
            )

    def _at(self, step: int) -> float:
        up, down = self.step_size_up, self.step_size_down or self.step_size_up
        cycle, place = divmod(step, up + down)
        peak = on_line(self.base_lr, self.max_lr, self._factor(step, cycle), 1.0)
        if place <= up:
            return on_line(self.base_lr, peak, place, up)
        return on_line(peak, self.base_lr, place - up, down)

    def _factor(self, step: int, cycle: int) -> float:
        if self.mode == "triangular2":
            return math.pow(0.5, cycle)
        return math.pow(self.gamma, step) if self.mode == "exp_range" else 1.0


@dataclass(frozen=True)
class PowerOfTwo:
    """A whole number 1, 2, 4, 8, ..."""

    def __call__(self, name: str, value: Any) -> int:
        """Return the number as an int."""
        number = COUNT(name, value)
        if number & (number - 1):
            raise ValueError(f"{name} must be a power of two, such as 64; got {value!r}")
        return number


@dataclass(frozen=True)
class chebyshev(Schedule):
    """The step sizes of Chebyshev's iteration, in fractal order, again and again.

    ::

        lr_k = 2 / (1/lr_min + 1/lr - (1/lr_min - 1/lr) * cos((2k - 1) pi / (2 total_steps)))

    for k = 1, ..., total_steps: from near ``lr``, the largest, to near ``lr_min``. The order of k
    is 1 for one step, and for twice as many 1, 2T, k_2, 2T + 1 - k_2, ...: each k_i of the T steps
    followed by 2T + 1 - k_i. So steps that are too long to be stable are followed by short ones
    that make up for them, on every scale.

    It has no end: single steps are too long, and only all ``total_steps`` together contract.

    Example:
        >>> from fastopt import schedules
        >>> lr = schedules.chebyshev(0.5, total_steps=4, lr_min=0.1)
        >>> [round(lr(step), 4) for step in (0, 1, 2, 3)]
        [0.4339, 0.1031, 0.2238, 0.1328]

    Args:
        lr: upper end of the step sizes, > 0: one over the smallest curvature.
        total_steps: how many steps a turn has, a power of two.
        lr_min: lower end, > 0: one over the largest curvature. On quadratics whose curvatures are
            between these two no other steps promise as much in so many.

    Source: Agarwal, Goel and Zhang, "Acceleration via Fractal Learning Rate Schedules" (ICML 2021),
    after Lebedev and Finogenov (1971). pytorch_optimizer's ``get_chebyshev_schedule`` has the same
    order, for epochs.
    """

    _checks = {"lr": POSITIVE, "total_steps": PowerOfTwo(), "lr_min": POSITIVE}
    lr: float
    total_steps: int
    lr_min: float

    def _at(self, step: int) -> float:
        number = _fractal(step % self.total_steps, self.total_steps)
        angle = math.pi / 4 * ((2 * number - 1) / self.total_steps)  # half of that in the formula
        return 1.0 / (math.sin(angle) ** 2 / self.lr_min + math.cos(angle) ** 2 / self.lr)


def _fractal(place: int, length: int) -> int:
    """Return the number, from 1 on, that has a place, from 0 on, in the fractal order."""
    if length == 1:
        return 1
    before = _fractal(place // 2, length // 2)
    return length + 1 - before if place % 2 else before


def _on_cosine(start: float, end: float, done: float, total: float) -> float:
    """Return where half a cosine from start to end is after a part of it; exact at both ends."""
    return start * _rise((total - done) / total) + end * _rise(done / total)


def _on_sqrt(start: float, end: float, done: float, total: float) -> float:
    """Return where 1 - sqrt from start to end is after a part of it; exact at both ends."""
    root = math.sqrt(done / total)
    left = (total - done) / total / (1.0 + root)  # 1 - root, without its cancellation
    return start * left + end * root


SHAPES = {"linear": on_line, "cosine": _on_cosine, "sqrt": _on_sqrt}
"""Ways from one value to another: (start, end, steps done, of how many)."""


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
