"""CAME: Adafactor's steps, averaged, and divided by how far they are from their average.

r, c <- averages of grad^2 + eps1 by row and by column; v, of every element, if it is no matrix
u <- grad / sqrt(r / (mean of r) * c), or grad / sqrt(v); divided by max(1, rms(u) / clip_threshold)
m <- m + (1 - beta1) * (u - m)
sr, sc <- averages of (u - m)^2 + eps2 by row and by column
param <- param - lr * m / sqrt(sr / (mean of sr) * sc), or lr * m if it is no matrix
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt_kernels.adafactor import averaged, columns_of, mean, rms, rows_of, unfactored
from fastopt_kernels.rule import ArrayRule


def root(xp: Any, r: Any, c: Any) -> Any:
    """Return the roots of what averages by row and by column stand for.

    Of each a root of its own: their quotient may be too small for float32.
    """
    return xp.sqrt(r) / xp.sqrt(mean(xp, r, -2)) * xp.sqrt(c)


def compute(
    xp: Any, param: Any, grad: Any, state: Mapping[str, Any], scalars: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return parameters and averages after a step."""
    share, squares = scalars["one_minus_beta2"], grad * grad + scalars["eps1"]
    if "v" in state:
        made = {"v": state["v"] + share * (squares - state["v"])}
        u = grad / xp.sqrt(made["v"])
    else:
        made = averaged(xp, state, squares, share)
        u = grad / root(xp, made["r"], made["c"])
    u = u / xp.maximum(rms(xp, u) / scalars["clip_threshold"], 1)
    m = state["m"] + scalars["one_minus_beta1"] * (u - state["m"])
    step = m
    if "v" not in state:
        away = (u - m) * (u - m) + scalars["eps2"]
        made |= averaged(xp, state, away, scalars["one_minus_beta3"], ("sr", "sc"))
        step = m / root(xp, made["sr"], made["sc"])
    return param - scalars["lr"] * step, made | {"m": m}


RULE = ArrayRule(
    name="came",
    state=("m", "r", "c", "v", "sr", "sc"),
    signed=("m",),
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "one_minus_beta3",
        "eps1",
        "eps2",
        "clip_threshold",
        "lr",
    ),
    compute=compute,
    shapes=(
        ("r", rows_of),
        ("c", columns_of),
        ("v", unfactored),
        ("sr", rows_of),
        ("sc", columns_of),
    ),
    averages_squares=True,
)
