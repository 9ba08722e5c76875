"""DoG: steps along the gradient, as long as the way so far over the root of all squared gradients.

p0 <- p0 + first * (param - p0), where first is 1 in the parameter's first step and 0 later
distance <- relative * (1 + |p0|) while it is 0, as in the first step without a d0
distance <- max(distance, |param - p0|)
total <- total + |grad|^2
rate <- distance / sqrt(total + eps), 0 if total + eps is 0
param <- param - lr * rate * grad

All norms are over all arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from fastopt_kernels.rule import Memory, Rule, Sums


def _sums(param: Any, grad: Any, p0: Any, first: Any, lr: Any) -> tuple[Any, Any, Any]:
    p0 = p0 + first * (param - p0)
    return p0, param - p0, grad


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    distance, moved = memory["distance"], sqrt(sums["moved"])
    if distance == 0.0:
        distance = scalars["relative"] * (1.0 + sqrt(sums["start"]))
    if moved > distance:
        distance = moved
    total = memory["total"] + sums["grad_norm"]
    root = sqrt(total + scalars["eps"])
    return {"distance": distance, "total": total}, {"rate": distance / root if root else 0.0}


def _numpy(param: Any, grad: Any, p0: Any, first: float, lr: float, rate: float) -> None:
    p0 += first * (param - p0)
    step = rate * grad
    step *= lr
    param -= step


def _numba(param: Any, grad: Any, p0: Any, first: Any, lr: Any, rate: Any) -> tuple[Any, Any]:
    return param - lr * (rate * grad), p0 + first * (param - p0)


RULE = Rule(
    name="dog",
    state=("p0",),
    signed=("p0",),
    places=("p0",),
    scalars=("first", "lr"),
    sums=Sums(
        names=("start", "moved", "grad_norm"),
        squared=("start", "moved", "grad_norm"),
        numpy=_sums,
        numba=_sums,
        cupy="""
            start = p0 + first * (param - p0);
            moved = param - start;
            grad_norm = grad;
        """,
    ),
    memory=Memory(
        over="optimizer",
        names=("distance", "total"),
        inputs=("relative", "eps"),
        scalars=("rate",),
        host=_host,
        cupy="""
            if (distance == 0.0) distance = relative * (1.0 + sqrt(start));
            if (sqrt(moved) > distance) distance = sqrt(moved);
            total = total + grad_norm;
            const double root = sqrt(total + eps);
            rate = root != 0.0 ? distance / root : 0.0;
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        p0 = p0 + first * (param - p0);
        param = param - lr * (rate * grad);
    """,
)
