"""AdEMAMix: Adam with the mixture of a fast and a slow average of gradients.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
slow <- slow + (1 - beta3) * (grad - slow)
param <- param - step_size * (m + mix * slow) / (sqrt(v) + eps)

The bias corrections are in eps, step_size and mix; the slow average has none.
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
    m: Any,
    v: Any,
    slow: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    one_minus_beta3: float,
    mix: float,
    eps: float,
    step_size: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.subtract(grad, slow, out=work)
    work *= one_minus_beta3
    slow += work
    np.sqrt(v, out=work)
    work += eps
    mixed = mix * slow
    mixed += m
    mixed /= work
    mixed *= step_size
    param -= mixed


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    slow: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    one_minus_beta3: Any,
    mix: Any,
    eps: Any,
    step_size: Any,
) -> tuple[Any, Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    slow = slow + one_minus_beta3 * (grad - slow)
    return param - step_size * ((m + mix * slow) / (sqrt(v) + eps)), m, v, slow


RULE = Rule(
    name="ademamix",
    state=("m", "v", "slow"),
    signed=("m", "slow"),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "one_minus_beta3", "mix", "eps", "step_size"),
    numpy=_numpy,
    numba=_numba,
    # The root comes first, so that state of 8 bits needs no more registers than there are.
    cupy="""
        v = v + one_minus_beta2 * (square - v);
        const real root = sqrt(v) + eps;
        m = m + one_minus_beta1 * (grad - m);
        slow = slow + one_minus_beta3 * (grad - slow);
        param = param - step_size * ((m + mix * slow) / root);
    """,
)
