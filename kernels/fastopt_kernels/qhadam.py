"""QHAdam: Adam with weighted means of each average and what has just come into it.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
up <- of_m * m + of_grad * grad                          of_m = nu1 / c1, of_grad = 1 - nu1
param <- param - lr * up / (sqrt(of_v * v + of_square * grad^2) + eps)
                                                         of_v = nu2 / c2, of_square = 1 - nu2
The bias corrections c1 = 1 - beta1^t and c2 = 1 - beta2^t are in the scalars.
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
    of_m: float,
    of_grad: float,
    of_v: float,
    of_square: float,
    eps: float,
    lr: float,
) -> None:
    work = square - v
    work *= one_minus_beta2
    v += work
    np.multiply(v, of_v, out=work)
    square *= of_square
    square += work
    np.sqrt(square, out=square)
    square += eps
    np.subtract(grad, m, out=work)
    work *= one_minus_beta1
    m += work
    np.multiply(m, of_m, out=work)
    work += of_grad * grad
    work /= square
    work *= lr
    param -= work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    of_m: Any,
    of_grad: Any,
    of_v: Any,
    of_square: Any,
    eps: Any,
    lr: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    up = of_m * m + of_grad * grad
    return param - lr * (up / (sqrt(of_v * v + of_square * square) + eps)), m, v


RULE = Rule(
    name="qhadam",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "of_m",
        "of_grad",
        "of_v",
        "of_square",
        "eps",
        "lr",
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        const real up = of_m * m + of_grad * grad;
        param = param - lr * (up / (sqrt(of_v * v + of_square * square) + eps));
    """,
)
