"""Lion, after optax and its authors, and Signum, after optax and pytorch_optimizer (po)."""

from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula, by_optax
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("optax", "jax", "torch", "pytorch_optimizer", "lion-pytorch")
DEFAULTS: dict[str, Hyper] = {
    "Lion": {"lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0.0},
    "Signum": {"lr": 1e-3, "momentum": 0.9},
}


def sign(numbers: Numbers) -> Numbers:
    return np.array([Decimal((x > 0) - (x < 0)) for x in numbers], dtype=object)


def lion(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    u = sign(b1 * state.get("m", 0 * g) + (ONE - b1) * g)
    blend(state, "m", b2, g)
    return p - hyper["lr"] * (u + hyper["weight_decay"] * p)


def signum(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    return p - hyper["lr"] * sign(blend(state, "m", hyper["momentum"], g))


def lion_of_optax(hyper: Hyper) -> Any:
    import optax

    return optax.scale_by_lion(*hyper["betas"])


def lion_of_authors(groups: Any, **arguments: Any) -> Any:
    from lion_pytorch import Lion

    return Lion(groups, **arguments)


def lion_arguments(hyper: Hyper) -> Hyper:
    if hyper["maximize"]:
        raise ValueError("lion_pytorch cannot maximize")
    return {name: hyper[name] for name in ("lr", "betas", "weight_decay")}


def signum_of_optax(hyper: Hyper) -> Any:
    import optax

    return optax.chain(
        optax.ema(hyper["momentum"], debias=False),
        optax.scale_by_sign(),
    )


def signum_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import SignSGD

    return SignSGD(groups, **arguments)


def signum_arguments(hyper: Hyper) -> Hyper:
    return {
        "lr": hyper["lr"],
        "momentum": hyper["momentum"],
        "weight_decay": hyper["weight_decay"],
        "weight_decouple": False,
        "maximize": hyper["maximize"],
    }


ORACLES: dict[str, dict[str, Oracle]] = {
    "Lion": {
        "optax": by_optax(lion_of_optax, {"mu": "m"}, decoupled=True),
        "authors": by_class(lion_of_authors, lion_arguments, {"exp_avg": "m"}),
        "closed": by_formula(lion, decoupled=True),
    },
    "Signum": {
        "optax": by_optax(signum_of_optax, {"ema": "m"}),
        "po": by_class(signum_of_po, signum_arguments, {"momentum_buffer": "m"}),
        "closed": by_formula(signum),
    },
}
OA, OC, OP = ("optax", "authors"), ("optax", "closed"), ("optax", "po", "closed")
CASES: dict[str, tuple[Case, ...]] = {
    "Lion": cases_of(
        "Lion",
        DEFAULTS["Lion"],
        ("default", OA, {}),
        ("odd", (*OA, "closed"), {"lr": 0.02, "betas": [0.3, 0.7]}),
        ("tiger", OC, {"lr": 0.01, "betas": [0.95, 0.95]}),
        ("forgets", OC, {"lr": 0.01, "betas": [0.0, 0.5]}),
        ("weight_decay", OA, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", OC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", OC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", OC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", OC, {}, {"groups": GROUPS}),
        ("lr_change", OC, {}, {"lr_changes": LATER}),
    ),
    "Signum": cases_of(
        "Signum",
        DEFAULTS["Signum"],
        ("default", OP, {}),
        ("odd", OP, {"lr": 0.02, "momentum": 0.35}),
        ("sign_of_the_gradient", OC, {"lr": 0.01, "momentum": 0.0}),
        ("weight_decay", OP, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", OP, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", OC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", OC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", OC, {}, {"groups": GROUPS}),
        ("lr_change", OC, {}, {"lr_changes": LATER}),
    ),
}
