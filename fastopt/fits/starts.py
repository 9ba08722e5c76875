"""Many fits side by side: from several starts at once, each with an end of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, nan
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.fits import stopping
from fastopt.fits.methods import lbfgs_of
from fastopt.fits.problem import Flat, Function, Gradient, Leaves, Points, Sides, magnitudes
from fastopt.fits.run import Callback, History
from fastopt.fits.stopping import WINDOW, Status, Stop
from fastopt.optimizers.base import Optimizer

if TYPE_CHECKING:
    from fastopt.fits.lbfgs import Minimizer
    from fastopt.fits.run import Fit


def minimize(
    points: Points,
    function: Function,
    sides: Sides | None,
    limits: stopping.Limits,
    opt: Optimizer | None,
    options: Mapping[str, Any],
    callback: Callback | None,
    bar: Any,
) -> Fit:
    """Run from all starts; ``opt`` is None for L-BFGS."""
    runs = Runs(points, function, sides, limits, callback, bar)
    try:
        if opt is None:
            _line_searches(runs, options)
        else:
            _descend(runs, opt)
    except KeyboardInterrupt:
        if not runs.values:
            raise  # there is nothing to return
        runs.end_all(stopping.interrupted)
    return runs.result()


class Runs:
    """Runs of many members: told all values at once, keeps the best of each and who goes on.

    A member that has come to its end stays at its best point.
    """

    def __init__(
        self,
        points: Points,
        function: Function,
        sides: Sides | None,
        limits: stopping.Limits,
        callback: Callback | None,
        bar: Any,
    ) -> None:
        assert points.members is not None
        count = points.members
        self.points: Points = points
        self.function: Function = function
        self.sides: Sides | None = sides
        self.limits: stopping.Limits = limits
        self.values: list[Array] = []
        self.norms: list[Array] = []
        self.seconds: list[float] = []
        self.running: Array = np.ones(count, bool)
        self.iterations: Array = np.zeros(count, np.int64)
        self.best_values: Array = np.full(count, inf)
        self.best_norms: Array = np.full(count, nan)
        self.best: Leaves = points.copies(points.start)
        self.stops: list[Stop | None] = [None] * count
        self._callback, self._bar = callback, bar
        self._begun = perf_counter()
        self._before = np.full(count, inf)
        self._best_before: Leaves | None = None

    def record(
        self, values: Array, norms: Array, leaves: Leaves, gradient: Gradient, new: Array
    ) -> bool:
        """Take what all have come to; return whether any goes on.

        ``new`` are those that have ended an iteration, a mask; what is said of others is not
        looked at.
        """
        new = new & self.running
        first = not self.values
        shown = [np.where(self.running, one, nan) for one in (values, norms)]
        self.values.append(shown[0])
        self.norms.append(shown[1])
        self.seconds.append(perf_counter() - self._begun)
        if not first:
            self.iterations[new] += 1
        limits = self.limits
        finite = np.isfinite(values) & np.isfinite(norms)
        if first:
            self.best_values = np.where(finite, inf, values)
            self.best_norms = norms.copy()
        with np.errstate(invalid="ignore"):
            better = new & finite & ~(values >= self.best_values)
            met = new & finite & (norms <= limits.gtol)
            # Where values differ by rounding alone the gradient tells better which one is best.
            close = values - self.best_values <= 1e-15 * np.maximum(1.0, abs(values))
        self._keep(better | (met & close & (norms < self.best_norms)), values, norms, leaves)
        for member in _numbers(new & ~finite):
            self._end(member, self._said_not_finite(member, float(values[member]), gradient))
        for member in _numbers(met):
            said = stopping.by_gradient(float(norms[member]), limits, self.sides is not None)
            self._end(member, said)
        self._progress(new & self.running & (self.iterations % WINDOW == 0), leaves)
        if not first and (self._callback is not None or self._bar is not None):
            self._show(values, norms, leaves)
        for member in _numbers(self.running & new & (self.iterations >= limits.maxiter)):
            self._end(member, stopping.at_maxiter(limits))
        self.look_at_limits()
        return bool(self.running.any())

    def look_at_limits(self) -> None:
        """End all where the limit of evaluations or of time has been reached."""
        limits = self.limits
        if self.function.count >= limits.maxfun:
            self.end_all(lambda _: stopping.at_maxfun(limits))
        elif limits.max_time != inf and perf_counter() - self._begun >= limits.max_time:
            self.end_all(lambda _: stopping.at_max_time(limits))

    def end_all(self, say: Callable[[int], Stop]) -> None:
        """End those that still run, for what is said of a number of iterations."""
        for member in _numbers(self.running):
            self._end(member, say(int(self.iterations[member])))

    def end(self, member: int, stop: Stop) -> None:
        """End one that still runs."""
        if self.running[member]:
            self._end(member, stop)

    def _end(self, member: int, stop: Stop) -> None:
        self.running[member] = False
        self.stops[member] = stop

    def bring_back(self, leaves: Leaves) -> None:
        """Put those that have come to their end back to their best points."""
        if not self.running.all():
            _copy_rows(leaves, self.best, ~self.running)

    def _keep(self, which: Array, values: Array, norms: Array, leaves: Leaves) -> None:
        if which.any():
            _copy_rows(self.best, leaves, which)
            self.best_values = np.where(which, values, self.best_values)
            self.best_norms = np.where(which, norms, self.best_norms)

    def _said_not_finite(self, member: int, value: float, gradient: Gradient) -> Stop:
        what = f"the value is {value}"
        if np.isfinite(value):
            what = "the gradient holds NaN or infinity"
            for grad, path in zip(gradient, self.points.paths, strict=True):
                if grad is not None and not bool(abs(grad[member]).sum() < inf):
                    what = f"the gradient of {path}[{member}] holds NaN or infinity"
                    break
        count = int(self.iterations[member])
        where = "at x0; begin where it is finite" if count == 0 else f"at iteration {count}"
        return Stop(Status.NOT_FINITE, f"The function is not finite: {what} {where}.")

    def _progress(self, which: Array, leaves: Leaves) -> None:
        """End those whose last ten iterations have brought too little."""
        limits = self.limits
        if not which.any() or (limits.ftol is None and limits.xtol is None):
            return
        before = self._before.copy()
        self._before[which] = self.best_values[which]
        known = which & np.isfinite(before)
        if limits.ftol is not None:
            limit = limits.ftol * np.maximum(1.0, abs(self.best_values))
            fall = np.where(known, before, inf) - np.where(known, self.best_values, 0.0)
            for member in _numbers(known & (fall <= limit)):
                said = stopping.by_value(float(fall[member]), float(limit[member]), limits)
                self._end(member, said)
        if limits.xtol is not None:
            if self._best_before is None:
                self._best_before = self.points.copies(self.best)
            else:
                way = np.maximum(
                    _largest_rows(self.best, self._best_before),
                    _largest_rows(leaves, self._best_before),
                )
                limit = limits.xtol * np.maximum(1.0, _largest_rows(self.best))
                for member in _numbers(known & self.running & (way <= limit)):
                    said = stopping.by_distance(float(way[member]), float(limit[member]), limits)
                    self._end(member, said)
                _copy_rows(self._best_before, self.best, which)

    def _show(self, values: Array, norms: Array, leaves: Leaves) -> None:
        if self._bar is not None:
            said = f"{int(self.running.sum())} of {len(self.running)} running, best "
            self._bar.set_postfix_str(f"{said}{_least(self.best_values):.6g}", refresh=False)
            self._bar.update()
        if self._callback is not None:
            from scipy.optimize import OptimizeResult

            now = OptimizeResult(
                x=self.points.nest(self.points.copies(leaves)),
                fun=values.copy(),
                nit=int(self.iterations.max()),
                nfev=self.function.count,
                grad_norm=norms.copy(),
            )
            try:
                self._callback(now)
            except StopIteration:
                self.end_all(lambda _: stopping.by_callback())

    def result(self) -> Fit:
        """Return the best member's result, with all of them."""
        from scipy.optimize import OptimizeResult

        stops = [stop for stop in self.stops if stop is not None]
        status = np.array([int(stop.status) for stop in stops])
        success = np.isin(status, [int(one) for one in stopping.SUCCESSES])
        ordered = np.where(np.isfinite(self.best_values), self.best_values, inf)
        best, nest = int(ordered.argmin()), self.points.nest
        values = np.array(self.values)
        with np.errstate(invalid="ignore"):
            lowest = np.fmin.accumulate(values, axis=0)
        said = f"Start {best} of {len(stops)} came lowest; {int(success.sum())} were a success."
        result: Fit = OptimizeResult(
            x=nest([leaf[best : best + 1].reshape(leaf.shape[1:]).copy() for leaf in self.best]),
            fun=float(self.best_values[best]),
            grad_norm=float(self.best_norms[best]),
            success=bool(success[best]),
            status=int(status[best]),
            message=f"{said} {stops[best].message}",
            nit=int(self.iterations[best]),
            nfev=self.function.count,
            best=best,
            members=OptimizeResult(
                x=nest(self.best),
                fun=self.best_values,
                grad_norm=self.best_norms,
                success=success,
                status=status,
                message=[stop.message for stop in stops],
                nit=self.iterations,
            ),
            history=History(values, np.array(self.norms), lowest, np.array(self.seconds)),
        )
        return result


