"""Adam whose radial part is left out where the gradient has hardly any.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
u <- (m + ahead * (grad - m)) / (sqrt(v) / root + eps), with root = sqrt(1 - beta2^t)
u, share <- as in ``sgdp``
param <- param - decay * share * param - step_size * u
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt_kernels.rule import ArrayRule
from fastopt_kernels.sgdp import projected


def compute(
    xp: Any, param: Any, grad: Any, state: Mapping[str, Any], scalars: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return parameters and averages after a step."""
    m = state["m"] + scalars["one_minus_beta1"] * (grad - state["m"])
    v = state["v"] + scalars["one_minus_beta2"] * (grad * grad - state["v"])
    top = m + scalars["ahead"] * (grad - m)
    u = top / (xp.sqrt(v) / scalars["root"] + scalars["eps"])
    limits = (scalars["delta"], scalars["eps"], scalars["decay_share"])
    u, share = projected(xp, param, grad, u, *limits)
    return param - scalars["decay"] * share * param - scalars["step_size"] * u, {"m": m, "v": v}


RULE = ArrayRule(
    name="adamp",
    state=("m", "v"),
    signed=("m",),
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "ahead",
        "root",
        "eps",
        "delta",
        "decay_share",
        "decay",
        "step_size",
    ),
    compute=compute,
    averages_squares=True,
)
