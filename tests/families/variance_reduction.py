"""Mars."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import given, remembering, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("mars", fastopt.Mars, {"lr": 0.01, "weight_decay": 0.1}, close=True, one_unit=False)
]
SMOOTH = ["Mars"]
BAD = {
    "gamma": number(-1e-300, -1.0),
    "max_norm": [bad for bad in number(0.0, -1.0) if bad[0] is not math.inf],
}

right = fastopt.Mars


def mars(u: SimpleNamespace, kept: str = "grad", cut_first: bool = False) -> None:
    """Mars, with what it keeps for the next step, and what is cut to its length."""
    change = u.look * (u.grad - u.last)
    c = u.shrink * u.grad + change if cut_first else u.shrink * (u.grad + change)
    u.m += u.one_minus_beta1 * (c - u.m)
    u.v += u.one_minus_beta2 * (c * c - u.v)
    u.last[...] = {"grad": u.grad, "c": c}[kept]
    u.param -= u.step_size * u.m / (np.sqrt(u.v) + u.eps)


MUTANTS = {
    "Mars_never_cut": (right, remembering(right, lambda host, *rest: ({}, {"shrink": 1.0}))),
    "Mars_always_of_one_length": (
        right,
        remembering(
            right,
            lambda host, s, m, sums: (
                {},
                {"shrink": s["max_norm"] / max(sums["norm"], 1e-300) ** 0.5},
            ),
        ),
    ),
    "Mars_keeps_the_corrected_gradient": (right, rule(right, lambda u: mars(u, kept="c"))),
    "Mars_correction_is_not_cut": (right, rule(right, lambda u: mars(u, cut_first=True))),
    "Mars_change_ignored": (right, scalars(right, lambda made, o, t: {"look": 0.0})),
    "Mars_changes_in_the_first_step": (  # the authors
        right,
        scalars(
            right,
            lambda made, o, t: {"look": o["gamma"] * o["betas"][0] / (1.0 - o["betas"][0])},
        ),
    ),
    "Mars_gamma_without_betas": (
        right,
        scalars(right, lambda made, o, t: {"look": o["gamma"] if t > 1 else 0.0}),
    ),
    "Mars_betas_swapped": (
        right,
        given(right, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "Mars_correction_one_step_late": (right, given(right, lambda o, lr, t: (o, lr, t + 1))),
    "Mars_eps_before_the_bias_correction": (
        right,
        scalars(right, lambda made, o, t: {"eps": o["eps"]}),
    ),
}
