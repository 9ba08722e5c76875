"""Functions to minimize, with gradients by hand, standard starts, and minima as published.

Sums of squares are given by residuals and their Jacobian. All take complex numbers, too, so that
gradients can be checked by complex steps.

Source: Moré, Garbow and Hillstrom, "Testing unconstrained optimization software", ACM TOMS 7
(1981), whose numbers are in the docstrings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Function = Callable[[Array], tuple[Any, Array]]


@dataclass(frozen=True)
class Problem:
    """A function with its start, the values of its minima, and bounds, if it has any."""

    name: str
    function: Function
    start: tuple[float, ...]
    minima: tuple[float, ...]
    lower: tuple[float, ...] | None = None
    upper: tuple[float, ...] | None = None

    def reached(self, value: float) -> bool:
        """Return whether a value is that of a minimum, within 1e-6 (1 + |f*|), or less."""
        return any(
            value - least <= 1e-6 * (1 + abs(least))
            and (value >= least - 1e-5 * (1 + abs(least)) or least == min(self.minima))
            for least in self.minima
        )


def squares(residuals: Callable[[Array], Array], jacobian: Callable[[Array], Array]) -> Function:
    """Return the sum of the squares of residuals, with its gradient."""

    def function(x: Array) -> tuple[Any, Array]:
        found = residuals(x)
        return found @ found, 2.0 * (found @ jacobian(x))

    return function


def columns(*given: Any) -> Array:
    """Return a Jacobian of columns, some of which are numbers."""
    return np.stack(np.broadcast_arrays(*given), axis=1)


def extended_rosenbrock(x: Array) -> tuple[Any, Array]:
    """Numbers 1 and 21."""
    odd, even = x[::2], x[1::2]
    bend, left = even - odd * odd, 1.0 - odd
    gradient = np.empty_like(x)
    gradient[::2] = -400.0 * bend * odd - 2.0 * left
    gradient[1::2] = 200.0 * bend
    return 100.0 * (bend @ bend) + left @ left, gradient


def rosenbrock(x: Array) -> tuple[Any, Array]:
    """Each element with the next one, as scipy.optimize.rosen has it."""
    bend, left = x[1:] - x[:-1] ** 2, 1.0 - x[:-1]
    gradient = np.zeros_like(x)
    gradient[:-1] = -400.0 * bend * x[:-1] - 2.0 * left
    gradient[1:] += 200.0 * bend
    return 100.0 * (bend @ bend) + left @ left, gradient


def freudenstein_roth(x: Array) -> tuple[Any, Array]:
    """Number 2."""
    a, b = x
    first = -13.0 + a + ((5.0 - b) * b - 2.0) * b
    second = -29.0 + a + ((b + 1.0) * b - 14.0) * b
    slope = (10.0 * b - 3.0 * b * b - 2.0, 3.0 * b * b + 2.0 * b - 14.0)
    gradient = [2.0 * (first + second), 2.0 * (first * slope[0] + second * slope[1])]
    return first * first + second * second, np.array(gradient)


def powell_badly_scaled(x: Array) -> tuple[Any, Array]:
    """Number 3."""
    a, b = x
    first, second = 1e4 * a * b - 1.0, np.exp(-a) + np.exp(-b) - 1.0001
    gradient = [
        2e4 * first * b - 2.0 * second * np.exp(-a),
        2e4 * first * a - 2.0 * second * np.exp(-b),
    ]
    return first * first + second * second, np.array(gradient)


def brown_badly_scaled(x: Array) -> tuple[Any, Array]:
    """Number 4."""
    a, b = x
    one, two, three = a - 1e6, b - 2e-6, a * b - 2.0
    gradient = [2.0 * one + 2.0 * three * b, 2.0 * two + 2.0 * three * a]
    return one * one + two * two + three * three, np.array(gradient)


def beale(x: Array) -> tuple[Any, Array]:
    """Number 5."""
    a, b = x
    power = np.array([1.0, 2.0, 3.0])
    left = np.array([1.5, 2.25, 2.625]) - a * (1.0 - b**power)
    gradient = [2.0 * left @ (b**power - 1.0), 2.0 * left @ (a * power * b ** (power - 1.0))]
    return left @ left, np.array(gradient)


_TEN = np.arange(1.0, 11.0)
jennrich_sampson = squares(
    lambda x: 2.0 + 2.0 * _TEN - np.exp(_TEN * x[0]) - np.exp(_TEN * x[1]),
    lambda x: columns(-_TEN * np.exp(_TEN * x[0]), -_TEN * np.exp(_TEN * x[1])),
)
"""Number 6."""


def helical_valley(x: Array) -> tuple[Any, Array]:
    """Number 7."""
    a, b, c = x
    turn = np.arctan(b / a) / (2.0 * np.pi) + (0.5 if a.real < 0.0 else 0.0)
    square = a * a + b * b
    radius = np.sqrt(square)
    one, two = 10.0 * (c - 10.0 * turn), 10.0 * (radius - 1.0)
    along, across = -b / (2.0 * np.pi * square), a / (2.0 * np.pi * square)
    gradient = [
        -200.0 * one * along + 20.0 * two * a / radius,
        -200.0 * one * across + 20.0 * two * b / radius,
        20.0 * one + 2.0 * c,
    ]
    return one * one + two * two + c * c, np.array(gradient)


_BARD = np.array(
    [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
)
_U = np.arange(1.0, 16.0)
_V = 16.0 - _U
_W = np.minimum(_U, _V)
bard = squares(
    lambda x: _BARD - (x[0] + _U / (_V * x[1] + _W * x[2])),
    lambda x: columns(
        -1.0 + 0.0 * _U,
        _U * _V / (_V * x[1] + _W * x[2]) ** 2,
        _U * _W / (_V * x[1] + _W * x[2]) ** 2,
    ),
)
"""Number 8."""

_HALF = [0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989]
_GAUSS = np.array(_HALF + _HALF[-2::-1])
_T9 = (8.0 - _U) / 2.0


def _bell(x: Array) -> Array:
    return np.exp(-x[1] * (_T9 - x[2]) ** 2 / 2.0)


gaussian = squares(
    lambda x: x[0] * _bell(x) - _GAUSS,
    lambda x: columns(
        _bell(x),
        -x[0] * _bell(x) * (_T9 - x[2]) ** 2 / 2.0,
        x[0] * _bell(x) * x[1] * (_T9 - x[2]),
    ),
)
"""Number 9."""

_T11 = np.arange(1.0, 100.0) / 100.0
_Y11 = 25.0 + (-50.0 * np.log(_T11)) ** (2.0 / 3.0)


def _gulf(x: Array) -> tuple[Array, Array]:
    way = _Y11 - x[1]
    size = np.where(way.real < 0.0, -way, way)
    power = size ** x[2] / x[0]
    fallen = np.exp(-power)
    sign = np.where(way.real < 0.0, -1.0, 1.0)
    jacobian = columns(
        fallen * power / x[0],
        fallen * power * x[2] / size * sign,
        -fallen * power * np.log(size),
    )
    return fallen - _T11, jacobian


gulf = squares(lambda x: _gulf(x)[0], lambda x: _gulf(x)[1])
"""Number 11, with m = 99."""

_T12 = _TEN / 10.0
box = squares(
    lambda x: (
        np.exp(-_T12 * x[0]) - np.exp(-_T12 * x[1]) - x[2] * (np.exp(-_T12) - np.exp(-10.0 * _T12))
    ),
    lambda x: columns(
        -_T12 * np.exp(-_T12 * x[0]),
        _T12 * np.exp(-_T12 * x[1]),
        np.exp(-10.0 * _T12) - np.exp(-_T12),
    ),
)
"""Number 12, with m = 10."""


def extended_powell(x: Array) -> tuple[Any, Array]:
    """Numbers 13 and 22."""
    a, b, c, d = x[::4], x[1::4], x[2::4], x[3::4]
    one, two, three, four = a + 10.0 * b, c - d, b - 2.0 * c, a - d
    value = one @ one + 5.0 * (two @ two) + (three**4).sum() + 10.0 * (four**4).sum()
    gradient = np.empty_like(x)
    gradient[::4] = 2.0 * one + 40.0 * four**3
    gradient[1::4] = 20.0 * one + 4.0 * three**3
    gradient[2::4] = 10.0 * two - 8.0 * three**3
    gradient[3::4] = -10.0 * two - 40.0 * four**3
    return value, gradient


def wood(x: Array) -> tuple[Any, Array]:
    """Number 14."""
    a, b, c, d = x
    one, two = b - a * a, d - c * c
    both, apart = b + d - 2.0, b - d
    value = 100 * one**2 + (1 - a) ** 2 + 90 * two**2 + (1 - c) ** 2 + 10 * both**2 + apart**2 / 10
    gradient = [
        -400.0 * a * one - 2.0 * (1.0 - a),
        200.0 * one + 20.0 * both + 0.2 * apart,
        -360.0 * c * two - 2.0 * (1.0 - c),
        180.0 * two + 20.0 * both - 0.2 * apart,
    ]
    return value, np.array(gradient)


_Y15 = np.array(
    [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
)
_U15 = np.array([4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])


def _kowalik(x: Array) -> tuple[Array, Array]:
    above, below = _U15 * (_U15 + x[1]), _U15 * (_U15 + x[2]) + x[3]
    jacobian = columns(
        -above / below,
        -x[0] * _U15 / below,
        x[0] * above * _U15 / below**2,
        x[0] * above / below**2,
    )
    return _Y15 - x[0] * above / below, jacobian


kowalik_osborne = squares(lambda x: _kowalik(x)[0], lambda x: _kowalik(x)[1])
"""Number 15."""

_T16 = np.arange(1.0, 21.0) / 5.0


def brown_dennis(x: Array) -> tuple[Any, Array]:
    """Number 16, with m = 20."""
    one = x[0] + _T16 * x[1] - np.exp(_T16)
    two = x[2] + np.sin(_T16) * x[3] - np.cos(_T16)
    both = one * one + two * two
    parts = (both * one, both * one * _T16, both * two, both * two * np.sin(_T16))
    return both @ both, np.array([4.0 * part.sum() for part in parts])


_Y17 = np.array(
    [
        [0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751],
        [0.718, 0.685, 0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490],
        [0.478, 0.467, 0.457, 0.448, 0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406],
    ]
).ravel()
_T17 = 10.0 * np.arange(33.0)
osborne_1 = squares(
    lambda x: _Y17 - (x[0] + x[1] * np.exp(-_T17 * x[3]) + x[2] * np.exp(-_T17 * x[4])),
    lambda x: columns(
        -1.0 + 0.0 * _T17,
        -np.exp(-_T17 * x[3]),
        -np.exp(-_T17 * x[4]),
        x[1] * _T17 * np.exp(-_T17 * x[3]),
        x[2] * _T17 * np.exp(-_T17 * x[4]),
    ),
)
"""Number 17."""

_T18 = np.arange(1.0, 14.0) / 10.0
_Y18 = np.exp(-_T18) - 5.0 * np.exp(-10.0 * _T18) + 3.0 * np.exp(-4.0 * _T18)
biggs = squares(
    lambda x: (
        x[2] * np.exp(-_T18 * x[0])
        - x[3] * np.exp(-_T18 * x[1])
        + x[5] * np.exp(-_T18 * x[4])
        - _Y18
    ),
    lambda x: columns(
        -_T18 * x[2] * np.exp(-_T18 * x[0]),
        _T18 * x[3] * np.exp(-_T18 * x[1]),
        np.exp(-_T18 * x[0]),
        -np.exp(-_T18 * x[1]),
        -_T18 * x[5] * np.exp(-_T18 * x[4]),
        np.exp(-_T18 * x[4]),
    ),
)
"""Number 18, with m = 13."""

_T20 = np.arange(1.0, 30.0) / 29.0


def _watson(x: Array) -> tuple[Array, Array]:
    powers = _T20[:, None] ** np.arange(len(x))
    order = np.arange(1.0, len(x))
    slopes = np.concatenate([np.zeros((29, 1)), order * powers[:, :-1]], axis=1)
    total = powers @ x
    residuals = np.concatenate([slopes @ x - total**2 - 1.0, [x[0], x[1] - x[0] ** 2 - 1.0]])
    last = np.zeros((2, len(x)), x.dtype)
    last[0, 0], last[1, 0], last[1, 1] = 1.0, -2.0 * x[0], 1.0
    return residuals, np.concatenate([slopes - 2.0 * total[:, None] * powers, last])


watson = squares(lambda x: _watson(x)[0], lambda x: _watson(x)[1])
"""Number 20."""


def penalty_1(x: Array) -> tuple[Any, Array]:
    """Number 23."""
    apart, over = x - 1.0, x @ x - 0.25
    return 1e-5 * (apart @ apart) + over * over, 2e-5 * apart + 4.0 * over * x


def variably_dimensioned(x: Array) -> tuple[Any, Array]:
    """Number 25."""
    weights = np.arange(1.0, len(x) + 1.0)
    apart = x - 1.0
    total = weights @ apart
    return apart @ apart + total**2 + total**4, 2.0 * apart + (
        2.0 * total + 4.0 * total**3
    ) * weights


def _trigonometric(x: Array) -> tuple[Array, Array]:
    size = len(x)
    index = np.arange(1.0, size + 1.0)
    residuals = size - np.cos(x).sum() + index * (1.0 - np.cos(x)) - np.sin(x)
    jacobian = np.tile(np.sin(x), (size, 1)) + np.diag(index * np.sin(x) - np.cos(x))
    return residuals, jacobian


trigonometric = squares(lambda x: _trigonometric(x)[0], lambda x: _trigonometric(x)[1])
"""Number 26."""


def _brown_almost_linear(x: Array) -> tuple[Array, Array]:
    size = len(x)
    residuals = x + x.sum() - (size + 1.0)
    residuals[-1] = np.prod(x) - 1.0
    jacobian = np.ones((size, size), x.dtype) + np.eye(size)
    for column in range(size):
        jacobian[-1, column] = np.prod(np.delete(x, column))
    return residuals, jacobian


brown_almost_linear = squares(
    lambda x: _brown_almost_linear(x)[0], lambda x: _brown_almost_linear(x)[1]
)
"""Number 27."""


def _discrete_boundary(x: Array) -> tuple[Array, Array]:
    size = len(x)
    step = 1.0 / (size + 1)
    place = step * np.arange(1.0, size + 1.0)
    padded = np.concatenate([[0.0], x, [0.0]])
    bent = x + place + 1.0
    residuals = 2.0 * x - padded[:-2] - padded[2:] + step**2 * bent**3 / 2.0
    jacobian = np.diag(2.0 + 1.5 * step**2 * bent**2) - np.eye(size, k=1) - np.eye(size, k=-1)
    return residuals, jacobian


discrete_boundary = squares(lambda x: _discrete_boundary(x)[0], lambda x: _discrete_boundary(x)[1])
"""Number 28."""


def _broyden_tridiagonal(x: Array) -> tuple[Array, Array]:
    padded = np.concatenate([[0.0], x, [0.0]])
    residuals = (3.0 - 2.0 * x) * x - padded[:-2] - 2.0 * padded[2:] + 1.0
    size = len(x)
    return residuals, np.diag(3.0 - 4.0 * x) - np.eye(size, k=-1) - 2.0 * np.eye(size, k=1)


broyden_tridiagonal = squares(
    lambda x: _broyden_tridiagonal(x)[0], lambda x: _broyden_tridiagonal(x)[1]
)
"""Number 30."""


def booth(x: Array) -> tuple[Any, Array]:
    """A quadratic function with the minimum 0 at (1, 3)."""
    one, two = x[0] + 2.0 * x[1] - 7.0, 2.0 * x[0] + x[1] - 5.0
    return one * one + two * two, np.array([2.0 * one + 4.0 * two, 4.0 * one + 2.0 * two])


def himmelblau(x: Array) -> tuple[Any, Array]:
    """Four minima, all 0; Himmelblau, "Applied Nonlinear Programming" (1972)."""
    one, two = x[0] ** 2 + x[1] - 11.0, x[0] + x[1] ** 2 - 7.0
    gradient = [4.0 * x[0] * one + 2.0 * two, 2.0 * one + 4.0 * x[1] * two]
    return one * one + two * two, np.array(gradient)


_ALTERNATING = (-1.2, 1.0)
_LOCAL_EXP6 = 5.65564992e-3


def _n(*values: float, times: int) -> tuple[float, ...]:
    return values * times


UNCONSTRAINED = [
    Problem("rosenbrock_2", rosenbrock, _ALTERNATING, (0.0,)),
    Problem("rosenbrock_10", rosenbrock, _n(*_ALTERNATING, times=5), (0.0, 3.98657911)),
    Problem("rosenbrock_100", rosenbrock, _n(*_ALTERNATING, times=50), (0.0, 3.98662385)),
    Problem("rosenbrock_1000", rosenbrock, _n(*_ALTERNATING, times=500), (0.0, 3.98662385)),
    Problem("freudenstein_roth", freudenstein_roth, (0.5, -2.0), (0.0, 48.98425368)),
    Problem("powell_badly_scaled", powell_badly_scaled, (0.0, 1.0), (0.0,)),
    Problem("brown_badly_scaled", brown_badly_scaled, (1.0, 1.0), (0.0,)),
    Problem("beale", beale, (1.0, 1.0), (0.0,)),
    Problem("jennrich_sampson", jennrich_sampson, (0.3, 0.4), (124.36218236,)),
    Problem("helical_valley", helical_valley, (-1.0, 0.0, 0.0), (0.0,)),
    Problem("bard", bard, (1.0, 1.0, 1.0), (8.21487731e-3,)),
    Problem("gaussian", gaussian, (0.4, 1.0, 0.0), (1.12793277e-8,)),
    Problem("gulf", gulf, (5.0, 2.5, 0.15), (0.0,)),
    Problem("box", box, (0.0, 10.0, 20.0), (0.0,)),
    Problem("powell_singular", extended_powell, (3.0, -1.0, 0.0, 1.0), (0.0,)),
    Problem("wood", wood, (-3.0, -1.0, -3.0, -1.0), (0.0,)),
    Problem("kowalik_osborne", kowalik_osborne, (0.25, 0.39, 0.415, 0.39), (3.07505604e-4,)),
    Problem("brown_dennis", brown_dennis, (25.0, 5.0, -5.0, -1.0), (85822.20162635,)),
    Problem("osborne_1", osborne_1, (0.5, 1.5, -1.0, 0.01, 0.02), (5.46489470e-5,)),
    Problem("biggs", biggs, (1.0, 2.0, 1.0, 1.0, 1.0, 1.0), (0.0, _LOCAL_EXP6)),
    Problem("watson_6", watson, (0.0,) * 6, (2.28767005e-3,)),
    Problem("extended_rosenbrock", extended_rosenbrock, _n(*_ALTERNATING, times=10), (0.0,)),
    Problem("extended_powell", extended_powell, _n(3.0, -1.0, 0.0, 1.0, times=10), (0.0,)),
    Problem("penalty_1", penalty_1, (1.0, 2.0, 3.0, 4.0), (2.24997750e-5,)),
    Problem(
        "variably_dimensioned",
        variably_dimensioned,
        tuple(1 - k / 10 for k in range(1, 11)),
        (0.0,),
    ),
    Problem("trigonometric", trigonometric, (0.1,) * 10, (0.0, 2.79506e-5)),
    Problem("brown_almost_linear", brown_almost_linear, (0.5,) * 10, (0.0, 1.0)),
    Problem(
        "discrete_boundary",
        discrete_boundary,
        tuple(k / 11 * (k / 11 - 1) for k in range(1, 11)),
        (0.0,),
    ),
    Problem("broyden_tridiagonal", broyden_tridiagonal, (-1.0,) * 30, (0.0,)),
    Problem("booth", booth, (0.0, 0.0), (0.0,)),
    Problem("himmelblau", himmelblau, (0.0, 0.0), (0.0,)),
]
"""Rosenbrock's chain has a second minimum from 4 dimensions on: Shang and Qiu (2006)."""


