"""StableAdamW, LARS and NovoGrad."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.bad_values import FLAG, number
from helpers.mutants import given, remembering, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("stable_adamw", fastopt.StableAdamW, {"lr": 0.01, "weight_decay": 0.1}, close=True),
    Variant(
        "lars",
        fastopt.LARS,
        {"trust_coefficient": 0.01, "nesterov": True, "weight_decay": 0.1},
        close=True,
        rate_inside=True,
    ),
    Variant("novograd", fastopt.NovoGrad, {"lr": 0.01, "weight_decay": 0.1}, close=True),
]
SMOOTH = ["StableAdamW", "LARS", "NovoGrad"]
BAD = {"trust_coefficient": number(0.0, -1.0), "grad_averaging": FLAG}

stable, lars, novograd = fastopt.StableAdamW, fastopt.LARS, fastopt.NovoGrad


def decay_apart(u: SimpleNamespace) -> None:
    """StableAdamW whose decay goes by lr and not by the array's own rate."""
    u.m += u.take1 * (u.grad - u.m)
    u.v += u.take2 * (u.square - u.v)
    u.param -= u.decay * u.param
    u.param -= u.shrink * u.lr * u.m / (np.sqrt(u.v) + u.eps)


def lr_outside(u: SimpleNamespace) -> None:
    """LARS whose average knows no lr, as timm's and pytorch_optimizer's."""
    step = u.trust * (u.grad + u.weight_decay * u.param)
    u.v[...] = u.momentum * u.v + step
    u.param -= u.lr * (u.ahead * u.v + u.fresh * step)


def decay_divided(u: SimpleNamespace) -> None:
    """NovoGrad whose decay is divided with the gradient."""
    u.m[...] = u.keep * u.m + u.take * (u.grad + u.weight_decay * u.param) / u.denominator
    u.param -= u.lr * u.m


MUTANTS = {
    "StableAdamW_never_shrinks": (
        stable,
        remembering(stable, lambda host, *rest: ({}, {"shrink": 1.0})),
    ),
    "StableAdamW_grows_too": (
        stable,
        remembering(
            stable,
            lambda host, s, m, sums: (
                {},
                {"shrink": (sums["size"] / max(sums["surprise"], 1e-300)) ** 0.5},
            ),
        ),
    ),
    "StableAdamW_sum_for_mean": (
        stable,
        remembering(stable, lambda host, s, m, sums: host(s, m, {**sums, "size": 1.0})),
    ),
    "StableAdamW_decay_does_not_shrink": (stable, rule(stable, decay_apart)),
    "StableAdamW_betas_swapped": (
        stable,
        given(stable, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "StableAdamW_no_correction": (
        stable,
        scalars(
            stable,
            lambda made, o, t: {"take1": 1.0 - o["betas"][0], "take2": 1.0 - o["betas"][1]},
        ),
    ),
    "LARS_trust_ignored": (lars, remembering(lars, lambda host, *rest: ({}, {"trust": 1.0}))),
    "LARS_norm_of_the_gradient_alone": (  # without decay in the denominator
        lars,
        scalars(lars, lambda made, o, t: {"norm_decay": 0.0}),
    ),
    "LARS_trust_at_most_1": (  # LARC's clip
        lars,
        remembering(lars, lambda host, *rest: ({}, {"trust": min(host(*rest)[1]["trust"], 1e-4)})),
    ),
    "LARS_gradient_0_decays_at_full_lr": (  # timm
        lars,
        remembering(
            lars,
            lambda host, s, m, sums: (
                host(s, m, sums) if sums["grad_norm"] else ({}, {"trust": 1.0})
            ),
        ),
    ),
    "LARS_lr_outside_the_average": (lars, rule(lars, lr_outside)),
    "LARS_nesterov_ignored": (lars, scalars(lars, lambda m, o, t: {"ahead": 1.0, "fresh": 0.0})),
    "LARS_eps_ignored": (lars, scalars(lars, lambda made, o, t: {"eps": 0.0})),
    "NovoGrad_begins_at_0": (
        novograd,
        scalars(novograd, lambda made, o, t: {"weight": 1.0 - o["betas"][1]}),
    ),
    "NovoGrad_betas_swapped": (
        novograd,
        given(novograd, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "NovoGrad_averaging_ignored": (
        novograd,
        scalars(novograd, lambda made, o, t: {"take": 1.0}),
    ),
    "NovoGrad_averaging_from_the_first_step": (
        novograd,
        scalars(
            novograd,
            lambda made, o, t: {"take": 1.0 - o["betas"][0] if o["grad_averaging"] else 1.0},
        ),
    ),
    "NovoGrad_eps_ignored": (novograd, scalars(novograd, lambda made, o, t: {"eps": 1e-300})),
    "NovoGrad_decay_before_the_division": (novograd, rule(novograd, decay_divided)),
    "NovoGrad_mean_for_sum": (
        novograd,
        remembering(
            novograd,
            lambda host, s, m, sums: host(
                s, m, {**sums, "grad_norm": sums["grad_norm"] / sums["size"]}
            ),
        ),
    ),
}
