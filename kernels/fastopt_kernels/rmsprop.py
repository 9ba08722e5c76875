"""RMSprop: the gradient over the root of the averaged squared gradient.

v <- v + (1 - beta) * (grad^2 - v)
param <- param - step_size * grad / (sqrt(v + eps_inside) + eps_outside)

The bias correction is in the scalars: dividing averages by c scales eps and the step.
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
    one_minus_beta: float,
    eps_inside: float,
    eps_outside: float,
    step_size: float,
) -> None:
    v += one_minus_beta * (square - v)
    param -= step_size * (grad / (np.sqrt(v + eps_inside) + eps_outside))


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    v: Any,
    one_minus_beta: Any,
    eps_inside: Any,
    eps_outside: Any,
    step_size: Any,
) -> tuple[Any, Any]:
    v = v + one_minus_beta * (square - v)
    return param - step_size * (grad / (sqrt(v + eps_inside) + eps_outside)), v


RULE = Rule(
    name="rmsprop",
    state=("v",),
    takes_square=True,
    scalars=("one_minus_beta", "eps_inside", "eps_outside", "step_size"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (square - v);
        param = param - step_size * (grad / (sqrt(v + eps_inside) + eps_outside));
    """,
)
