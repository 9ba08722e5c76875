"""FTRL with one rate for all elements: no root of squares (learning_rate_power = 0).

n <- n + grad^2, which is kept and not used
z <- z + lr * (grad + shrinkage * param)
param <- (clip(z, -threshold, threshold) - z) / (beta + stretch)

beta is the optimizer's and the 1 that all roots are, threshold and stretch what l1 and l2 come to,
times lr. z is the paper's times lr, so that lr can become 0. The 0 is written ``z - z``, so that
NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    z: Any,
    n: Any,
    lr: float,
    shrinkage: float,
    threshold: float,
    beta: float,
    stretch: float,
) -> None:
    n += square
    z += lr * (grad + shrinkage * param)
    shrunk = np.where(z < -threshold, -threshold - z, z - z)
    shrunk = np.where(z > threshold, threshold - z, shrunk)
    # Both as they are in the arithmetic's dtype, whether they come as floats or as arrays.
    np.divide(shrunk, np.add(beta, stretch, dtype=param.dtype), out=param)


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    z: Any,
    n: Any,
    lr: Any,
    shrinkage: Any,
    threshold: Any,
    beta: Any,
    stretch: Any,
) -> tuple[Any, Any, Any]:
    n = n + square
    z = z + lr * (grad + shrinkage * param)
    shrunk = -threshold - z if z < -threshold else z - z
    shrunk = threshold - z if z > threshold else shrunk
    return shrunk / (beta + stretch), z, n


RULE = Rule(
    name="ftrl_fixed",
    state=("z", "n"),
    signed=("z",),
    standing=("z",),
    from_start=True,
    takes_square=True,
    scalars=("lr", "shrinkage", "threshold", "beta", "stretch"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        n = n + square;
        z = z + lr * (grad + shrinkage * param);
        const real below = z < -threshold ? -threshold - z : z - z;
        const real shrunk = z > threshold ? threshold - z : below;
        param = shrunk / (beta + stretch);
    """,
)
