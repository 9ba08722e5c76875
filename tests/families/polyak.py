"""MoMo and MoMoAdam."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

import fastopt
from helpers.mutants import given, remembering, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("momo", fastopt.MoMo, {"lr": 0.05, "weight_decay": 0.1}),
    Variant(
        "momo_adapting",
        fastopt.MoMo,
        {"lr": 0.05, "adapt_lower_bound": True, "weight_decay": 0.1},
        close=True,
    ),
    Variant("momo_adam", fastopt.MoMoAdam, {"weight_decay": 0.1}, close=True),
]
BAD: dict[str, Any] = {
    "lower_bound": [(math.nan, ValueError), (math.inf, ValueError), ("0", TypeError)],
    "adapt_lower_bound": [(1, TypeError), ("yes", TypeError), (None, TypeError)],
}


def momo(u: SimpleNamespace, old: bool = False, whole: bool = False, divided: bool = False) -> None:
    before = u.m.copy()
    u.m += u.one_minus_beta * (u.grad - u.m)
    seen = before if old else u.m
    growth = u.one + u.decay
    step = (1.0 if whole else u.share) * u.lr * seen
    u.param[...] = (u.param - step) / growth if divided else u.param / growth - step


def momo_adam(
    u: SimpleNamespace, old: bool = False, whole: bool = False, inside: bool = False
) -> None:
    before = u.v.copy()
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (u.square - u.v)
    seen = before if old else u.v
    root = np.sqrt(seen + u.eps) if inside else np.sqrt(seen) + u.eps
    step = (1.0 if whole else u.share) * u.lr * (u.m / root)
    u.param[...] = u.param / (u.one + u.decay) - step


def without(name: str) -> Any:
    """Return a model that one sum is left out of."""
    return lambda host, s, memory, sums: host(s, memory, {**sums, name: 0.0})


def mine(of: Any) -> dict[str, Any]:
    """Return what can be wrong with the model of either."""
    own = of.__name__
    return {
        f"{own}_without_gamma": (of, remembering(of, without("slope"))),
        f"{own}_without_the_product": (of, remembering(of, without("shrunk"))),
        f"{own}_bound_ignored": (
            of,
            remembering(of, lambda host, s, m, sums: host(s, {**m, "bound": 0.0}, sums)),
        ),
        f"{own}_loss_of_the_step_alone": (
            of,
            remembering(of, lambda host, s, m, sums: host(s, {**m, "average": m["value"]}, sums)),
        ),
        f"{own}_loss_of_the_step_before": (
            of,
            remembering(of, lambda host, s, m, sums: host(s, {**m, "value": m["average"]}, sums)),
        ),
        f"{own}_never_adapts": (of, scalars(of, lambda made, o, t: {"adapts": 0.0})),
        f"{own}_decay_outside_the_model": (
            of,
            remembering(of, lambda host, s, m, sums: host(s, m, {**sums, "shrunk": sums["inner"]})),
        ),
    }


MUTANTS = {
    **mine(fastopt.MoMo),
    **mine(fastopt.MoMoAdam),
    "MoMo_old_average": (fastopt.MoMo, rule(fastopt.MoMo, lambda u: momo(u, old=True))),
    "MoMo_whole_steps": (fastopt.MoMo, rule(fastopt.MoMo, lambda u: momo(u, whole=True))),
    "MoMo_step_decayed_too": (fastopt.MoMo, rule(fastopt.MoMo, lambda u: momo(u, divided=True))),
    "MoMo_average_from_zero": (
        fastopt.MoMo,
        given(fastopt.MoMo, lambda o, lr, t: (o, lr, t + 1)),
    ),
    "MoMoAdam_old_squares": (
        fastopt.MoMoAdam,
        rule(fastopt.MoMoAdam, lambda u: momo_adam(u, old=True)),
    ),
    "MoMoAdam_whole_steps": (
        fastopt.MoMoAdam,
        rule(fastopt.MoMoAdam, lambda u: momo_adam(u, whole=True)),
    ),
    "MoMoAdam_eps_inside": (
        fastopt.MoMoAdam,
        rule(fastopt.MoMoAdam, lambda u: momo_adam(u, inside=True)),
    ),
    "MoMoAdam_not_corrected": (
        fastopt.MoMoAdam,
        scalars(fastopt.MoMoAdam, lambda made, o, t: {"corrects": 0.0}),
    ),
}
