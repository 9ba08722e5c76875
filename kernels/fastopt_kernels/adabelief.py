"""AdaBelief: the averaged gradient over the root of how far gradients are from it.

m <- m + (1 - beta1) * (grad - m)
e <- beta1 * (grad - m), of the old m; that is grad - m of the new one
v <- v + (1 - beta2) * (e^2 - v) + eps_root
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
    m: Any,
    v: Any,
    one_minus_beta1: float,
    beta1: float,
    one_minus_beta2: float,
    eps_root: float,
    eps: float,
    step_size: float,
) -> None:
    work = grad - m
    m += one_minus_beta1 * work
    work *= beta1
    work *= work
    work -= v
    work *= one_minus_beta2
    v += work
    v += eps_root
    np.sqrt(v, out=work)
    work += eps
    np.divide(m, work, out=work)
    work *= step_size
    param -= work


def _numba(
    param: Any,
    grad: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    beta1: Any,
    one_minus_beta2: Any,
    eps_root: Any,
    eps: Any,
    step_size: Any,
) -> tuple[Any, Any, Any]:
    ahead = grad - m
    m = m + one_minus_beta1 * ahead
    e = beta1 * ahead
    v = v + one_minus_beta2 * (e * e - v) + eps_root
    return param - step_size * (m / (sqrt(v) + eps)), m, v


RULE = Rule(
    name="adabelief",
    state=("m", "v"),
    signed=("m",),
    averages_squares=True,
    scalars=("one_minus_beta1", "beta1", "one_minus_beta2", "eps_root", "eps", "step_size"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real ahead = grad - m;
        m = m + one_minus_beta1 * ahead;
        const real e = beta1 * ahead;
        v = v + one_minus_beta2 * (e * e - v) + eps_root;
        param = param - step_size * (m / (sqrt(v) + eps));
    """,
)
