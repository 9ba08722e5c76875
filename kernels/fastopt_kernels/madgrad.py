"""MADGRAD: a weighted sum of all gradients over the cube root of that of their squares.

s <- s + weight * grad                                   weight = lr * sqrt(t)
v <- v + weight * grad^2
p0 <- p0 + first * (param - p0), where first is 1 in the parameter's first step and 0 later
z <- p0 - s / (cbrt(v) + eps)
param <- param + (1 - momentum) * (z - param)

The cube root is written out, since libraries do not agree in its last bits. With roots alone

    x^(1/4) * x^(1/16) * x^(1/64) * x^(1/256) * x^(1/1024) = x^(341/1024)

is at most 28 % off, in all of float64, and each step of Halley's iteration cubes what it is off,
times 2/3: with r = x / y^2, y <- y + y * (r - y) / (2 y + r). After three only rounding is left,
that of the last step: 1 ulp at most. 0, infinity and NaN are their own cube roots.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _cube_root(x: Any) -> Any:
    """Return the cube root of what is not negative, in the operations of the other forms."""
    a = np.sqrt(np.sqrt(x))
    b = np.sqrt(np.sqrt(a))
    c = np.sqrt(np.sqrt(b))
    d = np.sqrt(np.sqrt(c))
    e = np.sqrt(np.sqrt(d))
    y = a * b * c * d * e
    r = x / (y * y)
    y = y + y * ((r - y) / (y + y + r))
    r = x / (y * y)
    y = y + y * ((r - y) / (y + y + r))
    r = x / (y * y)
    y = y + y * ((r - y) / (y + y + r))
    return np.where(x + x > x, y, x)


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    s: Any,
    v: Any,
    p0: Any,
    weight: float,
    first: float,
    eps: float,
    one_minus_momentum: float,
) -> None:
    s += weight * grad
    square *= weight
    v += square
    p0 += first * (param - p0)
    work = _cube_root(v)
    work += eps
    np.divide(s, work, out=work)
    np.subtract(p0, work, out=work)
    work -= param
    work *= one_minus_momentum
    param += work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    s: Any,
    v: Any,
    p0: Any,
    weight: Any,
    first: Any,
    eps: Any,
    one_minus_momentum: Any,
) -> tuple[Any, Any, Any, Any]:
    s = s + weight * grad
    v = v + weight * square
    p0 = p0 + first * (param - p0)
    a = sqrt(sqrt(v))
    b = sqrt(sqrt(a))
    c = sqrt(sqrt(b))
    d = sqrt(sqrt(c))
    e = sqrt(sqrt(d))
    y = a * b * c * d * e
    r = v / (y * y)
    y = y + y * ((r - y) / (y + y + r))
    r = v / (y * y)
    y = y + y * ((r - y) / (y + y + r))
    r = v / (y * y)
    y = y + y * ((r - y) / (y + y + r))
    y = y if v + v > v else v
    return param + one_minus_momentum * (p0 - s / (y + eps) - param), s, v, p0


RULE = Rule(
    name="madgrad",
    state=("s", "v", "p0"),
    signed=("s", "p0"),
    places=("p0",),
    from_start=True,
    takes_square=True,
    heavy=True,
    scalars=("weight", "first", "eps", "one_minus_momentum"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        s = s + weight * grad;
        v = v + weight * square;
        p0 = p0 + first * (param - p0);
        const real a = sqrt(sqrt(v));
        const real b = sqrt(sqrt(a));
        const real c = sqrt(sqrt(b));
        const real d = sqrt(sqrt(c));
        const real e = sqrt(sqrt(d));
        real y = a * b * c * d * e;
        real r = v / (y * y);
        y = y + y * ((r - y) / (y + y + r));
        r = v / (y * y);
        y = y + y * ((r - y) / (y + y + r));
        r = v / (y * y);
        y = y + y * ((r - y) / (y + y + r));
        y = v + v > v ? y : v;
        param = param + one_minus_momentum * (p0 - s / (y + eps) - param);
    """,
)
