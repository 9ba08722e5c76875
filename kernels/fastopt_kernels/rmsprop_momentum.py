"""RMSprop whose scaled gradients are gathered in a momentum buffer.

v <- v + (1 - beta) * (grad^2 - v)
buf <- momentum * buf + rescale * grad / (sqrt(v + eps_inside) + eps_outside)
param <- param - lr * buf

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
    buf: Any,
    one_minus_beta: float,
    momentum: float,
    rescale: float,
    eps_inside: float,
    eps_outside: float,
    lr: float,
) -> None:
    v += one_minus_beta * (square - v)
    buf *= momentum
    buf += rescale * (grad / (np.sqrt(v + eps_inside) + eps_outside))
    param -= lr * buf


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    v: Any,
    buf: Any,
    one_minus_beta: Any,
    momentum: Any,
    rescale: Any,
    eps_inside: Any,
    eps_outside: Any,
    lr: Any,
) -> tuple[Any, Any, Any]:
    v = v + one_minus_beta * (square - v)
    buf = momentum * buf + rescale * (grad / (sqrt(v + eps_inside) + eps_outside))
    return param - lr * buf, v, buf


RULE = Rule(
    name="rmsprop_momentum",
    state=("v", "buf"),
    takes_square=True,
    signed=("buf",),
    scalars=("one_minus_beta", "momentum", "rescale", "eps_inside", "eps_outside", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (square - v);
        buf = momentum * buf + rescale * (grad / (sqrt(v + eps_inside) + eps_outside));
        param = param - lr * buf;
    """,
)
