"""LARS: steps of momentum as long as a share of the array that they are for.

trust <- coefficient * |param| / (|grad| + weight_decay * |param| + eps), norms of the whole array;
         1 if |param| or the denominator is 0
step <- lr * trust * (grad + weight_decay * param)
v <- momentum * v + step
param <- param - (ahead * v + fresh * step)

ahead and fresh are 1 and 0, or momentum and 1 for Nesterov's form.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Memory, Rule, Sums


def _sums(
    param: Any,
    grad: Any,
    v: Any,
    weight_decay: Any,
    momentum: Any,
    ahead: Any,
    fresh: Any,
    lr: Any,
) -> tuple[Any, Any]:
    return param, grad


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    of_param, of_grad = sqrt(sums["param_norm"]), sqrt(sums["grad_norm"])
    denominator = of_grad + scalars["norm_decay"] * of_param + scalars["eps"]
    there = of_param != 0.0 and denominator != 0.0
    return {}, {"trust": scalars["coefficient"] * of_param / denominator if there else 1.0}


def _numpy(
    param: Any,
    grad: Any,
    v: Any,
    weight_decay: float,
    momentum: float,
    ahead: float,
    fresh: float,
    lr: float,
    trust: float,
) -> None:
    step = weight_decay * param
    step += grad
    step *= trust
    step *= lr
    v *= momentum
    v += step
    step *= fresh
    param -= np.add(ahead * v, step, out=step)


def _numba(
    param: Any,
    grad: Any,
    v: Any,
    weight_decay: Any,
    momentum: Any,
    ahead: Any,
    fresh: Any,
    lr: Any,
    trust: Any,
) -> tuple[Any, Any]:
    step = lr * (trust * (grad + weight_decay * param))
    v = momentum * v + step
    return param - (ahead * v + fresh * step), v


RULE = Rule(
    name="lars",
    state=("v",),
    signed=("v",),
    scalars=("weight_decay", "momentum", "ahead", "fresh", "lr"),
    sums=Sums(
        names=("param_norm", "grad_norm"),
        squared=("param_norm", "grad_norm"),
        numpy=_sums,
        numba=_sums,
        cupy="param_norm = param; grad_norm = grad;",
    ),
    memory=Memory(
        over="array",
        inputs=("coefficient", "norm_decay", "eps"),
        scalars=("trust",),
        host=_host,
        cupy="""
            const double of_param = sqrt(param_norm);
            const double denominator = sqrt(grad_norm) + norm_decay * of_param + eps;
            const bool there = of_param != 0.0 && denominator != 0.0;
            trust = there ? coefficient * of_param / denominator : 1.0;
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real step = lr * (trust * (grad + weight_decay * param));
        v = momentum * v + step;
        param = param - (ahead * v + fresh * step);
    """,
)
