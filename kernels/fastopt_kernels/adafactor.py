"""Adafactor: squares of the gradient averaged by row and by column alone, steps by size.

r <- r + (1 - beta2) * (mean of grad^2 over the last axis - r)
c <- c + (1 - beta2) * (mean of grad^2 over the last axis but one - c)
s <- r * c / max(mean of r, eps1), for every element; vectors and numbers average v = grad^2 itself
u <- grad / sqrt(max(s, eps1^2)), divided by max(1, rms(u) / d)
param <- param - decay * param - max(eps2, rms(param)) * rho * u

Axes before the last two count matrices, each with averages of its own; the root mean squares are
over the whole array.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Any

import numpy as np

from fastopt_kernels.rule import ArrayRule, Shape


def rows_of(shape: Shape) -> Shape | None:
    """Return the shape of what every row has one number in; None for what is no matrix."""
    return (*shape[:-1], 1) if len(shape) > 1 else None


def columns_of(shape: Shape) -> Shape | None:
    """Return the shape of what every column has one number in; None for what is no matrix."""
    return (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else None


def unfactored(shape: Shape) -> Shape | None:
    """Return the shape of what every element has one number in; None for a matrix."""
    return shape if len(shape) < 2 else None


def mean(xp: Any, values: Any, axis: int) -> Any:
    """Return the mean over one axis, which stays; 0 where there is nothing."""
    return xp.sum(values, axis=axis, keepdims=True) / max(values.shape[axis], 1)


def rms(xp: Any, values: Any) -> Any:
    """Return the root mean square of each array along the first axis, to be broadcast."""
    size = prod(values.shape[1:])
    flat = values.reshape(len(values), size)
    found = xp.sqrt(xp.sum(flat * flat, axis=1) / max(size, 1))
    return found.reshape(-1, *[1] * (values.ndim - 1))


def averaged(
    xp: Any, state: Mapping[str, Any], squares: Any, share: Any, slots: tuple[str, str] = ("r", "c")
) -> dict[str, Any]:
    """Return the averages by row and column after a step."""
    r, c = (state[slot] for slot in slots)
    r = r + share * (mean(xp, squares, -1) - r)
    c = c + share * (mean(xp, squares, -2) - c)
    return dict(zip(slots, (r, c), strict=True))


def compute(
    xp: Any,
    param: Any,
    grad: Any,
    state: Mapping[str, Any],
    scalars: Mapping[str, Any],
    eps_of_dtype: bool,
) -> tuple[Any, dict[str, Any]]:
    """Return parameters and averages after a step."""
    eps1 = param.dtype.type(np.finfo(param.dtype).eps) if eps_of_dtype else scalars["eps1"]
    share, squares = scalars["one_minus_beta2"], grad * grad
    if "v" in state:
        s = state["v"] + share * (squares - state["v"])
        made = {"v": s}
    else:
        made = averaged(xp, state, squares, share)
        s = made["r"] / xp.maximum(mean(xp, made["r"], -2), eps1) * made["c"]  # r * c may overflow
    u = grad / xp.sqrt(xp.maximum(s, eps1 * eps1))
    u = u / xp.maximum(rms(xp, u) / scalars["d"], 1)
    step = xp.maximum(rms(xp, param), scalars["eps2"]) * scalars["rho"]
    return param - scalars["decay"] * param - step * u, made


@cache
def rule(eps_of_dtype: bool) -> ArrayRule:
    """Return the rule in which eps1 is that of the dtype, or a scalar."""
    return ArrayRule(
        name="adafactor",
        state=("r", "c", "v"),
        scalars=("one_minus_beta2", "rho", "eps1", "eps2", "d", "decay"),
        compute=compute,
        settings=(("eps_of_dtype", eps_of_dtype),),
        shapes=(("r", rows_of), ("c", columns_of), ("v", unfactored)),
        averages_squares=True,
    )
