"""Rprop, after PyTorch and a formula; optax compares signs that are a step old.

PyTorch has no weight decay in it, so the formula alone computes that.
"""

from typing import Any

import numpy as np

from ..oracle_closed_form import Numbers, State
from ..oracles import Oracle, by_class, by_formula
from ..vector_cases import MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("torch",)
DEFAULTS: dict[str, Hyper] = {
    "Rprop": {"lr": 1e-2, "etas": [0.5, 1.2], "step_sizes": [1e-6, 50.0]},
}


def rprop(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    shrink, grow = hyper["etas"]
    smallest, largest = hyper["step_sizes"]
    prev = state.get("prev", 0 * g)
    length = state.get("length", 0 * g + hyper["lr"])
    turn = g * prev  # of numbers that cannot underflow
    length = np.where(turn > 0, length * grow, np.where(turn < 0, length * shrink, length))
    state["length"] = np.minimum(np.maximum(length, smallest), largest)
    state["prev"] = np.where(turn < 0, 0 * g, g)
    sign = np.array([int(x > 0) - int(x < 0) for x in state["prev"]], dtype=object)
    return p - state["length"] * sign


def rprop_of_torch(groups: Any, **arguments: Any) -> Any:
    import torch

    return torch.optim.Rprop(groups, foreach=False, **arguments)


def arguments(hyper: Hyper) -> Hyper:
    if hyper["weight_decay"]:
        raise ValueError("torch.optim.Rprop has no weight decay")
    return {name: hyper[name] for name in ("lr", "etas", "step_sizes", "maximize")}


ORACLES: dict[str, dict[str, Oracle]] = {
    "Rprop": {
        "torch": by_class(rprop_of_torch, arguments, {"prev": "prev", "step_size": "length"}),
        "closed": by_formula(rprop),
    },
}
TC, C = ("torch", "closed"), ("closed",)
OWN: tuple[Hyper, ...] = (
    {"params": [0], "lr": 0.1},
    {"params": [1], "etas": [0.3, 1.5]},
    {"params": [2], "step_sizes": [1e-3, 0.02]},
)
CASES: dict[str, tuple[Case, ...]] = {
    "Rprop": cases_of(
        "Rprop",
        DEFAULTS["Rprop"],
        ("default", TC, {}),
        ("odd", TC, {"lr": 0.05, "etas": [0.3, 1.5]}),
        ("bold", TC, {"etas": [0.9, 2.0]}),
        ("bounded", TC, {"step_sizes": [5e-3, 0.05]}),
        ("first_too_long", TC, {"lr": 0.2, "step_sizes": [0.0, 0.1]}),
        ("first_too_short", TC, {"lr": 1e-4, "step_sizes": [2e-3, 1.0]}),
        ("weight_decay", C, {"weight_decay": 0.3}),
        ("maximize", TC, {"lr": 0.02, "maximize": True}),
        ("maximize_decay", C, {"lr": 0.02, "weight_decay": 0.3, "maximize": True}),
        ("long", TC, {}, {"inputs": "long", "steps": 200}),
        ("missing", TC, {}, {"missing": MISSING}),
        ("groups", TC, {}, {"groups": OWN}),
        ("lr_change", TC, {}, {"lr_changes": {1: 0.05, 10: 0.3}, "missing": MISSING}),
    ),
}
