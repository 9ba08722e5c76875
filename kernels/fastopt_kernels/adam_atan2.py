"""AdamAtan2: Adam with an arctangent in the place of the division, and so without an eps.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
param <- param - step_size * atan2(m, width * sqrt(v))

The bias corrections are in ``width``: atan2(m / c1, b * sqrt(v / c2)) is that of m and
b * c1 / sqrt(c2) * sqrt(v).

The arctangent is written out, since libraries do not agree in its last bits. Its second argument
is never negative. With q the smaller of both sizes over the larger one (1 where they are equal and
not 0, so that infinity over infinity is a quarter of pi, and 0 where both are 0), the angle of q is
halved three times by q <- q / (1 + sqrt(1 + q^2)), which leaves q below 0.0985, where Taylor's
series to q^15, with c3 = -1/3, c5 = 1/5, ..., is 5e-18 off; then it is doubled three times, and
taken off from half of pi where the sizes were the other way round. It is 6 ulp off at most, but for
angles that are nearly denormal.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule

SERIES = {f"c{k}": (-1.0) ** (k // 2) / k for k in range(3, 16, 2)}


def _angle(
    y: Any,
    x: Any,
    one: float,
    half_pi: float,
    c3: float,
    c5: float,
    c7: float,
    c9: float,
    c11: float,
    c13: float,
    c15: float,
) -> Any:
    """Return atan2(y, x) of an x that is not negative, in the operations of the other forms."""
    size = np.abs(y)
    steep = size > x
    low, high = np.where(steep, x, size), np.where(steep, size, x)
    q = np.where(low != high, low / high, np.where(high > 0, one, low).astype(low.dtype))
    q = q / (one + np.sqrt(one + q * q))
    q = q / (one + np.sqrt(one + q * q))
    q = q / (one + np.sqrt(one + q * q))
    z = q * q
    sum_ = z * (c3 + z * (c5 + z * (c7 + z * (c9 + z * (c11 + z * (c13 + z * c15))))))
    q = q + q * sum_
    q = q + q
    q = q + q
    q = q + q
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
    half_pi: float,
    c3: float,
    c5: float,
    c7: float,
    c9: float,
    c11: float,
    c13: float,
    c15: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.sqrt(v, out=work)
    work *= width
    param -= step_size * _angle(m, work, one, half_pi, c3, c5, c7, c9, c11, c13, c15)


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
    half_pi: Any,
    c3: Any,
    c5: Any,
    c7: Any,
    c9: Any,
    c11: Any,
    c13: Any,
    c15: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    x = width * sqrt(v)
    size = abs(m)
    low = x if size > x else size
    high = size if size > x else x
    q = low / high if low != high else one if high > 0 else low
    q = q / (one + sqrt(one + q * q))
    q = q / (one + sqrt(one + q * q))
    q = q / (one + sqrt(one + q * q))
    z = q * q
    q = q + q * (z * (c3 + z * (c5 + z * (c7 + z * (c9 + z * (c11 + z * (c13 + z * c15)))))))
    q = q + q
    q = q + q
    q = q + q
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
        "one",
        "half_pi",
        *SERIES,
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
        q = q / (one + sqrt(one + q * q));
        q = q / (one + sqrt(one + q * q));
        q = q / (one + sqrt(one + q * q));
        const real z = q * q;
        q = q + q * (z * (c3 + z * (c5 + z * (c7 + z * (c9 + z * (c11 + z * (c13 + z * c15)))))));
        q = q + q;
        q = q + q;
        q = q + q;
        q = size > x ? half_pi - q : q;
        param = param - step_size * (m < 0 ? -q : q);
    """,
)
