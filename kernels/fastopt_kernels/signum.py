"""Signum: steps of one length in the direction of the averaged gradient's signs.

m <- m + (1 - momentum) * (grad - m)
param <- param - lr * sign(m)                            sign(0) = 0
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(param: Any, grad: Any, m: Any, one_minus_momentum: float, lr: float) -> None:
    m += one_minus_momentum * (grad - m)
    param -= lr * np.sign(m)


def _numba(param: Any, grad: Any, m: Any, one_minus_momentum: Any, lr: Any) -> tuple[Any, Any]:
    m = m + one_minus_momentum * (grad - m)
    return param - (lr if m > 0 else -lr if m < 0 else m - m), m  # 0, or NaN


RULE = Rule(
    name="signum",
    state=("m",),
    signed=("m",),
    scalars=("one_minus_momentum", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_momentum * (grad - m);
        param = param - (m > 0 ? lr : m < 0 ? -lr : m - m);
    """,
)