def _within(name: str, lower: tuple[float, ...], upper: tuple[float, ...], **other: Any) -> Problem:
    """Return one of these problems with bounds; its minimum is recorded with SciPy's run."""
    found = next(problem for problem in UNCONSTRAINED if problem.name == name)
    return replace(found, name=f"{name}_bounded", minima=(), lower=lower, upper=upper, **other)


_INF = float("inf")
BOUNDED = [
    _within("rosenbrock_2", (-_INF, 1.5), (_INF, _INF)),
    _within("rosenbrock_10", (-2.0,) * 10, _n(0.5, 2.0, times=5)),
    _within("rosenbrock_100", (-1.5,) * 100, _n(2.0, 0.7, 3.0, 0.9, times=25)),
    _within("rosenbrock_1000", (-2.0,) * 1000, _n(*(2.0,) * 9, 0.8, times=100)),
    _within("beale", (0.6, 0.5), (10.0, 100.0), start=(1.0, 1.0)),
    _within("powell_badly_scaled", (0.0, 1.0), (1.0, 9.0)),
    _within("helical_valley", (-100.0, -1.0, -1.0), (0.8, 1.0, 1.0)),
    _within("bard", (0.1, 0.0, 0.0), (50.0, 2.0, 2.0)),
    _within("gaussian", (0.398, 1.0, -0.5), (4.2, 2.0, 0.1)),
    _within("box", (0.0, 5.0, 0.0), (2.0, 9.5, 20.0), start=(0.0, 9.0, 15.0)),
    _within("powell_singular", (0.1, -20.0, -1.0, -1.0), (100.0, 20.0, 1.0, 50.0)),
    _within("wood", (-100.0,) * 4, (0.0, 10.0, 100.0, 100.0)),
    _within("kowalik_osborne", (0.0, -1.0, 0.13, 0.12), (10.0, 12.0, 13.0, 12.0)),
    _within("brown_dennis", (-10.0, 0.0, -100.0, -20.0), (100.0, 15.0, 0.0, 0.2)),
    _within("osborne_1", (0.3, 1.0, -1.5, 0.005, 0.0), (0.5, 2.5, 0.0, 0.1, 0.02)),
    _within("biggs", (0.0, 0.0, 0.0, 1.0, 0.0, 0.0), (2.0, 8.0, 1.0, 7.0, 5.0, 5.0)),
    _within("watson_6", (-0.015, -1.0, -1.0, -1.0, -3.0, 0.0), (0.9, 1.1, 2.0, 3.0, 2.0, 1.0)),
    _within("penalty_1", (0.3,) + (-_INF,) * 3, (10.0,) * 4),
    _within("broyden_tridiagonal", (-0.6,) * 30, (_INF,) * 30),
    _within("booth", (-10.0, -10.0), (0.5, 2.0)),
    _within("himmelblau", (-4.0, -4.0), (2.0, 1.0)),
]
