"""COCOB, after optax and the paper's formula.

The reward is a sum of differences p - p0, which for large parameters are their last digits: it is
held to 1e-12 in one case, and elsewhere what it does to the parameter is.
"""

from functools import partial
from typing import Any

import numpy as np

from ..oracle_closed_form import Numbers, State
from ..oracles import Oracle, by_formula, by_optax
from ..vector_cases import LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("optax", "jax")
DEFAULTS: dict[str, Hyper] = {"COCOB": {"lr": 1.0, "alpha": 100.0, "eps": 1e-8}}


def cocob(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper, reward: str) -> Numbers:
    g = hyper["lr"] * g
    start = state.setdefault("p0", p)
    peak = state["peak"] = np.maximum(state.get("peak", 0 * g + hyper["eps"]), abs(g))
    total = state["total"] = state.get("total", 0 * g) + abs(g)
    state[reward] = np.maximum(state.get(reward, 0 * g) - g * (p - start), 0 * g)
    theta = state["theta"] = state.get("theta", 0 * g) - g
    stake = theta / (peak * np.maximum(total + peak, hyper["alpha"] * peak))
    return start + stake * (peak + state[reward])


def of_optax(hyper: Hyper) -> Any:
    from optax import contrib

    return contrib.cocob(hyper["lr"], hyper["alpha"], hyper["eps"], hyper["weight_decay"])


STATE = {
    "init_particles": "p0",
    "cumulative_gradients": "theta",
    "scale": "peak",
    "subgradients": "total",
}
ORACLES: dict[str, dict[str, Oracle]] = {
    "COCOB": {
        "optax": by_optax(of_optax, STATE, with_rate=True),
        "closed": by_formula(partial(cocob, reward="_reward")),
        "optax_reward": by_optax(of_optax, STATE | {"reward": "reward"}, with_rate=True),
        "closed_reward": by_formula(partial(cocob, reward="reward")),
    },
}
OC, REWARD = ("optax", "closed"), ("optax_reward", "closed_reward")
GROUPS: tuple[Hyper, ...] = (
    {"params": [0], "lr": 0.1},
    {"params": [1], "alpha": 20.0},
    {"params": [2], "eps": 1e-3, "weight_decay": 0.02},
)
CASES: dict[str, tuple[Case, ...]] = {
    "COCOB": cases_of(
        "COCOB",
        DEFAULTS["COCOB"],
        ("default", OC, {}),
        ("odd", OC, {"lr": 0.3, "alpha": 7.0, "eps": 0.02}),
        ("bold", OC, {"alpha": 0.5}),
        ("eps", OC, {"eps": 1e-4}),
        ("weight_decay", REWARD, {"weight_decay": 0.1}),
        ("maximize", OC, {"weight_decay": 0.1, "maximize": True}),
        ("long", OC, {}, {"inputs": "long", "steps": 200}),
        ("missing", OC, {}, {"missing": MISSING}),
        ("groups", OC, {}, {"groups": GROUPS}),
        ("lr_change", OC, {}, {"lr_changes": LATER}),
    ),
}
