"""LaProp, after timm, and ADOPT, after optax, each against its formula.

timm keeps lr in LaProp's average, so that where lr changes it computes something else; its bias
correction is in PyTorch's default dtype, which is set to float64 here. optax has no weight decay
for ADOPT, which is decoupled here.
"""

from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, by_optax, of_timm
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("timm", "torch", "optax", "jax")
DEFAULTS: dict[str, Hyper] = {
    "LaProp": {"lr": 4e-4, "betas": [0.9, 0.999], "eps": 1e-15},
    "ADOPT": {"lr": 1e-3, "betas": [0.9, 0.9999], "eps": 1e-6, "clip_exponent": 0.25},
}


def laprop(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    v = blend(state, "v", b2, g * g)
    m = blend(state, "m", b1, g / (np.sqrt(v / (ONE - b2**t)) + hyper["eps"]))
    p = p - hyper["lr"] * m / (ONE - b1**t)
    return p - hyper["lr"] * hyper["weight_decay"] * p


def adopt(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    p = p - hyper["lr"] * hyper["weight_decay"] * p
    if t == 1:
        state["v"], state["m"] = g * g, 0 * g
        return p
    bound = Decimal(t - 1) ** hyper["clip_exponent"]
    u = g / np.maximum(np.sqrt(state["v"]), hyper["eps"])
    m = blend(state, "m", b1, np.minimum(np.maximum(u, -bound), bound))
    blend(state, "v", b2, g * g)
    return p - hyper["lr"] * m


def laprop_of_timm(groups: Any, **arguments: Any) -> Any:
    return of_timm("laprop", "LaProp")(groups, **arguments)


def timm_arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("timm's LaProp cannot maximize")
    return {name: hyper[name] for name in ("lr", "betas", "eps", "weight_decay")}


def in_float64(optimizer: Any, t: int) -> None:
    """Make a step with bias corrections in float64."""
    import torch

    torch.set_default_dtype(torch.float64)
    optimizer.step()
    torch.set_default_dtype(torch.float32)


def without_rate(optimizer: Any, param: Any, name: str) -> Any:
    """Return state, the average of gradients without the learning rate that timm has in it."""
    found = optimizer.state[param].get(name)
    if name != "exp_avg":
        return found
    return found / next(
        group["lr"]
        for group in optimizer.param_groups
        if any(one is param for one in group["params"])
    )


def adopt_of_optax(hyper: Hyper) -> Any:
    from optax.contrib import scale_by_adopt

    power = hyper["clip_exponent"]
    return scale_by_adopt(*hyper["betas"], hyper["eps"], clip_value_fn=lambda x: x**power)


ORACLES: dict[str, dict[str, Oracle]] = {
    "LaProp": {
        "timm": by_class(
            laprop_of_timm,
            timm_arguments,
            {"exp_avg": "m", "exp_avg_sq": "v"},
            in_float64,
            without_rate,
        ),
        "closed": by_formula(laprop, decoupled=True),
    },
    "ADOPT": {
        "optax": by_optax(adopt_of_optax, {"mu": "m", "nu": "v"}, decoupled=True),
        "closed": by_formula(adopt, decoupled=True),
    },
}
TC, OC = ("timm", "closed"), ("optax", "closed")
CASES: dict[str, tuple[Case, ...]] = {
    "LaProp": cases_of(
        "LaProp",
        DEFAULTS["LaProp"],
        ("default", TC, {}),
        ("odd", TC, {"lr": 0.02, "betas": [0.3, 0.7], "eps": 1e-4}),
        ("other", TC, {"lr": 0.05, "betas": [0.95, 0.8], "eps": 1e-3}),
        ("eps_big", TC, {"lr": 0.1, "eps": 0.1}),
        ("weight_decay", TC, {"lr": 0.01, "weight_decay": 0.1}),
        ("weight_decay_big", TC, {"lr": 0.1, "weight_decay": 2.0}),
        ("maximize", ("closed",), {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", TC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", TC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", TC, {}, {"groups": GROUPS}),
        ("lr_change", ("closed",), {}, {"lr_changes": LATER}),
    ),
    "ADOPT": cases_of(
        "ADOPT",
        DEFAULTS["ADOPT"],
        ("default", OC, {}),
        ("odd", OC, {"lr": 0.02, "betas": [0.3, 0.7], "eps": 1e-3}),
        ("other", OC, {"lr": 0.05, "betas": [0.95, 0.9], "clip_exponent": 0.5}),
        ("bound_of_one", OC, {"lr": 0.01, "clip_exponent": 0.0}),
        ("eps_big", OC, {"lr": 0.1, "eps": 0.1}),
        ("weight_decay", OC, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", OC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", OC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", OC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", OC, {}, {"groups": GROUPS}),
        ("lr_change", OC, {}, {"lr_changes": LATER}),
    ),
}
