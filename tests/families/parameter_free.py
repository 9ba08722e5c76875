"""DoG, DoWG, DAdaptAdam and DAdaptSGD."""

from __future__ import annotations

import math
from types import SimpleNamespace

import fastopt
from helpers.bad_values import number
from helpers.mutants import common_clock, given, remembering, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("dog", fastopt.DoG, {"d0": 0.1, "weight_decay": 0.1}, close=True),
    Variant("dowg", fastopt.DoWG, {"d0": 0.1, "weight_decay": 0.1}, close=True),
    Variant(
        "dadapt_adam",
        fastopt.DAdaptAdam,
        {"d0": 1e-2, "weight_decay": 0.1},
        close=True,
        rate_inside=True,
    ),
    Variant(
        "dadapt_sgd", fastopt.DAdaptSGD, {"d0": 1e-2, "momentum": 0.5}, close=True, rate_inside=True
    ),
]
SMOOTH = ["DoG", "DoWG", "DAdaptAdam", "DAdaptSGD"]
BAD = {"d0_relative": number(0.0, -1.0)}
BAD_INSTEAD = {("DoG", "d0"): [bad for bad in number(0.0, -1) if bad[0] is not None]}

dog, dowg, adam, sgd = fastopt.DoG, fastopt.DoWG, fastopt.DAdaptAdam, fastopt.DAdaptSGD


def sgd_from_p(u: SimpleNamespace) -> None:
    """DAdaptSGD that goes on from p, and not from where it began."""
    u.p0 += u.first * (u.param - u.p0)
    u.s += u.now * (u.lr * u.grad)
    u.param -= u.moves * u.one_minus_momentum * u.s


MUTANTS = {
    "DoG_distance_now": (  # and not the largest so far
        dog,
        remembering(
            dog,
            lambda host, s, m, sums: host(s, {**m, "distance": min(m["distance"], 1e-9)}, sums),
        ),
    ),
    "DoG_last_gradient_alone": (
        dog,
        remembering(dog, lambda host, s, m, sums: host(s, {**m, "total": 0.0}, sums)),
    ),
    "DoG_eps_ignored": (dog, scalars(dog, lambda made, o, t: {"eps": 0.0})),
    "DoG_norm_without_one": (
        dog,
        remembering(
            dog,
            lambda host, s, m, sums: host(
                s,
                m if m["distance"] else {**m, "distance": s["relative"] * sums["start"] ** 0.5},
                sums,
            ),
        ),
    ),
    "DoG_from_the_last_step": (dog, scalars(dog, lambda made, o, t: {"first": 1.0})),
    "DoWG_unweighted": (
        dowg,
        remembering(
            dowg,
            lambda host, s, m, sums: (
                {**host(s, m, sums)[0], "total": m["total"] + sums["grad_norm"]},
                host(s, m, sums)[1],
            ),
        ),
    ),
    "DoWG_eps_ignored": (dowg, scalars(dowg, lambda made, o, t: {"eps": 0.0})),
    "DoWG_eps_inside_the_root": (
        dowg,
        remembering(
            dowg,
            lambda host, s, m, sums: (
                (made := host(s, m, sums))[0],
                {"rate": made[0]["area"] / max(made[0]["total"] + s["eps"], 1e-300) ** 0.5},
            ),
        ),
    ),
    "DoWG_from_the_last_step": (dowg, scalars(dowg, lambda made, o, t: {"first": 1.0})),
    "DAdaptAdam_betas_swapped": (
        adam,
        given(adam, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "DAdaptAdam_correction_ignored": (
        adam,
        given(adam, lambda o, lr, t: ({**o, "bias_correction": False}, lr, t)),
    ),
    "DAdaptAdam_share_of_beta2": (
        adam,
        scalars(
            adam,
            lambda made, o, t: dict.fromkeys(("share", "one_minus_root"), 1.0 - o["betas"][1]),
        ),
    ),
    "DAdaptAdam_growth_not_limited": (
        adam,
        scalars(adam, lambda made, o, t: {"growth_rate": math.inf}),
    ),
    "DAdaptAdam_never_adapts": (
        adam,
        remembering(
            adam,
            lambda host, s, m, sums: (
                {**(made := host(s, m, sums))[0], "d": m["d"]},
                made[1],
            ),
        ),
    ),
    "DAdaptAdam_eps_ignored": (adam, scalars(adam, lambda made, o, t: {"eps": 1e-300})),
    "DAdaptAdam_one_clock_for_all_parameters": (adam, common_clock(adam)),
    "DAdaptSGD_half_the_estimate": (
        sgd,
        remembering(
            sgd,
            lambda host, s, m, sums: host(s, m, {**sums, "length": 4.0 * sums["length"]}),
        ),
    ),
    "DAdaptSGD_growth_not_limited": (
        sgd,
        scalars(sgd, lambda made, o, t: {"growth_rate": math.inf}),
    ),
    "DAdaptSGD_momentum_ignored": (
        sgd,
        scalars(sgd, lambda made, o, t: {"one_minus_momentum": 1.0}),
    ),
    "DAdaptSGD_from_the_last_step": (sgd, rule(sgd, sgd_from_p)),
    "DAdaptSGD_gradients_not_normalized": (
        sgd,
        remembering(
            sgd,
            lambda host, s, m, sums: host(
                s, m if m["g0"] else {**m, "g0": 1.0, "unit": m["d"]}, sums
            ),
        ),
    ),
}
