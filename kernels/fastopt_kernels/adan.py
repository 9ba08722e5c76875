"""Adan: Adam on the gradient and on its change, each with an average of its own.

d <- grad - last, the change since the last gradient; 0 in the first step, where later is 0
m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (d - v)
n <- n + (1 - beta3) * ((grad + beta2 * d)^2 - n)
param <- param - (lr_gradient * m + lr_change * v) / (sqrt(n) + eps)
param <- param - decay / (one + decay) * param, which is param / (1 + decay)
last <- grad

The bias corrections are in eps and the two rates; later and one are 1, but for the first step.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    m: Any,
    v: Any,
    n: Any,
    last: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    beta2: float,
    one_minus_beta3: float,
    later: float,
    eps: float,
    lr_gradient: float,
    lr_change: float,
    decay: float,
    one: float,
) -> None:
    change = grad - last
    change *= later
    last[...] = grad
    work = grad - m
    work *= one_minus_beta1
    m += work
    np.subtract(change, v, out=work)
    work *= one_minus_beta2
    v += work
    change *= beta2
    change += grad
    change *= change
    change -= n
    change *= one_minus_beta3
    n += change
    root = np.sqrt(n, out=change)
    root += eps
    np.divide(m, root, out=work)
    work *= lr_gradient
    np.divide(v, root, out=root)
    root *= lr_change
    work += root
    param -= work
    # Two scalars, in the precision of the arrays as on the other backends.
    share = np.divide(decay, np.add(one, decay, dtype=work.dtype), dtype=work.dtype)
    param -= share * param


def _numba(
    param: Any,
    grad: Any,
    m: Any,
    v: Any,
    n: Any,
    last: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    beta2: Any,
    one_minus_beta3: Any,
    later: Any,
    eps: Any,
    lr_gradient: Any,
    lr_change: Any,
    decay: Any,
    one: Any,
) -> tuple[Any, Any, Any, Any, Any]:
    change = later * (grad - last)
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (change - v)
    ahead = grad + beta2 * change
    n = n + one_minus_beta3 * (ahead * ahead - n)
    root = sqrt(n) + eps
    param = param - (lr_gradient * (m / root) + lr_change * (v / root))
    return param - decay / (one + decay) * param, m, v, n, grad


RULE = Rule(
    name="adan",
    state=("m", "v", "n", "last"),
    signed=("m", "v", "last"),
    averages_squares=True,
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "beta2",
        "one_minus_beta3",
        "later",
        "eps",
        "lr_gradient",
        "lr_change",
        "decay",
        "one",
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real change = later * (grad - last);
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (change - v);
        const real ahead = grad + beta2 * change;
        n = n + one_minus_beta3 * (ahead * ahead - n);
        const real root = sqrt(n) + eps;
        param = param - (lr_gradient * (m / root) + lr_change * (v / root));
        param = param - decay / (one + decay) * param;
        last = grad;
    """,
)
