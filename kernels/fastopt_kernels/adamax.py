"""Adamax: the averaged gradient over the largest recent gradient, a maximum that decays.

m <- m + (1 - beta1) * (grad - m)
u <- max(beta2 * u, |grad| + eps)
param <- param - step_size * m / u

The bias correction of m is in step_size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    m: Any,
    u: Any,
    one_minus_beta1: float,
    beta2: float,
    eps: float,
    step_size: float,
) -> None:
    work = np.abs(grad)
    work += eps
    u *= beta2
    np.maximum(u, work, out=u)
    np.subtract(grad, m, out=work)
    work *= one_minus_beta1
    m += work
    np.divide(m, u, out=work)
    work *= step_size
    param -= work


def _numba(
    param: Any,
    grad: Any,
    m: Any,
    u: Any,
    one_minus_beta1: Any,
    beta2: Any,
    eps: Any,
    step_size: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    old, seen = beta2 * u, abs(grad) + eps
    # NaN wins, as in np.maximum.
    u = old if old >= seen or old != old else seen
    return param - step_size * (m / u), m, u


RULE = Rule(
    name="adamax",
    state=("m", "u"),
    signed=("m",),
    scalars=("one_minus_beta1", "beta2", "eps", "step_size"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        const real old = beta2 * u;
        const real seen = fabs(grad) + eps;
        u = old >= seen || old != old ? old : seen;
        param = param - step_size * (m / u);
    """,
)
