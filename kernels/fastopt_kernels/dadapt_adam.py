"""Adam in units of an estimated distance d, by D-Adaptation.

g <- d * lr * grad
along <- sum(g * s / (sqrt(v) + eps)), of s and v before the step, over all arrays
m <- m + (1 - beta1) * (g - m)
v <- v + (1 - beta2) * (grad^2 - v)
s <- s + (1 - sqrt(beta2)) * (g - s)
numerator <- numerator + (1 - sqrt(beta2)) * (along - numerator)
estimate <- numerator / ((1 - sqrt(beta2)) * sum(|s|))
next d <- max(d, min(estimate, growth_rate * d))
param <- param - d * decay * param
param <- param - m / (sqrt(v) + eps)

lr holds the bias corrections. Where |s| sums to 0 no gradient has been there yet, and neither p nor
d changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Memory, Rule, Sums


def _sums_numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    s: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    one_minus_root: float,
    eps: float,
    decay: float,
    lr: float,
    d: float,
) -> tuple[Any, Any]:
    g = d * (lr * grad)
    return g * (s / (np.sqrt(v) + eps)), np.abs(s + one_minus_root * (g - s))


def _sums_numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    s: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    one_minus_root: Any,
    eps: Any,
    decay: Any,
    lr: Any,
    d: Any,
) -> tuple[Any, Any]:
    g = d * (lr * grad)
    return g * (s / (sqrt(v) + eps)), abs(s + one_minus_root * (g - s))


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    d, numerator, moves = memory["d"], memory["numerator"], 0.0
    if sums["length"] != 0.0:
        share = scalars["share"]
        numerator = numerator + share * (sums["along"] - numerator)
        estimate = numerator / (share * sums["length"])
        most = scalars["growth_rate"] * d
        if estimate > most:
            estimate = most
        if estimate > d:
            d = estimate
        moves = 1.0
    return {"d": d, "numerator": numerator}, {"moves": moves}


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    s: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    one_minus_root: float,
    eps: float,
    decay: float,
    lr: float,
    d: float,
    moves: float,
) -> None:
    square -= v
    square *= one_minus_beta2
    v += square
    g = lr * grad
    g *= d
    work = np.subtract(g, m, out=square)
    work *= one_minus_beta1
    m += work
    g -= s
    g *= one_minus_root
    s += g
    np.sqrt(v, out=work)
    work += eps
    np.divide(m, work, out=work)
    np.multiply(decay, param, out=g)
    g *= d
    work += g
    work *= moves
    param -= work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    s: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    one_minus_root: Any,
    eps: Any,
    decay: Any,
    lr: Any,
    d: Any,
    moves: Any,
) -> tuple[Any, Any, Any, Any]:
    g = d * (lr * grad)
    m = m + one_minus_beta1 * (g - m)
    v = v + one_minus_beta2 * (square - v)
    s = s + one_minus_root * (g - s)
    step = m / (sqrt(v) + eps) + d * (decay * param)
    return param - moves * step, m, v, s


RULE = Rule(
    name="dadapt_adam",
    heavy=True,
    state=("m", "v", "s"),
    signed=("m", "s"),
    takes_square=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "one_minus_root", "eps", "decay", "lr"),
    sums=Sums(
        names=("along", "length"),
        numpy=_sums_numpy,
        numba=_sums_numba,
        cupy="""
            const real g = d * (lr * grad);
            along = g * (s / (sqrt(v) + eps));
            length = fabs(s + one_minus_root * (g - s));
        """,
    ),
    memory=Memory(
        over="optimizer",
        names=("d", "numerator"),
        inputs=("share", "growth_rate"),
        handed=("d",),
        scalars=("moves",),
        host=_host,
        cupy="""
            moves = 0.0;
            if (length != 0.0) {
                numerator = numerator + share * (along - numerator);
                double estimate = numerator / (share * length);
                const double most = growth_rate * d;
                if (estimate > most) estimate = most;
                if (estimate > d) d = estimate;
                moves = 1.0;
            }
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real g = d * (lr * grad);
        m = m + one_minus_beta1 * (g - m);
        v = v + one_minus_beta2 * (square - v);
        s = s + one_minus_root * (g - s);
        const real step = m / (sqrt(v) + eps) + d * (decay * param);
        param = param - moves * step;
    """,
)
