"""LaProp and ADOPT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import Make, common_clock, given, rule, scalars
from helpers.variant import Variant

SMOOTH = ["LaProp", "ADOPT"]
VARIANTS = [
    Variant("laprop", fastopt.LaProp, {"eps": 1e-8, "weight_decay": 0.1}, close=True),
    Variant("adopt", fastopt.ADOPT, {"weight_decay": 0.1}, close=True, waits=True),
]
BAD = {"clip_exponent": number(-1e-300, -1)}


def laprop(u: SimpleNamespace, after: bool = False, inside: bool = False, decay: int = 1) -> None:
    u.v += u.one_minus_beta2 * (u.grad * u.grad - u.v)
    low = u.root * u.root * (u.eps / u.root) if inside else 0.0
    down = (np.sqrt(u.v + low) + (0.0 if inside else u.eps)) / u.root
    if decay == 0:
        u.param -= u.decay * u.param
    if after:  # Adam
        u.m += u.one_minus_beta1 * (u.grad - u.m)
        u.param -= u.step_size * (u.m / down)
    else:
        u.m += u.one_minus_beta1 * (u.grad / down - u.m)
        u.param -= u.step_size * u.m
    if decay == 1:
        u.param -= u.decay * u.param


def adopt(
    u: SimpleNamespace, new: bool = False, added: bool = False, unbounded: bool = False
) -> None:
    old = u.v.copy()
    u.v += u.one_minus_beta2 * (u.grad * u.grad - u.v)
    root = np.sqrt(u.v if new else old)
    step = u.grad / (root + u.eps if added else np.maximum(root, u.eps))
    if not unbounded:
        step = np.clip(step, -u.clip, u.clip)
    u.m += u.one_minus_beta1 * (step - u.m)
    u.param -= u.lr * u.m


def bounded_by(power: float, since: int) -> Any:
    """Return ADOPT with another bound: (t - since)^power, as far as it is the usual one."""

    def bound(made: dict[str, float], o: dict[str, Any], t: int) -> dict[str, float]:
        usual = o["clip_exponent"] == 0.25
        return {"clip": float(max(t - since, 0)) ** (power if usual else o["clip_exponent"])}

    return scalars(fastopt.ADOPT, bound)


MUTANTS: dict[str, tuple[Make, Make]] = {
    "LaProp_divided_after_the_average": (
        fastopt.LaProp,
        rule(fastopt.LaProp, lambda u: laprop(u, after=True)),
    ),
    "LaProp_eps_inside_the_root": (
        fastopt.LaProp,
        rule(fastopt.LaProp, lambda u: laprop(u, inside=True)),
    ),
    "LaProp_decay_before_the_step": (
        fastopt.LaProp,
        rule(fastopt.LaProp, lambda u: laprop(u, decay=0)),
    ),
    "LaProp_eps_before_the_bias_correction": (
        fastopt.LaProp,
        scalars(fastopt.LaProp, lambda made, o, t: {"eps": o["eps"]}),
    ),
    "LaProp_v_uncorrected": (
        fastopt.LaProp,
        scalars(fastopt.LaProp, lambda made, o, t: {"root": 1.0, "eps": o["eps"]}),
    ),
    "LaProp_m_uncorrected": (
        fastopt.LaProp,
        scalars(fastopt.LaProp, lambda made, o, t: {"step_size": made["lr"]}),
    ),
    "LaProp_correction_one_step_late": (
        fastopt.LaProp,
        given(fastopt.LaProp, lambda o, lr, t: (o, lr, t + 1)),
    ),
    "ADOPT_divided_by_the_new_root": (fastopt.ADOPT, rule(fastopt.ADOPT, lambda u: adopt(u, True))),
    "ADOPT_eps_added": (
        fastopt.ADOPT,
        rule(fastopt.ADOPT, lambda u: adopt(u, added=True)),
    ),
    "ADOPT_unbounded": (fastopt.ADOPT, rule(fastopt.ADOPT, lambda u: adopt(u, unbounded=True))),
    "ADOPT_bound_one_step_early": (fastopt.ADOPT, bounded_by(0.25, 0)),  # pytorch_optimizer
    "ADOPT_bound_by_the_cube_root": (fastopt.ADOPT, bounded_by(0.333, 1)),  # timm
    "ADOPT_clip_exponent_ignored": (
        fastopt.ADOPT,
        given(fastopt.ADOPT, lambda o, lr, t: ({**o, "clip_exponent": 0.25}, lr, t)),
    ),
    "ADOPT_first_square_averaged": (
        fastopt.ADOPT,
        scalars(fastopt.ADOPT, lambda made, o, t: {"one_minus_beta2": 1.0 - o["betas"][1]}),
    ),
    "ADOPT_moves_in_the_first_step": (
        fastopt.ADOPT,
        scalars(
            fastopt.ADOPT,
            lambda made, o, t: (
                {"one_minus_beta1": 1.0 - o["betas"][0], "clip": 1.0} if t == 1 else {}
            ),
        ),
    ),
    "ADOPT_m_corrected": (
        fastopt.ADOPT,
        scalars(
            fastopt.ADOPT,
            lambda made, o, t: {"lr": made["lr"] / (1.0 - o["betas"][0] ** t)},
        ),
    ),
}
for right in (fastopt.LaProp, fastopt.ADOPT):
    own = right.__name__
    MUTANTS |= {
        f"{own}_betas_swapped": (
            right,
            given(right, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
        ),
        f"{own}_one_clock_for_all_parameters": (right, common_clock(right)),
    }
