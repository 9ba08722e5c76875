"""RMSprop that divides by the estimated standard deviation (centred).

v <- v + (1 - beta) * (grad^2 - v)
a <- a + (1 - beta) * (grad - a)
param <- param - step_size * grad / (sqrt(|v - factor * a^2| + eps_inside) + eps_outside)

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
    one_minus_beta: float,
    factor: float,
    eps_inside: float,
    eps_outside: float,
    step_size: float,
) -> None:
    v += one_minus_beta * (grad * grad - v)
    a += one_minus_beta * (grad - a)
    variance = np.abs(v - factor * (a * a))
    param -= step_size * (grad / (np.sqrt(variance + eps_inside) + eps_outside))


def _numba(
    param: Any,
    grad: Any,
    v: Any,
    a: Any,
    one_minus_beta: Any,
    factor: Any,
    eps_inside: Any,
    eps_outside: Any,
    step_size: Any,
) -> tuple[Any, Any, Any]:
    v = v + one_minus_beta * (grad * grad - v)
    a = a + one_minus_beta * (grad - a)
    variance = abs(v - factor * (a * a))
    return param - step_size * (grad / (sqrt(variance + eps_inside) + eps_outside)), v, a


RULE = Rule(
    name="rmsprop_centered",
    state=("v", "a"),
    averages_squares=True,
    signed=("a",),
    scalars=("one_minus_beta", "factor", "eps_inside", "eps_outside", "step_size"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (grad * grad - v);
        a = a + one_minus_beta * (grad - a);
        const real variance = fabs(v - factor * (a * a));
        param = param - step_size * (grad / (sqrt(variance + eps_inside) + eps_outside));
    """,
)
