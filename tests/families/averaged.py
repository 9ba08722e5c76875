"""ASGD."""

from __future__ import annotations

from types import SimpleNamespace

import fastopt
from helpers.bad_values import number
from helpers.mutants import common_clock, given, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant(
        "asgd", fastopt.ASGD, {"lr": 0.05, "lambd": 0.1, "t0": 2.0}, one_unit=False, close=True
    ),
    # lambd so large that no product with a tiny parameter is denormal, which a GPU takes for 0.
    Variant(
        "asgd_weight_decay",
        fastopt.ASGD,
        {"weight_decay": 0.1, "lambd": 0.05},
        close=True,
        one_unit=False,
    ),
]
SMOOTH = ["ASGD"]
BAD = {
    "lambd": number(-1e-300, -1, schedule=True),
    "alpha": number(-1e-300, -1, schedule=True),
    "t0": number(-1e-300, -1),
}


def asgd(
    u: SimpleNamespace, mean_of: str = "new", decays: bool = True, of_mean: bool = False
) -> None:
    before = u.param.copy()
    u.param -= (u.decay if decays else 0.0) * u.param
    u.param -= u.eta * u.grad
    u.mean *= u.keep
    u.mean += u.weight * ((u.param if mean_of == "new" else before) - u.mean)
    if of_mean:
        u.param[...] = u.mean


ASGD = fastopt.ASGD
MUTANTS = {
    "ASGD_mean_of_the_old_parameter": (ASGD, rule(ASGD, lambda u: asgd(u, mean_of="old"))),
    "ASGD_no_decay": (ASGD, rule(ASGD, lambda u: asgd(u, decays=False))),
    "ASGD_goes_on_from_the_mean": (ASGD, rule(ASGD, lambda u: asgd(u, of_mean=True))),
    "ASGD_decay_without_the_rate": (
        ASGD,
        scalars(ASGD, lambda made, o, t: {"decay": o["lambd"]}),
    ),
    "ASGD_decay_by_lr": (
        ASGD,
        scalars(ASGD, lambda made, o, t: {"decay": o["lambd"] * made["lr"]}),
    ),
    "ASGD_steps_do_not_become_shorter": (
        ASGD,
        given(ASGD, lambda o, lr, t: ({**o, "alpha": 0.0}, lr, t)),
    ),
    "ASGD_alpha_ignored": (ASGD, given(ASGD, lambda o, lr, t: ({**o, "alpha": 0.75}, lr, t))),
    "ASGD_steps_one_step_early": (
        ASGD,
        scalars(
            ASGD,
            lambda made, o, t: {
                "eta": made["lr"] / (1 + o["lambd"] * made["lr"] * t) ** o["alpha"],
            },
        ),
    ),
    "ASGD_mean_one_step_early": (
        ASGD,
        given(ASGD, lambda o, lr, t: ({**o, "t0": max(o["t0"] - 1, 0.0)}, lr, t)),
    ),
    "ASGD_t0_ignored": (ASGD, given(ASGD, lambda o, lr, t: ({**o, "t0": 0.0}, lr, t))),
    "ASGD_one_clock_for_all_parameters": (ASGD, common_clock(ASGD)),
}
