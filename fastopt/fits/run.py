"""One fit on its way: what is recorded of it, the best point, and when it ends."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import fsum, inf, isfinite, nan
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.fits import stopping
from fastopt.fits.problem import Function, Gradient, Leaves, Points, Sides, not_finite
from fastopt.fits.stopping import WINDOW, Status, Stop

if TYPE_CHECKING:

    class Fit(dict[str, Any]):
        """The OptimizeResult that ``minimize`` returns, which has no types of its own."""

        x: Any
        fun: float
        grad_norm: float
        success: bool
        status: int
        message: str
        nit: int
        nfev: int
        history: History
        best: int  # with several starts alone, and so are the members
        members: Any


Callback = Callable[[Any], object]
"""Is handed an OptimizeResult in the middle of a run."""


@dataclass(frozen=True, repr=False)
class History:
    """A run by iteration, the start first: NumPy arrays of one length, float64.

    Attributes:
        value: the function at the point of each iteration.
        grad_norm: the largest element of its gradient, without its sign; with bounds, of what they
            leave of it.
        best: the lowest value up to each iteration.
        seconds: when it was there, counted from the beginning of the run.
    """

    value: Array
    grad_norm: Array
    best: Array
    seconds: Array

    def __repr__(self) -> str:
        return f"<{len(self.value)} iterations: value, grad_norm, best, seconds>"


class Best(NamedTuple):
    """The best point so far."""

    value: float
    norm: float
    iteration: int  # -1: none has been finite
    leaves: Leaves


class Run:
    """A run of one fit: it is told every iteration, keeps the best and says when to stop.

    With ``batches`` values of single iterations say little: the best point is the one that the ten
    iterations with the lowest mean value have led to.
    """

    def __init__(
        self,
        points: Points,
        function: Function,
        sides: Sides | None,
        limits: stopping.Limits,
        callback: Callback | None,
        bar: Any,
        batches: bool = False,
    ) -> None:
        self.points: Points = points
        self.function: Function = function
        self.limits: stopping.Limits = limits
        self.sides: Sides | None = sides
        self.values: list[float] = []
        self.norms: list[float] = []
        self.seconds: list[float] = []
        self.best: Best = Best(inf, nan, -1, points.copies(points.start))
        self._spare = points.copies(points.start)
        self._callback, self._bar = callback, bar
        self._begun = perf_counter()
        self.batches = batches
        self._lately: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._before = inf  # the best value ten iterations ago
        self._best_before: Leaves | None = None  # and the best point, for xtol

    @property
    def iterations(self) -> int:
        """How many have been made; the start is none where it is recorded."""
        return len(self.values) if self.batches else max(len(self.values) - 1, 0)

    def record(self, value: float, norm: float, leaves: Leaves, gradient: Gradient) -> Stop | None:
        """Take what an iteration has come to; return why to stop, if so."""
        count = len(self.values)
        self.values.append(value)
        self.norms.append(norm)
        self.seconds.append(perf_counter() - self._begun)
        if not (isfinite(value) and isfinite(norm)):
            return self.said_not_finite(value, gradient)
        if value < self.best.value:
            self._keep(value, norm, count, leaves)
        limits = self.limits
        if norm <= limits.gtol:
            # Where values differ by rounding alone the gradient tells better which point is best.
            best = self.best
            if best.norm > norm and value - best.value <= 1e-15 * max(1.0, abs(value)):
                self._keep(value, norm, count, leaves)
            return stopping.by_gradient(norm, limits, self.sides is not None)
        if count % WINDOW == 0 and (stop := self._progress(count, leaves)) is not None:
            return stop
        if count and (self._callback is not None or self._bar is not None):
            stop = self._show(value, norm, leaves)
            if stop is not None:
                return stop
        if count >= limits.maxiter:
            return stopping.at_maxiter(limits)
        return self.out_of_limits()

    def record_batch(
        self, value: float, norm: float, leaves: Leaves, gradient: Gradient, skips: bool
    ) -> Stop | None:
        """Take the value and norm of a batch and the point that its step has led to."""
        count = len(self.values)
        self.values.append(value)
        self.norms.append(norm)
        self.seconds.append(perf_counter() - self._begun)
        finite = isfinite(value) and isfinite(norm)
        if not (finite or skips):
            return self.said_not_finite(value, gradient)
        if finite:
            self._lately.append((value, norm))
        if finite and len(self._lately) == WINDOW:
            mean = fsum(one for one, _ in self._lately) / WINDOW
            largest = max(one for _, one in self._lately)
            if mean < self.best.value:
                self._keep(mean, largest, count, leaves)
            if largest <= self.limits.gtol:
                return stopping.by_gradient(largest, self.limits, self.sides is not None)
        if count and count % WINDOW == 0 and (stop := self._progress(count, leaves)) is not None:
            return stop
        if self._callback is not None or self._bar is not None:
            stop = self._show(value, norm, leaves)
            if stop is not None:
                return stop
        return self.out_of_limits()

    def end_of_batches(self, leaves: Leaves) -> None:
        """Take the last point for the best one where there were less than ten batches."""
        finite = [value for value in self.values if isfinite(value)]
        if self.best.iteration < 0 and finite:
            self._keep(fsum(finite) / len(finite), self.norms[-1], len(self.values) - 1, leaves)

    def out_of_limits(self) -> Stop | None:
        """Return the limit of evaluations or of time that has been reached, if one has."""
        limits = self.limits
        if self.function.count >= limits.maxfun:
            return stopping.at_maxfun(limits)
        if limits.max_time != inf and perf_counter() - self._begun >= limits.max_time:
            return stopping.at_max_time(limits)
        return None

    def said_not_finite(self, value: float, gradient: Gradient) -> Stop:
        """Say what is not finite, and when."""
        what = not_finite(value, gradient, self.points.paths)
        what = what or "the gradient's largest element is not finite"
        where = f"at iteration {len(self.values) - 1}"
        if len(self.values) == 1:
            where = "at x0; begin where it is finite"
        elif self.best.iteration >= 0:
            where += f"; x is the best point before, of iteration {self.best.iteration}"
        return Stop(Status.NOT_FINITE, f"The function is not finite: {what} {where}.")

    def _keep(self, value: float, norm: float, iteration: int, leaves: Leaves) -> None:
        """Take a point for the best one."""
        spare, old = self._spare, self.best
        for own, leaf in zip(spare, leaves, strict=True):
            own[...] = leaf
        # The best one is replaced at once: an interrupt finds the old one whole, or the new one.
        self.best = Best(value, norm, iteration, spare)
        self._spare = old.leaves

    def _progress(self, count: int, leaves: Leaves) -> Stop | None:
        """Return why to stop if the last ten iterations have brought too little."""
        limits, best = self.limits, self.best
        before, self._before = self._before, best.value
        if limits.ftol is not None and count >= WINDOW and isfinite(before):
            limit = limits.ftol * max(1.0, abs(best.value))
            if before - best.value <= limit:
                return stopping.by_value(before - best.value, limit, limits)
        if limits.xtol is not None:
            place, self._best_before = self._best_before, self.points.copies(best.leaves)
            if place is not None and isfinite(before):
                way = max(_largest(best.leaves, place), _largest(leaves, place))
                limit = limits.xtol * max(1.0, _largest(best.leaves))
                if way <= limit:
                    return stopping.by_distance(way, limit, limits)
        return None

    def _show(self, value: float, norm: float, leaves: Leaves) -> Stop | None:
        """Bring the progress bar up to date and call the callback."""
        if self._bar is not None:
            said = f"value {value:.6g}, gradient {norm:.2e}, best {self.best.value:.6g}"
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update()
        if self._callback is not None:
            from scipy.optimize import OptimizeResult

            now = OptimizeResult(
                x=self.points.nest(self.points.copies(leaves)),
                fun=value,
                nit=self.iterations,
                nfev=self.function.count,
                grad_norm=norm,
            )
            try:
                self._callback(now)
            except StopIteration:
                return stopping.by_callback()
        return None

    def history(self) -> History:
        """Return the run by iteration."""
        value = np.array(self.values, np.float64)
        # fmin leaves NaN out; where the first is NaN it is the best so far.
        best = np.fmin.accumulate(value) if value.size else value
        return History(
            value, np.array(self.norms, np.float64), best, np.array(self.seconds, np.float64)
        )


def _largest(leaves: Leaves, others: Leaves | None = None) -> float:
    """Return the largest element of a point, or of its difference to another."""
    found = 0.0
    for k, leaf in enumerate(leaves):
        if leaf.size:
            with arrays.on_device_of(leaf):
                way = leaf if others is None else leaf - others[k]
                found = max(found, float(abs(way).max()))
    return found


def checked_callback(callback: Any) -> Callback | None:
    """Return a callback of either form as one that is handed an OptimizeResult.

    As SciPy has it: a function whose only parameter is called intermediate_result gets that, by
    keyword, any other one x alone.
    """
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(f"callback must be a function; got {callback!r:.200}")
    try:
        names = {*inspect.signature(callback).parameters}
    except ValueError:  # of a function that is written in C
        names = set()
    if names == {"intermediate_result"}:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)


def progress_bar(total: int, name: str) -> Any:
    """Return a progress bar of tqdm."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True shows a bar of tqdm, which is not installed: pip install tqdm"
        ) from error
    return tqdm(total=total, desc=name)
