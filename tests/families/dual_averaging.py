"""MADGRAD."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.mutants import rule, scalars
from helpers.variant import Variant

# eps so large that the cube root of a denormal, which a GPU takes for 0, is nothing beside it.
VARIANTS = [
    Variant(
        "madgrad",
        fastopt.MADGRAD,
        {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-3},
        rate_inside=True,
        close=True,
    )
]
ALIKE = {"MADGRAD": lambda size: {"lr": 2.0**-5 / np.sqrt(size)}}


def madgrad(u: SimpleNamespace, wrong: str) -> None:
    square = u.grad if wrong == "gradients below" else u.square
    u.s += u.weight * u.grad
    u.v += (u.weight * u.weight if wrong == "weight squared" else u.weight) * np.abs(square)
    u.p0 += u.first * (u.param - u.p0)
    below = np.sqrt(u.v) if wrong == "square root" else np.cbrt(u.v)
    below = np.cbrt(u.v + u.eps) if wrong == "eps inside" else below + u.eps
    start = u.param if wrong == "from here" else u.p0
    u.param += u.one_minus_momentum * (start - u.s / below - u.param)


MUTANTS = {
    f"MADGRAD_{name.replace(' ', '_')}": (
        fastopt.MADGRAD,
        rule(fastopt.MADGRAD, lambda u, name=name: madgrad(u, name)),
    )
    for name in ("gradients below", "weight squared", "square root", "eps inside", "from here")
} | {
    "MADGRAD_weights_alike": (
        fastopt.MADGRAD,
        scalars(fastopt.MADGRAD, lambda s, o, t: {"weight": s["lr"]}),
    ),
    "MADGRAD_eps_in_the_rate": (
        fastopt.MADGRAD,
        scalars(fastopt.MADGRAD, lambda s, o, t: {"weight": (s["lr"] + o["eps"]) * t**0.5}),
    ),
    "MADGRAD_start_forgotten": (
        fastopt.MADGRAD,
        scalars(fastopt.MADGRAD, lambda s, o, t: {"first": 0.0}),
    ),
}
