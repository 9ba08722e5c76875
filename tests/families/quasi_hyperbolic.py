"""QHM and QHAdam."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.bad_values import number, pair
from helpers.mutants import given, rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("qhm", fastopt.QHM, {"momentum": 0.9, "weight_decay": 0.1}, close=True),
    Variant("qhadam", fastopt.QHAdam, {"lr": 0.01, "nus": (0.7, 0.8)}, close=True),
]
SMOOTH = ["QHM", "QHAdam"]
ALIKE = {"QHM": lambda size: {"lr": 2.0**-10 / size}}
BAD = {
    "nu": number(-1e-300, -1, 1.5, schedule=True),
    "nus": pair(-1e-300, -1, 1.5),
}


def qhm(u: SimpleNamespace, old: bool = False, undamped: bool = False) -> None:
    before = u.m.copy()
    if undamped:
        u.m += u.grad - u.one_minus_momentum * u.m
    else:
        u.m += u.one_minus_momentum * (u.grad - u.m)
    u.param -= u.of_m * (before if old else u.m) + u.of_grad * u.grad


def qhadam(
    u: SimpleNamespace, old: bool = False, roots: bool = False, inside: bool = False
) -> None:
    v = u.v.copy()
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (u.square - u.v)
    v = v if old else u.v
    below = np.sqrt(u.of_v * v + u.of_square * u.square)
    if roots:
        below = np.sqrt(u.of_v * v) + u.of_square * np.abs(u.grad)
    below = np.sqrt(below * below + u.eps) if inside else below + u.eps
    u.param -= u.lr * ((u.of_m * u.m + u.of_grad * u.grad) / below)


MUTANTS = {
    "QHM_weights_swapped": (
        fastopt.QHM,
        given(fastopt.QHM, lambda o, lr, t: ({**o, "nu": 1.0 - o["nu"]}, lr, t)),
    ),
    "QHM_old_average": (fastopt.QHM, rule(fastopt.QHM, lambda u: qhm(u, old=True))),
    "QHM_sum_for_an_average": (fastopt.QHM, rule(fastopt.QHM, lambda u: qhm(u, undamped=True))),
    "QHM_whole_gradient": (fastopt.QHM, scalars(fastopt.QHM, lambda s, o, t: {"of_grad": s["lr"]})),
    "QHAdam_weights_swapped": (
        fastopt.QHAdam,
        given(fastopt.QHAdam, lambda o, lr, t: ({**o, "nus": o["nus"][::-1]}, lr, t)),
    ),
    "QHAdam_old_average_of_squares": (
        fastopt.QHAdam,
        rule(fastopt.QHAdam, lambda u: qhadam(u, old=True)),
    ),
    "QHAdam_mean_of_roots": (fastopt.QHAdam, rule(fastopt.QHAdam, lambda u: qhadam(u, roots=True))),
    "QHAdam_eps_inside_the_root": (
        fastopt.QHAdam,
        rule(fastopt.QHAdam, lambda u: qhadam(u, inside=True)),
    ),
    "QHAdam_uncorrected": (
        fastopt.QHAdam,
        scalars(fastopt.QHAdam, lambda s, o, t: {"of_m": o["nus"][0], "of_v": o["nus"][1]}),
    ),
}
