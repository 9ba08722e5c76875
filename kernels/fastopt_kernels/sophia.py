"""Sophia: averaged gradients over the Hessian's diagonal, clipped element by element.

m <- m + one_minus_beta1 * (grad - m)
u = m / max(gamma * h, eps), from -one to one
param <- param - lr * u

``ESTIMATE`` takes an estimate of the diagonal in: h <- h + one_minus_beta2 * (estimate - h).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    m: Any,
    h: Any,
    one_minus_beta1: float,
    gamma: float,
    eps: float,
    one: float,
    lr: float,
) -> None:
    m += one_minus_beta1 * (grad - m)
    u = gamma * h
    np.maximum(u, eps, out=u)
    np.divide(m, u, out=u)
    np.clip(u, -one, one, out=u)
    u *= lr
    param -= u


def _numba(
    param: Any,
    grad: Any,
    m: Any,
    h: Any,
    one_minus_beta1: Any,
    gamma: Any,
    eps: Any,
    one: Any,
    lr: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    curvature = gamma * h
    missing = eps - curvature
    u = m / (eps if missing > 0 else curvature)
    u = one if u > 1 else u
    u = -one if u < -1 else u
    return param - lr * u, m, h


def _estimate_numpy(param: Any, grad: Any, m: Any, h: Any, one_minus_beta2: float) -> None:
    h += one_minus_beta2 * (grad - h)


def _estimate_numba(
    param: Any, grad: Any, m: Any, h: Any, one_minus_beta2: Any
) -> tuple[Any, Any, Any]:
    return param, m, h + one_minus_beta2 * (grad - h)


RULE = Rule(
    name="sophia",
    state=("m", "h"),
    signed=("m", "h"),
    scalars=("one_minus_beta1", "gamma", "eps", "one", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        h = h;
        const real curvature = gamma * h;
        const real missing = eps - curvature;
        real u = m / (missing > 0 ? eps : curvature);
        u = u > 1 ? one : u;
        u = u < -1 ? -one : u;
        param = param - lr * u;
    """,
)
ESTIMATE = Rule(
    name="sophia_estimate",
    state=("m", "h"),
    signed=("m", "h"),
    scalars=("one_minus_beta2",),
    numpy=_estimate_numpy,
    numba=_estimate_numba,
    cupy="""
        param = param;
        m = m;
        h = h + one_minus_beta2 * (grad - h);
    """,
)