def _numbers(mask: Array) -> list[int]:
    """Return which members a mask has."""
    found: list[int] = np.flatnonzero(mask).tolist()
    return found


def _least(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.min()) if finite.size else nan


def _rows(which: Array, leaf: Array) -> Any:
    """Return a mask of members in the shape that broadcasts against an array of theirs."""
    there = arrays.like(which, leaf)
    return there.reshape(which.shape + (1,) * (leaf.ndim - 1))


def _copy_rows(own: Leaves, others: Leaves, which: Array) -> None:
    """Copy some members' rows from other arrays."""
    for leaf, other in zip(own, others, strict=True):
        with arrays.on_device_of(leaf):
            arrays.namespace_of(leaf).copyto(leaf, other, where=_rows(which, leaf))


def _by_member(array: Array) -> Any:
    return array.reshape(array.shape[0], -1).max(axis=1)


def _largest_rows(leaves: Leaves, others: Leaves | None = None) -> Array:
    """Return the largest element of each member's point, or of its difference to another."""
    found = []
    for k, leaf in enumerate(leaves):
        if leaf.size:
            with arrays.on_device_of(leaf):
                way = _by_member(abs(leaf if others is None else leaf - others[k]))
                found.append(arrays.on_host(way.astype(np.float64)))
    count = leaves[0].shape[0]
    largest: Array = np.max(found, axis=0) if found else np.zeros(count)
    return largest


