"""OptimisticAdam."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import rule, scalars
from helpers.variant import Variant

VARIANTS = [
    Variant("optimistic_adam", fastopt.OptimisticAdam, {"lr": 0.01, "optimism": 0.5}, close=True)
]
SMOOTH = ["OptimisticAdam"]
BAD = {"optimism": number(-1e-300, -1, schedule=True)}


def optimistic(u: SimpleNamespace, of_gradients: bool = False, led: bool = False) -> None:
    u.m += u.one_minus_beta1 * (u.grad - u.m)
    u.v += u.one_minus_beta2 * (u.square - u.v)
    below = np.sqrt(u.v) + u.eps
    now = u.correct * (u.m / below)
    step = now + u.lead * (now - u.u)
    if of_gradients:
        step = now + u.lead * (u.grad / below - u.u)
    u.param -= u.lr * step
    u.u[...] = u.grad / below if of_gradients else step if led else now


MUTANTS = {
    "OptimisticAdam_led_on_in_the_first_step": (
        fastopt.OptimisticAdam,
        scalars(fastopt.OptimisticAdam, lambda s, o, t: {"lead": o["optimism"]}),
    ),
    "OptimisticAdam_of_gradients": (
        fastopt.OptimisticAdam,
        rule(fastopt.OptimisticAdam, lambda u: optimistic(u, of_gradients=True)),
    ),
    "OptimisticAdam_keeps_what_was_led_on": (
        fastopt.OptimisticAdam,
        rule(fastopt.OptimisticAdam, lambda u: optimistic(u, led=True)),
    ),
    "OptimisticAdam_eps_uncorrected": (
        fastopt.OptimisticAdam,
        scalars(fastopt.OptimisticAdam, lambda s, o, t: {"eps": o["eps"]}),
    ),
    "OptimisticAdam_optimism_ignored": (
        fastopt.OptimisticAdam,
        scalars(fastopt.OptimisticAdam, lambda s, o, t: {"lead": 1.0 if t > 1 else 0.0}),
    ),
}
