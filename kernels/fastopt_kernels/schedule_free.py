"""Schedule-free SGD: y = param goes between a fast sequence z and the average x of it.

step <- lr * grad
peak <- max(peak, rate);  total <- total + factor * peak;  weight <- factor * peak / total
z <- z - step,  x <- x + weight * (z - x),  y <- beta * x + (1 - beta) * z, which is
param <- param + weight * d - (1 - beta * (1 - weight)) * step
d <- (1 - weight) * (d - beta * step)

d is z - y, so that z is y at first and follows whatever is written into y from outside; x is
y + (1 - 1 / beta) * d. ``rate`` is a power of lr, ``factor`` one of the step count; total and peak
are remembered for each array. Where no weight has come together yet, with lr = 0, the average
stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt_kernels.rule import Memory, Rule


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    peak = memory["peak"]
    if scalars["rate"] > peak:
        peak = scalars["rate"]
    own = scalars["factor"] * peak
    total = memory["total"] + own
    weight = own / total if total > 0.0 else 0.0
    keep = 1.0 - weight
    share = 1.0 - scalars["beta"] * keep
    return {"peak": peak, "total": total}, {"weight": weight, "keep": keep, "share": share}


MEMORY = Memory(
    over="array",
    names=("peak", "total"),
    inputs=("rate", "factor", "beta"),
    scalars=("weight", "keep", "share"),
    host=_host,
    cupy="""
        if (rate > peak) peak = rate;
        const double own = factor * peak;
        total = total + own;
        weight = total > 0.0 ? own / total : 0.0;
        keep = 1.0 - weight;
        share = 1.0 - beta * keep;
    """,
)
"""How much a step counts in the average."""


def _numpy(
    param: Any, grad: Any, d: Any, beta: float, lr: float, weight: float, keep: float, share: float
) -> None:
    step = lr * grad
    param += weight * d
    param -= share * step
    step *= beta
    d -= step
    d *= keep


def _numba(
    param: Any, grad: Any, d: Any, beta: Any, lr: Any, weight: Any, keep: Any, share: Any
) -> tuple[Any, Any]:
    step = lr * grad
    return param + weight * d - share * step, keep * (d - beta * step)


RULE = Rule(
    name="schedule_free",
    state=("d",),
    signed=("d",),
    scalars=("beta", "lr"),
    memory=MEMORY,
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real step = lr * grad;
        param = param + weight * d - share * step;
        d = keep * (d - beta * step);
    """,
)
