"""Adadelta: the root of averaged squared steps over the root of averaged squared gradients.

v <- v + (1 - rho) * (grad^2 - v)
d <- sqrt(u + eps_steps) / sqrt(v + eps) * grad
u <- u + (1 - rho) * (d^2 - u)
param <- param - lr * d

The two eps are one number in two units: of a step's square, and of a gradient's.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    v: Any,
    u: Any,
    one_minus_rho: float,
    eps_steps: float,
    eps: float,
    lr: float,
) -> None:
    v += one_minus_rho * (grad * grad - v)
    d = np.sqrt(u + eps_steps) / np.sqrt(v + eps) * grad
    u += one_minus_rho * (d * d - u)
    param -= lr * d


def _numba(
    param: Any,
    grad: Any,
    v: Any,
    u: Any,
    one_minus_rho: Any,
    eps_steps: Any,
    eps: Any,
    lr: Any,
) -> tuple[Any, Any, Any]:
    v = v + one_minus_rho * (grad * grad - v)
    d = sqrt(u + eps_steps) / sqrt(v + eps) * grad
    u = u + one_minus_rho * (d * d - u)
    return param - lr * d, v, u


RULE = Rule(
    name="adadelta",
    state=("v", "u"),
    averages_squares=True,
    scalars=("one_minus_rho", "eps_steps", "eps", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_rho * (grad * grad - v);
        const real d = sqrt(u + eps_steps) / sqrt(v + eps) * grad;
        u = u + one_minus_rho * (d * d - u);
        param = param - lr * d;
    """,
)
