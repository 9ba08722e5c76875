"""NAdam: Adam that steps along the coming average of the gradient, with this gradient in it.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
param <- param - (of_grad * grad + of_m * m) / (sqrt(v) + eps)

The learning rate, the schedule of the momentum and all bias corrections are in the scalars, as in
Adam's rule.
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
    of_grad: float,
    of_m: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.sqrt(v, out=work)
    work += eps
    step = of_grad * grad
    step += of_m * m
    step /= work
    param -= step


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    of_grad: Any,
    of_m: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    return param - (of_grad * grad + of_m * m) / (sqrt(v) + eps), m, v


RULE = Rule(
    name="nadam",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "of_grad", "of_m"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        param = param - (of_grad * grad + of_m * m) / (sqrt(v) + eps);
    """,
)
