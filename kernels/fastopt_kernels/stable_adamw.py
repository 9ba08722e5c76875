"""Adam whose step in an array is shorter where the gradient outgrows its average.

m <- m + take1 * (grad - m)
v <- v + take2 * (grad^2 - v)
surprise <- sqrt(mean((grad / max(sqrt(v), eps))^2)), over the array
shrink <- 1 / surprise if surprise > 1, else 1
param <- param - shrink * (lr * m / (sqrt(v) + eps) + decay * param)

The shares take1 and take2 are (1 - beta) / (1 - beta^t): m and v are corrected averages.
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
    take1: float,
    take2: float,
    eps: float,
    decay: float,
    lr: float,
) -> tuple[Any]:
    return (grad / np.maximum(np.sqrt(v + take2 * (square - v)), eps),)


def _sums_numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    take1: Any,
    take2: Any,
    eps: Any,
    decay: Any,
    lr: Any,
) -> tuple[Any]:
    root = sqrt(v + take2 * (square - v))
    is_small = root < eps  # a root that is NaN stays, as in np.maximum
    return (grad / (eps if is_small else root),)


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    surprise = sqrt(sums["surprise"] / sums["size"]) if sums["size"] > 0.0 else 0.0
    return {}, {"shrink": 1.0 / surprise if surprise > 1.0 else 1.0}


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    take1: float,
    take2: float,
    eps: float,
    decay: float,
    lr: float,
    shrink: float,
) -> None:
    square -= v
    square *= take2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= take1
    m += work
    np.sqrt(v, out=work)
    work += eps
    np.divide(m, work, out=work)
    work *= lr
    work += decay * param
    work *= shrink
    param -= work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    take1: Any,
    take2: Any,
    eps: Any,
    decay: Any,
    lr: Any,
    shrink: Any,
) -> tuple[Any, Any, Any]:
    m = m + take1 * (grad - m)
    v = v + take2 * (square - v)
    return param - shrink * (lr * (m / (sqrt(v) + eps)) + decay * param), m, v


RULE = Rule(
    name="stable_adamw",
    state=("m", "v"),
    signed=("m",),
    takes_square=True,
    scalars=("take1", "take2", "eps", "decay", "lr"),
    sums=Sums(
        names=("surprise",),
        squared=("surprise",),
        numpy=_sums_numpy,
        numba=_sums_numba,
        cupy="""
            const real root = sqrt(v + take2 * (square - v));
            surprise = grad / (root < eps ? eps : root);
        """,
    ),
    memory=Memory(
        over="array",
        scalars=("shrink",),
        host=_host,
        cupy="""
            const double typical = size > 0.0 ? sqrt(surprise / size) : 0.0;
            shrink = typical > 1.0 ? 1.0 / typical : 1.0;
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + take1 * (grad - m);
        v = v + take2 * (square - v);
        param = param - shrink * (lr * (m / (sqrt(v) + eps)) + decay * param);
    """,
)
