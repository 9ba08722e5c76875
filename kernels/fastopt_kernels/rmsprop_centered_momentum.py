"""Centred RMSprop whose scaled gradients are gathered in a momentum buffer.

v <- v + (1 - beta) * (grad^2 - v)
a <- a + (1 - beta) * (grad - a)
buf <- momentum * buf + rescale * grad / (sqrt(|v - factor * a^2| + eps_inside) + eps_outside)
param <- param - lr * buf

The bias correction is in the scalars: dividing averages by c scales eps and the step.
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
    buf: Any,
    one_minus_beta: float,
    factor: float,
    momentum: float,
    rescale: float,
    eps_inside: float,
    eps_outside: float,
    lr: float,
) -> None:
    v += one_minus_beta * (grad * grad - v)
    a += one_minus_beta * (grad - a)
    variance = np.abs(v - factor * (a * a))
    buf *= momentum
    buf += rescale * (grad / (np.sqrt(variance + eps_inside) + eps_outside))
    param -= lr * buf


def _numba(
    param: Any,
    grad: Any,
    v: Any,
    a: Any,
    buf: Any,
    one_minus_beta: Any,
    factor: Any,
    momentum: Any,
    rescale: Any,
    eps_inside: Any,
    eps_outside: Any,
    lr: Any,
) -> tuple[Any, Any, Any, Any]:
    v = v + one_minus_beta * (grad * grad - v)
    a = a + one_minus_beta * (grad - a)
    variance = abs(v - factor * (a * a))
    buf = momentum * buf + rescale * (grad / (sqrt(variance + eps_inside) + eps_outside))
    return param - lr * buf, v, a, buf


RULE = Rule(
    name="rmsprop_centered_momentum",
    state=("v", "a", "buf"),
    averages_squares=True,
    signed=("a", "buf"),
    scalars=("one_minus_beta", "factor", "momentum", "rescale", "eps_inside", "eps_outside", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (grad * grad - v);
        a = a + one_minus_beta * (grad - a);
        const real variance = fabs(v - factor * (a * a));
        buf = momentum * buf + rescale * (grad / (sqrt(variance + eps_inside) + eps_outside));
        param = param - lr * buf;
    """,
)
