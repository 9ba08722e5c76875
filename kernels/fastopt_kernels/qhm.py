"""QHM: steps by a weighted mean of the gradient and its average.

m <- m + (1 - momentum) * (grad - m)
param <- param - (of_m * m + of_grad * grad)             of_m = lr * nu, of_grad = lr * (1 - nu)
"""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any, grad: Any, m: Any, one_minus_momentum: float, of_m: float, of_grad: float
) -> None:
    m += one_minus_momentum * (grad - m)
    param -= of_m * m + of_grad * grad


def _numba(
    param: Any, grad: Any, m: Any, one_minus_momentum: Any, of_m: Any, of_grad: Any
) -> tuple[Any, Any]:
    m = m + one_minus_momentum * (grad - m)
    return param - (of_m * m + of_grad * grad), m


RULE = Rule(
    name="qhm",
    state=("m",),
    signed=("m",),
    scalars=("one_minus_momentum", "of_m", "of_grad"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_momentum * (grad - m);
        param = param - (of_m * m + of_grad * grad);
    """,
)
