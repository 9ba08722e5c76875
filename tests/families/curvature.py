"""Sophia and AdaHessian."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import estimating, given, rule, scalars
from helpers.variant import Variant

sophia, ada = fastopt.Sophia, fastopt.AdaHessian
VARIANTS = [
    Variant("sophia", sophia, {"lr": 0.01, "eps": 0.1, "weight_decay": 0.1}, close=True),
    Variant("adahessian", ada, {"lr": 0.01, "eps": 0.1, "weight_decay": 0.1}, close=True),
]
SMOOTH = ["AdaHessian"]
BAD: dict[str, Any] = {"gamma": number(0.0, -1e-300, -0.5)}


def step(u: SimpleNamespace, old: bool = False, ends: bool = True, added: bool = False) -> None:
    before = u.m.copy()
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    curvature = u.gamma * u.h
    below = curvature + u.eps if added else np.maximum(curvature, u.eps)
    step = (before if old else u.m) / below
    u.param -= u.lr * (np.clip(step, -1, 1) if ends else step)


def below(u: SimpleNamespace) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.param -= u.lr * np.clip(u.m / np.maximum(np.abs(u.gamma * u.h), u.eps), -1, 1)


def adam(u: SimpleNamespace, old: bool = False, inside: bool = False) -> None:
    before = u.m.copy()
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    root = np.sqrt(u.v + u.eps) if inside else np.sqrt(u.v) + u.eps
    u.param -= u.step_size * ((before if old else u.m) / root)


def squares(u: SimpleNamespace) -> None:
    u.h += u.one_minus_beta2 * (u.grad * u.grad - u.h)


def unsigned(u: SimpleNamespace) -> None:
    u.h += u.one_minus_beta2 * (np.abs(u.grad) - u.h)


def plain(u: SimpleNamespace) -> None:
    u.v += u.one_minus_beta2 * (np.abs(u.grad) - u.v)


def whole(u: SimpleNamespace) -> None:
    u.v[...] = u.square


MUTANTS = {
    "Sophia_old_average": (sophia, rule(sophia, lambda u: step(u, old=True))),
    "Sophia_not_clipped": (sophia, rule(sophia, lambda u: step(u, ends=False))),
    "Sophia_eps_added": (sophia, rule(sophia, lambda u: step(u, added=True))),
    "Sophia_negative_curvature_turned": (sophia, rule(sophia, below)),
    "Sophia_squares_of_estimates": (sophia, estimating(sophia, squares)),
    "Sophia_size_of_estimates": (sophia, estimating(sophia, unsigned)),
    "Sophia_gamma_ignored": (sophia, scalars(sophia, lambda made, o, t: {"gamma": 1.0})),
    "Sophia_betas_swapped": (
        sophia,
        given(sophia, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "AdaHessian_old_average": (ada, rule(ada, lambda u: adam(u, old=True))),
    "AdaHessian_eps_inside": (ada, rule(ada, lambda u: adam(u, inside=True))),
    "AdaHessian_size_of_estimates": (ada, estimating(ada, plain)),
    "AdaHessian_last_estimate_alone": (ada, estimating(ada, whole)),
    "AdaHessian_betas_swapped": (
        ada,
        given(ada, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "AdaHessian_not_corrected": (
        ada,
        scalars(ada, lambda made, o, t: {"eps": o["eps"], "step_size": made["lr"]}),
    ),
}
