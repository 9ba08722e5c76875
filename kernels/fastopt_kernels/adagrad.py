"""Adagrad: steps divided by the root of the sum of all squared gradients.

s <- s + grad^2
param <- param - step_size * grad / (sqrt(s) + eps)
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(param: Any, grad: Any, square: Any, s: Any, step_size: float, eps: float) -> None:
    s += square
    param -= step_size * (grad / (np.sqrt(s) + eps))


def _numba(param: Any, grad: Any, square: Any, s: Any, step_size: Any, eps: Any) -> tuple[Any, Any]:
    s = s + square
    return param - step_size * (grad / (sqrt(s) + eps)), s


RULE = Rule(
    name="adagrad",
    state=("s",),
    takes_square=True,
    scalars=("step_size", "eps"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        s = s + square;
        param = param - step_size * (grad / (sqrt(s) + eps));
    """,
)
