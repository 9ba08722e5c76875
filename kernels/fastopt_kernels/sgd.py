"""Gradient descent without memory: param <- param - lr * grad."""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(param: Any, grad: Any, lr: float) -> None:
    param -= lr * grad


def _numba(param: Any, grad: Any, lr: Any) -> tuple[Any]:
    return (param - lr * grad,)


RULE = Rule(
    name="sgd",
    state=(),
    scalars=("lr",),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        param = param - lr * grad;
    """,
)
