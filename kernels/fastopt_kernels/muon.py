"""Muon: the averaged gradient of a matrix, with its singular values brought near 1.

m <- m + (1 - momentum) * (grad - m)
u <- grad + look * (m - grad), with look = momentum (Nesterov) or 1, written from m's side
x <- u / max(|u|, eps), |u| the root of the sum of squares; the transpose if u is higher than wide
x <- a * x + (b * g + c * g @ g) @ x, where g = x @ x.T; ``iterations`` times (Newton-Schulz)
param <- param - lr * factor * x, transposed back

factor is sqrt(max(1, rows / columns)) or, to match the size of AdamW's steps, 0.2 times the root
of the longer side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import sqrt
from typing import Any, Literal

import numpy as np

from fastopt_kernels.rule import ArrayRule

Adjust = Literal["original", "match_rms_adamw"]

STRIPS = 4
STRIPS_FROM = 256
"""Rows from which on a symmetric product is worked out in strips."""


def factor_of(adjust: Adjust, rows: int, columns: int) -> float:
    """Return what the learning rate is multiplied by for a matrix of this shape."""
    if adjust == "original":
        return sqrt(max(1.0, rows / max(columns, 1)))
    return 0.2 * sqrt(max(rows, columns))


def orthogonalized(
    xp: Any, u: Any, coefficients: tuple[Any, Any, Any], eps: Any, iterations: int
) -> Any:
    """Return u with its singular values brought near 1; u has the matrix in its last two axes."""
    a, b, c = coefficients
    high = u.shape[-2] > u.shape[-1]
    x = u.swapaxes(-1, -2) if high else u
    norm = xp.sqrt(xp.sum(x * x, axis=(-2, -1), keepdims=True))
    x = x / xp.maximum(norm, eps)
    for _ in range(iterations):
        gram = _symmetric_product(xp, x, x.swapaxes(-1, -2))
        square = _symmetric_product(xp, gram, gram)
        square *= c
        gram *= b
        gram += square
        moved = gram @ x
        x *= a
        moved += x
        x = moved
    return x.swapaxes(-1, -2) if high else x


def _symmetric_product(xp: Any, left: Any, right: Any) -> Any:
    """Return the product of matrices in the last two axes, which is known to be symmetric.

    NumPy works out five eighths of a large one, in strips that begin on the diagonal, and copies
    the rest. A device is faster with the whole at once.
    """
    rows = left.shape[-2]
    if xp is not np or rows < STRIPS_FROM:
        return left @ right
    whole = np.empty((*left.shape[:-1], rows), left.dtype)
    height = -(-rows // STRIPS)
    for first in range(0, rows, height):
        last = min(first + height, rows)
        strip = whole[..., first:last, first:]
        np.matmul(left[..., first:last, :], right[..., first:], out=strip)
        whole[..., last:, first:last] = strip[..., last - first :].swapaxes(-1, -2)
    return whole


def compute(
    xp: Any,
    param: Any,
    grad: Any,
    state: Mapping[str, Any],
    scalars: Mapping[str, Any],
    iterations: int,
    adjust: Adjust,
) -> tuple[Any, dict[str, Any]]:
    """Return parameters and momentum after a step."""
    m = state["m"]
    m = m + scalars["one_minus_momentum"] * (grad - m)
    u = m - scalars["one_minus_look"] * (m - grad)
    coefficients = (scalars["a"], scalars["b"], scalars["c"])
    x = orthogonalized(xp, u, coefficients, scalars["eps"], iterations)
    factor = scalars["lr"] * param.dtype.type(factor_of(adjust, *param.shape[-2:]))
    return param - factor * x, {"m": m}


@cache
def rule(iterations: int, adjust: Adjust) -> ArrayRule:
    """Return the rule that iterates so often and scales its steps in this way."""
    return ArrayRule(
        name="muon",
        state=("m",),
        signed=("m",),
        scalars=("one_minus_momentum", "one_minus_look", "a", "b", "c", "eps", "lr"),
        compute=compute,
        settings=(("iterations", iterations), ("adjust", adjust)),
    )
