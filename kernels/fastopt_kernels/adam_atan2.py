"""AdamAtan2: Adam with an arctangent in the place of the division, and so without an eps.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
param <- param - step_size * atan2(m, width * sqrt(v))

The bias corrections are in ``width``: atan2(m / c1, b * sqrt(v / c2)) is that of m and
b * c1 / sqrt(c2) * sqrt(v).

The arctangent is written out, since libraries do not agree in its last bits. Its second argument
is never negative. With q the smaller of both sizes over the larger one (1 where they are equal and
not 0, so that infinity over infinity is a quarter of pi, and 0 where both are 0), the angle of a q
above ``middle``, the tangent of an eighth of pi, is that of (q - 1) / (q + 1) and a quarter of pi.
For what is left, from -middle to middle, it is q + q^3 * (c3 + c5 q^2 + ... + c23 q^20): the
polynomial goes through the arctangent at the eleven Chebyshev nodes of q^2 in [0, middle^2], and is
8e-18 off. Where the sizes were the other way round the angle is taken off from half of pi. It is
3 ulp off at most.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule

CONSTANTS = {
    "one": 1.0,
    "middle": sqrt(2.0) - 1.0,
    "quarter_pi": pi / 4.0,
    "half_pi": pi / 2.0,
    "c3": -0.3333333333333333,
    "c5": 0.1999999999999552,
    "c7": -0.14285714284666542,
    "c9": 0.11111111015256361,
    "c11": -0.09090904578123903,
    "c13": 0.07692183190826087,
    "c15": -0.06664511447381948,
    "c17": 0.0585814891280221,
    "c19": -0.0508544973794026,
    "c21": 0.03923165829558719,
    "c23": -0.01917688711906226,
}


def _angle(
    y: Any,
    x: Any,
    one: float,
    middle: float,
    quarter_pi: float,
    half_pi: float,
    c3: float,
    c5: float,
    c7: float,
    c9: float,
    c11: float,
    c13: float,
    c15: float,
    c17: float,
    c19: float,
    c21: float,
    c23: float,
) -> Any:
    """Return atan2(y, x) of an x that is not negative, in the operations of the other forms."""
    size = np.abs(y)
    steep = size > x
    low, high = np.where(steep, x, size), np.where(steep, size, x)
    q = np.where(low != high, low / high, np.where(high > 0, one, low).astype(low.dtype))
    wide = q > middle
    q = np.where(wide, q - one, q) / np.where(wide, q + one, one).astype(q.dtype)
    z = q * q
    high_terms = c13 + z * (c15 + z * (c17 + z * (c19 + z * (c21 + z * c23))))
    sum_ = c3 + z * (c5 + z * (c7 + z * (c9 + z * (c11 + z * high_terms))))
    q = q + q * (z * sum_)
    q = np.where(wide, quarter_pi + q, q)
    q = np.where(steep, half_pi - q, q)
    return np.where(y < 0, -q, q)


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    width: float,
    step_size: float,
    one: float,
    middle: float,
    quarter_pi: float,
    half_pi: float,
    c3: float,
    c5: float,
    c7: float,
    c9: float,
    c11: float,
    c13: float,
    c15: float,
    c17: float,
    c19: float,
    c21: float,
    c23: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.sqrt(v, out=work)
    work *= width
    param -= step_size * _angle(
        m,
        work,
        one,
        middle,
        quarter_pi,
        half_pi,
        c3,
        c5,
        c7,
        c9,
        c11,
        c13,
        c15,
        c17,
        c19,
        c21,
        c23,
    )


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    width: Any,
    step_size: Any,
    one: Any,
    middle: Any,
    quarter_pi: Any,
    half_pi: Any,
    c3: Any,
    c5: Any,
    c7: Any,
    c9: Any,
    c11: Any,
    c13: Any,
    c15: Any,
    c17: Any,
    c19: Any,
    c21: Any,
    c23: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    x = width * sqrt(v)
    size = abs(m)
    low = x if size > x else size
    high = size if size > x else x
    q = low / high if low != high else one if high > 0 else low
    wide = q > middle
    q = (q - one if wide else q) / (q + one if wide else one)
    z = q * q
    high_terms = c13 + z * (c15 + z * (c17 + z * (c19 + z * (c21 + z * c23))))
    sum_ = c3 + z * (c5 + z * (c7 + z * (c9 + z * (c11 + z * high_terms))))
    q = q + q * (z * sum_)
    q = quarter_pi + q if wide else q
    q = half_pi - q if size > x else q
    return param - step_size * (-q if m < 0 else q), m, v


RULE = Rule(
    name="adam_atan2",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "width",
        "step_size",
        *CONSTANTS,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        const real x = width * sqrt(v);
        const real size = fabs(m);
        const real low = size > x ? x : size;
        const real high = size > x ? size : x;
        real q = low != high ? low / high : high > 0 ? one : low;
        const bool wide = q > middle;
        q = (wide ? q - one : q) / (wide ? q + one : one);
        const real z = q * q;
        const real high_terms = c13 + z * (c15 + z * (c17 + z * (c19 + z * (c21 + z * c23))));
        const real sum_ = c3 + z * (c5 + z * (c7 + z * (c9 + z * (c11 + z * high_terms))));
        q = q + q * (z * sum_);
        q = wide ? quarter_pi + q : q;
        q = size > x ? half_pi - q : q;
        param = param - step_size * (m < 0 ? -q : q);
    """,
)
