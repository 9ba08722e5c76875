"""Gradient descent with a velocity: a momentum buffer that has the learning rate inside.

v <- momentum * v - lr * grad
param <- param + v
"""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(param: Any, grad: Any, v: Any, momentum: float, lr: float) -> None:
    v *= momentum
    v -= lr * grad
    param += v


def _numba(param: Any, grad: Any, v: Any, momentum: Any, lr: Any) -> tuple[Any, Any]:
    v = momentum * v - lr * grad
    return param + v, v


RULE = Rule(
    name="sgd_lr_inside",
    state=("v",),
    signed=("v",),
    scalars=("momentum", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = momentum * v - lr * grad;
        param = param + v;
    """,
)
