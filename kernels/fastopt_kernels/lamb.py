"""LAMB: Adam's direction, as long as the parameter's own array is.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
u <- rescale * m / (sqrt(v) + eps) + weight_decay * param
trust <- |param| / |u|, norms of the whole array; 1 if one of them is 0
param <- param - lr * trust * u

The bias corrections are in the scalars: with c2 = 1 - beta2^t, (m / c1) / (sqrt(v / c2) + eps) is
(sqrt(c2) / c1) * m / (sqrt(v) + sqrt(c2) * eps), so eps is scaled, and m by ``rescale``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Memory, Rule, Sums


def _sums_numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    rescale: float,
    eps: float,
    weight_decay: float,
    lr: float,
) -> tuple[Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    return param, rescale * (m / (np.sqrt(v) + eps)) + weight_decay * param


def _sums_numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    rescale: Any,
    eps: Any,
    weight_decay: Any,
    lr: Any,
) -> tuple[Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    return param, rescale * (m / (sqrt(v) + eps)) + weight_decay * param


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    of_param, of_update = sqrt(sums["param_norm"]), sqrt(sums["update_norm"])
    there = of_param != 0.0 and of_update != 0.0
    return {}, {"trust": of_param / of_update if there else 1.0}


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    rescale: float,
    eps: float,
    weight_decay: float,
    lr: float,
    trust: float,
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
    work *= rescale
    work += weight_decay * param
    work *= trust
    work *= lr
    param -= work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    rescale: Any,
    eps: Any,
    weight_decay: Any,
    lr: Any,
    trust: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    u = rescale * (m / (sqrt(v) + eps)) + weight_decay * param
    return param - lr * (trust * u), m, v


RULE = Rule(
    name="lamb",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "rescale", "eps", "weight_decay", "lr"),
    sums=Sums(
        names=("param_norm", "update_norm"),
        squared=("param_norm", "update_norm"),
        numpy=_sums_numpy,
        numba=_sums_numba,
        cupy="""
            const real new_m = m + one_minus_beta1 * (grad - m);
            const real new_v = v + one_minus_beta2 * (square - v);
            param_norm = param;
            update_norm = rescale * (new_m / (sqrt(new_v) + eps)) + weight_decay * param;
        """,
    ),
    memory=Memory(
        over="array",
        scalars=("trust",),
        host=_host,
        cupy="""
            const double of_param = sqrt(param_norm);
            const double of_update = sqrt(update_norm);
            trust = of_param != 0.0 && of_update != 0.0 ? of_param / of_update : 1.0;
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        const real u = rescale * (m / (sqrt(v) + eps)) + weight_decay * param;
        param = param - lr * (trust * u);
    """,
)
