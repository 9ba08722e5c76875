"""Adam and SGD with decoupled weight decay, after PyTorch, torch-optimi and a formula.

PyTorch's SGD has none.
"""

from typing import Any

from ..oracle_closed_form import RULES, Numbers, State
from ..oracles import Oracle, by_class, by_formula
from ..vector_cases import ADAM, GROUPS, LATER, MISSING, Case, Hyper
from ..vector_cases import DEFAULTS as OTHERS
from . import cases_of
from .adam_relatives import AVERAGES, of_torch

FOLDER = ""
PACKAGES = ("torch", "torch-optimi")
COUPLED: Hyper = {"decoupled_weight_decay": False}
DEFAULTS: dict[str, Hyper] = {
    "Adam": ADAM | COUPLED,
    "SGD": OTHERS["SGD"] | COUPLED,
}


def after_decay(name: str) -> Any:
    def step(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
        lr, decay = hyper["lr"], hyper["weight_decay"]
        u = RULES[name](g, state, t, hyper)
        u = u if hyper.get("lr_inside") else lr * u
        return p - lr * decay * p - u

    return step


def adam_arguments(hyper: Hyper) -> Hyper:
    names = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")
    if hyper["eps_inside_sqrt"] or hyper["eps_hat"] or not hyper["bias_correction"]:
        raise ValueError("torch.optim has no such Adam")
    return {name: hyper[name] for name in names}


def sgd_of_optimi(groups: Any, **arguments: Any) -> Any:
    from optimi import SGD

    return SGD(groups, foreach=False, triton=False, **arguments)


def sgd_arguments(hyper: Hyper) -> Hyper:
    if hyper["nesterov"] or hyper["lr_inside"] or hyper["dampening"] or hyper["maximize"]:
        raise ValueError("optimi has no such SGD")
    names = ("lr", "momentum", "weight_decay")
    return {name: hyper[name] for name in names} | {"decouple_wd": True}


ORACLES: dict[str, dict[str, Oracle]] = {
    "Adam_decoupled": {
        "torch": by_class(of_torch("Adam"), adam_arguments, AVERAGES | {"max_exp_avg_sq": "vmax"}),
        "closed": by_formula(after_decay("Adam"), decoupled=True),
    },
    "SGD_decoupled": {
        "optimi": by_class(sgd_of_optimi, sgd_arguments, {"exp_avg": "buf"}),
        "closed": by_formula(after_decay("SGD"), decoupled=True),
    },
}
TC, OC, C = ("torch", "closed"), ("optimi", "closed"), ("closed",)
ON: Hyper = {"decoupled_weight_decay": True, "weight_decay": 0.1, "lr": 0.01}
MOVES: Hyper = ON | {"momentum": 0.9}
CASES: dict[str, tuple[Case, ...]] = {
    "Adam_decoupled": cases_of(
        "Adam",
        DEFAULTS["Adam"],
        ("decoupled", TC, ON),
        ("decoupled_odd", TC, ON | {"lr": 0.05, "betas": [0.6, 0.9], "weight_decay": 0.7}),
        ("decoupled_amsgrad", TC, ON | {"amsgrad": True, "betas": [0.9, 0.8]}),
        ("decoupled_inside", C, ON | {"eps_inside_sqrt": True, "eps": 1e-4}),
        ("decoupled_maximize", TC, ON | {"maximize": True}),
        ("decoupled_missing", TC, ON, {"missing": MISSING}),
        ("decoupled_groups", TC, ON, {"groups": GROUPS}),
        ("decoupled_lr_change", TC, ON, {"lr_changes": LATER}),
    ),
    "SGD_decoupled": cases_of(
        "SGD",
        DEFAULTS["SGD"],
        ("decoupled", OC, MOVES),
        ("decoupled_plain", OC, ON),
        ("decoupled_odd", OC, MOVES | {"lr": 0.2, "momentum": 0.35, "weight_decay": 0.7}),
        ("decoupled_nesterov", C, MOVES | {"nesterov": True, "maximize": True}),
        ("decoupled_inside", C, MOVES | {"lr_inside": True}, {"lr_changes": LATER}),
        ("decoupled_missing", OC, MOVES, {"missing": MISSING}),
        ("decoupled_groups", OC, MOVES, {"groups": GROUPS}),
        ("decoupled_lr_change", OC, MOVES, {"lr_changes": LATER}),
    ),
}
