"""Adam: the averaged gradient over the root of the averaged squared gradient.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
param <- param - step_size * m / (sqrt(v) + eps)

The bias corrections are in the scalars: with c2 = 1 - beta2^t, sqrt(v / c2) + eps is
(sqrt(v) + sqrt(c2) * eps) / sqrt(c2), so eps and the step are scaled and v is left as it is.
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
    # All in the memory of the square: a new temporary for every operation takes 1.2 times as long.
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
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
    v = v + one_minus_beta2 * (square - v)
    return param - step_size * (m / (sqrt(v) + eps)), m, v


RULE = Rule(
    name="adam",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "eps",
        "step_size",
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        param = param - step_size * (m / (sqrt(v) + eps));
    """,
)
