"""Adagrad with eps inside the root, a rule of its own as Adam's is.

s <- s + grad^2
param <- param - step_size * grad / (sqrt(s + eps_inside) + eps_outside)

eps_outside only guards against 0/0.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    s: Any,
    step_size: float,
    eps_inside: float,
    eps_outside: float,
) -> None:
    s += square
    param -= step_size * (grad / (np.sqrt(s + eps_inside) + eps_outside))


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    s: Any,
    step_size: Any,
    eps_inside: Any,
    eps_outside: Any,
) -> tuple[Any, Any]:
    s = s + square
    return param - step_size * (grad / (sqrt(s + eps_inside) + eps_outside)), s


RULE = Rule(
    name="adagrad_eps_inside",
    state=("s",),
    takes_square=True,
    scalars=("step_size", "eps_inside", "eps_outside"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        s = s + square;
        param = param - step_size * (grad / (sqrt(s + eps_inside) + eps_outside));
    """,
)
