"""COCOB."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

import fastopt
from helpers.mutants import rule, scalars
from helpers.variant import Variant

VARIANTS = [Variant("cocob", fastopt.COCOB, {"alpha": 20.0, "weight_decay": 0.1}, close=True)]
BAD_HERE = {("COCOB", "alpha"): [(0.0, ValueError)]}


def cocob(u: SimpleNamespace, wrong: str = "") -> None:
    g = u.lr * u.grad
    u.peak[...] = np.maximum(np.maximum(u.peak, u.eps), np.abs(g))
    u.total += np.abs(g)
    u.p0 += u.first * (u.param - u.p0)
    u.reward -= g * (u.param if wrong == "from zero" else u.param - u.p0)
    if wrong != "debts":
        np.maximum(u.reward, 0, out=u.reward)
    u.theta += g if wrong == "sign" else -g
    below = np.maximum(u.total + u.peak, u.alpha * u.peak)
    if wrong == "as first published":  # COCOB for known scales: without alpha
        below = u.total + u.peak
    step = u.theta / below * ((u.peak + u.reward) / u.peak)
    u.param[...] = (u.param if wrong == "from here" else u.p0) + step


MUTANTS = {
    f"COCOB_{name.replace(' ', '_')}": (
        fastopt.COCOB,
        rule(fastopt.COCOB, lambda u, name=name: cocob(u, name)),
    )
    for name in ("from zero", "debts", "sign", "as first published", "from here")
} | {
    "COCOB_start_forgotten": (
        fastopt.COCOB,
        scalars(fastopt.COCOB, lambda s, o, t: {"first": 0.0}),
    ),
}
