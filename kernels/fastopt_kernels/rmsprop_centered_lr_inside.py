"""Centred RMSprop with momentum, the learning rate inside the buffer, which then holds steps.

v <- v + (1 - beta) * (grad^2 - v)
a <- a + (1 - beta) * (grad - a)
u <- momentum * u + step_size * grad / (sqrt(|v - factor * a^2| + eps_inside) + eps_outside)
param <- param - u

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
    u: Any,
    one_minus_beta: float,
    factor: float,
    momentum: float,
    step_size: float,
    eps_inside: float,
    eps_outside: float,
) -> None:
    v += one_minus_beta * (grad * grad - v)
    a += one_minus_beta * (grad - a)
    variance = np.abs(v - factor * (a * a))
    u *= momentum
    u += step_size * (grad / (np.sqrt(variance + eps_inside) + eps_outside))
    param -= u


def _numba(
    param: Any,
    grad: Any,
    v: Any,
    a: Any,
    u: Any,
    one_minus_beta: Any,
    factor: Any,
    momentum: Any,
    step_size: Any,
    eps_inside: Any,
    eps_outside: Any,
) -> tuple[Any, Any, Any, Any]:
    v = v + one_minus_beta * (grad * grad - v)
    a = a + one_minus_beta * (grad - a)
    variance = abs(v - factor * (a * a))
    u = momentum * u + step_size * (grad / (sqrt(variance + eps_inside) + eps_outside))
    return param - u, v, a, u


RULE = Rule(
    name="rmsprop_centered_lr_inside",
    state=("v", "a", "u"),
    averages_squares=True,
    signed=("a", "u"),
    scalars=("one_minus_beta", "factor", "momentum", "step_size", "eps_inside", "eps_outside"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (grad * grad - v);
        a = a + one_minus_beta * (grad - a);
        const real variance = fabs(v - factor * (a * a));
        u = momentum * u + step_size * (grad / (sqrt(variance + eps_inside) + eps_outside));
        param = param - u;
    """,
)
