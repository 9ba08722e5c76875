"""Lion: steps of one length, by the signs of a look ahead of the averaged gradient.

c <- m + (1 - beta1) * (grad - m)
m <- m + (1 - beta2) * (grad - m)
param <- param - lr * sign(c)                            sign(0) = 0
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any, grad: Any, m: Any, one_minus_beta1: float, one_minus_beta2: float, lr: float
) -> None:
    work = grad - m
    param -= lr * np.sign(m + one_minus_beta1 * work)
    work *= one_minus_beta2
    m += work


def _numba(
    param: Any, grad: Any, m: Any, one_minus_beta1: Any, one_minus_beta2: Any, lr: Any
) -> tuple[Any, Any]:
    c = m + one_minus_beta1 * (grad - m)
    m = m + one_minus_beta2 * (grad - m)
    return param - (lr if c > 0 else -lr if c < 0 else c - c), m  # 0, or NaN


RULE = Rule(
    name="lion",
    state=("m",),
    signed=("m",),
    scalars=("one_minus_beta1", "one_minus_beta2", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real c = m + one_minus_beta1 * (grad - m);
        m = m + one_minus_beta2 * (grad - m);
        param = param - (c > 0 ? lr : c < 0 ? -lr : c - c);
    """,
)
