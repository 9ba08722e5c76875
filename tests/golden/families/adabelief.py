"""AdaBelief, after optax and timm, and Yogi, after optax and pytorch_optimizer (po).

timm and po have one eps inside and outside the root; po counts the steps of a group.
"""

from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, by_optax, of_timm
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("optax", "jax", "timm", "torch", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {
    "AdaBelief": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-16, "eps_root": 1e-16},
    "Yogi": {
        "lr": 1e-2,
        "betas": [0.9, 0.999],
        "eps": 1e-3,
        "initial_accumulator_value": 1e-6,
    },
}


def sign(numbers: Numbers) -> Numbers:
    return np.array([Decimal((x > 0) - (x < 0)) for x in numbers], dtype=object)


def corrected(m: Numbers, v: Numbers, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    return m / (ONE - b1**t) / (np.sqrt(v / (ONE - b2**t)) + hyper["eps"])


def adabelief(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    m = blend(state, "m", b1, g)
    v = state["v"] = blend(state, "v", b2, (g - m) ** 2) + hyper["eps_root"]
    return p - hyper["lr"] * (corrected(m, v, t, hyper) + hyper["weight_decay"] * p)


def yogi(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    begin = 0 * g + hyper["initial_accumulator_value"]
    state.setdefault("m", begin)
    old = state.get("v", begin)
    m = blend(state, "m", b1, g)
    v = state["v"] = old - (ONE - b2) * sign(old - g * g) * g * g
    return p - hyper["lr"] * corrected(m, v, t, hyper)


def adabelief_of_optax(hyper: Hyper) -> Any:
    import optax

    return optax.scale_by_belief(*hyper["betas"], hyper["eps"], hyper["eps_root"])


def adabelief_of_timm(groups: Any, **arguments: Any) -> Any:
    return of_timm("adabelief", "AdaBelief")(groups, **arguments)


def timm_arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"] or hyper["eps"] != hyper["eps_root"]:
        raise ValueError("timm's AdaBelief has one eps and cannot maximize")
    return {name: hyper[name] for name in ("lr", "betas", "eps", "weight_decay")} | {
        "decoupled_decay": True,
        "rectify": False,
    }


def yogi_of_optax(hyper: Hyper) -> Any:
    import optax

    begin = hyper["initial_accumulator_value"]
    return optax.scale_by_yogi(*hyper["betas"], hyper["eps"], initial_accumulator_value=begin)


def yogi_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import Yogi

    return Yogi(groups, **arguments)


def yogi_arguments(hyper: Hyper) -> Hyper:
    return {name: hyper[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")} | {
        "initial_accumulator": hyper["initial_accumulator_value"],
        "weight_decouple": False,
    }


ORACLES: dict[str, dict[str, Oracle]] = {
    "AdaBelief": {
        "optax": by_optax(adabelief_of_optax, {"mu": "m", "nu": "v"}, decoupled=True),
        "timm": by_class(adabelief_of_timm, timm_arguments, {"exp_avg": "m", "exp_avg_var": "v"}),
        "closed": by_formula(adabelief, decoupled=True),
    },
    "Yogi": {
        "optax": by_optax(yogi_of_optax, {"mu": "m", "nu": "v"}),
        "po": by_class(yogi_of_po, yogi_arguments, {"exp_avg": "m", "exp_avg_sq": "v"}),
        "closed": by_formula(yogi),
    },
}
OTC, OC, OPC = ("optax", "timm", "closed"), ("optax", "closed"), ("optax", "po", "closed")
CASES: dict[str, tuple[Case, ...]] = {
    "AdaBelief": cases_of(
        "AdaBelief",
        DEFAULTS["AdaBelief"],
        ("default", OTC, {}),
        ("odd", OTC, {"lr": 0.02, "betas": [0.3, 0.7], "eps": 1e-4, "eps_root": 1e-4}),
        ("other", OC, {"lr": 0.05, "betas": [0.8, 0.95], "eps": 1e-3, "eps_root": 1e-7}),
        ("eps_root_big", OC, {"lr": 0.01, "eps_root": 0.1}),
        ("eps_root_zero", OC, {"lr": 0.01, "eps": 1e-3, "eps_root": 0.0}),
        ("eps_big", OC, {"lr": 0.1, "eps": 0.1}),
        ("weight_decay", OTC, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", OC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", OTC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", OTC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", OTC, {}, {"groups": GROUPS}),
        ("lr_change", OTC, {}, {"lr_changes": LATER}),
    ),
    "Yogi": cases_of(
        "Yogi",
        DEFAULTS["Yogi"],
        ("default", OPC, {}),
        ("odd", OPC, {"lr": 0.03, "betas": [0.3, 0.7], "eps": 1e-6}),
        ("other", OPC, {"lr": 0.3, "betas": [0.8, 0.95], "initial_accumulator_value": 0.1}),
        ("from_zero", OPC, {"eps": 1e-8, "initial_accumulator_value": 0.0}),
        ("weight_decay", OPC, {"weight_decay": 0.1}),
        ("maximize", OPC, {"lr": 0.02, "weight_decay": 0.1, "maximize": True}),
        ("long", OPC, {}, {"inputs": "long", "steps": 200}),
        ("missing", OC, {}, {"missing": MISSING}),
        ("groups", OPC, {}, {"groups": GROUPS}),
        ("lr_change", OPC, {}, {"lr_changes": LATER}),
    ),
}