def measured_rows(
    values: Any, gradient: Gradient, leaves: Leaves, sides: Sides | None
) -> tuple[Array, Array]:
    """Return each member's value and the largest element of its projected gradient.

    What stands on a device is fetched by one transfer. NaN stays NaN.
    """
    xp: Any = arrays.namespace_of(leaves[0])
    count = leaves[0].shape[0]
    with arrays.on_device_of(leaves[0]):
        found = xp.zeros(count)
        for k, grad in enumerate(gradient):
            if grad is not None and grad.size:
                sizes = magnitudes(xp, grad, leaves[k], sides[k] if sides else None)
                found = xp.maximum(found, _by_member(sizes))
        if arrays.kind(values) == "cupy":
            both = arrays.on_host(xp.stack([values, found]))
            return both[0], both[1]
        return values, arrays.on_host(found) if xp is not np else found


# -------------------------------------------------------------------------------------------------
# The loops.


def _descend(runs: Runs, opt: Optimizer) -> None:
    """Make steps of one optimizer for all until none goes on."""
    points, function, sides = runs.points, runs.function, runs.sides
    leaves, nest = points.start, points.nest  # which the steps change in place
    everyone = np.ones(len(runs.running), bool)
    while True:
        values, gradient = function(leaves)
        values, norms = measured_rows(values, gradient, leaves, sides)
        if not runs.record(values, norms, leaves, gradient, everyone):
            return
        opt.step(nest(gradient))
        runs.bring_back(leaves)


def _line_searches(runs: Runs, options: Mapping[str, Any]) -> None:
    """Let an L-BFGS for each choose its points; the function is asked for all of them at once."""
    points, function, sides = runs.points, runs.function, runs.sides
    count = len(runs.running)
    flat = Flat(points.start, count)

    def of(leaves: Leaves, member: int) -> Leaves:
        return [leaf[member] for leaf in leaves]

    one = Flat([leaf[0] for leaf in points.start])
    minimizers: list[Minimizer] = []
    for k in range(count):
        mine = sides and [(low[k], high[k]) for low, high in sides]
        minimizers.append(lbfgs_of(one, of(points.start, k), mine, options))
    wanted, reached = flat.vector(points.start), flat.vector(points.start)
    values, norms = np.full(count, nan), np.full(count, nan)
    last: list[object] = [None] * count
    while True:
        for k in _numbers(runs.running):
            wanted[k] = minimizers[k].point
        found, gradient = function(flat.leaves(wanted))
        if arrays.kind(found) == "cupy":
            found = arrays.on_host(found)
        slopes = flat.vector(gradient)
        new = np.zeros(count, bool)
        failed: dict[int, str] = {}
        for k in _numbers(runs.running):
            iteration = minimizers[k].tell(float(found[k]), slopes[k])
            if iteration is None:
                continue
            if iteration.failed is not None:
                failed[k] = iteration.failed
            if iteration.x is not last[k]:
                last[k], new[k] = iteration.x, True
                values[k], norms[k] = iteration.value, iteration.projected
                reached[k] = iteration.x
        if new.any():
            runs.record(values, norms, flat.leaves(reached), gradient, new)
        else:
            runs.look_at_limits()
        for k, why in failed.items():
            runs.end(k, stopping.without_direction(why, float(norms[k])))
        if not runs.running.any():
            return
        reached_best = flat.vector(runs.best)
        for k in _numbers(~runs.running):
            wanted[k] = reached_best[k]
