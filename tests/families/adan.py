"""Adan and AdEMAMix."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import Make, common_clock, given, rule, scalars
from helpers.variant import Variant

SMOOTH = ["Adan", "AdEMAMix"]
VARIANTS = [
    Variant("adan", fastopt.Adan, {"weight_decay": 0.1}, close=True),
    Variant("ademamix", fastopt.AdEMAMix, {"weight_decay": 0.1}, close=True),
]
BAD = {"alpha": number(-1e-300, -1, schedule=True)}


def adan(
    u: SimpleNamespace,
    first: bool = False,
    weight: bool = False,
    plain: bool = False,
    decay: str = "divides",
    turned: bool = False,
) -> None:
    change = (1.0 if first else u.later) * (u.grad - u.last) * (-1.0 if turned else 1.0)
    u.last[...] = u.grad
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (change - u.v)
    share = u.one_minus_beta2 if weight else u.beta2
    u.n += u.one_minus_beta3 * ((u.grad + (0.0 if plain else share) * change) ** 2 - u.n)
    rate = u.lr_change / u.beta2 * share
    if decay == "before":
        u.param -= u.decay * u.param
    u.param -= (u.lr_gradient * u.m + rate * u.v) / (np.sqrt(u.n) + u.eps)
    if decay == "after":
        u.param -= u.decay * u.param
    if decay == "divides":
        u.param /= 1 + u.decay


def mix(u: SimpleNamespace, corrected: bool = False, on_grad: bool = False) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (u.grad * u.grad - u.v)
    u.slow += u.one_minus_beta3 * ((u.m if on_grad else u.grad) - u.slow)
    u.param -= u.step_size * (u.m + u.mix * u.slow) / (np.sqrt(u.v) + u.eps)


def changed(right: Make, *order: int) -> Make:
    """Return what takes the betas in another order."""
    return given(
        right, lambda o, lr, t: ({**o, "betas": tuple(o["betas"][k] for k in order)}, lr, t)
    )


MUTANTS: dict[str, tuple[Make, Make]] = {
    "Adan_change_weighted_by_what_is_new": (  # optax 0.2.8
        fastopt.Adan,
        rule(fastopt.Adan, lambda u: adan(u, weight=True)),
    ),
    "Adan_first_change_is_the_gradient": (
        fastopt.Adan,
        rule(fastopt.Adan, lambda u: adan(u, first=True)),
    ),
    "Adan_square_of_the_gradient_alone": (
        fastopt.Adan,
        rule(fastopt.Adan, lambda u: adan(u, plain=True)),
    ),
    "Adan_change_turned": (fastopt.Adan, rule(fastopt.Adan, lambda u: adan(u, turned=True))),
    "Adan_decay_before_the_step": (
        fastopt.Adan,
        rule(fastopt.Adan, lambda u: adan(u, decay="before")),
    ),
    "Adan_decay_subtracted": (
        fastopt.Adan,
        rule(fastopt.Adan, lambda u: adan(u, decay="after")),
    ),
    "Adan_betas_of_the_averages_swapped": (fastopt.Adan, changed(fastopt.Adan, 1, 0, 2)),
    "Adan_last_betas_swapped": (fastopt.Adan, changed(fastopt.Adan, 0, 2, 1)),
    "Adan_betas_are_what_is_new": (  # the paper's letters
        fastopt.Adan,
        given(
            fastopt.Adan,
            lambda o, lr, t: ({**o, "betas": tuple(1.0 - one for one in o["betas"])}, lr, t),
        ),
    ),
    "AdEMAMix_slow_average_of_the_fast_one": (
        fastopt.AdEMAMix,
        rule(fastopt.AdEMAMix, lambda u: mix(u, on_grad=True)),
    ),
    "AdEMAMix_slow_average_corrected": (
        fastopt.AdEMAMix,
        scalars(
            fastopt.AdEMAMix,
            lambda made, o, t: {"mix": made["mix"] / (1.0 - o["betas"][2] ** t)},
        ),
    ),
    "AdEMAMix_slow_average_corrected_as_the_fast_one": (
        fastopt.AdEMAMix,
        scalars(fastopt.AdEMAMix, lambda made, o, t: {"mix": o["alpha"]}),
    ),
    "AdEMAMix_without_the_slow_average": (
        fastopt.AdEMAMix,
        given(fastopt.AdEMAMix, lambda o, lr, t: ({**o, "alpha": 0.0}, lr, t)),
    ),
    "AdEMAMix_alpha_of_six": (  # the default of optax.contrib.scale_by_ademamix
        fastopt.AdEMAMix,
        given(
            fastopt.AdEMAMix,
            lambda o, lr, t: ({**o, "alpha": 6.0 if o["alpha"] == 5.0 else o["alpha"]}, lr, t),
        ),
    ),
    "AdEMAMix_betas_swapped": (fastopt.AdEMAMix, changed(fastopt.AdEMAMix, 2, 1, 0)),
    "AdEMAMix_last_betas_swapped": (fastopt.AdEMAMix, changed(fastopt.AdEMAMix, 0, 2, 1)),
}
for right in (fastopt.Adan, fastopt.AdEMAMix):
    own = right.__name__
    MUTANTS |= {
        f"{own}_correction_one_step_late": (right, given(right, lambda o, lr, t: (o, lr, t + 1))),
        f"{own}_eps_before_the_bias_correction": (
            right,
            scalars(right, lambda made, o, t: {"eps": o["eps"]}),
        ),
        f"{own}_one_clock_for_all_parameters": (right, common_clock(right)),
    }
