"""Gradient descent with Nesterov's momentum and the learning rate inside the velocity.

v <- momentum * v - lr * grad
param <- param + (momentum * v - lr * grad)
"""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(param: Any, grad: Any, v: Any, momentum: float, lr: float) -> None:
    step = lr * grad
    v *= momentum
    v -= step
    param += momentum * v - step


def _numba(param: Any, grad: Any, v: Any, momentum: Any, lr: Any) -> tuple[Any, Any]:
    step = lr * grad
    v = momentum * v - step
    return param + (momentum * v - step), v


RULE = Rule(
    name="sgd_lr_inside_nesterov",
    state=("v",),
    signed=("v",),
    scalars=("momentum", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real step = lr * grad;
        v = momentum * v - step;
        param = param + (momentum * v - step);
    """,
)
