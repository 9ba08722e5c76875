"""MoMo: averaged gradients, with a step to where a model of the averaged loss meets its bound.

m <- m + one_minus_beta * (grad - m)
f <- f + (1 - keep) * (value - f) and a likewise of sum(grad * param), over all arrays
growth = one + decay
share = what the model says of all arrays together, from 0 to 1 (``_host``)
param <- param - decay / growth * param - share * lr * m

one is 1; one_minus_beta is 1 in the parameter's first step, and keep is 0 in the optimizer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt_kernels.rule import Memory, Rule, Sums

SUMS = ("slope", "inner", "shrunk", "span", "shrunk_span")
INPUTS = ("beta", "corrects", "lower_bound", "adapts")
NAMES = ("value", "average", "gamma", "weight", "bound")


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return how far to go towards where the model of the loss comes down to its bound.

    ``slope`` is sum(grad * param), ``inner`` sum(m * param), ``span`` sum(lr * m * direction), and
    those that are ``shrunk`` have each term divided by growth. Where nothing ``corrects``, the
    averages begin with the first number, and their weight is 1.
    """
    keep = scalars["beta"]
    if scalars["corrects"] == 0.0 and memory["weight"] == 0.0:
        keep = 0.0
    rest = 1.0 - keep
    average = keep * memory["average"] + rest * memory["value"]
    gamma = keep * memory["gamma"] + rest * sums["slope"]
    weight = keep * memory["weight"] + rest
    bound = memory["bound"]
    above = average - gamma + sums["shrunk"]
    if scalars["adapts"] != 0.0 and above < weight * bound:
        bound = above / (weight + weight)
        if bound < scalars["lower_bound"]:
            bound = scalars["lower_bound"]
    above = above - weight * bound
    share = 0.0
    if sums["shrunk_span"] > 0.0:
        share = above / sums["shrunk_span"]
    if above < 0.0:
        share = 0.0
    if share > 1.0:
        share = 1.0
    if above != above:
        share = above
    if scalars["adapts"] != 0.0:
        bound = (average + sums["inner"] - gamma - 0.5 * (share * sums["span"])) / weight
        if bound < scalars["lower_bound"]:
            bound = scalars["lower_bound"]
    return (
        {
            "value": memory["value"],
            "average": average,
            "gamma": gamma,
            "weight": weight,
            "bound": bound,
        },
        {"share": share},
    )


MODEL = """
    double keep = beta;
    if (corrects == 0.0 && weight == 0.0) keep = 0.0;
    const double rest = 1.0 - keep;
    average = keep * average + rest * value;
    gamma = keep * gamma + rest * slope;
    weight = keep * weight + rest;
    double above = average - gamma + shrunk;
    if (adapts != 0.0 && above < weight * bound) {
        bound = above / (weight + weight);
        if (bound < lower_bound) bound = lower_bound;
    }
    above = above - weight * bound;
    share = 0.0;
    if (shrunk_span > 0.0) share = above / shrunk_span;
    if (above < 0.0) share = 0.0;
    if (share > 1.0) share = 1.0;
    if (above != above) share = above;
    if (adapts != 0.0) {
        bound = (average + inner - gamma - 0.5 * (share * span)) / weight;
        if (bound < lower_bound) bound = lower_bound;
    }
"""


MEMORY = Memory(
    over="optimizer",
    names=NAMES,
    inputs=INPUTS,
    scalars=("share",),
    takes_value=True,
    host=_host,
    cupy=MODEL,
)
"""That of all rules that step by the model."""


def _sums_numpy(
    param: Any, grad: Any, m: Any, one_minus_beta: float, one: float, decay: float, lr: float
) -> tuple[Any, Any, Any, Any, Any]:
    m = m + one_minus_beta * (grad - m)
    growth = np.add(one, decay, dtype=m.dtype)
    inner = m * param
    span = lr * (m * m)
    return grad * param, inner, inner / growth, span, span / growth


def _sums_numba(
    param: Any, grad: Any, m: Any, one_minus_beta: Any, one: Any, decay: Any, lr: Any
) -> tuple[Any, Any, Any, Any, Any]:
    m = m + one_minus_beta * (grad - m)
    growth = one + decay
    inner = m * param
    span = lr * (m * m)
    return grad * param, inner, inner / growth, span, span / growth


def _numpy(
    param: Any,
    grad: Any,
    m: Any,
    one_minus_beta: float,
    one: float,
    decay: float,
    lr: float,
    share: float,
) -> None:
    m += one_minus_beta * (grad - m)
    step = lr * m
    step *= share
    # Scalars, in the precision of the arrays as on the other backends.
    shrink = np.divide(decay, np.add(one, decay, dtype=param.dtype), dtype=param.dtype)
    param -= shrink * param
    param -= step


def _numba(
    param: Any,
    grad: Any,
    m: Any,
    one_minus_beta: Any,
    one: Any,
    decay: Any,
    lr: Any,
    share: Any,
) -> tuple[Any, Any]:
    m = m + one_minus_beta * (grad - m)
    return param - decay / (one + decay) * param - share * (lr * m), m


RULE = Rule(
    name="momo",
    state=("m",),
    signed=("m",),
    scalars=("one_minus_beta", "one", "decay", "lr"),
    sums=Sums(
        names=SUMS,
        numpy=_sums_numpy,
        numba=_sums_numba,
        cupy="""
            const real coming = m + one_minus_beta * (grad - m);
            const real growth = one + decay;
            slope = grad * param;
            inner = coming * param;
            shrunk = inner / growth;
            span = lr * (coming * coming);
            shrunk_span = span / growth;
        """,
    ),
    memory=MEMORY,
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta * (grad - m);
        param = param - decay / (one + decay) * param - share * (lr * m);
    """,
)
