"""RMSprop: the gradient over the root of the averaged squared gradient.

v <- v + (1 - beta) * (grad^2 - v)
param <- param - lr * grad / (sqrt(factor * v + eps_inside) + eps_outside)

factor is 1 / (1 - beta^t) with bias correction, else 1.
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
    one_minus_beta: float,
    factor: float,
    eps_inside: float,
    eps_outside: float,
    lr: float,
) -> None:
    v += one_minus_beta * (grad * grad - v)
    param -= lr * (grad / (np.sqrt(factor * v + eps_inside) + eps_outside))


def _numba(
    param: Any,
    grad: Any,
    v: Any,
    one_minus_beta: Any,
    factor: Any,
    eps_inside: Any,
    eps_outside: Any,
    lr: Any,
) -> tuple[Any, Any]:
    v = v + one_minus_beta * (grad * grad - v)
    return param - lr * (grad / (sqrt(factor * v + eps_inside) + eps_outside)), v


RULE = Rule(
    name="rmsprop",
    state=("v",),
    scalars=("one_minus_beta", "factor", "eps_inside", "eps_outside", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (grad * grad - v);
        param = param - lr * (grad / (sqrt(factor * v + eps_inside) + eps_outside));
    """,
)
