"""Adam with eps inside the root; a rule of its own, since Adam itself is faster without it.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
param <- param - step_size * m / (sqrt(v + eps_inside) + eps_outside)

The bias corrections are in the scalars, as in Adam; eps_outside only guards against 0/0.
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
    eps_inside: float,
    eps_outside: float,
    step_size: float,
) -> None:
    # All in the memory of the square: a new temporary for every operation takes 1.2 times as long.
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.add(v, eps_inside, out=work)
    np.sqrt(work, out=work)
    work += eps_outside
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
    eps_inside: Any,
    eps_outside: Any,
    step_size: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    return param - step_size * (m / (sqrt(v + eps_inside) + eps_outside)), m, v


RULE = Rule(
    name="adam_eps_inside",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "eps_inside",
        "eps_outside",
        "step_size",
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        param = param - step_size * (m / (sqrt(v + eps_inside) + eps_outside));
    """,
)
