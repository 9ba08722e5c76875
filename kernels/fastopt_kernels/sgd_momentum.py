"""Gradient descent with a momentum buffer.

buf <- keep * buf + take * grad
param <- param - lr * buf
"""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(param: Any, grad: Any, buf: Any, keep: float, take: float, lr: float) -> None:
    buf *= keep
    buf += take * grad
    param -= lr * buf


def _numba(param: Any, grad: Any, buf: Any, keep: Any, take: Any, lr: Any) -> tuple[Any, Any]:
    buf = keep * buf + take * grad
    return param - lr * buf, buf


RULE = Rule(
    name="sgd_momentum",
    state=("buf",),
    signed=("buf",),
    scalars=("keep", "take", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        buf = keep * buf + take * grad;
        param = param - lr * buf;
    """,
)
