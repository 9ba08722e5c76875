"""AdaBound: Adam whose rates are cut off by bounds that close in on that of SGD.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
rate <- step_size / (sqrt(v) + eps), cut off to [lower, upper]
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
    np.sqrt(v, out=work)
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
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    step_size: Any,
    lower: Any,
    upper: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    rate = step_size / (sqrt(v) + eps)
    rate = lower if rate < lower else upper if rate > upper else rate
    return param - rate * m, m, v


RULE = Rule(
    name="adabound",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "step_size", "lower", "upper"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        const real full = step_size / (sqrt(v) + eps);
        const real rate = full < lower ? lower : full > upper ? upper : full;
        param = param - rate * m;
    """,
)
