"""Why a fit ends: the tolerances, the limits, and what is said of each."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, NamedTuple

from fastopt.core.hyperparameters import as_float, whole

WINDOW = 10
"""Iterations over which ``ftol`` and ``xtol`` are measured, and values of batches averaged."""


class Status(IntEnum):
    """The numbers of ``result.status``."""

    GTOL = 0
    MAXITER = 1
    LINE_SEARCH = 2
    NOT_FINITE = 3
    FTOL = 4
    XTOL = 5
    MAXFUN = 6
    MAX_TIME = 7
    BATCHES = 8
    INTERRUPTED = 9
    CALLBACK = 99


SUCCESSES = frozenset({Status.GTOL, Status.FTOL, Status.XTOL, Status.BATCHES})
"""What a run is meant to end with."""


class Stop(NamedTuple):
    """Why a run ends."""

    status: Status
    message: str


class Limits(NamedTuple):
    """Where a run ends: tolerances (-inf for none) and limits."""

    gtol: float
    ftol: float | None
    xtol: float | None
    maxiter: int
    maxfun: float
    max_time: float


def checked_limits(
    tol: Any, gtol: Any, ftol: Any, xtol: Any, maxiter: Any, maxfun: Any, max_time: Any
) -> Limits:
    """Return where a run ends; raise TypeError or ValueError for what is no limit."""
    asked = tol if gtol is None else gtol
    found = _tolerance("tol" if gtol is None else "gtol", asked)
    return Limits(
        -math.inf if found is None else found,
        _tolerance("ftol", ftol),
        _tolerance("xtol", xtol),
        whole("minimize: maxiter", maxiter, 0),
        math.inf if maxfun is None else whole("minimize: maxfun", maxfun, 1),
        math.inf if max_time is None else _positive("max_time", max_time),
    )


def _tolerance(name: str, value: Any) -> float | None:
    if value is None:
        return None
    number = as_float(value)
    if number is None:
        raise TypeError(f"minimize: {name} must be a number or None; got {value!r:.200}")
    if not number >= 0.0:
        raise ValueError(f"minimize: {name} must be 0 or more, or None for none; got {number}")
    return number


def _positive(name: str, value: Any) -> float:
    number = as_float(value)
    if number is None:
        raise TypeError(f"minimize: {name} must be a number of seconds or None; got {value!r:.200}")
    if not number > 0.0:
        raise ValueError(f"minimize: {name} must be above 0, in seconds; got {number}")
    return number


def at_maxiter(limits: Limits) -> Stop:
    """Say that the number of iterations has come to its limit."""
    return Stop(Status.MAXITER, f"The limit of maxiter = {limits.maxiter} iterations is reached.")


def at_maxfun(limits: Limits) -> Stop:
    """Say that the number of evaluations has come to its limit."""
    return Stop(Status.MAXFUN, f"The limit of maxfun = {limits.maxfun} evaluations is reached.")


def at_max_time(limits: Limits) -> Stop:
    """Say that the time is up."""
    return Stop(Status.MAX_TIME, f"The limit of max_time = {limits.max_time:g} s is reached.")


def by_gradient(norm: float, limits: Limits, bounded: bool) -> Stop:
    """Say that the gradient is small enough."""
    which = "projected gradient" if bounded else "gradient"
    return Stop(
        Status.GTOL,
        f"The largest element of the {which}, {norm:.3g}, is at most gtol = {limits.gtol:g}.",
    )


def by_value(fall: float, limit: float, limits: Limits) -> Stop:
    """Say that the value falls no more."""
    return Stop(
        Status.FTOL,
        f"The best value has fallen by {fall:.3g} over the last {WINDOW} iterations, which is at "
        f"most ftol * max(1, |value|) = {limit:.3g}, with ftol = {limits.ftol:g}.",
    )


def by_distance(way: float, limit: float, limits: Limits) -> Stop:
    """Say that the best point moves no more."""
    return Stop(
        Status.XTOL,
        f"The best point and the last one are {way:.3g} or less from the best point of {WINDOW} "
        f"iterations ago, which is at most xtol * max(1, |x|) = {limit:.3g}, with xtol = "
        f"{limits.xtol:g}.",
    )


def interrupted(iterations: int) -> Stop:
    """Say that Ctrl-C has been pressed."""
    return Stop(Status.INTERRUPTED, f"Interrupted at iteration {iterations} (Ctrl-C).")


def by_callback() -> Stop:
    """Say that the callback has ended it."""
    return Stop(Status.CALLBACK, "The callback raised StopIteration.")


def without_direction(why: str, norm: float) -> Stop:
    """Say that L-BFGS found nothing lower, which is a success where the gradient is 0."""
    if norm == 0.0:
        return Stop(Status.GTOL, "The gradient is 0: no direction leads down.")
    return Stop(Status.LINE_SEARCH, f"No lower value was found: {why}.")
