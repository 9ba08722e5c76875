"""Schedule-free Adam: the gradient over the root of the averaged square, averaged as a point.

v <- v + (1 - beta2) * (grad^2 - v)
step <- step_size * grad / (sqrt(v) + eps) + decay * param
and then as in schedule_free.py:
param <- param + weight * d - (1 - beta * (1 - weight)) * step
d <- (1 - weight) * (d - beta * step)

The bias correction of v is in ``step_size`` and ``eps``, as in adam.py.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule
from fastopt_kernels.schedule_free import MEMORY


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    v: Any,
    d: Any,
    one_minus_beta2: float,
    eps: float,
    decay: float,
    beta: float,
    step_size: float,
    weight: float,
    keep: float,
    share: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    step = np.sqrt(v, out=square)
    step += eps
    np.divide(grad, step, out=step)
    step *= step_size
    step += decay * param
    param += weight * d
    param -= share * step
    step *= beta
    d -= step
    d *= keep


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    v: Any,
    d: Any,
    one_minus_beta2: Any,
    eps: Any,
    decay: Any,
    beta: Any,
    step_size: Any,
    weight: Any,
    keep: Any,
    share: Any,
) -> tuple[Any, Any, Any]:
    v = v + one_minus_beta2 * (square - v)
    step = step_size * (grad / (sqrt(v) + eps)) + decay * param
    return param + weight * d - share * step, v, keep * (d - beta * step)


RULE = Rule(
    name="schedule_free_adam",
    state=("v", "d"),
    signed=("d",),
    takes_square=True,
    scalars=("one_minus_beta2", "eps", "decay", "beta", "step_size"),
    memory=MEMORY,
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta2 * (square - v);
        const real step = step_size * (grad / (sqrt(v) + eps)) + decay * param;
        param = param + weight * d - share * step;
        d = keep * (d - beta * step);
    """,
)
