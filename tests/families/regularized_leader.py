"""FTRL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import arguments, given, rule, scalars
from helpers.variant import Variant

L1, L2 = "l1_regularization_strength", "l2_regularization_strength"
SHRINK = "l2_shrinkage_regularization_strength"
BEGIN, POWER = "initial_accumulator_value", "learning_rate_power"
STRENGTHS = {L1: 0.01, L2: 0.1, SHRINK: 0.1}

# The first step forgets most of the parameter, with lr = 0 too: led_by_lr is False.
VARIANTS = [
    Variant(
        "ftrl",
        fastopt.FTRL,
        {"lr": 0.05, "beta": 0.5, **STRENGTHS},
        rate_inside=True,
        led_by_lr=False,
        close=True,
    ),
    Variant(
        "ftrl_one_rate",
        fastopt.FTRL,
        {"lr": 0.05, POWER: 0.0, "weight_decay": 0.1},
        rate_inside=True,
        led_by_lr=False,
        close=True,
    ),
]
BAD = {name: number(-1e-300, -1) for name in STRENGTHS} | {
    POWER: number(-1, -0.25, 0.5, 1, -1e-300),
}
BAD_INSTEAD = {("FTRL", "beta"): number(-1e-300, -1)}


def ftrl(u: SimpleNamespace, wrong: str) -> None:
    if u.rule != "ftrl":
        u.n += u.square
        roots = np.ones_like(u.n), np.ones_like(u.n) * 0.0
    grad = u.grad + u.shrinkage * u.param
    if u.rule == "ftrl":
        before = np.sqrt(u.n)
        u.n += np.square(grad) if wrong == "shrinkage squared" else u.square
        roots = np.sqrt(u.n), before
        u.z -= (roots[0] if wrong == "whole root" else roots[0] - before) * u.param
    u.z += u.lr * grad
    below = roots[1] if wrong == "old root" else roots[0]
    below = below * (u.rule == "ftrl") + u.beta + u.stretch
    cut = np.sign(u.z) if wrong == "not cut" else np.clip(u.z / u.threshold, -1, 1)
    cut = np.where(u.threshold > 0, cut * u.threshold, 0.0)
    u.param[...] = (cut - u.z) / below


def changed(name: str, value: Any) -> Any:
    return given(fastopt.FTRL, lambda o, lr, t: ({**o, name: value}, lr, t))


MUTANTS = (
    {
        f"FTRL_{name.replace(' ', '_')}": (
            fastopt.FTRL,
            rule(fastopt.FTRL, lambda u, name=name: ftrl(u, name)),
        )
        for name in ("shrinkage squared", "whole root", "old root", "not cut")
    }
    | {f"FTRL_{name}_ignored": (fastopt.FTRL, changed(name, 0.0)) for name in (*STRENGTHS, "beta")}
    | {
        f"FTRL_{name}_not_doubled": (
            fastopt.FTRL,
            scalars(fastopt.FTRL, lambda s, o, t, name=name: {name: s[name] / 2}),
        )
        for name in ("stretch", "shrinkage")
    }
    | {
        "FTRL_begins_at_0": (
            fastopt.FTRL,
            arguments(fastopt.FTRL, lambda o: {**o, BEGIN: 0.0}),
        ),
        "FTRL_always_a_root": (
            fastopt.FTRL,
            arguments(fastopt.FTRL, lambda o: {**o, POWER: -0.5}),
        ),
        "FTRL_threshold_without_lr": (
            fastopt.FTRL,
            scalars(fastopt.FTRL, lambda s, o, t: {"threshold": o[L1]}),
        ),
    }
)
# What the mistakes are made in.
RIGHT = [(fastopt.FTRL, rule(fastopt.FTRL, lambda u: ftrl(u, "")))]
