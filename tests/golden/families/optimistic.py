"""OptimisticAdam, after optax with nesterov=False and the paper's formula."""

from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_formula, by_optax
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("optax", "jax")
DEFAULTS: dict[str, Hyper] = {
    "OptimisticAdam": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "optimism": 1.0}
}


def optimistic_adam(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    b1, b2 = hyper["betas"]
    m = blend(state, "m", b1, g) / (ONE - b1**t)
    v = blend(state, "v", b2, g * g) / (ONE - b2**t)
    now = m / (np.sqrt(v) + hyper["eps"])
    before = now if t == 1 else state["u"]
    state["u"] = now
    return p - hyper["lr"] * ((ONE + hyper["optimism"]) * now - hyper["optimism"] * before)


def of_optax(hyper: Hyper, nesterov: bool = False) -> Any:
    import optax

    b1, b2 = hyper["betas"]
    return optax.chain(
        optax.scale_by_adam(b1, b2, hyper["eps"], nesterov=nesterov),
        optax.scale_by_optimistic_gradient(alpha=1.0, beta=hyper["optimism"]),
    )


STATE = {"mu": "m", "nu": "v", "previous_gradient": "u"}
ORACLES: dict[str, dict[str, Oracle]] = {
    "OptimisticAdam": {
        "optax": by_optax(of_optax, STATE),
        "closed": by_formula(optimistic_adam),
    },
}
OC = ("optax", "closed")
CASES: dict[str, tuple[Case, ...]] = {
    "OptimisticAdam": cases_of(
        "OptimisticAdam",
        DEFAULTS["OptimisticAdam"],
        ("default", OC, {}),
        ("odd", OC, {"lr": 0.02, "betas": [0.6, 0.85], "optimism": 0.4}),
        ("adam", OC, {"lr": 0.01, "optimism": 0.0}),
        ("eps", OC, {"lr": 0.01, "betas": [0.8, 0.99], "eps": 1e-3, "optimism": 2.5}),
        ("weight_decay", OC, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", OC, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", OC, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", OC, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", OC, {}, {"groups": GROUPS}),
        ("lr_change", OC, {}, {"lr_changes": LATER}),
    ),
}
