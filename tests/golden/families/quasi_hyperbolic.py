"""QHM and QHAdam, after the paper's formulas, and pytorch_optimizer (po) in float64."""

from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula
from ..vector_cases import GROUPS, LATER, MISSING, Case, Hyper
from . import cases_of

FOLDER = ""
PACKAGES = ("torch", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {
    "QHM": {"lr": 1e-2, "momentum": 0.999, "nu": 0.7},
    "QHAdam": {"lr": 1e-3, "betas": [0.995, 0.999], "nus": [0.7, 1.0], "eps": 1e-8},
}


def qhm(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    nu, m = hyper["nu"], blend(state, "m", hyper["momentum"], g)
    return p - hyper["lr"] * ((ONE - nu) * g + nu * m)


def qhadam(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    (b1, b2), (nu1, nu2) = hyper["betas"], hyper["nus"]
    m = blend(state, "m", b1, g) / (ONE - b1**t)
    v = blend(state, "v", b2, g * g) / (ONE - b2**t)
    below = np.sqrt((ONE - nu2) * g * g + nu2 * v) + hyper["eps"]
    return p - hyper["lr"] * ((ONE - nu1) * g + nu1 * m) / below


def qhm_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import QHM

    return QHM(groups, **arguments)


def qhadam_of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import QHAdam

    return QHAdam(groups, **arguments)


def qhm_arguments(hyper: Hyper) -> Hyper:
    return {name: hyper[name] for name in ("lr", "momentum", "nu", "weight_decay", "maximize")}


def qhadam_arguments(hyper: Hyper) -> Hyper:
    names = ("lr", "betas", "eps", "weight_decay", "maximize")
    return {name: hyper[name] for name in names} | {"nus": tuple(hyper["nus"])}


def step_in_float64(optimizer: Any, t: int) -> None:
    """Make a step whose weights, which po keeps in float32, are float64."""
    for group in optimizer.param_groups:
        optimizer.init_group(group)
        for param in group["params"]:
            state = optimizer.state[param]
            state |= {k: state[k].double() for k in ("beta1_weight", "beta2_weight") if k in state}
    optimizer.step()


def uncorrected(optimizer: Any, param: Any, name: str) -> Any:
    """Return an average as it is before its bias correction; po's are corrected as they are."""
    (group,) = [g for g in optimizer.param_groups if any(p is param for p in g["params"])]
    which = {"exp_avg": 0, "exp_avg_sq": 1}[name]
    state = optimizer.state[param]
    weight = state[f"beta{which + 1}_weight"] * (1.0 - group["betas"][which])
    return state[name] * weight.item()


ORACLES: dict[str, dict[str, Oracle]] = {
    "QHM": {
        "closed": by_formula(qhm),
        "po": by_class(qhm_of_po, qhm_arguments, {"momentum_buffer": "m"}),
    },
    "QHAdam": {
        "closed": by_formula(qhadam),
        "po": by_class(
            qhadam_of_po,
            qhadam_arguments,
            {"exp_avg": "m", "exp_avg_sq": "v"},
            step=step_in_float64,
            read=uncorrected,
        ),
    },
}
CP = ("closed", "po")
CASES: dict[str, tuple[Case, ...]] = {
    "QHM": cases_of(
        "QHM",
        DEFAULTS["QHM"],
        ("default", CP, {}),
        ("odd", CP, {"lr": 0.05, "momentum": 0.37, "nu": 0.21}),
        ("momentum", CP, {"momentum": 0.9, "nu": 1.0}),
        ("gradient", CP, {"nu": 0.0}),
        ("nesterov", CP, {"momentum": 0.9, "nu": 0.9}),
        ("weight_decay", CP, {"momentum": 0.9, "weight_decay": 0.1}),
        ("maximize", CP, {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
        ("long", CP, {}, {"inputs": "long", "steps": 200}),
        ("missing", CP, {"momentum": 0.8}, {"missing": MISSING}),
        ("groups", CP, {}, {"groups": GROUPS}),
        ("lr_change", CP, {}, {"lr_changes": LATER}),
    ),
    "QHAdam": cases_of(
        "QHAdam",
        DEFAULTS["QHAdam"],
        ("default", CP, {}),
        ("odd", CP, {"lr": 0.02, "betas": [0.6, 0.85], "nus": [0.3, 0.4]}),
        ("adam", CP, {"lr": 0.01, "betas": [0.9, 0.999], "nus": [1.0, 1.0]}),
        ("gradient", CP, {"lr": 0.01, "betas": [0.8, 0.95], "nus": [0.0, 0.5]}),
        ("eps", CP, {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-3}),
        ("weight_decay", CP, {"lr": 0.01, "weight_decay": 0.1}),
        ("maximize", CP, {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
        ("long", CP, {"lr": 0.01}, {"inputs": "long", "steps": 200}),
        ("missing", CP, {"lr": 0.01}, {"missing": MISSING}),
        ("groups", CP, {}, {"groups": GROUPS}),
        ("lr_change", CP, {}, {"lr_changes": LATER}),
    ),
}
