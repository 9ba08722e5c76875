"""AdaBound, after the formula of its authors' code and pytorch_optimizer (po).

po adds 1e-15 under the root, which is left out here; it counts the steps of a group.
"""

from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula
from ..vector_cases import LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("torch", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {
    "AdaBound": {
        "lr": 1e-3,
        "betas": [0.9, 0.999],
        "final_lr": 0.1,
        "gamma": 1e-3,
        "eps": 1e-8,
        "amsbound": False,
    }
}
"""Without base_lr, which is the first lr where it is not given."""

GROUPS: tuple[Hyper, ...] = (
    {"params": [0], "lr": 0.1, "base_lr": 0.1},
    {"params": [1], "weight_decay": 0.1},
    {"params": [2], "lr": 1e-4, "base_lr": 1e-4, "weight_decay": 0.02, "gamma": 0.05},
)


def adabound(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    lr, gamma = hyper["lr"], hyper["gamma"]
    base = state.setdefault("_base", hyper.get("base_lr", lr))
    m, v = blend(state, "m", b1, g), blend(state, "v", b2, g * g)
    if hyper["amsbound"]:
        v = state["vmax"] = np.maximum(state.get("vmax", 0 * g), v)
    rate = lr * np.sqrt(ONE - b2**t) / (ONE - b1**t) / (np.sqrt(v) + hyper["eps"])
    final = hyper["final_lr"] * lr / base
    lower, upper = final * (ONE - ONE / (gamma * t + ONE)), final * (ONE + ONE / (gamma * t))
    return p - np.minimum(np.maximum(rate, lower), upper) * m


def adabound_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import AdaBound

    class Exact(AdaBound):
        @staticmethod
        def apply_ams_bound(*given: Any, **named: Any) -> Any:
            return AdaBound.apply_ams_bound(*given, exp_avg_sq_eps=0.0, **named)

    return Exact(groups, foreach=False, **arguments)


def po_arguments(hyper: Hyper) -> Hyper:
    if hyper.get("base_lr", hyper["lr"]) != hyper["lr"]:
        raise ValueError("po's base_lr is the first lr")
    same = ("lr", "betas", "final_lr", "gamma", "eps", "weight_decay", "maximize")
    return {name: hyper[name] for name in same} | {
        "ams_bound": hyper["amsbound"],
        "weight_decouple": False,
    }


ORACLES: dict[str, dict[str, Oracle]] = {
    "AdaBound": {
        "closed": by_formula(adabound),
        "po": by_class(
            adabound_of_po,
            po_arguments,
            {"exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "vmax"},
        ),
    },
}
CP, C = ("closed", "po"), ("closed",)
CASES: dict[str, tuple[Case, ...]] = {
    "AdaBound": cases_of(
        "AdaBound",
        DEFAULTS["AdaBound"],
        ("default", CP, {}),
        ("odd", CP, {"lr": 0.02, "betas": [0.3, 0.7], "eps": 1e-4, "gamma": 0.1}),
        ("other", CP, {"lr": 0.05, "betas": [0.8, 0.95], "final_lr": 0.01, "eps": 1e-3}),
        ("closed_in", CP, {"lr": 0.01, "final_lr": 0.02, "gamma": 5.0}),
        ("amsbound", CP, {"amsbound": True}),
        ("amsbound_odd", CP, {"lr": 0.02, "betas": [0.7, 0.6], "gamma": 0.3, "amsbound": True}),
        ("weight_decay", CP, {"lr": 0.01, "weight_decay": 0.1, "gamma": 0.02}),
        ("maximize", CP, {"lr": 0.01, "weight_decay": 0.1, "maximize": True, "amsbound": True}),
        ("base_lr", C, {"lr": 0.01, "base_lr": 0.3, "gamma": 0.05}),
        ("long", CP, {"lr": 0.01, "gamma": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", C, {"lr": 0.01, "gamma": 0.05}, {"missing": MISSING}),
        ("missing_amsbound", C, {"betas": [0.9, 0.8], "amsbound": True}, {"missing": MISSING}),
        ("groups", CP, {"gamma": 0.02}, {"groups": GROUPS}),
        ("lr_change", CP, {"gamma": 0.02}, {"lr_changes": LATER}),
    ),
}
