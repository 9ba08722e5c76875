"""MoMoAdam: Adam, with a step to where a model of the averaged loss meets its bound.

m <- m + one_minus_beta1 * (grad - m)
v <- v + one_minus_beta2 * (grad^2 - v)
direction = m / (sqrt(v) + eps)
growth = one + decay
share = what the model says of all arrays together, from 0 to 1 (``momo._host``)
param <- param - decay / growth * param - share * lr * direction

one is 1; lr and eps hold the bias corrections.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.momo import MEMORY, SUMS
from fastopt_kernels.rule import Rule, Sums


def _sums_numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    eps: float,
    one: float,
    decay: float,
    lr: float,
) -> tuple[Any, Any, Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    growth = np.add(one, decay, dtype=m.dtype)
    inner = m * param
    span = lr * (m * (m / (np.sqrt(v) + eps)))
    return grad * param, inner, inner / growth, span, span / growth


def _sums_numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    one: Any,
    decay: Any,
    lr: Any,
) -> tuple[Any, Any, Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    growth = one + decay
    inner = m * param
    span = lr * (m * (m / (sqrt(v) + eps)))
    return grad * param, inner, inner / growth, span, span / growth


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    eps: float,
    one: float,
    decay: float,
    lr: float,
    share: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.sqrt(v, out=work)
    work += eps
    np.divide(m, work, out=work)
    work *= lr
    work *= share
    # Scalars, in the precision of the arrays as on the other backends.
    shrink = np.divide(decay, np.add(one, decay, dtype=param.dtype), dtype=param.dtype)
    param -= shrink * param
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
    one: Any,
    decay: Any,
    lr: Any,
    share: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    return param - decay / (one + decay) * param - share * (lr * (m / (sqrt(v) + eps))), m, v


RULE = Rule(
    name="momo_adam",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "one", "decay", "lr"),
    sums=Sums(
        names=SUMS,
        numpy=_sums_numpy,
        numba=_sums_numba,
        cupy="""
            const real coming_m = m + one_minus_beta1 * (grad - m);
            const real coming_v = v + one_minus_beta2 * (square - v);
            const real growth = one + decay;
            slope = grad * param;
            inner = coming_m * param;
            shrunk = inner / growth;
            span = lr * (coming_m * (coming_m / (sqrt(coming_v) + eps)));
            shrunk_span = span / growth;
        """,
    ),
    memory=MEMORY,
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        param = param - decay / (one + decay) * param - share * (lr * (m / (sqrt(v) + eps)));
    """,
)
