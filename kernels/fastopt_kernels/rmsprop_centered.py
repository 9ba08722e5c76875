"""RMSprop that divides by the estimated standard deviation (centred).

v <- v + (1 - beta) * (grad^2 - v)
a <- a + (1 - beta) * (grad - a)
param <- param - lr * grad / (sqrt(|factor * v - (factor * a)^2| + eps_inside) + eps_outside)

factor is 1 / (1 - beta^t) with bias correction, else 1.
The absolute value keeps rounding, which can make the variance negative, from making NaN.
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
    a: Any,
    one_minus_beta: float,
    factor: float,
    eps_inside: float,
    eps_outside: float,
    lr: float,
) -> None:
    v += one_minus_beta * (grad * grad - v)
    a += one_minus_beta * (grad - a)
    mean = factor * a
    variance = np.abs(factor * v - mean * mean)
    param -= lr * (grad / (np.sqrt(variance + eps_inside) + eps_outside))


def _numba(
    param: Any,
    grad: Any,
    v: Any,
    a: Any,
    one_minus_beta: Any,
    factor: Any,
    eps_inside: Any,
    eps_outside: Any,
    lr: Any,
) -> tuple[Any, Any, Any]:
    v = v + one_minus_beta * (grad * grad - v)
    a = a + one_minus_beta * (grad - a)
    mean = factor * a
    variance = abs(factor * v - mean * mean)
    return param - lr * (grad / (sqrt(variance + eps_inside) + eps_outside)), v, a


RULE = Rule(
    name="rmsprop_centered",
    state=("v", "a"),
    signed=("a",),
    scalars=("one_minus_beta", "factor", "eps_inside", "eps_outside", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (grad * grad - v);
        a = a + one_minus_beta * (grad - a);
        const real mean = factor * a;
        const real variance = fabs(factor * v - mean * mean);
        param = param - lr * (grad / (sqrt(variance + eps_inside) + eps_outside));
    """,
)
