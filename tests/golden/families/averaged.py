"""ASGD, after PyTorch, whose eta has its default dtype (float64 here), and a formula.

In PyTorch a new learning rate acts a step late, so that the formula alone computes that.
"""

from typing import Any

from ..oracle_closed_form import ONE, Numbers, State
from ..oracles import Oracle, by_class, by_formula
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of
from .adam_relatives import in_float64, of_torch

FOLDER = ""
PACKAGES = ("torch",)
DEFAULTS: dict[str, Hyper] = {
    "ASGD": {"lr": 1e-2, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6},
}


def asgd(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    lr, lambd = hyper["lr"], hyper["lambd"]
    eta = lr / (ONE + lambd * lr * (t - 1)) ** hyper["alpha"]
    p = p - eta * (lambd * p + g)
    since = t - 1 - hyper["t0"]
    mean = state.get("mean", p)
    state["mean"] = p if since <= 1 else mean + (p - mean) / since
    return p


def arguments(hyper: Hyper) -> Hyper:
    names: Any = ("lr", "lambd", "alpha", "t0", "weight_decay", "maximize")
    return {name: hyper[name] for name in names}


ORACLES: dict[str, dict[str, Oracle]] = {
    "ASGD": {
        "torch": by_class(of_torch("ASGD"), arguments, {"ax": "mean"}, in_float64),
        "closed": by_formula(asgd),
    },
}
TC, C = ("torch", "closed"), ("closed",)
CASES: dict[str, tuple[Case, ...]] = {
    "ASGD": cases_of(
        "ASGD",
        DEFAULTS["ASGD"],
        ("default", TC, {}),
        ("odd", TC, {"lr": 0.05, "lambd": 0.3, "alpha": 0.4, "t0": 3.0}),
        ("short_steps", TC, {"lr": 0.1, "lambd": 2.0, "alpha": 1.5}),
        ("equal_steps", TC, {"lambd": 0.1, "alpha": 0.0, "t0": 10.0}),
        ("no_decay", TC, {"lambd": 0.0, "t0": 0.0}),
        ("averaged", TC, {"lr": 0.02, "t0": 7.5}),
        ("weight_decay", TC, {"weight_decay": 0.1, "t0": 5.0}),
        (
            "maximize",
            TC,
            {"lambd": 0.2, "weight_decay": 0.03, "maximize": True, "t0": 1.0},
        ),
        ("long", TC, {"lambd": 0.01, "t0": 100.0}, {"inputs": "long", "steps": 200}),
        ("missing", TC, {"lambd": 0.3, "t0": 4.0}, {"missing": MISSING}),
        ("groups", TC, {"lambd": 0.1, "t0": 2.0}, {"groups": GROUPS}),
        ("lr_change", C, {"lambd": 0.5, "t0": 6.0}, {"lr_changes": LATER}),
    ),
}
