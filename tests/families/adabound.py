"""AdaBound, and AMSBound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import fastopt
from helpers.bad_values import FLAG, NO_NUMBERS, NOT_FINITE, number
from helpers.mutants import Make, common_clock, given, rule, scalars
from helpers.variant import Variant

SMOOTH = ["AdaBound"]
VARIANTS = [
    Variant("adabound", fastopt.AdaBound, {"base_lr": 1e-3, "gamma": 0.05}, close=True),
    Variant(
        "adabound_amsbound",
        fastopt.AdaBound,
        {"base_lr": 1e-3, "amsbound": True, "weight_decay": 0.1},
        close=True,
    ),
]
BAD = {
    "final_lr": number(0.0, -1e-300, -1),
    "gamma": number(0.0, -1e-300, -1),
    "amsbound": FLAG,
    "base_lr": [
        *((value, TypeError) for value in NO_NUMBERS if value is not None),
        *((value, ValueError) for value in (*NOT_FINITE, 0.0, -1e-300, -1)),
        (lambda t: 0.1, TypeError),
    ],
}

ALIKE = {"AdaBound": lambda size: {"final_lr": 2.0**-3 / size}}  # a rate of SGD


def bound(
    u: SimpleNamespace, under: float = 0.0, sides: str = "both", forgets: bool = False
) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (u.grad * u.grad - u.v)
    top = u.v
    if hasattr(u, "vmax"):
        u.vmax[...] = u.v if forgets else np.maximum(u.vmax, u.v)
        top = u.vmax
    rate = u.step_size / (np.sqrt(top + under) + u.eps)
    if sides in ("both", "lower"):
        rate = np.maximum(rate, u.lower)
    if sides in ("both", "upper"):
        rate = np.minimum(rate, u.upper)
    u.param -= rate * u.m


def bounds(change: Any) -> Any:
    """Return a class with other bounds, made of final, gamma and t."""

    def other(made: dict[str, float], o: dict[str, Any], t: int) -> dict[str, float]:
        lower, upper = change(made["lr"] * o["final_lr"] / o["base_lr"], o["gamma"], t)
        return {"lower": lower, "upper": upper}

    return scalars(fastopt.AdaBound, other)


right = fastopt.AdaBound
MUTANTS: dict[str, tuple[Make, Make]] = {
    "AdaBound_1e-15_under_the_root": (right, rule(right, lambda u: bound(u, under=1e-15))),  # po
    "AdaBound_without_bounds": (right, rule(right, lambda u: bound(u, sides="none"))),
    "AdaBound_without_an_upper_bound": (right, rule(right, lambda u: bound(u, sides="lower"))),
    "AdaBound_without_a_lower_bound": (right, rule(right, lambda u: bound(u, sides="upper"))),
    "AdaBound_forgets_the_maximum": (right, rule(right, lambda u: bound(u, forgets=True))),
    "AdaBound_bounds_one_step_late": (
        right,
        bounds(lambda f, g, t: (f * (1 - 1 / (g * t + g + 1)), f * (1 + 1 / (g * t + g)))),
    ),
    "AdaBound_lower_bound_without_its_one": (
        right,
        bounds(lambda f, g, t: (max(f * (1 - 1 / (g * t)), 0.0), f * (1 + 1 / (g * t)))),
    ),
    "AdaBound_bounds_do_not_follow_lr": (
        right,
        scalars(
            right,
            lambda made, o, t: {
                "lower": made["lower"] * o["base_lr"] / made["lr"],
                "upper": made["upper"] * o["base_lr"] / made["lr"],
            },
        ),
    ),
    "AdaBound_base_lr_ignored": (
        right,
        given(right, lambda o, lr, t: ({**o, "base_lr": lr}, lr, t)),
    ),
    "AdaBound_eps_after_the_bias_correction": (
        right,
        scalars(
            right,
            lambda made, o, t: {"eps": made["eps"] * (1.0 - o["betas"][1] ** t) ** 0.5},
        ),
    ),
    "AdaBound_correction_one_step_late": (right, given(right, lambda o, lr, t: (o, lr, t + 1))),
    "AdaBound_betas_swapped": (
        right,
        given(right, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "AdaBound_one_clock_for_all_parameters": (right, common_clock(right)),
}
