"""What L-BFGS remembers: steps with changes of the gradient, and the matrices made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.saved import check_array
from fastopt.errors import CheckpointError

CHUNK = 65_536
"""Elements of each row that several products read while they are in the cache."""

SMALLEST = 1e-300
"""What gamma is above: it is 0, infinite or NaN where the squares that it is made of overflow."""


class Pairs:
    """The last steps s with the change y of the gradient along each, and products with them.

    ::

        H g = gamma g + [S gamma Y] M [S gamma Y]^T g         the direction without bounds is -H g
        B = H^-1 = I / gamma - [S Y] K [S Y]^T                the model with bounds
        gamma = s^T y / y^T y                                 of the newest pair

    The vectors are the rows of one matrix, in the precision and the place of the parameters: first
    the gradient, then s and y of each slot, so that one product with the matrix is all that an
    iteration reads and one all that it writes by. What is made of these products is float64, on
    the host, and stands by slots: nothing moves when the oldest pair makes room. The next pair is
    written to a slot that holds none.

    Source: Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and their use in
    limited memory methods" (1994), theorem 2.2 for H and 2.3 for B. R^-1, which H is made of,
    gains a column with each pair and loses its first row and column with the oldest one.
    """

    def __init__(self, like: Array, history: int, bounded: bool) -> None:
        self._xp: Any = arrays.namespace_of(like)
        self.on_device: bool = arrays.kind(like) == "cupy"
        self.bounded = bounded
        self._slots = history + 1
        self.rows: Array = self._xp.zeros((1 + 2 * self._slots, like.size), like.dtype)
        self.gradient: Array = self.rows[0]
        self._after = np.tri(history, k=-1)  # by age: s of the one, y of an older one
        self.clear()

    def clear(self) -> None:
        """Forget all pairs."""
        slots = self._slots
        self.live: list[int] = []
        """The slots that hold a pair, the oldest first."""
        self.used: int = 0
        """How many slots have been written to."""
        self.gamma: float = 1.0
        # Products of the rows with the gradient, and of those about to be with y and the direction.
        self.dots_g: Array = np.zeros(1 + 2 * slots)
        self._dots_y = np.zeros(1 + 2 * slots)
        self._dots_d = np.zeros(1 + 2 * slots)
        self._inverse = np.zeros((slots, slots))  # of R: the part of S^T Y with s not after y
        self._sy = np.zeros((slots, slots))
        self._yy = np.zeros((slots, slots))
        self._ss = np.zeros((slots, slots))
        self._diagonal = np.zeros(slots)  # s^T y of each pair

    @property
    def free(self) -> int:
        """The slot that the next pair is written to."""
        return (self.live[-1] + 1) % self._slots if self.live else 0

    def begin(self, gradient: Array) -> None:
        """Begin anew, without pairs, at a point with this gradient."""
        self.clear()
        self.gradient[...] = gradient
        self.dots_g[0] = float(self.gradient @ self.gradient)

    # The products ------------------------------------------------------------------------------

    def measure(self, gradient: Array, direction: Array, other: Array | None = None) -> list[float]:
        """Work out all products with a gradient that may become the next one.

        ``direction`` is what a multiple of leads to it. Returns g^T d, and ``other``, a number
        beside: from a device all come in one copy.
        """
        slot = self.free
        s, y = self.rows[1 + 2 * slot], self.rows[2 + 2 * slot]
        s[...] = direction
        self._xp.subtract(gradient, self.gradient, out=y)
        height = 1 + 2 * max(self.used, slot + 1)
        rows = self.rows[:height]
        pairs = [(gradient, self.dots_g), (y, self._dots_y)]
        if self.bounded:
            pairs.append((s, self._dots_d))
        if self.on_device:
            found = [rows @ vector for vector, _ in pairs]
            found.append((gradient @ gradient).reshape(1))
            if other is not None:
                found.append(other.reshape(1))
            numbers = self._xp.concatenate(found).get().astype(np.float64)
            for number, (_, dots) in enumerate(pairs):
                dots[:height] = numbers[number * height : (number + 1) * height]
            self.dots_g[0] = numbers[len(pairs) * height]
            return [float(self.dots_g[1 + 2 * slot]), float(numbers[-1])]
        if rows.shape[1] <= CHUNK:
            for vector, dots in pairs:
                dots[:height] = rows @ vector
        else:
            for _, dots in pairs:
                dots[...] = 0.0
            for part in _chunks(rows.shape[1]):
                piece = rows[:, part]
                for vector, dots in pairs:
                    dots[:height] += piece @ vector[part]
        self.dots_g[0] = np.dot(gradient, gradient)
        return [float(self.dots_g[1 + 2 * slot])]

    def advance(self, gradient: Array, step: float, curvature: float, least: float) -> None:
        """Go over to the gradient that was measured last, ``step`` times the direction away.

        The pair is kept if ``curvature``, which is s^T y, is greater than ``least``, and the
        products have not overflowed.
        """
        slot = self.free
        s, y = 1 + 2 * slot, 2 + 2 * slot
        self.gradient[...] = gradient
        square = float(self._dots_y[y])
        gamma = curvature / square if square > 0.0 else 0.0
        if not (curvature > least and SMALLEST < gamma < 1.0 / SMALLEST):
            return
        if step != 1.0:
            self.rows[s] *= step
            self.dots_g[s] *= step
            self._dots_y[s] *= step
            self._dots_d *= step
            self._dots_d[s] *= step
        self.live.append(slot)
        self.used = max(self.used, slot + 1)
        with_s = self._dots_y[1::2]
        column = self._inverse @ with_s
        column /= -curvature
        column[slot] = 1.0 / curvature
        self._inverse[:, slot] = column
        self._yy[slot] = self._yy[:, slot] = self._dots_y[2::2]
        self._diagonal[slot] = curvature
        self.gamma = gamma
        if self.bounded:
            self._sy[:, slot] = with_s
            self._sy[slot] = self._dots_d[2::2]
            self._ss[slot] = self._ss[:, slot] = self._dots_d[1::2]
        if len(self.live) == self._slots:
            oldest = self.live.pop(0)
            self._inverse[oldest] = 0.0
            self._inverse[:, oldest] = 0.0

    # The matrices ------------------------------------------------------------------------------

    def newton(self, out: Array) -> float:
        """Write the direction -H g of the gradient; return its slope, -g^T H g."""
        if not self.live:
            self._xp.negative(self.gradient, out=out)
            return -float(self.dots_g[0])
        gamma, inverse = self.gamma, self._inverse
        with_g = self.dots_g
        inner = inverse @ with_g[1::2]
        shares = np.empty(len(with_g))
        shares[0] = -gamma
        right = self._yy @ inner
        right -= with_g[2::2]
        right *= gamma
        right += self._diagonal * inner
        shares[1::2] = -(right @ inverse)
        shares[2::2] = gamma * inner
        self.combine(shares, out)
        return float(shares @ with_g)

    def combine(self, shares: Array, out: Array) -> None:
        """Write the sum of the rows, each times its share."""
        height = 1 + 2 * self.used
        rows = self.rows[:height]
        factors = self._like(shares[:height])
        if self.on_device:
            self._xp.matmul(factors, rows, out=out)
        else:
            np.dot(factors, rows, out=out)

    def _like(self, numbers: Array) -> Array:
        """Return numbers of the host where the rows are, in their precision."""
        if self.on_device or self.rows.dtype != numbers.dtype:
            return self._xp.asarray(numbers, dtype=self.rows.dtype)  # type: ignore[no-any-return]
        return numbers

    def model(self) -> Model:
        """Return the model with bounds, B = I / gamma - [S Y] K [S Y]^T."""
        age = np.array(self.live, int)
        count = len(age)
        theta = 1.0 / self.gamma
        within = age[:, None], age
        sy = self._sy[within]
        lower = sy * (self._after[:count, :count] / theta)
        inverse = np.zeros((2 * count, 2 * count))
        inverse[:count, :count] = self._ss[within] / theta
        inverse[:count, count:] = lower
        inverse[count:, :count] = lower.T
        diagonal = inverse.reshape(-1)[count * (2 * count + 1) :: 2 * count + 1]
        diagonal[:] = -sy.diagonal()
        places = np.concatenate([2 * age, 2 * age + 1])
        return Model(theta, self.rows[1 : 1 + 2 * self.used], places, inverse)

    # What is remembered ------------------------------------------------------------------------

    def remembered(self) -> dict[str, Any]:
        """Return everything that is to be saved, as plain values and NumPy arrays, all copies."""
        height = 1 + 2 * max(self.used, self.free + 1)
        return {
            "live": list(self.live),
            "used": self.used,
            "gamma": self.gamma,
            "rows": arrays.on_host(self.rows[:height]),
            **{name: getattr(self, f"_{name}").copy() for name in _MATRICES},
            "dots_g": self.dots_g.copy(),
        }

    def restorer(self, saved: Any) -> Callable[[], None]:
        """Look at what was remembered; return what takes it over.

        Raises CheckpointError, KeyError, TypeError or ValueError if it does not fit.
        """
        live, used = list(map(int, saved["live"])), int(saved["used"])
        gamma, rows = float(saved["gamma"]), saved["rows"]
        slots = self._slots
        if not (len(set(live)) == len(live) < slots and all(0 <= k < used <= slots for k in live)):
            raise CheckpointError(
                f"Minimizer: {used} slots with the pairs {live} do not fit a history of {slots - 1}"
            )
        free = (live[-1] + 1) % slots if live else 0
        height = 1 + 2 * max(used, free + 1)
        check_array("Minimizer: rows", rows, self.rows[:height])
        for name in _MATRICES:
            check_array(f"Minimizer: {name}", saved[name], getattr(self, f"_{name}"))
        check_array("Minimizer: dots_g", saved["dots_g"], self.dots_g)

        def write() -> None:
            self.live, self.used, self.gamma = live, used, gamma
            self.rows[...] = 0.0
            self.rows[:height] = arrays.like(rows, self.rows)
            for name in _MATRICES:
                setattr(self, f"_{name}", saved[name].copy())
            self.dots_g = saved["dots_g"].copy()
            self._dots_y[...] = self._dots_d[...] = 0.0

        return write


class Model:
    """The quadratic model theta I - rows^T K rows, where the rows are s, y, s, y, ...

    K is the inverse of a matrix of the rows at ``places``, which is of another scale where the
    steps are 1e-8 of the changes that belong to them: it is brought to one before it is inverted.
    """

    def __init__(self, theta: float, rows: Array, places: Array, inverse: Array) -> None:
        self.theta = theta
        self.rows = rows
        self._places = places
        self._inverse = inverse
        self._scale = 1.0 / np.sqrt(np.abs(np.diagonal(inverse)))
        self.inner: Array = np.zeros((len(rows), len(rows)))  # K
        scale = self._scale
        if len(scale):
            self._scales = scale * scale[:, None]
            self.inner[places[:, None], places] = (
                np.linalg.inv(inverse * self._scales) * self._scales
            )

    def solve_among(self, gram: Array, dots: Array) -> Array:
        """Return (K^-1 - gram / theta)^-1 dots, all of the rows: for some of the elements alone."""
        places, scale = self._places, self._scale
        matrix = self._inverse - gram[places[:, None], places] / self.theta
        found = np.zeros(len(dots))
        scaled = np.linalg.solve(matrix * self._scales, dots[places] * scale)
        found[places] = scaled * scale
        return found

    def to_vector(self, shares: Array) -> Array:
        """Return the sum of the rows, each times its share."""
        there: Array = arrays.namespace_of(self.rows).asarray(shares, dtype=self.rows.dtype)
        return there @ self.rows


_MATRICES = ("inverse", "sy", "yy", "ss", "diagonal")


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, size, CHUNK))
