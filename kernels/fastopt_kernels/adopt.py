"""ADOPT: gradients over the root of the average of squares before them, cut off, then averaged.

u <- grad / max(sqrt(v), eps), of the old v, cut off to [-clip, clip]
v <- v + (1 - beta2) * (grad^2 - v)
m <- m + (1 - beta1) * (u - m)
param <- param - lr * m

In a parameter's first step the weight of its square is 1 and that of u is 0: v is set, and no
more is done.
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
    clip: float,
    lr: float,
) -> None:
    work = np.sqrt(v)
    np.maximum(work, eps, out=work)
    np.divide(grad, work, out=work)
    np.maximum(work, -clip, out=work)
    np.minimum(work, clip, out=work)
    square -= v
    square *= one_minus_beta2
    v += square
    work -= m
    work *= one_minus_beta1
    m += work
    np.multiply(m, lr, out=work)
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
    clip: Any,
    lr: Any,
) -> tuple[Any, Any, Any]:
    root = sqrt(v)
    root = root if root >= eps or root != root else eps  # NaN wins, as in np.maximum
    u = grad / root
    u = -clip if u < -clip else clip if u > clip else u
    v = v + one_minus_beta2 * (square - v)
    m = m + one_minus_beta1 * (u - m)
    return param - lr * m, m, v


RULE = Rule(
    name="adopt",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "clip", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real old = sqrt(v);
        const real root = old >= eps || old != old ? old : eps;
        const real full = grad / root;
        const real u = full < -clip ? -clip : full > clip ? clip : full;
        v = v + one_minus_beta2 * (square - v);
        m = m + one_minus_beta1 * (u - m);
        param = param - lr * m;
    """,
)
