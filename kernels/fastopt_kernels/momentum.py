"""Descent along the exponentially weighted average of the gradients.

v <- beta * v + (1 - beta) * grad, written as v + (1 - beta) * (grad - v)
param <- param - step_size * v
"""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(param: Any, grad: Any, v: Any, one_minus_beta: float, step_size: float) -> None:
    v += one_minus_beta * (grad - v)
    param -= step_size * v


def _numba(param: Any, grad: Any, v: Any, one_minus_beta: Any, step_size: Any) -> tuple[Any, Any]:
    v = v + one_minus_beta * (grad - v)
    return param - step_size * v, v


RULE = Rule(
    name="momentum",
    state=("v",),
    signed=("v",),
    scalars=("one_minus_beta", "step_size"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        v = v + one_minus_beta * (grad - v);
        param = param - step_size * v;
    """,
)
