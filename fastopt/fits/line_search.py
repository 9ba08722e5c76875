"""The line search of Moré and Thuente: a step that meets the strong Wolfe conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

DECREASE = 1e-3
"""Of the decrease that the slope at the start promises, the share that a step must bring."""

CURVATURE = 0.9
"""Of the slope at the start, the share that may be left at the end."""

NARROW = 0.1
"""Of its larger end, the length of a bracket that is not searched further."""

SHRINKS = 0.66
"""Of its length two trials before, what a bracket may have kept; more, and it is halved."""

FARTHEST = 1e10
"""The largest step where no bound is nearer."""

_ROUGH = (
    "; these are float32: parameters in float64 (x0.astype(float)), of the order of 1, are told "
    "apart more finely"
)
"""What is added where numbers are no float64."""


class Verdict(Enum):
    """What comes after a trial."""

    GO_ON = "try the next step"
    ACCEPT = "the step just tried is the one"
    TAKE_BEST = "an earlier step, the best one, is as good as it gets"
    FAILED = "no step that was tried is better than the start"


@dataclass(slots=True)
class LineSearch:
    """Steps along a line, from the function's values and slopes there.

    A step t is accepted when::

        f(t) <= f(0) + 1e-3 * t * f'(0)    and    |f'(t)| <= 0.9 * |f'(0)|

    Attributes:
        value, slope: f(0) and f'(0) < 0.
        step: the step to try next.
        largest: the largest step that may be tried.
        most: trials after which the search ends.
        precision: the relative precision of the function's values.

    Source: Moré and Thuente, "Line search algorithms with guaranteed sufficient decrease", ACM
    TOMS 20 (1994): sections 2 and 3 for the interval, 4 for the trial values. A step at which the
    function is not finite is treated as too long, whatever lies behind it.
    """

    value: float
    slope: float
    step: float
    largest: float
    most: int
    precision: float
    trials: int = 0
    not_finite: int = 0  # of the trials
    modified: bool = True  # the first stage: the interval is that of f(t) - f(0) - mu t f'(0)
    bracketed: bool = False
    # The interval: the end with the lowest value, where the function falls into it, and the other.
    best: float = 0.0
    best_value: float = math.nan
    best_slope: float = math.nan
    other: float = 0.0
    other_value: float = math.nan
    other_slope: float = math.nan
    width: float = math.inf  # of the interval, one trial and two trials before
    width_before: float = math.inf
    # The shortest step that changed the function by more than rounding: to say what went wrong.
    seen: float = math.nan
    seen_value: float = math.nan
    seen_slope: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.best_value):
            self.best_value = self.other_value = self.value
            self.best_slope = self.other_slope = self.slope
            self.width = self.largest
            self.width_before = 2.0 * self.largest

    def tell(self, value: float, slope: float) -> Verdict:
        """Take the value and the slope at ``step``; afterwards that is the next one."""
        self.trials += 1
        step = self.step
        if not (math.isfinite(value) and math.isfinite(slope)):
            return self._shorten(step)
        least = self.value + DECREASE * step * self.slope
        if value <= least and abs(slope) <= CURVATURE * -self.slope:
            return Verdict.ACCEPT
        at_most = step >= self.largest
        if at_most and value <= least and slope <= DECREASE * self.slope:
            return Verdict.ACCEPT  # the function goes on falling where no step may go
        self._remember(step, value, slope)
        still = value == self.value and slope == self.slope  # it rounds to where the line begins
        if still and self.bracketed and self.best == 0.0 and step < 0.5 * self.other:
            self.step = math.sqrt(step * self.other)
            return self._ended() if self.trials >= self.most else Verdict.GO_ON
        if self.modified and value <= least and slope >= 0.0:
            self.modified = False
        self._narrow(step, value, slope, least)
        return self._proceed()

    def _remember(self, step: float, value: float, slope: float) -> None:
        """Keep the shortest step with a change that no rounding makes."""
        change = abs(value - self.value)
        clear = change > math.sqrt(self.precision) * max(abs(value), abs(self.value))
        if clear and not step >= self.seen:
            self.seen, self.seen_value, self.seen_slope = step, value, slope

    def _shorten(self, step: float) -> Verdict:
        """Go back from where the function is not finite."""
        self.not_finite += 1
        if self.bracketed:
            self.other, self.other_value, self.other_slope = step, math.nan, math.nan
        else:
            self.largest = 0.5 * (self.best + step)
        self.step = self.best + 0.1 * (step - self.best)
        self.width_before, self.width = self.width, abs(step - self.best)
        over = self.trials >= self.most or self.step == self.best
        return self._ended() if over else Verdict.GO_ON

    def _narrow(self, step: float, value: float, slope: float, least: float) -> None:
        """Replace an end of the interval by the trial, and choose the next one."""
        # In the first stage, what falls by less than is asked for is compared with that.
        too_little = self.modified and least < value <= self.best_value
        tilt = DECREASE * self.slope if too_little else 0.0
        lowest = self.best_value - tilt * self.best, self.best_slope - tilt
        beyond = self.other_value - tilt * self.other, self.other_slope - tilt
        tried = value - tilt * step, slope - tilt
        following = self._next(step, tried, lowest, beyond)
        if tried[0] > lowest[0]:
            self.other, self.other_value, self.other_slope = step, value, slope
            self.bracketed = True
        else:
            if tried[1] * lowest[1] < 0.0:
                self.other, self.other_value, self.other_slope = (
                    self.best,
                    self.best_value,
                    self.best_slope,
                )
                self.bracketed = True
            self.best, self.best_value, self.best_slope = step, value, slope
        self.step = following

    def _next(
        self,
        step: float,
        tried: tuple[float, float],
        lowest: tuple[float, float],
        beyond: tuple[float, float],
    ) -> float:
        """Return the trial value of section 4, from values and slopes at the trial and the ends."""
        best, (value, slope), (best_value, best_slope) = self.best, tried, lowest
        low, high = self._limits(step)
        cubic = _cubic(best, best_value, best_slope, step, value, slope)
        if value > best_value:
            quadratic = best + 0.5 * best_slope * (step - best) / (
                (best_value - value) / (step - best) + best_slope
            )
            nearer = cubic is not None and abs(cubic - best) < abs(quadratic - best)
            if cubic is None:
                return quadratic
            return cubic if nearer else 0.5 * (cubic + quadratic)
        far = high if step > best else low
        if slope * best_slope < 0.0:
            secant = step - slope * (step - best) / (slope - best_slope)
            if cubic is None:
                return secant
            return cubic if abs(cubic - step) >= abs(secant - step) else secant
        if abs(slope) <= abs(best_slope):
            ahead = cubic is not None and (cubic - step) * (step - best) > 0.0
            bend = cubic if ahead and cubic is not None else far
            line = slope - best_slope
            secant = step - slope * (step - best) / line if line else far
            nearer = abs(bend - step) < abs(secant - step)
            if not self.bracketed:
                return min(max(secant if nearer else bend, low), high)
            chosen = bend if nearer else secant
            limit = step + SHRINKS * (self.other - step)
            return min(chosen, limit) if step > best else max(chosen, limit)
        if not self.bracketed:
            return far
        across = _cubic(self.other, *beyond, step, value, slope)
        return 0.5 * (step + self.other) if across is None else across

    def _limits(self, step: float) -> tuple[float, float]:
        """Return what the next trial may lie between."""
        if self.bracketed:
            return min(self.best, self.other), max(self.best, self.other)
        return 0.0, min(step + 4.0 * (step - self.best), self.largest)

    def _proceed(self) -> Verdict:
        """See whether there is anything left to try, and keep the next trial inside."""
        if self.trials >= self.most:
            return self._ended()
        best, other = self.best, self.other
        if not self.bracketed:
            self.step = min(self.step, self.largest)
            return Verdict.GO_ON if self.step > best else self._ended()
        width = abs(other - best)
        if width >= SHRINKS * self.width_before:
            self.step = best + 0.5 * (other - best)
        self.width_before, self.width = self.width, width
        low, high = min(best, other), max(best, other)
        if not low < self.step < high:
            self.step = best + 0.5 * (other - best)
        # Near a pole the cubic points right back to the start, where all values round to one: what
        # is tried then lies halfway, in orders of magnitude, to the shortest step that shows.
        shows = self.precision * abs(self.value) / -self.slope
        if best == 0.0 and self.step < shows < high:
            self.step = math.sqrt(shows * high)
        hopeless = best == 0.0 and -self.slope * high <= 0.1 * self.precision * abs(self.value)
        if not low < self.step < high or hopeless:
            return self._ended()
        narrow = width <= NARROW * high and best > 0.0
        return self._ended() if narrow else Verdict.GO_ON

    def _ended(self) -> Verdict:
        better = self.best > 0.0 and self.best_value < self.value
        return Verdict.TAKE_BEST if better else Verdict.FAILED

    def reason(self, length: float, rounding: float) -> str:
        """Return in words why the search has failed.

        ``length`` is that of the step 1, and ``rounding`` how far rounding may move a point: what
        changes over a step that is hardly longer says nothing of the gradient.
        """
        if not math.isnan(self.seen) and self.seen * length > 8.0 * rounding:
            change = self.seen_value - self.value
            promised = 0.5 * (self.slope + self.seen_slope) * self.seen
            if abs(change - promised) > 0.5 * max(abs(change), abs(promised)):
                return (
                    "the gradient contradicts the function: over a step of length "
                    f"{self.seen * length:.3g} from the best point the gradient says that the "
                    f"function changes by {promised:.3g}, and it changed by {change:.3g}; check "
                    "the gradient (scipy.optimize.check_grad compares it with differences), and "
                    "whether the function jumps there"
                )
        if self.not_finite == self.trials:
            return (
                f"the function is not finite at any of {self.trials} points on the line from the "
                "best one"
            )
        if 2 * self.not_finite > self.trials:
            return (
                f"the function is not finite at {self.not_finite} of {self.trials} points on the "
                "line from the best one, and no lower at the others"
            )
        return (
            "the precision is reached: along the last direction no value is lower than "
            f"{self.value:.8g} by more than rounding ({self.precision * abs(self.value):.1g})"
            + (_ROUGH if self.precision > np.finfo(np.float64).eps else "")
        )


def _cubic(
    a: float, value_a: float, slope_a: float, b: float, value_b: float, slope_b: float
) -> float | None:
    """Return where the cubic of two values and slopes has its minimum; None where it has none."""
    mean = slope_a + slope_b - 3.0 * (value_a - value_b) / (a - b)
    scale = max(abs(mean), abs(slope_a), abs(slope_b))
    if not 0.0 < scale < math.inf:
        return None
    inside = (mean / scale) ** 2 - (slope_a / scale) * (slope_b / scale)
    if not inside > 0.0:
        return None
    root = math.copysign(scale * math.sqrt(inside), b - a)
    below = slope_b - slope_a + 2.0 * root
    if below == 0.0:
        return None
    found = b - (b - a) * (slope_b + root - mean) / below
    return found if math.isfinite(found) else None
