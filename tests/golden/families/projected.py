"""SGDP and AdamP, after timm, which has the authors' code."""

import math
from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, of_timm
from ..vector_cases import GROUPS, LATER, MISSING, SHAPES, Case, Hyper
from . import cases_of

FOLDER = "sums"
PACKAGES = ("torch", "timm")
BOTH: Hyper = {"eps": 1e-8, "nesterov": False, "delta": 0.1, "decay_share": 0.1}
DEFAULTS: dict[str, Hyper] = {
    "SGDP": BOTH | {"lr": 1e-2, "momentum": 0.9, "dampening": 0.0},
    "AdamP": BOTH | {"lr": 1e-3, "betas": [0.9, 0.999]},
}
SHAPE_OF = {math.prod(shape): shape for shape in SHAPES}  # flat arrays tell them by their sizes


def dot(a: Numbers, b: Numbers) -> Decimal:
    return sum((x * y for x, y in zip(a, b, strict=True)), Decimal(0))


def projected(p: Numbers, g: Numbers, u: Numbers, hyper: Hyper) -> tuple[Numbers, Decimal]:
    """Return what becomes of u, and the share of the decay, as the authors do by row."""
    shape, eps = SHAPE_OF[p.size], hyper["eps"]
    if len(shape) < 2:
        return u, ONE
    for rows in (shape[0], 1):
        parts = [x.reshape(rows, -1) for x in (p, g, u)]
        sizes = [[dot(x, x).sqrt() for x in part] for part in parts[:2]]
        cosines = [
            abs(dot(a, b)) / (max(of_a, eps) * max(of_b, eps))
            for a, b, of_a, of_b in zip(*parts[:2], *sizes, strict=True)
        ]
        if max(cosines) < hyper["delta"] / Decimal(p.size // rows).sqrt():
            along = [x / (size + eps) for x, size in zip(parts[0], sizes[0], strict=True)]
            made = [x - r * dot(r, x) for x, r in zip(parts[2], along, strict=True)]
            return np.concatenate(made), hyper["decay_share"]
    return u, ONE


def sgdp(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    momentum, lr = hyper["momentum"], hyper["lr"]
    m = state["m"] = momentum * state.get("m", 0 * g) + (ONE - hyper["dampening"]) * g
    u, share = projected(p, g, g + momentum * m if hyper["nesterov"] else m, hyper)
    return p - lr * hyper["weight_decay"] * share / (ONE - momentum) * p - lr * u


def adamp(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    (b1, b2), lr = hyper["betas"], hyper["lr"]
    m, v = blend(state, "m", b1, g), blend(state, "v", b2, g * g)
    n = b1 * m + (ONE - b1) * g if hyper["nesterov"] else m
    u = n / (ONE - b1**t) / (np.sqrt(v / (ONE - b2**t)) + hyper["eps"])
    u, share = projected(p, g, u, hyper)
    return p - lr * hyper["weight_decay"] * share * p - lr * u


def sgdp_of_timm(groups: Any, **arguments: Any) -> Any:
    return of_timm("sgdp", "SGDP")(groups, **arguments)


def adamp_of_timm(groups: Any, **arguments: Any) -> Any:
    return of_timm("adamp", "AdamP")(groups, **arguments)


def arguments(*names: str) -> Any:
    def of(hyper: Hyper) -> Hyper:
        if hyper["maximize"]:
            raise ValueError("timm cannot maximize")
        made = {name: hyper[name] for name in ("lr", "eps", "nesterov", "delta", *names)}
        return made | {"wd_ratio": hyper["decay_share"], "weight_decay": hyper["weight_decay"]}

    return of


ORACLES: dict[str, dict[str, Oracle]] = {
    "SGDP": {
        "timm": by_class(sgdp_of_timm, arguments("momentum", "dampening"), {"momentum": "m"}),
        "closed": by_formula(sgdp, decoupled=True),
    },
    "AdamP": {
        "timm": by_class(adamp_of_timm, arguments("betas"), {"exp_avg": "m", "exp_avg_sq": "v"}),
        "closed": by_formula(adamp, decoupled=True),
    },
}
TC, C = ("timm", "closed"), ("closed",)
MILD = {"inputs": "zeros"}
DECAYS = {"weight_decay": 0.1, "delta": 1.0, "decay_share": 0.3}
CASES: dict[str, tuple[Case, ...]] = {
    "SGDP": cases_of(
        "SGDP",
        DEFAULTS["SGDP"],
        ("default", TC, {}),
        ("odd", TC, {"lr": 0.02, "momentum": 0.6, "dampening": 0.3, "delta": 0.5}, MILD),
        ("by_row", TC, {"delta": 1.5}, MILD),
        ("always", TC, {"delta": 100.0, "eps": 0.1}, MILD),
        ("never", TC, {"delta": 0.0}, MILD),
        ("nesterov", TC, {"nesterov": True, "delta": 1.0}, MILD),
        ("weight_decay", TC, {"weight_decay": 0.1}),
        ("decay_share", TC, DECAYS, MILD),
        ("maximize", C, DECAYS | {"maximize": True}, MILD),
        ("missing", TC, {"delta": 1.0}, {"missing": MISSING}),
        ("groups", TC, {}, {"groups": GROUPS}),
        ("lr_change", TC, {}, {"lr_changes": LATER}),
    ),
    "AdamP": cases_of(
        "AdamP",
        DEFAULTS["AdamP"],
        ("default", TC, {}),
        ("odd", TC, {"lr": 0.02, "betas": [0.6, 0.8], "eps": 1e-3, "delta": 0.5}, MILD),
        ("by_row", TC, {"delta": 1.5, "lr": 0.02}, MILD),
        ("always", TC, {"delta": 100.0, "eps": 0.1}, MILD),
        ("never", TC, {"delta": 0.0, "lr": 0.02}, MILD),
        ("nesterov", TC, {"nesterov": True, "delta": 1.0, "lr": 0.01}, MILD),
        ("weight_decay", TC, {"weight_decay": 0.1}),
        ("decay_share", TC, DECAYS | {"lr": 0.01}, MILD),
        ("maximize", C, DECAYS | {"lr": 0.01, "maximize": True}, MILD),
        ("missing", TC, {"delta": 1.0}, {"missing": MISSING}),
        ("groups", TC, {}, {"groups": GROUPS}),
        ("lr_change", TC, {}, {"lr_changes": LATER}),
    ),
}
