"""ASGD: gradient descent with decaying steps, and the mean of the parameters on the way.

param <- param - decay * param
param <- param - eta * grad
mean <- keep * mean
mean <- mean + weight * (param - mean)

With keep = 0 and weight = 1 the mean begins at the parameter; keep is 1 later.
"""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    mean: Any,
    decay: float,
    eta: float,
    keep: float,
    weight: float,
) -> None:
    param -= decay * param
    param -= eta * grad
    mean *= keep
    work = param - mean
    work *= weight
    mean += work


def _numba(
    param: Any,
    grad: Any,
    mean: Any,
    decay: Any,
    eta: Any,
    keep: Any,
    weight: Any,
) -> tuple[Any, Any]:
    param = param - decay * param
    param = param - eta * grad
    mean = keep * mean
    return param, mean + weight * (param - mean)


RULE = Rule(
    name="asgd",
    state=("mean",),
    signed=("mean",),
    places=("mean",),
    scalars=("decay", "eta", "keep", "weight"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        param = param - decay * param;
        param = param - eta * grad;
        mean = keep * mean;
        mean = mean + weight * (param - mean);
    """,
)
