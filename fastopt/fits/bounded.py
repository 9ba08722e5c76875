"""The step of L-BFGS-B: along the projected gradient, then among what is not at a bound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.fits.pairs import Model, Pairs

FIRST_BREAKS = 64
"""How many breakpoints are looked at together, at first; then four times as many."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What each element stays between, both ends included."""

    lower: Array
    upper: Array
    _xp: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_xp", arrays.namespace_of(self.lower))

    def project(self, x: Array) -> None:
        """Move each element that is outside to its bound."""
        xp = self._xp  # clip of NumPy takes three times as long for a few elements
        xp.maximum(x, self.lower, out=x)
        xp.minimum(x, self.upper, out=x)

    def projected_gradient(self, x: Array, gradient: Array) -> Array:
        """Return what a step of length 1 against the gradient moves, within the bounds."""
        moved: Array = x - gradient
        self.project(moved)
        moved -= x
        return moved

    def largest_step(self, x: Array, direction: Array) -> Array:
        """Return how far along a direction the first bound is, as an array of no dimension."""
        return _share(self._xp, x, direction, self).min()  # type: ignore[no-any-return]

    @property
    def boxed(self) -> bool:
        """Whether every element has two bounds."""
        xp = self._xp
        return bool((xp.isfinite(self.lower) & xp.isfinite(self.upper)).all())


def direction(pairs: Pairs, x: Array, bounds: Bounds) -> Array:
    """Return the way to the minimum of the quadratic model within the bounds, found in two parts.

    Where the model's minimum without bounds is within them, it is that. Else the first part is the
    generalized Cauchy point: the first minimum of the model along the projected negative gradient.
    The second is the model's minimum over the elements that are at no bound there, moved into the
    bounds; where the way to that point does not lead down, it is cut off at the first bound.

    Raises numpy.linalg.LinAlgError if the matrices of the pairs are singular to working precision.

    Source: Byrd, Lu, Nocedal and Zhu, "A limited memory algorithm for bound constrained
    optimization" (1995), sections 4 and 5.1 (the direct primal method); Morales and Nocedal,
    "Remark on Algorithm 778" (2011), for the end.
    """
    xp: Any = arrays.namespace_of(x)
    gradient = pairs.gradient
    if pairs.live:
        newton: Array = xp.empty_like(x)
        pairs.newton(newton)
        reached = x + newton
        if bool(((reached >= bounds.lower) & (reached <= bounds.upper)).all()):
            return newton
    model = pairs.model()
    cauchy, moved = _cauchy_point(model, x, gradient, bounds)
    if not pairs.live:
        return cauchy - x
    free = (cauchy > bounds.lower) & (cauchy < bounds.upper)
    # The gradient of the model at the Cauchy point, negative, of the elements that are free.
    left = model.to_vector(model.inner @ moved)
    left -= model.theta * (cauchy - x)
    left -= gradient
    left *= free
    among = model.rows * free
    shares = model.solve_among(_to_host(among @ among.T), _to_host(model.rows @ left))
    among_free = model.to_vector(shares / model.theta)
    among_free += left
    among_free *= free / x.dtype.type(model.theta)
    end: Array = cauchy + among_free
    bounds.project(end)
    end -= x
    if float(gradient @ end) < 0.0:
        return end
    share = min(1.0, float(bounds.largest_step(cauchy, among_free)))
    cut: Array = cauchy + x.dtype.type(share) * among_free
    bounds.project(cut)
    return cut - x


def _to_host(values: Array) -> Array:
    """Return what decides, in float64 on the host."""
    return arrays.on_host(values).astype(np.float64, copy=False)


