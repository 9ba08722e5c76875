"""Adam of a gradient that is corrected by how it changed, and cut to a length.

c <- grad + look * (grad - last), where look is 0 in the first step
c <- shrink * c, where shrink is max_norm / |c| if |c|, of the whole array, is more than max_norm
m <- m + (1 - beta1) * (c - m)
v <- v + (1 - beta2) * (c^2 - v)
last <- grad
param <- param - step_size * m / (sqrt(v) + eps)

The bias corrections are in the scalars, as in ``adam``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Memory, Rule, Sums


def _sums(
    param: Any,
    grad: Any,
    m: Any,
    v: Any,
    last: Any,
    look: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    step_size: Any,
) -> tuple[Any]:
    return (grad + look * (grad - last),)


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    norm = sqrt(sums["norm"])
    return {}, {"shrink": scalars["max_norm"] / norm if norm > scalars["max_norm"] else 1.0}


def _numpy(
    param: Any,
    grad: Any,
    m: Any,
    v: Any,
    last: Any,
    look: float,
    one_minus_beta1: float,
    one_minus_beta2: float,
    eps: float,
    step_size: float,
    shrink: float,
) -> None:
    c = np.subtract(grad, last, out=last)
    c *= look
    c += grad
    c *= shrink
    m += one_minus_beta1 * (c - m)
    c *= c
    c -= v
    c *= one_minus_beta2
    v += c
    work = np.sqrt(v, out=c)
    work += eps
    np.divide(m, work, out=work)
    work *= step_size
    param -= work
    last[...] = grad


def _numba(
    param: Any,
    grad: Any,
    m: Any,
    v: Any,
    last: Any,
    look: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    step_size: Any,
    shrink: Any,
) -> tuple[Any, Any, Any, Any]:
    c = shrink * (grad + look * (grad - last))
    m = m + one_minus_beta1 * (c - m)
    v = v + one_minus_beta2 * (c * c - v)
    return param - step_size * (m / (sqrt(v) + eps)), m, v, grad


RULE = Rule(
    name="mars",
    heavy=True,
    state=("m", "v", "last"),
    signed=("m", "last"),
    averages_squares=True,
    scalars=("look", "one_minus_beta1", "one_minus_beta2", "eps", "step_size"),
    sums=Sums(
        names=("norm",),
        squared=("norm",),
        numpy=_sums,
        numba=_sums,
        cupy="norm = grad + look * (grad - last);",
    ),
    memory=Memory(
        over="array",
        inputs=("max_norm",),
        scalars=("shrink",),
        host=_host,
        cupy="""
            const double of_all = sqrt(norm);
            shrink = of_all > max_norm ? max_norm / of_all : 1.0;
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real c = shrink * (grad + look * (grad - last));
        m = m + one_minus_beta1 * (c - m);
        v = v + one_minus_beta2 * (c * c - v);
        last = grad;
        param = param - step_size * (m / (sqrt(v) + eps));
    """,
)
