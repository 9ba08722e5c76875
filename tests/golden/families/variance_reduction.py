"""Mars, after timm, where all arrays are matrices for it (optimize_1d=True)."""

from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, of_timm
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = "sums"
PACKAGES = ("torch", "timm")
DEFAULTS: dict[str, Hyper] = {
    "Mars": {"lr": 3e-3, "betas": [0.9, 0.99], "eps": 1e-8, "gamma": 0.025, "max_norm": 1.0},
}


def mars(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    (b1, b2), lr = hyper["betas"], hyper["lr"]
    c = g + hyper["gamma"] * b1 / (ONE - b1) * (g - state.get("last", g))
    size = sum((x * x for x in c), Decimal(0)).sqrt()
    if hyper["max_norm"].is_finite() and size > hyper["max_norm"]:
        c = c * hyper["max_norm"] / size
    state["last"] = g
    m, v = blend(state, "m", b1, c), blend(state, "v", b2, c * c)
    denominator = np.sqrt(v / (ONE - b2**t)) + hyper["eps"]
    return p - lr * hyper["weight_decay"] * p - lr * m / (ONE - b1**t) / denominator


def of_timms(groups: Any, **arguments: Any) -> Any:
    return of_timm("mars", "Mars")(groups, optimize_1d=True, **arguments)


def arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"] or hyper["max_norm"] != 1.0:
        raise ValueError("timm's Mars cuts to the norm 1, and cannot maximize")
    names = ("lr", "betas", "eps", "gamma", "weight_decay")
    return {name: hyper[name] for name in names}


LETTERS = {"exp_avg": "m", "exp_avg_sq": "v", "last_grad": "last"}
ORACLES: dict[str, dict[str, Oracle]] = {
    "Mars": {
        "timm": by_class(of_timms, arguments, LETTERS),
        "closed": by_formula(mars, decoupled=True),
    },
}
TC, C = ("timm", "closed"), ("closed",)
CASES: dict[str, tuple[Case, ...]] = {
    "Mars": cases_of(
        "Mars",
        DEFAULTS["Mars"],
        ("default", TC, {}),
        ("odd", TC, {"lr": 0.03, "betas": [0.6, 0.8], "eps": 1e-3, "gamma": 0.3}),
        ("forgets", TC, {"lr": 0.01, "betas": [0.0, 0.5], "eps": 1e-2}),
        ("slow", TC, {"lr": 0.01, "betas": [0.95, 0.9999]}),
        ("eps_zero", TC, {"lr": 0.01, "eps": 0.0}, {"inputs": "dense"}),
        ("uncut", C, {"lr": 0.01, "max_norm": float("inf")}),
        ("cut_short", C, {"lr": 0.01, "max_norm": 0.05, "eps": 1e-3}),
        ("adamw", C, {"gamma": 0.0, "max_norm": float("inf"), "weight_decay": 0.1}),
        ("weight_decay", TC, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", C, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("zeros", TC, {"lr": 0.01}, {"inputs": "zeros"}),
        ("missing", TC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", TC, {}, {"groups": GROUPS}),
        ("lr_change", TC, {}, {"lr_changes": LATER}),
    ),
}
