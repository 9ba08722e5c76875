"""Adamax, NAdam and RAdam."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import fastopt
from fastopt.optimizers.common import one_minus_power, one_minus_risen, risen
from helpers.bad_values import number
from helpers.mutants import common_clock, given, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("adamax", fastopt.Adamax, {"lr": 0.01, "weight_decay": 0.1}, close=True),
    Variant("adamax_eps_zero", fastopt.Adamax, {"lr": 0.01, "eps": 0.0}, close=True),
    Variant("nadam", fastopt.NAdam, {"lr": 0.01, "momentum_decay": 0.1}, close=True),
    Variant(
        "nadam_decoupled",
        fastopt.NAdam,
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        close=True,
    ),
    # With this lr no square is denormal in the runs on the emulated CUDA, which takes that for 0.
    Variant("radam", fastopt.RAdam, {"lr": 0.02, "betas": (0.9, 0.99)}, close=True, one_unit=False),
    Variant(
        "radam_decoupled",
        fastopt.RAdam,
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        close=True,
        one_unit=False,
    ),
]
SMOOTH = ["NAdam", "RAdam"]
"""Adamax is none: of noise in u and in what decays with it the maximum takes the upper half."""
BAD = {
    "momentum_decay": number(-1e-300, -1),
}


def adamax(
    u: SimpleNamespace,
    old_m: bool = False,
    old_u: bool = False,
    eps: str = "gradient",
    no_maximum: bool = False,
) -> None:
    before, largest = u.m.copy(), u.u.copy()
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    seen = np.abs(u.grad) + (u.eps if eps == "gradient" else 0.0)
    kept = u.beta2 * u.u
    u.u[...] = kept + (1 - u.beta2) * seen if no_maximum else np.maximum(kept, seen)
    over = np.maximum(largest, u.eps) if old_u else u.u
    over = over + u.eps if eps == "maximum" else over
    with np.errstate(all="ignore"):
        u.param -= u.step_size * ((before if old_m else u.m) / over)


def relative(u: SimpleNamespace, step: Any, square: Any = np.square) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (square(u.grad) - u.v)
    u.param -= step(u, np.sqrt(u.v) + u.eps)


def both(u: SimpleNamespace, root: Any) -> Any:
    return (u.of_grad * u.grad + u.of_m * u.m) / root


def swapped(options: Any, lr: float, t: int) -> Any:
    return {**options, "betas": options["betas"][::-1]}, lr, t


def of_adam(made: Any, options: Any, t: int) -> dict[str, float]:
    """Return RAdam's scalars without its rectification."""
    c1, c2 = (one_minus_power(beta, t) for beta in options["betas"])
    return {"plain": 0.0, "adapted": made["lr"] * c2**0.5 / c1}


def one_product(made: Any, options: Any, t: int) -> dict[str, float]:
    """Return NAdam's scalars with one product of momenta for both terms."""
    beta1, rise = options["betas"][0], options["momentum_decay"]
    of = [one_minus_risen(beta1, rise, s) for s in (t + 1, t)]
    return {"of_m": made["of_m"] * of[0] / of[1]}


def power_of_mu(made: Any, options: Any, t: int) -> dict[str, float]:
    """Return NAdam's scalars with beta1^t in the place of the product."""
    beta1, rise = options["betas"][0], options["momentum_decay"]
    was = one_minus_risen(beta1, rise, t)
    return {"of_grad": made["of_grad"] * was / one_minus_power(beta1, t)}


def same_mu(made: Any, options: Any, t: int) -> dict[str, float]:
    """Return NAdam's scalars with this step's momentum for that of the next."""
    beta1, rise = options["betas"][0], options["momentum_decay"]
    ratio = risen(beta1, rise, t) / risen(beta1, rise, t + 1) if beta1 else 1.0
    return {"of_m": made["of_m"] * ratio}


MAX, NEXT, RECTIFIED = fastopt.Adamax, fastopt.NAdam, fastopt.RAdam
MUTANTS = {
    "Adamax_old_average": (MAX, rule(MAX, lambda u: adamax(u, old_m=True))),
    "Adamax_old_maximum": (MAX, rule(MAX, lambda u: adamax(u, old_u=True))),
    "Adamax_eps_added_to_the_maximum": (MAX, rule(MAX, lambda u: adamax(u, eps="maximum"))),
    "Adamax_average_for_maximum": (MAX, rule(MAX, lambda u: adamax(u, no_maximum=True))),
    "Adamax_bias_of_the_maximum_corrected": (
        MAX,
        scalars(
            MAX,
            lambda m, o, t: {"step_size": m["step_size"] * one_minus_power(o["betas"][1], t)},
        ),
    ),
    "Adamax_bias_not_corrected": (MAX, scalars(MAX, lambda m, o, t: {"step_size": m["lr"]})),
    "Adamax_betas_swapped": (MAX, given(MAX, swapped)),
    "Adamax_one_clock_for_all_parameters": (MAX, common_clock(MAX)),
    "NAdam_without_the_gradient": (
        NEXT,
        rule(NEXT, lambda u: relative(u, lambda u, root: u.of_m * u.m / root)),
    ),
    "NAdam_square_missing": (NEXT, rule(NEXT, lambda u: relative(u, both, np.abs))),
    "NAdam_eps_not_corrected": (NEXT, scalars(NEXT, lambda m, o, t: {"eps": o["eps"]})),
    "NAdam_no_schedule": (
        NEXT,
        given(NEXT, lambda o, lr, t: ({**o, "momentum_decay": 1e6}, lr, t)),
    ),
    "NAdam_momentum_decay_ignored": (
        NEXT,
        given(NEXT, lambda o, lr, t: ({**o, "momentum_decay": 4e-3}, lr, t)),
    ),
    "NAdam_one_product_for_both": (NEXT, scalars(NEXT, one_product)),
    "NAdam_power_for_product": (NEXT, scalars(NEXT, power_of_mu)),
    "NAdam_momentum_of_this_step": (NEXT, scalars(NEXT, same_mu)),
    "NAdam_betas_swapped": (NEXT, given(NEXT, swapped)),
    "NAdam_one_clock_for_all_parameters": (NEXT, common_clock(NEXT)),
    "RAdam_never_adaptive": (
        RECTIFIED,
        rule(RECTIFIED, lambda u: relative(u, lambda u, root: u.plain * u.m)),
    ),
    "RAdam_no_step_before_it_is_adaptive": (  # pytorch_optimizer
        RECTIFIED,
        rule(RECTIFIED, lambda u: relative(u, lambda u, root: u.adapted * u.m / root)),
    ),
    "RAdam_square_missing": (
        RECTIFIED,
        rule(
            RECTIFIED,
            lambda u: relative(u, lambda u, root: u.plain * u.m + u.adapted * u.m / root, np.abs),
        ),
    ),
    "RAdam_not_rectified": (RECTIFIED, scalars(RECTIFIED, of_adam)),
    "RAdam_eps_after_the_correction": (  # optax
        RECTIFIED,
        scalars(
            RECTIFIED,
            lambda m, o, t: {"eps": o["eps"] * one_minus_power(o["betas"][1], t) ** 0.5},
        ),
    ),
    "RAdam_one_step_early": (
        RECTIFIED,
        given(RECTIFIED, lambda o, lr, t: (o, lr, t + 1)),
    ),
    "RAdam_betas_swapped": (RECTIFIED, given(RECTIFIED, swapped)),
    "RAdam_one_clock_for_all_parameters": (RECTIFIED, common_clock(RECTIFIED)),
}
