"""Yogi: Adam whose average of squares moves by no more than the new square, up or down.

m <- m + (1 - beta1) * (grad - m)
v <- v - (1 - beta2) * sign(v - grad^2) * grad^2         sign(0) = 0
param <- param - step_size * m / (sqrt(v) + eps)

The bias corrections are in eps and step_size, as in Adam.
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
    step_size: float,
) -> None:
    work = v - square
    np.sign(work, out=work)
    square *= work
    square *= one_minus_beta2
    v -= square
    np.subtract(grad, m, out=work)
    work *= one_minus_beta1
    m += work
    np.sqrt(v, out=work)
    work += eps
    np.divide(m, work, out=work)
    work *= step_size
    param -= work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    step_size: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    over = v - square
    v = v - one_minus_beta2 * (square if over > 0 else -square if over < 0 else over - over)
    return param - step_size * (m / (sqrt(v) + eps)), m, v


RULE = Rule(
    name="yogi",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "step_size"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        const real over = v - square;
        v = v - one_minus_beta2 * (over > 0 ? square : over < 0 ? -square : over - over);
        param = param - step_size * (m / (sqrt(v) + eps));
    """,
)
