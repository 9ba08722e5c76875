"""MADGRAD, after its authors' package, timm and pytorch_optimizer (po), and the paper's formula.

All three add eps to lr, which the paper does not: they are given lr - eps here.
"""

from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State
from ..oracles import Oracle, by_class, by_formula, of_timm
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("torch", "madgrad", "timm", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {"MADGRAD": {"lr": 1e-2, "momentum": 0.9, "eps": 1e-6}}


def cube_root(numbers: Numbers) -> Numbers:
    third = ONE / Decimal(3)
    return np.array([x**third if x else x for x in numbers], dtype=object)


def madgrad(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    weight = hyper["lr"] * Decimal(t).sqrt()
    start = state.setdefault("p0", p)
    state["s"] = state.get("s", 0 * g) + weight * g
    state["v"] = state.get("v", 0 * g) + weight * g * g
    z = start - state["s"] / (cube_root(state["v"]) + hyper["eps"])
    return hyper["momentum"] * p + (ONE - hyper["momentum"]) * z


def by_authors(groups: Any, **arguments: Any) -> Any:
    from madgrad import MADGRAD

    return MADGRAD(groups, **arguments)


def by_timm(groups: Any, **arguments: Any) -> Any:
    return of_timm("madgrad", "MADGRAD")(groups, **arguments)


def by_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import MADGRAD

    return MADGRAD(groups, **arguments)


def of_po(hyper: Hyper) -> Hyper:
    names = ("lr", "momentum", "eps", "weight_decay", "maximize")
    return {name: hyper[name] for name in names}


def of_others(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("they cannot maximize")
    return {name: value for name, value in of_po(hyper).items() if name != "maximize"}


def without_eps(optimizer: Any, t: int) -> None:
    """Make a step whose learning rate is what it says."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] -= group["eps"]
    optimizer.step()
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr


STATE = {"s": "s", "grad_sum_sq": "v", "x0": "p0"}
ORACLES: dict[str, dict[str, Oracle]] = {
    "MADGRAD": {
        "authors": by_class(by_authors, of_others, STATE, step=without_eps),
        "timm": by_class(by_timm, of_others, STATE, step=without_eps),
        "po": by_class(by_po, of_po, STATE, step=without_eps),
        "closed": by_formula(madgrad),
    },
}
AT, TC, CP = ("authors", "timm"), ("timm", "closed"), ("closed", "po")
CASES: dict[str, tuple[Case, ...]] = {
    "MADGRAD": cases_of(
        "MADGRAD",
        DEFAULTS["MADGRAD"],
        ("default", (*AT, "closed"), {}),
        ("odd", (*AT, "closed"), {"lr": 0.3, "momentum": 0.35, "eps": 1e-3}),
        ("eps", AT, {"eps": 3e-3}),
        ("slow", TC, {"lr": 1e-3, "momentum": 0.99}),
        ("no_momentum", ("closed",), {"momentum": 0.0}),
        ("weight_decay", AT, {"weight_decay": 0.1}),
        ("maximize", CP, {"weight_decay": 0.1, "maximize": True}),
        ("long", AT, {}, {"inputs": "long", "steps": 200}),
        ("missing", TC, {}, {"missing": MISSING}),
        ("groups", TC, {}, {"groups": GROUPS}),
        ("lr_change", AT, {}, {"lr_changes": LATER}),
    ),
}
