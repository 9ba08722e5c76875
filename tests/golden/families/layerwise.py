"""StableAdamW, after optimi and pytorch_optimizer (po); LARS, after timm and optax; NovoGrad.

optimi and po count StableAdamW's steps by group: where a gradient is missing, the formula alone is
right. timm adapts LARS where there is no decay with always_adapt=True, and keeps lr out of the
average, so that it is right while lr stays; it leaves a gradient of 0 with the decay at full lr.
optax divides by the norm of the gradient and the decay together: it is right without decay.
"""

from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State
from ..oracles import Oracle, by_class, by_formula, by_optax, of_timm
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = "sums"
PACKAGES = ("optax", "jax", "torch", "torch-optimi", "pytorch_optimizer", "timm")
DEFAULTS: dict[str, Hyper] = {
    "StableAdamW": {"lr": 1e-3, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 1e-2},
    "LARS": {
        "lr": 1.0,
        "momentum": 0.9,
        "nesterov": False,
        "trust_coefficient": 1e-3,
        "eps": 0.0,
    },
    "NovoGrad": {"lr": 1e-3, "betas": [0.9, 0.25], "eps": 1e-8, "grad_averaging": False},
}


def stable_adamw(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    """Compute algorithm 2 of the paper, with beta * (1 - beta^(t-1)) / (1 - beta^t) for beta."""
    kept = [b * (ONE - b ** (t - 1)) / (ONE - b**t) if t > 1 else b * 0 for b in hyper["betas"]]
    m = state["m"] = kept[0] * state.get("m", 0 * g) + (ONE - kept[0]) * g
    v = state["v"] = kept[1] * state.get("v", 0 * g) + (ONE - kept[1]) * g * g
    eps = hyper["eps"]
    terms = g * g / np.maximum(v, eps * eps)
    rate = hyper["lr"] / max(ONE, (sum(terms, Decimal(0)) / len(g)).sqrt())
    p = p - rate * hyper["weight_decay"] * p
    return p - rate * m / (np.sqrt(v) + eps)


def stable_of_optimi(groups: Any, **arguments: Any) -> Any:
    from optimi import StableAdamW

    return StableAdamW(groups, **arguments)


def stable_of_optimi_arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("optimi cannot maximize")
    names = ("lr", "betas", "eps", "weight_decay")
    return {name: hyper[name] for name in names} | {"foreach": False, "triton": False}


def stable_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import StableAdamW

    return StableAdamW(groups, **arguments)


def stable_of_po_arguments(hyper: Hyper) -> Hyper:
    names = ("lr", "betas", "eps", "weight_decay", "maximize")
    return {name: hyper[name] for name in names} | {"foreach": False}


def norm(numbers: Numbers) -> Decimal:
    return sum((x * x for x in numbers), Decimal(0)).sqrt()


def lars(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    decay, momentum = hyper["weight_decay"], hyper["momentum"]
    denominator = norm(g) + decay * norm(p) + hyper["eps"]
    there = norm(p) and denominator
    trust = hyper["trust_coefficient"] * norm(p) / denominator if there else ONE
    step = hyper["lr"] * trust * (g + decay * p)
    v = state["v"] = momentum * state.get("v", 0 * g) + step
    return p - (momentum * v + step if hyper["nesterov"] else v)


def lars_of_timm(groups: Any, **arguments: Any) -> Any:
    return of_timm("lars", "Lars")(groups, always_adapt=True, foreach=False, **arguments)


def lars_of_timm_arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("timm's LARS cannot maximize")
    names = ("lr", "momentum", "nesterov", "weight_decay", "eps")
    return {name: hyper[name] for name in names} | {"trust_coeff": hyper["trust_coefficient"]}


def lars_of_optax(hyper: Hyper) -> Any:
    import optax

    if hyper["weight_decay"]:
        raise ValueError("optax has another denominator with weight decay")
    names = ("momentum", "nesterov", "trust_coefficient", "eps")
    return optax.lars(hyper["lr"], weight_decay=0.0, **{name: hyper[name] for name in names})


def lars_state_of_optax(kept: Any, name: str) -> Any:
    import optax

    return -optax.tree.get(kept, name)  # its average is that of steps down


def novograd(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    (b1, b2), size = hyper["betas"], norm(g) ** 2
    v = state["_v"] = size if t == 1 else b2 * state["_v"] + (ONE - b2) * size
    state["v"] = np.array(v)  # one number
    denominator = v.sqrt() + hyper["eps"]
    u = (g / denominator if denominator else g) + hyper["weight_decay"] * p
    taken = ONE - b1 if hyper["grad_averaging"] else ONE
    state["m"] = u if t == 1 else b1 * state["m"] + taken * u
    return p - hyper["lr"] * state["m"]


def novograd_of_optax(hyper: Hyper) -> Any:
    import optax

    if hyper["grad_averaging"]:
        raise ValueError("optax does not average")
    rule = scale_by_novograd(*hyper["betas"], hyper["eps"], hyper["weight_decay"])
    return optax.chain(rule, optax.scale(-hyper["lr"]))


@cache
def scale_by_novograd(b1: float, b2: float, eps: float, weight_decay: float) -> Any:
    """Return the transformation, the same for equal numbers: each is compiled anew."""
    import optax

    return optax.scale_by_novograd(b1, b2, eps, weight_decay=weight_decay)


def novograd_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import NovoGrad

    return NovoGrad(groups, foreach=False, **arguments)


def novograd_of_po_arguments(hyper: Hyper) -> Hyper:
    names = ("lr", "betas", "eps", "weight_decay", "grad_averaging", "maximize")
    return {name: hyper[name] for name in names}


AVERAGES = {"exp_avg": "m", "exp_avg_sq": "v"}
ORACLES: dict[str, dict[str, Oracle]] = {
    "StableAdamW": {
        "optimi": by_class(stable_of_optimi, stable_of_optimi_arguments, AVERAGES),
        "po": by_class(stable_of_po, stable_of_po_arguments, AVERAGES),
        "closed": by_formula(stable_adamw, decoupled=True),
    },
    "LARS": {
        "timm": by_class(lars_of_timm, lars_of_timm_arguments, {"momentum_buffer": "v"}),
        "optax": by_optax(lars_of_optax, {"trace": "v"}, with_rate=True, read=lars_state_of_optax),
        "closed": by_formula(lars, decoupled=True),
    },
    "NovoGrad": {
        "optax": by_optax(novograd_of_optax, {"mu": "m", "nu": "v"}, with_rate=True),
        "po": by_class(
            novograd_of_po, novograd_of_po_arguments, {"moments": "m", "grads_ema": "v"}
        ),
        "closed": by_formula(novograd, decoupled=True),
    },
}
IPC, PC, C = ("optimi", "po", "closed"), ("po", "closed"), ("closed",)
OC, OPC = ("optax", "closed"), ("optax", "po", "closed")
LATER_SHARES = {10: 0.3, 20: 5.0}
TC = ("timm", "closed")
DENSE = {"inputs": "dense"}
CASES: dict[str, tuple[Case, ...]] = {
    "StableAdamW": cases_of(
        "StableAdamW",
        DEFAULTS["StableAdamW"],
        ("default", IPC, {}),
        ("odd", IPC, {"lr": 0.03, "betas": [0.6, 0.8], "eps": 1e-3, "weight_decay": 0.2}),
        ("forgets", IPC, {"lr": 0.01, "betas": [0.0, 0.0], "eps": 0.1}),
        ("slow", IPC, {"lr": 0.01, "betas": [0.9, 0.9999]}),
        ("eps_zero", IPC, {"eps": 0.0, "lr": 0.02}, {"inputs": "dense"}),
        ("no_decay", IPC, {"lr": 0.01, "weight_decay": 0.0}),
        ("maximize", PC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("zeros", IPC, {"lr": 0.01}, {"inputs": "zeros"}),
        ("huge", IPC, {"lr": 0.01}, {"inputs": "huge"}),
        ("missing", C, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", IPC, {}, {"groups": GROUPS}),
        ("lr_change", IPC, {}, {"lr_changes": LATER}),
    ),
    "LARS": cases_of(
        "LARS",
        DEFAULTS["LARS"],
        ("default", OC, {}),
        ("odd", OC, {"lr": 2.0, "momentum": 0.3, "trust_coefficient": 0.05, "eps": 0.1}),
        ("nesterov", OC, {"nesterov": True, "momentum": 0.7}),
        ("no_momentum", OC, {"lr": 3.0, "momentum": 0.0}),
        ("weight_decay", C, {"lr": 2.0, "weight_decay": 0.1}),
        ("decay_dense", TC, {"momentum": 0.8, "weight_decay": 0.1}, DENSE),
        ("decay_nesterov", TC, {"weight_decay": 0.3, "eps": 0.2, "nesterov": True}, DENSE),
        ("maximize", C, {"weight_decay": 0.1, "maximize": True}),
        ("zeros", OC, {"lr": 0.01}, {"inputs": "zeros"}),
        ("zeros_decay", C, {"lr": 0.01, "weight_decay": 0.1}, {"inputs": "zeros"}),
        ("tiny", OC, {}, {"inputs": "tiny"}),
        ("huge", OC, {}, {"inputs": "huge"}),
        ("missing", C, {"weight_decay": 0.01}, {"missing": MISSING}),
        ("groups", C, {}, {"groups": GROUPS}),
        ("lr_change", OC, {}, {"lr_changes": LATER_SHARES}),
    ),
    "NovoGrad": cases_of(
        "NovoGrad",
        DEFAULTS["NovoGrad"],
        ("default", OPC, {}),
        ("odd", OPC, {"lr": 0.03, "betas": [0.6, 0.9], "eps": 1e-2}),
        ("forgets", OPC, {"lr": 0.01, "betas": [0.0, 0.0], "eps": 1e-3}),
        ("averaged", PC, {"lr": 0.05, "betas": [0.95, 0.98], "grad_averaging": True}),
        ("weight_decay", OPC, {"lr": 0.01, "weight_decay": 0.1}),
        ("eps_zero", OPC, {"lr": 0.01, "eps": 0.0}, {"inputs": "dense"}),
        ("maximize", OPC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("zeros", OPC, {"lr": 0.01}, {"inputs": "zeros"}),
        ("huge", OPC, {"lr": 0.01}, {"inputs": "huge"}),
        ("missing", OPC, {"lr": 0.01, "grad_averaging": False}, {"missing": MISSING}),
        ("groups", OPC, {}, {"groups": GROUPS}),
        ("lr_change", OPC, {}, {"lr_changes": LATER}),
    ),
}
