"""MADGRAD: a weighted sum of all gradients over the cube root of that of their squares.

s <- s + weight * grad                                   weight = lr * sqrt(t)
v <- v + weight * grad^2
p0 <- p0 + first * (param - p0), where first is 1 in the parameter's first step and 0 later
z <- p0 - s / (cbrt(v) + eps)
param <- param + (1 - momentum) * (z - param)

The cube root is written out, since libraries do not agree in its last bits. With a, b, c and d the
powers 1/4, 1/16, 1/64 and 1/256 of x, which take roots alone, x^(-1/3) is d^(-1/3) / (a b c d), and

    d^(-1/3)  ~  (1 + p1 d + p2 d^2) / (p2 + p1 d + d^2)

is at most 1.3 % off for all d that float64 has (p1 and p2 make that nearly the least). With
e = 1 - x z^3 the inverse root is z (1 - e)^(-1/3); three terms of its series leave z 4e-7 off.
One step on y = x z^2, by how far x / y^2 is from y and two terms of the series of a cube root,
cubes that: only rounding is left, 1 ulp at most. 0, infinity and NaN are their own cube roots.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule

CONSTANTS = {
    "one": 1.0,
    "p1": 3.5,
    "p2": 0.2625,
    "third": 1.0 / 3.0,
    "two_ninths": 2.0 / 9.0,
    "c3": 14.0 / 81.0,
    "ninth": 1.0 / 9.0,
}


def _cube_root(
    x: Any,
    one: float,
    p1: float,
    p2: float,
    third: float,
    two_ninths: float,
    c3: float,
    ninth: float,
) -> Any:
    """Return the cube root of what is not negative, in the operations of the other forms."""
    a = np.sqrt(np.sqrt(x))
    b = np.sqrt(np.sqrt(a))
    c = np.sqrt(np.sqrt(b))
    d = np.sqrt(np.sqrt(c))
    z = (one + d * (p1 + p2 * d)) / (a * b * c * d * (p2 + d * (p1 + d)))
    e = one - x * z * z * z
    z = z + z * (e * (third + e * (two_ninths + e * c3)))
    y = x * z * z
    left = x / (y * y) - y
    y = y + left * (third - ninth * (left * z))
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
    one: float,
    p1: float,
    p2: float,
    third: float,
    two_ninths: float,
    c3: float,
    ninth: float,
) -> None:
    s += weight * grad
    square *= weight
    v += square
    p0 += first * (param - p0)
    work = _cube_root(v, one, p1, p2, third, two_ninths, c3, ninth)
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
    one: Any,
    p1: Any,
    p2: Any,
    third: Any,
    two_ninths: Any,
    c3: Any,
    ninth: Any,
) -> tuple[Any, Any, Any, Any]:
    s = s + weight * grad
    v = v + weight * square
    p0 = p0 + first * (param - p0)
    a = sqrt(sqrt(v))
    b = sqrt(sqrt(a))
    c = sqrt(sqrt(b))
    d = sqrt(sqrt(c))
    z = (one + d * (p1 + p2 * d)) / (a * b * c * d * (p2 + d * (p1 + d)))
    e = one - v * z * z * z
    z = z + z * (e * (third + e * (two_ninths + e * c3)))
    y = v * z * z
    left = v / (y * y) - y
    y = y + left * (third - ninth * (left * z))
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
    scalars=("weight", "first", "eps", "one_minus_momentum", *CONSTANTS),
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
        real z = (one + d * (p1 + p2 * d)) / (a * b * c * d * (p2 + d * (p1 + d)));
        const real e = one - v * z * z * z;
        z = z + z * (e * (third + e * (two_ninths + e * c3)));
        real y = v * z * z;
        const real left = v / (y * y) - y;
        y = y + left * (third - ninth * (left * z));
        y = v + v > v ? y : v;
        param = param + one_minus_momentum * (p0 - s / (y + eps) - param);
    """,
)
