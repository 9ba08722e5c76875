"""DoWG: DoG whose squared gradients weigh as much as the squared way at their time.

p0 <- p0 + first * (param - p0), where first is 1 in the parameter's first step and 0 later
area <- max(area, |param - p0|^2), which begins with d0^2
total <- total + area * |grad|^2
rate <- area / (sqrt(total) + eps), 0 if the denominator is 0
param <- param - lr * rate * grad

All norms are over all arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from fastopt_kernels.rule import Memory, Rule, Sums


def _sums(param: Any, grad: Any, p0: Any, first: Any, lr: Any) -> tuple[Any, Any]:
    p0 = p0 + first * (param - p0)
    return param - p0, grad


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    area = memory["area"]
    if sums["moved"] > area:
        area = sums["moved"]
    total = memory["total"] + area * sums["grad_norm"]
    root = sqrt(total) + scalars["eps"]
    return {"area": area, "total": total}, {"rate": area / root if root else 0.0}


def _numpy(param: Any, grad: Any, p0: Any, first: float, lr: float, rate: float) -> None:
    p0 += first * (param - p0)
    step = rate * grad
    step *= lr
    param -= step


def _numba(param: Any, grad: Any, p0: Any, first: Any, lr: Any, rate: Any) -> tuple[Any, Any]:
    return param - lr * (rate * grad), p0 + first * (param - p0)


RULE = Rule(
    name="dowg",
    state=("p0",),
    signed=("p0",),
    places=("p0",),
    scalars=("first", "lr"),
    sums=Sums(
        names=("moved", "grad_norm"),
        squared=("moved", "grad_norm"),
        numpy=_sums,
        numba=_sums,
        cupy="""
            moved = param - (p0 + first * (param - p0));
            grad_norm = grad;
        """,
    ),
    memory=Memory(
        over="optimizer",
        names=("area", "total"),
        inputs=("eps",),
        scalars=("rate",),
        host=_host,
        cupy="""
            if (moved > area) area = moved;
            total = total + area * grad_norm;
            const double root = sqrt(total) + eps;
            rate = root != 0.0 ? area / root : 0.0;
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        p0 = p0 + first * (param - p0);
        param = param - lr * (rate * grad);
    """,
)
