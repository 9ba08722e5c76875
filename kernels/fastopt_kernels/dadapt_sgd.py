"""SGD in units of an estimated distance d, by D-Adaptation.

p0 <- p0 + first * (param - p0), where first is 1 in the parameter's first step and 0 later
g0 <- |grad|, over all arrays, in the first step of all whose gradients are not all 0
along <- sum(d / g0 * lr * grad * s), of s before the step
s <- s + d / g0 * lr * grad
numerator <- numerator + along
estimate <- 2 * numerator / |s|
next d <- max(d, min(estimate, growth_rate * d))
param <- param + (1 - momentum) * (p0 - s - param)

All sums are over all arrays. unit is d / g0, and 0 before the first step: s is 0 then, and its
coming length is that of ``pull`` in units of d / g0. Where |s| is 0, neither p nor d changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from fastopt_kernels.rule import Memory, Rule, Sums


def _sums(
    param: Any, grad: Any, s: Any, p0: Any, first: Any, one_minus_momentum: Any, lr: Any, unit: Any
) -> tuple[Any, Any, Any, Any]:
    pull = lr * grad
    return grad, pull, unit * pull * s, s + unit * pull


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    d, g0, unit, numerator = memory["d"], memory["g0"], memory["unit"], memory["numerator"]
    length = sqrt(sums["length"])
    if g0 == 0.0:
        g0 = sqrt(sums["grad_norm"])
        unit = d / g0 if g0 != 0.0 else 0.0
        length = unit * sqrt(sums["pull"])
    now, moves = unit, 0.0
    if length != 0.0:
        numerator = numerator + sums["along"]
        estimate = (numerator + numerator) / length
        most = scalars["growth_rate"] * d
        if estimate > most:
            estimate = most
        if estimate > d:
            d = estimate
        unit = d / g0
        moves = 1.0
    return (
        {"d": d, "g0": g0, "unit": unit, "numerator": numerator},
        {"now": now, "moves": moves},
    )


def _numpy(
    param: Any,
    grad: Any,
    s: Any,
    p0: Any,
    first: float,
    one_minus_momentum: float,
    lr: float,
    unit: float,
    now: float,
    moves: float,
) -> None:
    p0 += first * (param - p0)
    work = lr * grad
    work *= now
    s += work
    work = p0 - s
    work -= param
    work *= one_minus_momentum
    work *= moves
    param += work


def _numba(
    param: Any,
    grad: Any,
    s: Any,
    p0: Any,
    first: Any,
    one_minus_momentum: Any,
    lr: Any,
    unit: Any,
    now: Any,
    moves: Any,
) -> tuple[Any, Any, Any]:
    p0 = p0 + first * (param - p0)
    s = s + now * (lr * grad)
    return param + moves * (one_minus_momentum * (p0 - s - param)), s, p0


RULE = Rule(
    name="dadapt_sgd",
    state=("s", "p0"),
    signed=("s", "p0"),
    places=("p0",),
    from_start=True,
    scalars=("first", "one_minus_momentum", "lr"),
    sums=Sums(
        names=("grad_norm", "pull", "along", "length"),
        squared=("grad_norm", "pull", "length"),
        numpy=_sums,
        numba=_sums,
        cupy="""
            grad_norm = grad;
            pull = lr * grad;
            along = unit * pull * s;
            length = s + unit * pull;
        """,
    ),
    memory=Memory(
        over="optimizer",
        names=("d", "g0", "unit", "numerator"),
        inputs=("growth_rate",),
        handed=("unit",),
        scalars=("now", "moves"),
        host=_host,
        cupy="""
            double size_of_s = sqrt(length);
            if (g0 == 0.0) {
                g0 = sqrt(grad_norm);
                unit = g0 != 0.0 ? d / g0 : 0.0;
                size_of_s = unit * sqrt(pull);
            }
            now = unit;
            moves = 0.0;
            if (size_of_s != 0.0) {
                numerator = numerator + along;
                double estimate = (numerator + numerator) / size_of_s;
                const double most = growth_rate * d;
                if (estimate > most) estimate = most;
                if (estimate > d) d = estimate;
                unit = d / g0;
                moves = 1.0;
            }
        """,
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        p0 = p0 + first * (param - p0);
        s = s + now * (lr * grad);
        param = param + moves * (one_minus_momentum * (p0 - s - param));
    """,
)
