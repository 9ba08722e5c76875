"""Adan, after timm and pytorch_optimizer (po), and AdEMAMix, after optax and po.

timm and po count the steps of a group, so that they compute no missing gradients. optax 0.2.8
weights Adan's change by 1 - beta2 where the paper has what is beta2 here: it is no oracle. po's
Adan, if it maximizes, takes the first change from the gradient before its sign is turned, so that
it is -2 g and not 0.
"""

from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, by_optax, of_timm
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("timm", "torch", "pytorch_optimizer", "optax", "jax")
DEFAULTS: dict[str, Hyper] = {
    "Adan": {"lr": 1e-3, "betas": [0.98, 0.92, 0.99], "eps": 1e-8},
    "AdEMAMix": {"lr": 1e-3, "betas": [0.9, 0.999, 0.9999], "alpha": 5.0, "eps": 1e-8},
}


def adan(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2, b3 = hyper["betas"]
    lr, last = hyper["lr"], state.get("last", g)
    m, v = blend(state, "m", b1, g), blend(state, "v", b2, g - last)
    n = blend(state, "n", b3, (g + b2 * (g - last)) ** 2)
    state["last"] = g
    u = m / (ONE - b1**t) + b2 * v / (ONE - b2**t)
    step = u / (np.sqrt(n / (ONE - b3**t)) + hyper["eps"])
    return (p - lr * step) / (ONE + lr * hyper["weight_decay"])


def ademamix(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2, b3 = hyper["betas"]
    m, v = blend(state, "m", b1, g), blend(state, "v", b2, g * g)
    mixed = m / (ONE - b1**t) + hyper["alpha"] * blend(state, "slow", b3, g)
    step = mixed / (np.sqrt(v / (ONE - b2**t)) + hyper["eps"])
    return p - hyper["lr"] * (step + hyper["weight_decay"] * p)


def adan_of_timm(groups: Any, **arguments: Any) -> Any:
    return of_timm("adan", "Adan")(groups, **arguments)


def timm_arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("timm's Adan cannot maximize")
    return {name: hyper[name] for name in ("lr", "betas", "eps", "weight_decay")}


def turned(optimizer: Any, param: Any, name: str) -> Any:
    """Return state, with the sign of the last gradient turned: both keep its negative."""
    found = optimizer.state[param].get(name)
    return -found if name in ("neg_pre_grad", "previous_grad") else found


def adan_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import Adan

    return Adan(groups, **arguments)


def ademamix_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import AdEMAMix

    return AdEMAMix(groups, **arguments)


def po_arguments(hyper: Hyper) -> Hyper:
    return {name: hyper[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")}


def po_mix_arguments(hyper: Hyper) -> Hyper:
    return po_arguments(hyper) | {"alpha": hyper["alpha"], "weight_decouple": True}


def ademamix_of_optax(hyper: Hyper) -> Any:
    from optax.contrib import scale_by_ademamix

    return scale_by_ademamix(*hyper["betas"], hyper["alpha"], hyper["eps"])


ADAN_STATE = {"exp_avg": "m", "exp_avg_diff": "v", "exp_avg_sq": "n"}
ORACLES: dict[str, dict[str, Oracle]] = {
    "Adan": {
        "timm": by_class(
            adan_of_timm, timm_arguments, ADAN_STATE | {"neg_pre_grad": "last"}, read=turned
        ),
        "po": by_class(
            adan_of_po, po_arguments, ADAN_STATE | {"previous_grad": "last"}, read=turned
        ),
        "closed": by_formula(adan, decoupled=True),
    },
    "AdEMAMix": {
        "optax": by_optax(ademamix_of_optax, {"m1": "m", "m2": "slow", "nu": "v"}, decoupled=True),
        "po": by_class(
            ademamix_of_po,
            po_mix_arguments,
            {"exp_avg": "m", "exp_avg_slow": "slow", "exp_avg_sq": "v"},
        ),
        "closed": by_formula(ademamix, decoupled=True),
    },
}
TPC, OPC, OC = ("timm", "po", "closed"), ("optax", "po", "closed"), ("optax", "closed")
CASES: dict[str, tuple[Case, ...]] = {
    "Adan": cases_of(
        "Adan",
        DEFAULTS["Adan"],
        ("default", TPC, {}),
        ("odd", TPC, {"lr": 0.02, "betas": [0.3, 0.6, 0.7], "eps": 1e-4}),
        ("other", TPC, {"lr": 0.05, "betas": [0.9, 0.2, 0.95], "eps": 1e-3}),
        ("eps_big", TPC, {"lr": 0.1, "eps": 0.1}),
        ("weight_decay", TPC, {"lr": 0.01, "weight_decay": 0.1}),
        ("weight_decay_big", TPC, {"lr": 0.1, "weight_decay": 2.0}),
        ("maximize", ("closed",), {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", TPC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", ("closed",), {"lr": 0.01}, {"missing": MISSING}),
        ("groups", TPC, {}, {"groups": GROUPS}),
        ("lr_change", TPC, {}, {"lr_changes": LATER}),
    ),
    "AdEMAMix": cases_of(
        "AdEMAMix",
        DEFAULTS["AdEMAMix"],
        ("default", OPC, {}),
        ("odd", OPC, {"lr": 0.02, "betas": [0.3, 0.7, 0.8], "alpha": 2.5, "eps": 1e-4}),
        ("other", OPC, {"lr": 0.05, "betas": [0.8, 0.95, 0.99], "alpha": 0.3, "eps": 1e-3}),
        ("alpha_zero", OPC, {"lr": 0.01, "alpha": 0.0}),
        ("eps_big", OPC, {"lr": 0.1, "eps": 0.1}),
        ("weight_decay", OPC, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", OPC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", OPC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", OC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", OPC, {}, {"groups": GROUPS}),
        ("lr_change", OPC, {}, {"lr_changes": LATER}),
    ),
}
