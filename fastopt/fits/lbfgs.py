"""L-BFGS and, with bounds, L-BFGS-B, as a minimizer that is told values and gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.saved import Resumable, Saved, check_array
from fastopt.errors import CheckpointError
from fastopt.fits import bounded
from fastopt.fits.bounded import Bounds
from fastopt.fits.line_search import FARTHEST, LineSearch, Verdict
from fastopt.fits.pairs import Pairs


@dataclass(frozen=True, slots=True)
class Iteration:
    """What an iteration ended with. Its arrays stay as they are; they are not to be written to.

    Attributes:
        x: the point.
        value: the function there.
        gradient: its gradient there, a copy.
        projected: the largest element of the gradient, without its sign; with bounds that of
            P(x - gradient) - x.
        failed: None, or in words why no better point can be found from here.
    """

    x: Array
    value: float
    gradient: Array
    projected: float
    failed: str | None = None


class Minimizer(Resumable):
    """L-BFGS, or with bounds L-BFGS-B: asks for values and gradients, and is told them.

    ::

        minimizer = Minimizer(x)
        while True:
            iteration = minimizer.tell(*function(minimizer.point))     # value, gradient
            if iteration and (iteration.projected <= gtol or iteration.failed):
                break

    Without bounds an iteration goes along -H g, with H the limited-memory inverse Hessian of the
    last pairs in compact form (``fastopt.fits.pairs``); with bounds towards the minimum of the
    quadratic model within them (``fastopt.fits.bounded``). The line search is that of Moré and
    Thuente for the strong Wolfe conditions (``fastopt.fits.line_search``); its first step is
    min(1, 1 / |g|) where there are no pairs, and 1 later. Steps to where the function is not
    finite are shortened. If a line search finds nothing better the pairs are forgotten and it is
    tried once more along the gradient.

    All vectors have the dtype of ``x`` and stay where it is; of a CuPy array the numbers that
    decide come to the host, without bounds in one copy per point.

    Args:
        x: the start, 1-D, float32 or float64, NumPy or CuPy. It is copied, and moved within the
            bounds.
        lower, upper: None, or arrays like ``x``; -inf and inf stand for no bound.
        history: how many pairs are kept, at least 1.
        max_line_steps: points that a line search may try, at least 1.

    Raises:
        ValueError, TypeError: for arguments that do not fit.

    Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization"
    (1989); Byrd, Lu, Nocedal and Zhu, "A limited memory algorithm for bound constrained
    optimization" (1995), with the end of the subspace minimization by Morales and Nocedal (2011).
    """

    point: Array
    """Where the function is wanted next. It is not to be written to."""

    def __init__(
        self,
        x: Array,
        *,
        lower: Array | None = None,
        upper: Array | None = None,
        history: int = 10,
        max_line_steps: int = 20,
    ) -> None:
        if arrays.kind(x) is None or x.ndim != 1 or x.dtype not in (np.float32, np.float64):
            got = f"{x.dtype} {x.shape}" if arrays.kind(x) else type(x).__name__
            raise TypeError(f"x must be a 1-D array of float32 or float64; got {got}")
        self._xp: Any = arrays.namespace_of(x)
        self._kind = type(x)
        self._most = max_line_steps
        self._bounds = self._checked_bounds(x, lower, upper)
        with arrays.on_device_of(x):
            self.point = self._xp.array(x)
            if self._bounds is not None:
                self._bounds.project(self.point)
            self._pairs = Pairs(x, history, self._bounds is not None)
            self._direction: Array = self._xp.zeros_like(self.point)
        self._x = self.point  # where the line search begins
        self._value = math.nan
        self._search: LineSearch | None = None
        self._best: tuple[Array, Array, float] | None = None  # of the line search, if not 0
        self._stuck = False  # at a point whose projected gradient is 0
        self._first = True  # no iteration has ended yet since the start
        self._precision = float(np.finfo(x.dtype).eps)

    def _checked_bounds(self, x: Array, lower: Array | None, upper: Array | None) -> Bounds | None:
        if lower is None and upper is None:
            return None
        made = []
        with arrays.on_device_of(x):
            for name, given, none in (("lower", lower, -math.inf), ("upper", upper, math.inf)):
                if given is None:
                    made.append(self._xp.full(x.shape, none, x.dtype))
                    continue
                if arrays.kind(given) != arrays.kind(x) or given.shape != x.shape:
                    raise ValueError(
                        f"{name} must be an array like x, {x.shape} {arrays.location(x)}; got "
                        f"{getattr(given, 'shape', type(given).__name__)}"
                    )
                made.append(self._xp.array(given, dtype=x.dtype))
            if not bool((made[0] <= made[1]).all()):
                raise ValueError("lower must not be above upper anywhere, and neither may be NaN")
        return Bounds(*made)

    def tell(self, value: float, gradient: Array) -> Iteration | None:
        """Take the function's value and gradient at ``point``, and choose the next one.

        Returns what an iteration ended with, at first the start itself, or None while a line search
        goes on. If that says ``failed`` the next ``tell`` begins anew, at ``point``, which is the
        best one.

        Raises ValueError or TypeError for a gradient of another shape or kind than the point.
        """
        if type(gradient) is not self._kind or gradient.shape != self.point.shape:
            self._refuse(gradient)
        with arrays.on_device_of(self.point):
            if gradient.dtype != self.point.dtype:
                gradient = gradient.astype(self.point.dtype)
            if self._search is None:
                return self._begin(float(value), gradient)
            return self._tried(self._search, float(value), gradient)

    def _refuse(self, gradient: Any) -> None:
        got = type(gradient).__name__
        if arrays.kind(gradient) is not None:
            got = f"one of shape {gradient.shape} {arrays.location(gradient)}"
        raise ValueError(
            f"the gradient must be an array like the point, of shape {self.point.shape} "
            f"{arrays.location(self.point)}; got {got}"
        )

    # An iteration ------------------------------------------------------------------------------

    def _begin(self, value: float, gradient: Array) -> Iteration:
        """Begin at a point, without pairs."""
        x = self.point
        projected = float(self._projected(x, gradient))
        if not (math.isfinite(value) and math.isfinite(projected)):
            what = f"the function is {value}" if not math.isfinite(value) else "the gradient is not"
            ending = " at the start" if not math.isfinite(value) else " finite at the start"
            return Iteration(x, value, gradient.copy(), projected, what + ending)
        self._x, self._value = x, value
        self._pairs.begin(gradient)
        self._first = True
        if projected == 0.0:
            failed = "the gradient is 0 here: no direction leads down" if self._stuck else None
            self._stuck = True
            return Iteration(x, value, gradient.copy(), projected, failed)
        self._stuck = False
        failed = self._set_out()
        return Iteration(x, value, gradient.copy(), projected, failed)

    def _tried(self, search: LineSearch, value: float, gradient: Array) -> Iteration | None:
        """Go on with a line search."""
        pairs, x = self._pairs, self.point
        projected: float | None = None
        if pairs.on_device:
            there = self._projected(x, gradient)
            slope, projected = pairs.measure(gradient, self._direction, there)
        else:
            with np.errstate(all="ignore"):  # far from the valley float32 may not hold it
                slope = float(np.dot(gradient, self._direction))
        step = search.step
        verdict = search.tell(value, slope)
        if verdict is Verdict.ACCEPT and value == search.value and bool((x == self._x).all()):
            # Beside a wall of NaN: a step so short that it has moved nothing is no headway.
            verdict = Verdict.TAKE_BEST if search.best_value < value else Verdict.FAILED
        if verdict is Verdict.ACCEPT:
            return self._arrive(search, x, value, gradient, step, slope, projected)
        if search.best == step:
            self._best = x, gradient.copy(), step
        if verdict is Verdict.GO_ON:
            self._go(search.step)
            return None
        if verdict is Verdict.TAKE_BEST and self._best is not None:
            x, gradient, step = self._best
            value, slope = search.best_value, search.best_slope
            return self._arrive(search, x, value, gradient, step, slope, None)
        return self._give_up(search)

    def _arrive(
        self,
        search: LineSearch,
        x: Array,
        value: float,
        gradient: Array,
        step: float,
        slope: float,
        projected: float | None,
    ) -> Iteration:
        """End an iteration at a point, and set out for the next one."""
        pairs = self._pairs
        if projected is None:
            pairs.measure(gradient, self._direction)
            projected = float(self._projected(x, gradient))
        least = -self._precision * search.slope * step
        pairs.advance(gradient, step, step * (slope - search.slope), least)
        self._x, self._value, self._best, self._first = x, value, None, False
        if projected == 0.0:
            self._search, self._stuck, self.point = None, True, x
            return Iteration(x, value, gradient.copy(), projected)
        failed = self._set_out()
        return Iteration(x, value, gradient.copy(), projected, failed)

    def _give_up(self, search: LineSearch) -> Iteration | None:
        """Begin anew along the gradient if there are pairs; else say why it ends here."""
        pairs, self._best = self._pairs, None
        if pairs.live:
            pairs.begin(pairs.gradient.copy())
            failed = self._set_out()
            if failed is None:
                return None
        else:
            length, size = (math.sqrt(float(one @ one)) for one in (self._direction, self._x))
            failed = search.reason(length, self._precision * size)
        self._search, self.point = None, self._x
        gradient = pairs.gradient.copy()
        projected = float(self._projected(self._x, gradient))
        return Iteration(self._x, self._value, gradient, projected, failed)

    def _set_out(self) -> str | None:
        """Begin a line search from where the last one ended; return why that cannot be done."""
        pairs, bounds = self._pairs, self._bounds
        largest = FARTHEST
        if bounds is None:
            slope = pairs.newton(self._direction)
        else:
            slope, largest = self._within(bounds)
        if not (slope < 0.0 and math.isfinite(slope)):
            if pairs.live:
                pairs.begin(pairs.gradient.copy())
                return self._set_out()
            self._search, self.point = None, self._x
            return self._without_slope(slope)
        step = 1.0
        if not pairs.live and not (bounds is not None and bounds.boxed):
            length = math.sqrt(float(self._direction @ self._direction))
            step = min(1.0, 1.0 / length)
        step = min(step, largest)
        self._search = LineSearch(self._value, slope, step, largest, self._most, self._precision)
        self._go(step)
        return None

    def _without_slope(self, slope: float) -> str:
        """Say why the gradient itself is no direction."""
        largest = float(self._xp.abs(self._pairs.gradient).max())
        if 0.0 < largest < math.inf and not (-math.inf < slope < 0.0):
            flow = "underflow" if slope == 0.0 else "overflow"
            factor = 10.0 ** round(-math.log10(largest))
            if not 1e-10 < factor < 1e10:
                return (
                    f"the squares of a gradient as large as {largest:.3g} {flow} "
                    f"{self._direction.dtype}; multiply the function and its gradient by "
                    f"{factor:.0e}"
                )
        return "no direction leads down within the precision of the numbers"

    def _within(self, bounds: Bounds) -> tuple[float, float]:
        """Find the direction with bounds; return its slope, and the largest step along it."""
        pairs = self._pairs
        try:
            self._direction = bounded.direction(pairs, self._x, bounds)
        except np.linalg.LinAlgError:
            return math.nan, 1.0
        both = (
            pairs.gradient @ self._direction,
            bounds.largest_step(self._x, self._direction),
        )
        slope, largest = map(
            float, arrays.on_host(self._xp.stack(both)) if pairs.on_device else both
        )
        return slope, 1.0 if self._first else min(max(largest, 1.0), FARTHEST)

    def _go(self, step: float) -> None:
        """Ask for the point at a step."""
        if step == 1.0:
            self.point = self._direction + self._x
        else:
            self.point = self._direction * self._direction.dtype.type(step)
            self.point += self._x
        if self._bounds is not None:
            self._bounds.project(self.point)

    def _projected(self, x: Array, gradient: Array) -> Array:
        """Return the largest element of the projected gradient, as an array of no dimension."""
        if x.size == 0:
            return self._xp.zeros((), x.dtype)  # type: ignore[no-any-return]
        moved = gradient
        if self._bounds is not None:
            moved = self._bounds.projected_gradient(x, gradient)
        return self._xp.abs(moved).max()  # type: ignore[no-any-return]

    # What is remembered ------------------------------------------------------------------------

    def _remembered(self) -> dict[str, Any]:
        best = self._best
        return {
            "point": arrays.on_host(self.point),
            "x": arrays.on_host(self._x),
            "direction": arrays.on_host(self._direction),
            "value": self._value,
            "first": self._first,
            "stuck": self._stuck,
            "search": None if self._search is None else dataclasses.asdict(self._search),
            "best": best
            and {
                "x": arrays.on_host(best[0]),
                "gradient": arrays.on_host(best[1]),
                "step": best[2],
            },
            "pairs": self._pairs.remembered(),
        }

    def _restorer(self, saved: Any) -> Callable[[], None]:
        Saved("Minimizer", saved)  # of the right kind
        like = self.point
        try:
            given = saved["search"]
            search = None if given is None else LineSearch(**given)
            given = saved["best"]
            vectors = [saved[name] for name in ("point", "x", "direction")]
            vectors += [given["x"], given["gradient"]] if given is not None else []
            flags = bool(saved["first"]), bool(saved["stuck"])
            value = float(saved["value"])
            step = 0.0 if given is None else float(given["step"])
            restore = self._pairs.restorer(saved["pairs"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"Minimizer: the state is damaged: {error!r}") from error
        for name, vector in zip(
            ("point", "x", "direction", "best x", "best g"), vectors, strict=False
        ):
            check_array(f"Minimizer: {name}", vector, like)

        def write() -> None:
            with arrays.on_device_of(like):
                # A search begins at the point itself where nothing has been tried yet.
                point, x, direction, *best = (self._xp.array(vector) for vector in vectors)
                restore()
            self.point, self._x, self._direction = point, x, direction
            self._search, self._value = search, value
            self._first, self._stuck = flags
            self._best = (best[0], best[1], step) if best else None

        return write
