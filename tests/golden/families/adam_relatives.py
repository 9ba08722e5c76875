"""Adamax, after PyTorch and optax; NAdam and RAdam, after PyTorch and a formula.

PyTorch's own numbers of a step (NAdam's product of momenta) have its default dtype, which is
float64 here. optax's NAdam has no schedule of its momentum, and its RAdam adds eps after the
correction. PyTorch works out RAdam's rho_t as a difference of numbers near 2 / (1 - beta2), of
which the first adaptive steps keep 11 digits at beta2 = 0.999: where weight decay or a large lr
multiplies that, beta2 is 0.99.
"""

from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, by_optax
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("torch", "optax", "jax")
DEFAULTS: dict[str, Hyper] = {
    "Adamax": {"lr": 2e-3, "betas": [0.9, 0.999], "eps": 1e-8},
    "NAdam": {
        "lr": 2e-3,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "momentum_decay": 4e-3,
        "decoupled_weight_decay": False,
    },
    "RAdam": {
        "lr": 1e-3,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "decoupled_weight_decay": False,
    },
}


def adamax(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    m = blend(state, "m", b1, g)
    state["u"] = np.maximum(b2 * state.get("u", 0 * g), np.abs(g) + hyper["eps"])
    return p - hyper["lr"] * (m / (ONE - b1**t)) / state["u"]


def decayed(p: Numbers, g: Numbers, hyper: Hyper) -> tuple[Numbers, Numbers]:
    """Return parameter and gradient after either kind of weight decay."""
    decay = hyper["weight_decay"]
    if hyper["decoupled_weight_decay"]:
        return p - hyper["lr"] * decay * p, g
    return p, g + decay * p


def nadam(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    p, g = decayed(p, g, hyper)
    b1, b2 = hyper["betas"]
    m, v = blend(state, "m", b1, g), blend(state, "v", b2, g * g)
    kept, fall = Decimal("0.96"), hyper["momentum_decay"]
    mu = [b1 * (ONE - kept ** (step * fall) / 2) for step in (t, t + 1)]
    product = state["_product"] = state.get("_product", ONE) * mu[0]
    n = (ONE - mu[0]) / (ONE - product) * g + mu[1] / (ONE - product * mu[1]) * m
    return p - hyper["lr"] * n / (np.sqrt(v / (ONE - b2**t)) + hyper["eps"])


def radam(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    p, g = decayed(p, g, hyper)
    b1, b2 = hyper["betas"]
    m, v = blend(state, "m", b1, g) / (ONE - b1**t), blend(state, "v", b2, g * g)
    rho = 2 / (ONE - b2) - ONE
    now = rho - 2 * t * b2**t / (ONE - b2**t)
    if now <= 5:
        return p - hyper["lr"] * m
    r = ((now - 4) * (now - 2) * rho / ((rho - 4) * (rho - 2) * now)).sqrt()
    root = (ONE - b2**t).sqrt()
    return p - hyper["lr"] * r * m * root / (np.sqrt(v) + hyper["eps"])


def of_torch(name: str) -> Any:
    def make(groups: Any, **arguments: Any) -> Any:
        import torch

        return getattr(torch.optim, name)(groups, foreach=False, **arguments)

    return make


def in_float64(optimizer: Any, t: int) -> None:
    """Make a step in which new numbers are of float64."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        optimizer.step()
    finally:
        torch.set_default_dtype(before)


def adamax_of_optax(hyper: Hyper) -> Any:
    import optax

    return optax.scale_by_adamax(*hyper["betas"], hyper["eps"])


AVERAGES = {"exp_avg": "m", "exp_avg_sq": "v"}
ORACLES: dict[str, dict[str, Oracle]] = {
    "Adamax": {
        "torch": by_class(of_torch("Adamax"), dict, {"exp_avg": "m", "exp_inf": "u"}),
        "optax": by_optax(adamax_of_optax, {"mu": "m", "nu": "u"}),
        "closed": by_formula(adamax),
    },
    "NAdam": {
        "torch": by_class(of_torch("NAdam"), dict, AVERAGES, in_float64),
        "closed": by_formula(nadam, decoupled=True),
    },
    "RAdam": {
        "torch": by_class(of_torch("RAdam"), dict, AVERAGES, in_float64),
        "closed": by_formula(radam, decoupled=True),
    },
}
TO, TC = ("torch", "optax"), ("torch", "closed")
CASES: dict[str, tuple[Case, ...]] = {
    "Adamax": cases_of(
        "Adamax",
        DEFAULTS["Adamax"],
        ("default", ("torch", "optax", "closed"), {}),
        ("odd", TO, {"lr": 0.05, "betas": [0.3, 0.7]}),
        ("forgets", TC, {"betas": [0.0, 0.5]}),
        ("maximum_forgotten", TO, {"betas": [0.8, 0.0]}),
        ("eps_big", TO, {"eps": 0.1}),
        ("eps_zero", TO, {"eps": 0.0}, {"inputs": "dense"}),
        ("weight_decay", TO, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", TO, {"lr": 0.01, "weight_decay": 0.03, "maximize": True}),
        ("long", TC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", TO, {}, {"missing": MISSING}),
        ("groups", TO, {}, {"groups": GROUPS}),
        ("lr_change", TO, {}, {"lr_changes": LATER}),
    ),
    "NAdam": cases_of(
        "NAdam",
        DEFAULTS["NAdam"],
        ("default", TC, {}),
        ("odd", TC, {"lr": 0.05, "betas": [0.3, 0.7], "momentum_decay": 1.0}),
        ("forgets", TC, {"betas": [0.0, 0.5]}),
        ("slow", TC, {"betas": [0.999, 0.9], "momentum_decay": 0.05}),
        ("half", TC, {"betas": [0.95, 0.99], "momentum_decay": 0.0}),
        ("eps_big", TC, {"eps": 0.1}),
        ("eps_zero", TC, {"eps": 0.0}, {"inputs": "dense"}),
        ("weight_decay", TC, {"lr": 0.01, "weight_decay": 0.1}),
        (
            "decoupled",
            TC,
            {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
        ),
        ("maximize", TC, {"lr": 0.01, "weight_decay": 0.03, "maximize": True}),
        ("long", TC, {"lr": 0.01, "momentum_decay": 0.1}, {"inputs": "long", "steps": 200}),
        ("missing", TC, {"momentum_decay": 0.3}, {"missing": MISSING}),
        ("groups", TC, {}, {"groups": GROUPS}),
        ("lr_change", TC, {}, {"lr_changes": LATER}),
    ),
    "RAdam": cases_of(
        "RAdam",
        DEFAULTS["RAdam"],
        ("default", TC, {}),
        ("odd", TC, {"lr": 0.05, "betas": [0.3, 0.9]}),
        ("never_adaptive", TC, {"betas": [0.8, 0.6]}),
        ("late", TC, {"betas": [0.5, 0.7]}),
        ("forgets", TC, {"betas": [0.0, 0.95]}),
        ("eps_big", TC, {"eps": 0.1}),
        ("eps_zero", TC, {"eps": 0.0}, {"inputs": "dense"}),
        ("weight_decay", TC, {"lr": 0.01, "betas": [0.9, 0.99], "weight_decay": 0.1}),
        (
            "decoupled",
            TC,
            {
                "lr": 0.01,
                "betas": [0.9, 0.99],
                "weight_decay": 0.1,
                "decoupled_weight_decay": True,
                "maximize": True,
            },
        ),
        (
            "maximize",
            TC,
            {"lr": 0.01, "betas": [0.9, 0.99], "weight_decay": 0.03, "maximize": True},
        ),
        ("long", TC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", TC, {}, {"missing": MISSING}),
        ("groups", TC, {"betas": [0.9, 0.99]}, {"groups": GROUPS}),
        ("lr_change", TC, {"betas": [0.9, 0.99]}, {"lr_changes": LATER}),
    ),
}
