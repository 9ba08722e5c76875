"""Prodigy: Adam in units of an estimated distance d from the first parameter to the solution.

g <- d * grad
m <- m + (1 - beta1) * (g - m)
v <- v + (1 - beta2) * (d^2 * grad^2 - v)
s <- beta3 * s + d * take * g
p0 <- p0 + first * (param - p0), where first is 1 in the parameter's first step and 0 later
numerator <- beta3 * numerator + sum(d * rate * g * (p0 - param)), over all arrays
estimate <- d_coef * numerator / sum(|s|)
d_max <- max(d_max, estimate), and d too while it is still d0
next_d <- min(d_max, growth_rate * d)
param <- param - d * decay * param
param <- param - d * lr * m / (sqrt(v) + next_d * eps)

rate is lr / d0, and take is that too, or 1 / d0 where warm-up is to be safe; lr holds the bias
corrections. Where |s| sums to 0 no gradient has been there yet, and neither p nor d changes.
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
    p0: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    beta3: float,
    take: float,
    rate: float,
    first: float,
    eps: float,
    decay: float,
    lr: float,
    d: float,
) -> tuple[Any, Any]:
    g = d * grad
    s = beta3 * s + d * (take * g)
    p0 = p0 + first * (param - p0)
    return d * (rate * g) * (p0 - param), np.abs(s)


def _sums_numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    s: Any,
    p0: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    beta3: Any,
    take: Any,
    rate: Any,
    first: Any,
    eps: Any,
    decay: Any,
    lr: Any,
    d: Any,
) -> tuple[Any, Any]:
    g = d * grad
    s = beta3 * s + d * (take * g)
    p0 = p0 + first * (param - p0)
    return d * (rate * g) * (p0 - param), abs(s)


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    d, d_max, numerator = memory["d"], memory["d_max"], memory["numerator"]
    next_d, moves = d, 0.0
    if sums["length"] != 0.0:
        numerator = scalars["beta3"] * numerator + sums["along"]
        estimate = scalars["d_coef"] * numerator / sums["length"]
        if d == scalars["d0"] and estimate > d:
            next_d = estimate
        if estimate > d_max:
            d_max = estimate
        next_d = next_d * scalars["growth_rate"]
        if next_d > d_max:
            next_d = d_max
        moves = 1.0
    return (
        {"d": next_d, "d_max": d_max, "numerator": numerator},
        {"next_d": next_d, "moves": moves},
    )


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    s: Any,
    p0: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    beta3: float,
    take: float,
    rate: float,
    first: float,
    eps: float,
    decay: float,
    lr: float,
    d: float,
    next_d: float,
    moves: float,
) -> None:
    # All in the memory of the square, as far as it goes: temporaries take time.
    square *= d
    square *= d
    square -= v
    square *= one_minus_beta2
    v += square
    g = d * grad
    work = np.subtract(g, m, out=square)
    work *= one_minus_beta1
    m += work
    g *= take
    g *= d
    s *= beta3
    s += g
    p0 += first * (param - p0)
    np.sqrt(v, out=work)
    # Two scalars, multiplied in the precision of the arrays as on the other backends.
    work += np.multiply(next_d, eps, dtype=work.dtype)
    np.divide(m, work, out=work)
    work *= lr
    work += decay * param
    work *= d
    work *= moves
    param -= work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    s: Any,
    p0: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    beta3: Any,
    take: Any,
    rate: Any,
    first: Any,
    eps: Any,
    decay: Any,
    lr: Any,
    d: Any,
    next_d: Any,
    moves: Any,
) -> tuple[Any, Any, Any, Any, Any]:
    g = d * grad
    m = m + one_minus_beta1 * (g - m)
    v = v + one_minus_beta2 * (d * (d * square) - v)
    s = beta3 * s + d * (take * g)
    p0 = p0 + first * (param - p0)
    step = lr * (m / (sqrt(v) + next_d * eps)) + decay * param
    return param - moves * (d * step), m, v, s, p0


RULE = Rule(
    name="prodigy",
    state=("m", "v", "s", "p0"),
    signed=("m", "s", "p0"),
    places=("p0",),
    takes_square=True,
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "beta3",
        "take",
        "rate",
        "first",
        "eps",
        "decay",
        "lr",
    ),
    sums=Sums(
        names=("along", "length"),
        numpy=_sums_numpy,
        numba=_sums_numba,
        cupy="""
            const real g = d * grad;
            const real origin = p0 + first * (param - p0);
            along = d * (rate * g) * (origin - param);
            length = fabs(beta3 * s + d * (take * g));
        """,
    ),
    memory=Memory(
        over="optimizer",
        names=("d", "d_max", "numerator"),
        inputs=("beta3", "d0", "d_coef", "growth_rate"),
        handed=("d",),
        scalars=("next_d", "moves"),
        host=_host,
        cupy="""
            next_d = d;
            moves = 0.0;
            if (length != 0.0) {
                numerator = beta3 * numerator + along;
                const double estimate = d_coef * numerator / length;
                if (d == d0 && estimate > d) next_d = estimate;
                if (estimate > d_max) d_max = estimate;
                next_d = next_d * growth_rate;
                if (next_d > d_max) next_d = d_max;
                moves = 1.0;
            }
            d = next_d;
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real g = d * grad;
        m = m + one_minus_beta1 * (g - m);
        v = v + one_minus_beta2 * (d * (d * square) - v);
        s = beta3 * s + d * (take * g);
        p0 = p0 + first * (param - p0);
        const real step = lr * (m / (sqrt(v) + next_d * eps)) + decay * param;
        param = param - moves * (d * step);
    """,
)
