"""RMSprop with momentum, the learning rate inside the buffer, which then holds steps.

v <- v + (1 - beta) * (grad^2 - v)
u <- momentum * u + step_size * grad / (sqrt(v + eps_inside) + eps_outside)
param <- param - u

The bias correction is in the scalars: dividing v by c scales eps and the step.
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
    v: Any,
    u: Any,
    one_minus_beta: float,
    momentum: float,
    step_size: float,
    eps_inside: float,
    eps_outside: float,
) -> None:
    v += one_minus_beta * (square - v)
    u *= momentum
    u += step_size * (grad / (np.sqrt(v + eps_inside) + eps_outside))
    param -= u


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    v: Any,
    u: Any,
    one_minus_beta: Any,
    momentum: Any,
    step_size: Any,
    eps_inside: Any,
    eps_outside: Any,
) -> tuple[Any, Any, Any]:
    v = v + one_minus_beta * (square - v)
    u = momentum * u + step_size * (grad / (sqrt(v + eps_inside) + eps_outside))
    return param - u, v, u


RULE = Rule(
    name="rmsprop_lr_inside",
    state=("v", "u"),
    signed=("u",),
    takes_square=True,
    scalars=("one_minus_beta", "momentum", "step_size", "eps_inside", "eps_outside"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (square - v);
        u = momentum * u + step_size * (grad / (sqrt(v + eps_inside) + eps_outside));
        param = param - u;
    """,
)
