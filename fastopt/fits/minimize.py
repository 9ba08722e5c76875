"""minimize: from a function and a start to its minimum, with any optimizer or L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fastopt.core import arrays
from fastopt.core.hyperparameters import Flag, whole
from fastopt.fits import problem, stopping
from fastopt.fits.bounds import bounds_of
from fastopt.fits.methods import Method, checked_method, lbfgs_of
from fastopt.fits.problem import (
    Flat,
    Function,
    Leaves,
    Points,
    checked_jac,
    contradiction,
    measured,
)
from fastopt.fits.run import Callback, Run, checked_callback, progress_bar
from fastopt.fits.stopping import WINDOW, Status, Stop
from fastopt.optimizers.base import Optimizer

if TYPE_CHECKING:
    from fastopt.fits.run import Fit


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    jac: Any = True,
    method: str | type[Optimizer] = "adam",
    *,
    lr: Any = None,
    maxiter: int = 1000,
    tol: float | None = 1e-8,
    gtol: float | None = None,
    ftol: float | None = None,
    xtol: float | None = None,
    maxfun: int | None = None,
    max_time: float | None = None,
    bounds: Any = None,
    batches: Iterable[Any] | None = None,
    callback: Callable[..., object] | None = None,
    progress: bool = False,
    starts: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Fit:
    """Minimise a function from a start; return the best point found, and why it ended there.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> t = np.linspace(0.0, 4.0, 50)
        >>> y = 2.0 * np.exp(-0.5 * t)
        >>> def fun(x):  # the value, and the gradient nested as x
        ...     fallen = np.exp(-x["k"] * t)
        ...     error = x["a"] * fallen - y
        ...     grad = {"a": 2 * error @ fallen, "k": -2 * x["a"] * error @ (t * fallen)}
        ...     return error @ error, grad
        >>> result = fastopt.minimize(fun, {"a": 1.0, "k": 1.0}, lr=0.05, maxiter=2000)
        >>> result.success, round(float(result.x["a"]), 4), round(float(result.x["k"]), 4)
        (True, 2.0, 0.5)

    Args:
        fun: the function. With jac=True it returns the pair (value, gradient): a real number, and
            what is nested as x, of its shapes. Lists, numbers and arrays of whole numbers are taken
            as well as arrays; for CuPy arrays the gradient is on their device. It gets copies of
            its own, which it may keep and write into.
        x0: the start: an array, or a tree (dict, list, tuple, nested) of them, NumPy or CuPy, real
            or complex. It is not written. Numbers in a tree are arrays of shape (); a number alone
            is an array of shape (1,), and a list of numbers an array, as in SciPy. Whole numbers
            become float64.
        jac: True; or a function that returns the gradient, fun then returning the value alone; or
            "2-point" (None and False too), as in SciPy: forward differences, one evaluation for
            each element of x0.
        method: the optimizer, by name ("adam", "lion", ...: ``fastopt.optimizers.names()``) or
            class; or "lbfgs" (``fastopt.LBFGS``): L-BFGS, with bounds L-BFGS-B, with a strong Wolfe
            line search, for smooth functions that are worked out exactly.
        lr: the learning rate, a number or a function of the step number; None (the default) for
            the class's own. "lbfgs" has none.
        maxiter: iterations at most, 0 or more.
        tol: what gtol is where that is not given; None for none.
        gtol: end where no element of the gradient is larger, without its sign. With bounds that is
            an element of the projected gradient, min(max(g, x - upper), x - lower), which is 0
            where only a bound is in the way. >= 0, in units of the gradient.
        ftol: end where the best value has not fallen by more than ftol * max(1, |value|) over ten
            iterations; looked at every ten. An optimizer that swings past a minimum may find
            nothing better for that long. None (the default) for never.
        xtol: end where neither the best point nor the last one is further than xtol * max(1, |x|)
            from what was the best ten iterations ago, in any element; looked at every ten. None
            (the default) for never.
        maxfun: evaluations at most. None for any number.
        max_time: seconds; looked at between evaluations. None for any time.
        bounds: (lower, upper) for everything, each a number or None; for an x0 of n numbers also n
            pairs or a scipy.optimize.Bounds, and for an array of more axes a pair of arrays; for a
            tree a tree of these, one for each array, or a pair of trees of numbers and arrays, as
            the optimizers take them. The start is moved within them, and fun is asked only there.
            (For an array of two numbers a pair of pairs is two pairs, as in SciPy, and for a list
            of two arrays two pairs are one for each.)
        batches: mini-batches, an iterable: every iteration takes the next one, asks for fun(x,
            batch) and makes a step; the run ends with them. Values of single batches do not say
            which point is best: it is the one that the ten iterations with the lowest mean value
            have led to (with less than ten, the last), and ``result.fun`` is that mean. ``tol`` is
            off then; a gtol that is given must hold for ten batches in a row. Not with "lbfgs".
        callback: called after each iteration, as in SciPy 1.15: ``callback(intermediate_result)``
            by that name with an OptimizeResult (x, fun, nit, nfev, grad_norm), any other function
            with x alone. A StopIteration that it raises ends the run.
        progress: show a progress bar (tqdm).
        starts: K to make K fits side by side: the first axis of every array of x0 counts them, such
            as ``x0 + 0.1 * rng.standard_normal((K, *x0.shape))``. fun is asked for all at once: x
            has that axis too, and so has the gradient; values are an array of K. Tolerances are
            each fit's own, and one that has come to its end keeps the best point that it has by
            then, while the others go on (fun is asked for it there, again and again). Bounds are
            those of one fit. lr and other numbers of the optimizer may be arrays of K. Optimizers
            that work element by element take several starts, and "lbfgs", whose line searches are
            side by side.
        options: what else the optimizer takes, such as ``{"betas": (0.9, 0.99)}``; of "lbfgs"
            ``history`` (10 pairs) and ``max_line_steps`` (20).

    Returns:
        scipy.optimize.OptimizeResult with

        * x, fun: the best point, nested as x0, and its value.
        * grad_norm: the largest element of the (projected) gradient there.
        * success, status, message: why it ended, in numbers and words. 0: gtol; 1: maxiter; 2:
          "lbfgs" found nothing lower, and why; 3: value or gradient are not finite, and which; 4:
          ftol; 5: xtol; 6: maxfun; 7: max_time; 8: the batches have come to their end; 9: Ctrl-C;
          99: the callback. 0, 4, 5 and 8 are successes. Where a run made no headway the message
          says if the gradient contradicts the function, with both numbers (which takes three more
          evaluations); it is no success then. Of several starts "lbfgs" alone says that.
        * nit, nfev: iterations and evaluations.
        * history: ``value``, ``grad_norm``, ``best``, ``seconds``: arrays by iteration, the start
          first.

        * members, with several starts: an OptimizeResult of all of them, whose x, fun, grad_norm,
          success, status, message and nit have K entries. x, fun and the others above are those of
          the best one, whose number is ``best``, and the arrays of the history have the shape
          (iterations, K), NaN from the end of each on.

        Ctrl-C ends the run like a limit; what fun raises goes through.

    Raises:
        TypeError, ValueError: for arguments out of range, and what fun returns if it is no real
            number, or a gradient of another structure or shape.
        BackendMismatchError: for a gradient in host memory where x is on a device, or vice versa.
        ImportError: for progress=True without tqdm.
    """
    told = checked_callback(callback)
    shows = Flag()("minimize: progress", progress)
    members = None if whole("minimize: starts", starts, 1) == 1 else starts
    given_tol = tol if batches is None else None
    limits = stopping.checked_limits(given_tol, gtol, ftol, xtol, maxiter, maxfun, max_time)
    points = Points(x0, members)
    given_bounds = bounds_of(bounds, points)
    sides = problem.sides_of(points, given_bounds and (given_bounds.lower, given_bounds.upper))
    for leaf, pair in zip(points.start, sides or (), strict=False):
        arrays.keep_within(leaf, pair)
    function = Function(fun, checked_jac(jac), points, sides)
    how = checked_method(method, lr, options, given_bounds)
    if how.optimizer is None and batches is not None:
        raise ValueError(
            "lbfgs compares values of one function, and every batch is another one; take an "
            "optimizer, such as method='adam', or fun of all data"
        )
    if members is not None and batches is not None:
        raise ValueError("batches are for one start; make one run after the other, or leave them")
    opt = None if how.optimizer is None else how.make(points)
    bar = progress_bar(limits.maxiter, how.name) if shows else None
    try:
        if members is not None:
            from fastopt.fits import starts as several

            return several.minimize(points, function, sides, limits, opt, how.options, told, bar)
        return _minimize(points, function, sides, limits, opt, how, told, bar, batches)
    finally:
        if bar is not None:
            bar.close()


def _minimize(
    points: Points,
    function: Function,
    sides: problem.Sides | None,
    limits: stopping.Limits,
    opt: Optimizer | None,
    how: Method,
    callback: Callback | None,
    bar: Any,
    batches: Iterable[Any] | None,
) -> Fit:
    """Run from one start; ``opt`` is None for L-BFGS."""
    from scipy.optimize import OptimizeResult

    run = Run(points, function, sides, limits, callback, bar, batches is not None)
    try:
        if opt is None:
            stop = _line_searches(run, how.options)
        elif batches is None:
            stop = _descend(run, opt)
        else:
            stop = _over_batches(run, opt, iter(batches), how.options)
            if not run.values and limits.maxiter:
                raise ValueError("batches must hold some; got an iterable that holds none")
    except KeyboardInterrupt:
        if not run.values:
            raise  # there is nothing to return
        stop = stopping.interrupted(run.iterations)
    success, hints = _reviewed(run, stop, takes_lr=opt is not None)
    best = run.best
    value, norm = best.value, best.norm
    if best.iteration < 0:  # none has been finite, or nothing has been asked for
        value, norm = (run.values[0], run.norms[0]) if run.values else (math.nan, math.nan)
    result: Fit = OptimizeResult(
        x=points.nest(best.leaves),
        fun=value,
        grad_norm=norm,
        success=success,
        status=int(stop.status),
        message=" ".join([stop.message, *hints]),
        nit=run.iterations,
        nfev=function.count,
        history=run.history(),
    )
    return result


# -------------------------------------------------------------------------------------------------
# The loops.


def _descend(run: Run, opt: Optimizer) -> Stop:
    """Make steps of an optimizer until there is a reason to stop."""
    points, function, sides = run.points, run.function, run.sides
    leaves, nest = points.start, points.nest  # which the steps change in place
    takes_value = opt._takes_value
    while True:
        value, gradient = function(leaves)
        value, norm = measured(value, gradient, leaves, sides)
        stop = run.record(value, norm, leaves, gradient)
        if stop is not None:
            return stop
        if takes_value:
            opt.step(nest(gradient), value=value)
        else:
            opt.step(nest(gradient))


def _over_batches(run: Run, opt: Optimizer, batches: Any, options: Mapping[str, Any]) -> Stop:
    """Make a step with each mini-batch."""
    points, function, sides, limits = run.points, run.function, run.sides, run.limits
    leaves, nest = points.start, points.nest
    skips = options.get("on_nonfinite") == "skip"
    try:
        for _ in range(limits.maxiter):
            batch = next(batches, problem.NO_BATCH)
            if batch is problem.NO_BATCH:
                return Stop(
                    Status.BATCHES,
                    f"The batches have come to their end, after {run.iterations} iterations.",
                )
            value, gradient = function(leaves, batch)
            value, norm = measured(value, gradient, leaves, sides)
            # A gradient that is not finite is left out by the step itself, which counts it.
            if math.isfinite(value) if math.isfinite(norm) else skips:
                extra = {"value": value} if opt._takes_value else {}
                opt.step(nest(gradient), **extra)
            stop = run.record_batch(value, norm, leaves, gradient, skips)
            if stop is not None:
                return stop
        return stopping.at_maxiter(limits)
    finally:
        run.end_of_batches(leaves)


def _line_searches(run: Run, options: Mapping[str, Any]) -> Stop:
    """Let L-BFGS choose the points."""
    function, flat = run.function, Flat(run.points.start)
    minimizer = lbfgs_of(flat, run.points.start, run.sides, options)
    last: object = None
    while True:
        value, gradient = function(flat.leaves(minimizer.point))
        iteration = minimizer.tell(float(value), flat.vector(gradient))
        if iteration is None:
            stop = run.out_of_limits()
        elif iteration.failed is not None and iteration.x is last:  # it is recorded
            stop = None
        else:
            last = iteration.x
            stop = run.record(iteration.value, iteration.projected, flat.leaves(last), gradient)
        if stop is None and iteration is not None and iteration.failed is not None:
            stop = stopping.without_direction(iteration.failed, iteration.projected)
        if stop is not None:
            return stop


# -------------------------------------------------------------------------------------------------
# What is said of a run that did not get where it should.


def _reviewed(run: Run, stop: Stop, *, takes_lr: bool) -> tuple[bool, list[str]]:
    """Return whether a run has been a success, and what else there is to say of it.

    Where a line search found nothing L-BFGS itself says why.
    """
    success, best = stop.status in stopping.SUCCESSES, run.best
    if stop.status is Status.GTOL and not run.batches and best.norm > max(run.limits.gtol, 0.0):
        return success, [
            f"x is the point of iteration {best.iteration}, whose value is lower; of its gradient "
            f"it is {best.norm:.3g}."
        ]
    looked_at = (Status.MAXITER, Status.FTOL, Status.XTOL, Status.MAXFUN)
    if run.batches or best.iteration < 0 or stop.status not in looked_at:
        return success, []
    since = len(run.values) - 1 - best.iteration
    if since >= max(WINDOW, run.iterations // 2):
        room = run.limits.maxfun - run.function.count
        said = ""
        if room >= 3 and not run.function.by_differences:
            said = contradicted(run, best.leaves)
        if said:
            return False, [said]
        advice = "; a smaller lr may" if takes_lr else ""
        return success, [
            f"Nothing lower than the value of iteration {best.iteration} has been found "
            f"since{advice}."
        ]
    if stop.status is Status.MAXITER and since == 0 and run.iterations:
        return success, ["The value was still falling."]
    return success, []


def contradicted(run: Run, leaves: Leaves) -> str:
    """Return what shows that the gradient is wrong; "" where that cannot be found out."""
    try:
        return contradiction(run.function, run.points, leaves, run.sides, run.best.value)
    except (KeyboardInterrupt, Exception):  # the run has ended: what it has found is returned
        return ""
