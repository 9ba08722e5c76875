"""SGDP and AdamP."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastopt
from helpers.bad_values import number
from helpers.mutants import computing, given, scalars
from helpers.variant import Variant

OF_MATRICES = [
    Variant("sgdp", fastopt.SGDP, {"delta": 1.0, "weight_decay": 0.1}),
    Variant("adamp", fastopt.AdamP, {"delta": 1.0, "weight_decay": 0.1}),
]
SMOOTH = ["SGDP", "AdamP"]
BAD = {"delta": number(-1e-300, -1.0), "decay_share": number(-1e-300, -1.0)}

sgdp, adamp = fastopt.SGDP, fastopt.AdamP


def project(p: Any, g: Any, u: Any, s: Any, by_row: bool, by_all: bool, decays: bool) -> Any:
    """Return u and the share of the decay for one array, or with one of the mistakes."""
    shapes = [(len(p), -1)] * by_row + [(1, -1)] * by_all if p.ndim > 1 else []
    for shape in shapes:
        rows, grads, steps = (x.reshape(shape) for x in (p, g, u))
        size = np.sqrt((rows * rows).sum(1, keepdims=True))
        other = np.sqrt((grads * grads).sum(1, keepdims=True))
        inner = abs((rows * grads).sum(1, keepdims=True))
        cosine = inner / (np.maximum(size, s["eps"]) * np.maximum(other, s["eps"]))
        if cosine.max() < s["delta"] / np.sqrt(rows.shape[1]):
            along = rows / (size + s["eps"])
            steps = steps - along * (along * steps).sum(1, keepdims=True)
            return steps.reshape(p.shape), s["decay_share"] if decays else 1.0
    return u, 1.0


def wrong(base: Any, by_row: bool = True, by_all: bool = True, decays: bool = True) -> Any:
    """Return a class that projects otherwise."""

    def compute(xp: Any, p: Any, g: Any, state: Any, s: Any) -> Any:
        _, made = base._rule({}).compute(xp, p, g, state, s)
        if base is sgdp:
            u, rate = s["of_grad"] * g + s["of_m"] * made["m"], s["lr"]
        else:
            top = made["m"] + s["ahead"] * (g - made["m"])
            u, rate = top / (np.sqrt(made["v"]) / s["root"] + s["eps"]), s["step_size"]
        out = p.copy()
        for k in range(len(p)):
            step, share = project(p[k], g[k], u[k], s, by_row, by_all, decays)
            out[k] = p[k] - s["decay"] * share * p[k] - rate * step
        return out, made

    return computing(base, compute)


MUTANTS = {
    name: (base, make)
    for base in (sgdp, adamp)
    for name, make in {
        f"{base.__name__}_never_by_row": wrong(base, by_row=False),
        f"{base.__name__}_never_the_whole_array": wrong(base, by_all=False),
        f"{base.__name__}_decays_in_full": wrong(base, decays=False),
        f"{base.__name__}_never_projects": scalars(base, lambda made, o, t: {"delta": 0.0}),
    }.items()
} | {
    "SGDP_decay_of_one_step": (
        sgdp,
        scalars(sgdp, lambda made, o, t: {"decay": made["lr"] * o["weight_decay"]}),
    ),
    "SGDP_dampening_ignored": (sgdp, scalars(sgdp, lambda made, o, t: {"take": 1.0})),
    "SGDP_nesterov_ignored": (
        sgdp,
        scalars(sgdp, lambda made, o, t: {"of_grad": 0.0, "of_m": 1.0}),
    ),
    "AdamP_betas_swapped": (
        adamp,
        given(adamp, lambda o, lr, t: ({**o, "betas": o["betas"][::-1]}, lr, t)),
    ),
    "AdamP_no_correction": (adamp, scalars(adamp, lambda m, o, t: {"root": 1.0})),
    "AdamP_nesterov_ignored": (adamp, scalars(adamp, lambda made, o, t: {"ahead": 0.0})),
}
