"""NovoGrad: momentum of gradients that are divided by one number for the whole array.

v <- v + weight * (|grad|^2 - v), norm of the whole array; weight is 1 in its first step
m <- keep * m + take * (grad / (sqrt(v) + eps) + weight_decay * param)
param <- param - lr * m
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from fastopt_kernels.rule import Memory, Rule, Sums


def _sums(
    param: Any, grad: Any, m: Any, keep: Any, take: Any, weight_decay: Any, lr: Any
) -> tuple[Any]:
    return (grad,)


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    v = memory["v"] + scalars["weight"] * (sums["grad_norm"] - memory["v"])
    return {"v": v}, {"denominator": sqrt(v) + scalars["eps"]}


def _numpy(
    param: Any,
    grad: Any,
    m: Any,
    keep: float,
    take: float,
    weight_decay: float,
    lr: float,
    denominator: float,
) -> None:
    u = grad / denominator
    u += weight_decay * param
    u *= take
    m *= keep
    m += u
    param -= lr * m


def _numba(
    param: Any,
    grad: Any,
    m: Any,
    keep: Any,
    take: Any,
    weight_decay: Any,
    lr: Any,
    denominator: Any,
) -> tuple[Any, Any]:
    m = keep * m + take * (grad / denominator + weight_decay * param)
    return param - lr * m, m


RULE = Rule(
    name="novograd",
    state=("m",),
    signed=("m",),
    scalars=("keep", "take", "weight_decay", "lr"),
    sums=Sums(
        names=("grad_norm",),
        squared=("grad_norm",),
        numpy=_sums,
        numba=_sums,
        cupy="grad_norm = grad;",
    ),
    memory=Memory(
        over="array",
        names=("v",),
        inputs=("weight", "eps"),
        scalars=("denominator",),
        host=_host,
        cupy="""
            v = v + weight * (grad_norm - v);
            denominator = sqrt(v) + eps;
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = keep * m + take * (grad / denominator + weight_decay * param);
        param = param - lr * m;
    """,
)
