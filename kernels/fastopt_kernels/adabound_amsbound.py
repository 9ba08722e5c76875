"""AdaBound that divides by the largest averaged squared gradient seen so far (AMSBound).

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
vmax <- max(vmax, v), of the raw v, before its bias correction
rate <- step_size / (sqrt(vmax) + eps), cut off to [lower, upper]
param <- param - rate * m

The bias corrections are in eps and step_size, as in Adam.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    vmax: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    eps: float,
    step_size: float,
    lower: float,
    upper: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.maximum(vmax, v, out=vmax)
    np.sqrt(vmax, out=work)
    work += eps
    np.divide(step_size, work, out=work)
    np.maximum(work, lower, out=work)
    np.minimum(work, upper, out=work)
    work *= m
    param -= work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    vmax: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    step_size: Any,
    lower: Any,
    upper: Any,
) -> tuple[Any, Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    vmax = vmax if vmax >= v or vmax != vmax else v  # NaN wins, as in np.maximum
    rate = step_size / (sqrt(vmax) + eps)
    rate = lower if rate < lower else upper if rate > upper else rate
    return param - rate * m, m, v, vmax


RULE = Rule(
    name="adabound_amsbound",
    state=("m", "v", "vmax"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "step_size", "lower", "upper"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        vmax = vmax >= v || vmax != vmax ? vmax : v;
        const real full = step_size / (sqrt(vmax) + eps);
        const real rate = full < lower ? lower : full > upper ? upper : full;
        param = param - rate * m;
    """,
)
