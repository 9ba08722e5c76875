"""Gradient descent with Nesterov's momentum: the step looks ahead along the buffer.

buf <- momentum * buf + grad
param <- param - lr * (grad + momentum * buf)
"""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(param: Any, grad: Any, buf: Any, momentum: float, lr: float) -> None:
    buf *= momentum
    buf += grad
    param -= lr * (grad + momentum * buf)


def _numba(param: Any, grad: Any, buf: Any, momentum: Any, lr: Any) -> tuple[Any, Any]:
    buf = momentum * buf + grad
    return param - lr * (grad + momentum * buf), buf


RULE = Rule(
    name="sgd_nesterov",
    state=("buf",),
    signed=("buf",),
    scalars=("momentum", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        buf = momentum * buf + grad;
        param = param - lr * (grad + momentum * buf);
    """,
)
