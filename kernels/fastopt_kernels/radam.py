"""RAdam: Adam whose step is shorter while few squares have been averaged, and not adapted before.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
param <- param - (plain * m + adapted * (m / (sqrt(v) + eps)))

One of plain and adapted is 0: which one is a matter of the step count alone. They hold the learning
rate, the rectification and the bias corrections.
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
    plain: float,
    adapted: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.sqrt(v, out=work)
    work += eps
    np.divide(m, work, out=work)
    work *= adapted
    work += plain * m
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
    plain: Any,
    adapted: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    return param - (plain * m + adapted * (m / (sqrt(v) + eps))), m, v


RULE = Rule(
    name="radam",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "plain", "adapted"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        param = param - (plain * m + adapted * (m / (sqrt(v) + eps)));
    """,
)
