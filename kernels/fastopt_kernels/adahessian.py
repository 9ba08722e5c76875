"""AdaHessian: Adam with the squares of the Hessian's diagonal in the place of the gradient's.

m <- m + one_minus_beta1 * (grad - m)
param <- param - step_size * m / (sqrt(v) + eps)

``ESTIMATE`` takes an estimate of the diagonal in: v <- v + one_minus_beta2 * (estimate^2 - v). The
scalars hold the bias corrections.
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
    eps: float,
    step_size: float,
) -> None:
    m += one_minus_beta1 * (grad - m)
    work = np.sqrt(v)
    work += eps
    np.divide(m, work, out=work)
    work *= step_size
    param -= work


def _numba(
    param: Any, grad: Any, m: Any, v: Any, one_minus_beta1: Any, eps: Any, step_size: Any
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    return param - step_size * (m / (sqrt(v) + eps)), m, v


def _estimate_numpy(
    param: Any, grad: Any, square: Any, m: Any, v: Any, one_minus_beta2: float
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square


def _estimate_numba(
    param: Any, grad: Any, square: Any, m: Any, v: Any, one_minus_beta2: Any
) -> tuple[Any, Any, Any]:
    return param, m, v + one_minus_beta2 * (square - v)


RULE = Rule(
    name="adahessian",
    state=("m", "v"),
    signed=("m",),
    scalars=("one_minus_beta1", "eps", "step_size"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v;
        param = param - step_size * (m / (sqrt(v) + eps));
    """,
)
ESTIMATE = Rule(
    name="adahessian_estimate",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta2",),
    numpy=_estimate_numpy,
    numba=_estimate_numba,
    cupy="""
        static_cast<void>(grad);
        param = param;
        m = m;
        v = v + one_minus_beta2 * (square - v);
    """,
)