def _cauchy_point(model: Model, x: Array, gradient: Array, bounds: Bounds) -> tuple[Array, Array]:
    """Return the generalized Cauchy point, and the rows' products with the way to it.

    Along the path x(t) = P(x - t g) an element stops at its breakpoint. Between two breakpoints
    the model is a parabola, whose first and second derivatives at the beginning are::

        f'  = -S + theta t S - p^T K c        S = d^T d,  p = rows d,  c = rows (x(t) - x)
        f'' = theta S - p^T K p

    with d the direction in which the elements move that have not stopped. Passing a breakpoint
    changes S by -g_i^2 and p by g_i times the element's column of the rows.
    """
    xp: Any = arrays.namespace_of(x)
    way = -gradient
    ends = _share(xp, x, way, bounds)
    moving = ends > 0
    way *= moving
    xp.copyto(ends, np.inf, where=~moving)
    p, square, first = _numbers(xp, model.rows @ way, way @ way, ends.min())
    if not square > 0.0:
        return x.copy(), np.zeros(len(p))
    bend = model.theta * square - float(p @ model.inner @ p)
    if not bend > 0.0:
        raise np.linalg.LinAlgError("the model is not convex")
    if square / bend <= first:
        time, moved, passed = square / bend, p * (square / bend), -1.0
    else:
        time, moved, passed = _along_path(model, gradient, ends, p, square)
    reached: Array = x + x.dtype.type(time) * way
    bounds.project(reached)
    if passed >= 0.0:
        stopped = ends <= passed
        limit = xp.where(gradient < 0, bounds.upper, bounds.lower)
        xp.copyto(reached, limit, where=stopped)
    return reached, moved


def _share(xp: Any, x: Array, direction: Array, bounds: Bounds) -> Array:
    """Return how much of a direction leads each element to its bound; inf where it stays."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        room: Array = xp.where(direction > 0, bounds.upper, bounds.lower)
        room -= x
        room /= direction
    xp.copyto(room, np.inf, where=direction == 0)
    return room


def _numbers(xp: Any, vector: Array, one: Array, other: Array) -> tuple[Array, float, float]:
    """Return a vector and two numbers on the host, in float64, by one copy."""
    if xp is np:
        return vector.astype(np.float64, copy=False), float(one), float(other)
    found = _to_host(xp.concatenate([vector, one.reshape(1), other.reshape(1)]))
    return found[:-2], float(found[-2]), float(found[-1])


def _along_path(
    model: Model, gradient: Array, ends: Array, p: Array, square: float
) -> tuple[float, Array, float]:
    """Return where the path's first minimum is behind breakpoints.

    That is its t, the products of the rows with the way to it, and the last breakpoint before it.
    """
    xp: Any = arrays.namespace_of(gradient)
    theta, inner = model.theta, model.inner
    order = xp.argsort(ends)
    total = int(xp.isfinite(ends).sum())
    whole, start, moved, size, done = square, 0.0, np.zeros(len(p)), FIRST_BREAKS, 0
    least = np.finfo(np.float64).eps * (theta * square)
    # The parabola from the start to the first breakpoint, which is known to fall all along it.
    upto = float(ends[order[0]])
    moved = moved + (upto - start) * p
    start = upto
    while done < total:
        which = order[done : done + size]
        count = int(which.shape[0]) if done + size <= total else total - done
        which = order[done : done + count]
        following = order[done + 1 : done + count + 1]
        at = _to_host(ends[which])
        steps = _to_host(gradient[which])
        columns = _to_host(model.rows[:, which]).T
        after = np.full(count, np.inf)
        after[: following.shape[0]] = _to_host(ends[following])
        squares = np.maximum(square - np.cumsum(steps * steps), 0.0)
        ps = p + np.cumsum(steps[:, None] * columns, axis=0)
        # c at the beginning of each parabola: at the breakpoint with which it begins.
        widths = np.where(np.isfinite(after), after - at, 0.0)
        cs = moved + np.concatenate(
            [np.zeros((1, len(p))), np.cumsum(widths[:-1, None] * ps[:-1], axis=0)]
        )
        weighted = ps @ inner
        slopes = theta * at * squares - squares - (weighted * cs).sum(axis=1)
        bends = np.maximum(theta * squares - (weighted * ps).sum(axis=1), least)
        reach = np.maximum(-slopes / bends, 0.0)
        reach[squares <= np.finfo(np.float64).eps * whole] = 0.0
        inside = reach < after - at
        if inside.any():
            here = int(np.argmax(inside))
            return (
                float(at[here] + reach[here]),
                cs[here] + reach[here] * ps[here],
                float(at[here]),
            )
        p, square, done = ps[-1], float(squares[-1]), done + count
        moved = cs[-1] + widths[-1] * ps[-1]
        size *= 4
    return float(start), moved, float(start)
