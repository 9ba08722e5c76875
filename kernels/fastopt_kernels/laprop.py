"""LaProp: gradients over the root of their averaged squares, and then their average.

v <- v + (1 - beta2) * (grad^2 - v)
m <- m + (1 - beta1) * (root * grad / (sqrt(v) + eps) - m)
param <- param - step_size * m
param <- param - decay * param

root is the root of v's bias correction, by which eps is multiplied too; m's is in step_size.
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
    root: float,
    step_size: float,
    decay: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.sqrt(v, out=square)
    work += eps
    np.divide(grad, work, out=work)
    work *= root
    work -= m
    work *= one_minus_beta1
    m += work
    np.multiply(m, step_size, out=work)
    param -= work
    param -= decay * param


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    root: Any,
    step_size: Any,
    decay: Any,
) -> tuple[Any, Any, Any]:
    v = v + one_minus_beta2 * (square - v)
    m = m + one_minus_beta1 * (root * (grad / (sqrt(v) + eps)) - m)
    param = param - step_size * m
    return param - decay * param, m, v


RULE = Rule(
    name="laprop",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "root", "step_size", "decay"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta2 * (square - v);
        m = m + one_minus_beta1 * (root * (grad / (sqrt(v) + eps)) - m);
        param = param - step_size * m;
        param = param - decay * param;
    """,
)
