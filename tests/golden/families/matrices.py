"""MuonWithAdamW: PyTorch's two side by side."""

from typing import Any
from unittest.mock import patch

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Inputs, Oracle, by_class, by_formula
from ..vector_cases import GROUPS, LATER, MISSING, SHAPES, Case, Hyper, Result
from . import cases_of

FOLDER = "sums"
PACKAGES = ("torch",)
DEFAULTS: dict[str, Hyper] = {
    "MuonWithAdamW": {
        "lr": 1e-3,
        "momentum": 0.95,
        "nesterov": True,
        "ns_coefficients": [3.4445, -4.775, 2.0315],
        "ns_steps": 5,
        "eps": 1e-7,
        "adjust_lr": "original",
        "weight_decay": 0.1,
        "adamw_lr": 1e-3,
        "adamw_betas": [0.9, 0.999],
        "adamw_eps": 1e-8,
        "adamw_weight_decay": 1e-2,
        "rule": "auto",
    },
}
NOTHING = np.empty(0)


def is_muons(hyper: Hyper, axes: int) -> bool:
    return axes == 2 and hyper["rule"] != "adamw"


def adamw(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    (beta1, beta2), lr = hyper["adamw_betas"], hyper["adamw_lr"]
    m = blend(state, "m", beta1, g) / (ONE - beta1**t)
    v = blend(state, "v", beta2, g * g) / (ONE - beta2**t)
    return p - lr * hyper["adamw_weight_decay"] * p - lr * m / (np.sqrt(v) + hyper["adamw_eps"])


def closed(case: Case, inputs: Inputs) -> Result:
    """Work AdamW out in decimal arithmetic, and Muon by singular values."""
    from ..oracle_muon import closed_one

    result = by_formula(adamw, decoupled=True)(case, inputs)
    for k, shape in enumerate(SHAPES):
        if is_muons(case.hyper(k), len(shape)):
            result.path[k], result.state["m"][k] = closed_one(case, inputs, k)
            result.state["v"][k] = NOTHING
    return result


class Both:
    """PyTorch's Muon and AdamW, with each parameter in one of them."""

    def __init__(self, groups: list[Any], hyper: Hyper) -> None:
        import torch

        from ..oracle_muon import of_torch

        self.groups, matrices, rest = groups, [], []
        for group in groups:
            own: Hyper = group["hyper"]
            names = ("lr", "momentum", "nesterov", "ns_steps", "eps", "weight_decay", "adjust_lr")
            of_muon = {"maximize": False} | {name: own[name] for name in names}
            of_muon["ns_coefficients"] = tuple(own["ns_coefficients"])
            of_adamw = {k.removeprefix("adamw_"): v for k, v in own.items() if "adamw_" in k}
            for param in group["params"]:
                if is_muons(own, param.ndim):
                    matrices.append({"params": [param]} | of_torch(of_muon))
                else:
                    rest.append({"params": [param]} | of_adamw)
        made = [torch.optim.Muon(matrices)] if matrices else []
        self.optimizers = [*made, torch.optim.AdamW(rest)]
        self.param_groups = made[0].param_groups if made else []  # whose lr is changed

    def step(self) -> None:
        import torch

        for group in self.groups:
            for param in group["params"] if group["hyper"]["maximize"] else ():
                param.grad = None if param.grad is None else -param.grad
        # A copy, as the cast to bfloat16 makes one: what follows writes into it.
        with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            for optimizer in self.optimizers:
                optimizer.step()


def state_of(both: Both, param: Any, name: str) -> Any:
    found = next(o.state[param] for o in both.optimizers if param in o.state)
    if name == "m":
        return found["exp_avg"] if "exp_avg" in found else found["momentum_buffer"]
    return found.get("exp_avg_sq", NOTHING)


ORACLES: dict[str, dict[str, Oracle]] = {
    "MuonWithAdamW": {
        "torch": by_class(
            Both, lambda hyper: {"hyper": hyper}, {"m": "m", "v": "v"}, read=state_of
        ),
        "closed": closed,
    },
}
TC = ("torch", "closed")
ODD: Hyper = {"lr": 0.02, "momentum": 0.6, "ns_steps": 3, "ns_coefficients": [2.0, -1.5, 0.5]}
OTHERS: Hyper = {"adamw_lr": 0.05, "adamw_betas": [0.7, 0.95], "adamw_eps": 1e-3}
MORE: Hyper = {"weight_decay": 0.3, "adamw_weight_decay": 0.2, "adamw_lr": 0.02, "lr": 0.05}
BY_RULE: tuple[Hyper, ...] = (
    {"params": [0], "adamw_lr": 0.1},
    {"params": [1], "adamw_weight_decay": 0.1},
    {"params": [2], "rule": "muon", "lr": 0.02},
)
CASES: dict[str, tuple[Case, ...]] = {
    "MuonWithAdamW": cases_of(
        "MuonWithAdamW",
        DEFAULTS["MuonWithAdamW"],
        ("default", TC, {}, {"inputs": "zeros"}),
        ("odd", TC, ODD | OTHERS, {"inputs": "zeros"}),
        ("plain", TC, {"lr": 0.02, "adamw_lr": 0.02}),
        ("not_nesterov", TC, {"nesterov": False, "lr": 0.05}, {"inputs": "zeros"}),
        ("eps", TC, {"eps": 30.0, "lr": 0.05}, {"inputs": "zeros"}),
        ("matching", TC, {"adjust_lr": "match_rms_adamw", "lr": 0.07}, {"inputs": "zeros"}),
        ("weight_decay", TC, MORE, {"inputs": "zeros"}),
        ("maximize", TC, MORE | {"maximize": True}, {"inputs": "zeros"}),
        ("adamw", TC, {"rule": "adamw", "adamw_lr": 0.02}),
        ("by_rule", TC, {}, {"inputs": "zeros", "groups": BY_RULE}),
        ("groups", TC, {}, {"inputs": "zeros", "groups": GROUPS}),
        ("missing", TC, MORE, {"inputs": "zeros", "missing": MISSING}),
        ("lr_change", TC, MORE, {"inputs": "zeros", "lr_changes": LATER}),
    ),
}
