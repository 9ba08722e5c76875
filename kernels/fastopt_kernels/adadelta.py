"""Adadelta: the root of averaged squared steps over the root of averaged squared gradients.

v <- v + (1 - rho) * (grad^2 - v)
d <- sqrt(u + eps) / sqrt(v + eps) * grad
u <- u + (1 - rho) * (d^2 - u)
param <- param - lr * d
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any, grad: Any, v: Any, u: Any, one_minus_rho: float, eps: float, lr: float
) -> None:
    v += one_minus_rho * (grad * grad - v)
    d = np.sqrt(u + eps) / np.sqrt(v + eps) * grad
    u += one_minus_rho * (d * d - u)
    param -= lr * d


def _numba(
    param: Any, grad: Any, v: Any, u: Any, one_minus_rho: Any, eps: Any, lr: Any
) -> tuple[Any, Any, Any]:
    v = v + one_minus_rho * (grad * grad - v)
    d = sqrt(u + eps) / sqrt(v + eps) * grad
    u = u + one_minus_rho * (d * d - u)
    return param - lr * d, v, u


RULE = Rule(
    name="adadelta",
    state=("v", "u"),
    scalars=("one_minus_rho", "eps", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_rho * (grad * grad - v);
        const real d = sqrt(u + eps) / sqrt(v + eps) * grad;
        u = u + one_minus_rho * (d * d - u);
        param = param - lr * d;
    """,
)
