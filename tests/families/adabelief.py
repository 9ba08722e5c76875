"""AdaBelief and Yogi."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import Make, common_clock, given, rule, scalars
from helpers.variant import Variant

SMOOTH = ["AdaBelief"]
VARIANTS = [
    Variant("adabelief", fastopt.AdaBelief, {"eps": 1e-8, "eps_root": 1e-12}, close=True),
    Variant("yogi", fastopt.Yogi, {"weight_decay": 0.1}, close=True),
]
BAD = {"eps_root": number(-1e-300, -1, schedule=True)}
EITHER = (fastopt.AdaBelief, fastopt.Yogi)


def belief(u: SimpleNamespace, of: str = "new", once: bool = False, inside: bool = False) -> None:
    old = u.m.copy()
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    far = u.grad - {"new": u.m, "old": old, "zero": 0.0}[of]
    u.v += u.one_minus_beta2 * ((far + (0.0 if not inside else u.eps_root)) ** 2 - u.v)
    if not once:
        u.v += u.eps_root
    top = u.v + u.eps_root if once else u.v
    u.param -= u.step_size * (u.m / (np.sqrt(top) + u.eps))


def yogi(
    u: SimpleNamespace, turned: bool = False, averaged: bool = False, no_size: bool = False
) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    square = u.grad * u.grad
    way = square - u.v if averaged else np.sign(square - u.v) * (u.v if no_size else square)
    u.v += (-u.one_minus_beta2 if turned else u.one_minus_beta2) * way
    np.abs(u.v, out=u.v)
    u.param -= u.step_size * (u.m / (np.sqrt(u.v) + u.eps))


def begun(wrong: str) -> type[fastopt.Yogi]:
    """Return Yogi with only one of its two averages begun at the initial value."""
    return type(
        "Mutant",
        (fastopt.Yogi,),
        {"_fill": staticmethod(lambda o: {wrong: o["initial_accumulator_value"]})},
    )


MUTANTS: dict[str, tuple[Make, Make]] = {
    "AdaBelief_square_of_the_gradient": (  # Adam
        fastopt.AdaBelief,
        rule(fastopt.AdaBelief, lambda u: belief(u, of="zero")),
    ),
    "AdaBelief_far_from_the_old_average": (
        fastopt.AdaBelief,
        rule(fastopt.AdaBelief, lambda u: belief(u, of="old")),
    ),
    "AdaBelief_eps_root_not_kept_in_v": (
        fastopt.AdaBelief,
        rule(fastopt.AdaBelief, lambda u: belief(u, once=True)),
    ),
    "AdaBelief_eps_root_within_the_square": (
        fastopt.AdaBelief,
        rule(fastopt.AdaBelief, lambda u: belief(u, inside=True)),
    ),
    "AdaBelief_one_eps_for_both": (  # timm
        fastopt.AdaBelief,
        given(fastopt.AdaBelief, lambda o, lr, t: ({**o, "eps_root": o["eps"]}, lr, t)),
    ),
    "AdaBelief_no_eps_root": (
        fastopt.AdaBelief,
        given(fastopt.AdaBelief, lambda o, lr, t: ({**o, "eps_root": 0.0}, lr, t)),
    ),
    "Yogi_v_turned": (fastopt.Yogi, rule(fastopt.Yogi, lambda u: yogi(u, turned=True))),
    "Yogi_v_averaged": (fastopt.Yogi, rule(fastopt.Yogi, lambda u: yogi(u, averaged=True))),
    "Yogi_v_times_the_sign": (fastopt.Yogi, rule(fastopt.Yogi, lambda u: yogi(u, no_size=True))),
    "Yogi_m_begins_at_zero": (fastopt.Yogi, begun("v")),
    "Yogi_v_begins_at_zero": (fastopt.Yogi, begun("m")),
}
for right in EITHER:
    own = right.__name__
    MUTANTS |= {
        f"{own}_betas_swapped": (
            right,
            given(right, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
        ),
        f"{own}_correction_one_step_late": (right, given(right, lambda o, lr, t: (o, lr, t + 1))),
        f"{own}_corrected_by_beta_and_not_its_power": (
            right,
            given(right, lambda o, lr, t: (o, lr, 1)),
        ),
        f"{own}_eps_before_the_bias_correction": (
            right,
            scalars(right, lambda made, o, t: {"eps": o["eps"]}),
        ),
        f"{own}_one_clock_for_all_parameters": (right, common_clock(right)),
    }
