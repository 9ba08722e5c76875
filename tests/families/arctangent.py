"""AdamAtan2."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import rule, scalars
from helpers.variant import Variant

VARIANTS = [Variant("adam_atan2", fastopt.AdamAtan2, {"lr": 0.01, "weight_decay": 0.1}, close=True)]
SMOOTH = ["AdamAtan2"]
BAD = {name: number(0.0, -1, schedule=True) for name in ("a", "b")}


def adam_atan2(u: SimpleNamespace, wrong: str) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (u.square - u.v)
    x = u.width * (u.v if wrong == "no root" else np.sqrt(u.v))
    angle = np.arctan2(x, u.m) if wrong == "arguments swapped" else np.arctan2(u.m, x)
    if wrong == "tanh":
        angle = np.tanh(u.m / (x + np.finfo(float).tiny))
    u.param -= u.step_size * angle


MUTANTS = {
    f"AdamAtan2_{name.replace(' ', '_')}": (
        fastopt.AdamAtan2,
        rule(fastopt.AdamAtan2, lambda u, name=name: adam_atan2(u, name)),
    )
    for name in ("no root", "arguments swapped", "tanh")
} | {
    "AdamAtan2_uncorrected": (
        fastopt.AdamAtan2,
        scalars(fastopt.AdamAtan2, lambda s, o, t: {"width": o["b"]}),
    ),
    "AdamAtan2_a_ignored": (
        fastopt.AdamAtan2,
        scalars(fastopt.AdamAtan2, lambda s, o, t: {"step_size": s["lr"] * 1.27}),
    ),
    "AdamAtan2_b_ignored": (
        fastopt.AdamAtan2,
        scalars(fastopt.AdamAtan2, lambda s, o, t: {"width": s["width"] / o["b"]}),
    ),
}
