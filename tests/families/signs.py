"""Signum and Lion."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.mutants import given, rule
from helpers.variant import Variant

VARIANTS = [
    Variant("signum", fastopt.Signum, {"lr": 0.01, "weight_decay": 0.1}, close=True),
    Variant("lion", fastopt.Lion, {"lr": 0.01, "weight_decay": 0.1}, close=True),
]


def signum(u: SimpleNamespace, of: str = "m", old: bool = False, size: bool = False) -> None:
    before = u.m.copy()
    u.m += u.one_minus_momentum * (u.grad - u.m)
    seen = {"m": before if old else u.m, "grad": u.grad}[of]
    u.param -= u.lr * (seen if size else np.sign(seen))


def lion(
    u: SimpleNamespace, swapped: bool = False, after: bool = False, of_m: bool = False
) -> None:
    first, second = u.one_minus_beta1, u.one_minus_beta2
    first, second = (second, first) if swapped else (first, second)
    old = u.m.copy()
    u.m += second * (u.grad - u.m)
    seen = u.m if after else old
    u.param -= u.lr * np.sign(seen if of_m else seen + first * (u.grad - seen))


MUTANTS = {
    "Signum_sign_of_the_gradient": (
        fastopt.Signum,
        rule(fastopt.Signum, lambda u: signum(u, of="grad")),
    ),
    "Signum_old_average": (fastopt.Signum, rule(fastopt.Signum, lambda u: signum(u, old=True))),
    "Signum_no_sign": (fastopt.Signum, rule(fastopt.Signum, lambda u: signum(u, size=True))),
    "Signum_momentum_and_its_rest_swapped": (
        fastopt.Signum,
        given(fastopt.Signum, lambda o, lr, t: ({**o, "momentum": 1 - o["momentum"]}, lr, t)),
    ),
    "Lion_betas_swapped": (fastopt.Lion, rule(fastopt.Lion, lambda u: lion(u, swapped=True))),
    "Lion_average_before_the_step": (
        fastopt.Lion,
        rule(fastopt.Lion, lambda u: lion(u, after=True)),
    ),
    "Lion_sign_of_the_average": (fastopt.Lion, rule(fastopt.Lion, lambda u: lion(u, of_m=True))),
    "Lion_one_beta": (
        fastopt.Lion,
        given(fastopt.Lion, lambda o, lr, t: ({**o, "betas": (o["betas"][1],) * 2}, lr, t)),
    ),
}
