"""NorMuon: Muon's step with every row divided by the root of its averaged mean square.

m, x as in Muon (``muon.py``): x is the averaged gradient with its singular values near 1
v <- v + (1 - beta2) * (mean of x^2 over the row - v)
y <- x / (sqrt(v) + eps2)
param <- param - lr * factor * y * size / (|y| + eps2), |y| the root of the sum of squares

size is |x| and factor Muon's, or, by ``scale``, size is 0.2 times the root of the number of
elements and factor 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import sqrt
from typing import Any, Literal

from fastopt_kernels.adafactor import mean, rows_of
from fastopt_kernels.muon import Adjust, factor_of, orthogonalized
from fastopt_kernels.rule import ArrayRule

Scale = Literal["preserve_norm", "match_rms"]


def compute(
    xp: Any,
    param: Any,
    grad: Any,
    state: Mapping[str, Any],
    scalars: Mapping[str, Any],
    iterations: int,
    adjust: Adjust,
    scale: Scale,
) -> tuple[Any, dict[str, Any]]:
    """Return parameters, momentum and the averages of rows after a step."""
    m = state["m"] + scalars["one_minus_momentum"] * (grad - state["m"])
    u = m - scalars["one_minus_look"] * (m - grad)
    coefficients = (scalars["a"], scalars["b"], scalars["c"])
    x = orthogonalized(xp, u, coefficients, scalars["eps"], iterations)
    squares = x * x
    v = state["v"] + scalars["one_minus_beta2"] * (mean(xp, squares, -1) - state["v"])
    y = x / (xp.sqrt(v) + scalars["eps2"])
    rows, columns = param.shape[-2:]
    if scale == "preserve_norm":
        size = xp.sqrt(xp.sum(squares, axis=(-2, -1), keepdims=True))
        factor = factor_of(adjust, rows, columns)
    else:
        size, factor = 1, 0.2 * sqrt(rows * columns)
    norm = xp.sqrt(xp.sum(y * y, axis=(-2, -1), keepdims=True)) + scalars["eps2"]
    step = scalars["lr"] * param.dtype.type(factor) * (size / norm)
    return param - step * y, {"m": m, "v": v}


@cache
def rule(iterations: int, adjust: Adjust, scale: Scale) -> ArrayRule:
    """Return the rule that iterates so often and scales its steps in this way."""
    return ArrayRule(
        name="normuon",
        state=("m", "v"),
        signed=("m",),
        scalars=(
            "one_minus_momentum",
            "one_minus_look",
            "one_minus_beta2",
            "a",
            "b",
            "c",
            "eps",
            "eps2",
            "lr",
        ),
        compute=compute,
        settings=(("iterations", iterations), ("adjust", adjust), ("scale", scale)),
        shapes=(("v", rows_of),),
    )
