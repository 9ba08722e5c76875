"""FTRL-Proximal: the parameter as the minimum of what all gradients so far ask for.

before <- n
n <- n + grad^2
z <- z + (lr * (grad + shrinkage * param) - (sqrt(n) - sqrt(before)) * param)
param <- (clip(z, -threshold, threshold) - z) / (sqrt(n) + beta + stretch)

threshold and stretch are what l1 and l2 come to, times lr. z is the paper's times lr, so that lr
can become 0. The 0 is written ``z - z``, so that NaN stays NaN.
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
    z: Any,
    n: Any,
    lr: float,
    shrinkage: float,
    threshold: float,
    beta: float,
    stretch: float,
) -> None:
    before = np.sqrt(n)
    n += square
    root = np.sqrt(n)
    z += lr * (grad + shrinkage * param) - (root - before) * param
    shrunk = np.where(z < -threshold, -threshold - z, z - z)
    shrunk = np.where(z > threshold, threshold - z, shrunk)
    np.divide(shrunk, root + beta + stretch, out=param)


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
    before = sqrt(n)
    n = n + square
    root = sqrt(n)
    z = z + (lr * (grad + shrinkage * param) - (root - before) * param)
    shrunk = -threshold - z if z < -threshold else z - z
    shrunk = threshold - z if z > threshold else shrunk
    return shrunk / (root + beta + stretch), z, n


RULE = Rule(
    name="ftrl",
    state=("z", "n"),
    signed=("z",),
    standing=("z",),
    from_start=True,
    takes_square=True,
    scalars=("lr", "shrinkage", "threshold", "beta", "stretch"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real before = sqrt(n);
        n = n + square;
        const real root = sqrt(n);
        z = z + (lr * (grad + shrinkage * param) - (root - before) * param);
        const real below = z < -threshold ? -threshold - z : z - z;
        const real shrunk = z > threshold ? threshold - z : below;
        param = shrunk / (root + beta + stretch);
    """,
)
