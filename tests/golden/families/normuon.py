"""NorMuon, after pytorch_optimizer (po) in float64, and by singular values."""

import math
from typing import Any
from unittest.mock import patch

import numpy as np

from ..oracles import Inputs, Oracle, by_class
from ..vector_cases import GROUPS, LATER, MISSING, Array, Case, Hyper, Result
from . import cases_of

FOLDER = "matrices"
PACKAGES = ("torch", "pytorch_optimizer")
DEFAULTS: dict[str, Hyper] = {
    "NorMuon": {
        "lr": 0.02,
        "momentum": 0.95,
        "beta2": 0.95,
        "nesterov": True,
        "ns_coefficients": [3.4445, -4.775, 2.0315],
        "ns_steps": 5,
        "eps": 1e-7,
        "eps2": 1e-10,
        "adjust_lr": "original",
        "update_scale": "preserve_norm",
    },
}


def of_po(groups: Any, **arguments: Any) -> Any:
    from pytorch_optimizer import NorMuon

    return NorMuon(groups, **arguments, foreach=False)


def arguments_of_po(hyper: Hyper) -> Hyper:
    if hyper["eps"] != 1e-7:
        raise ValueError("pytorch_optimizer begins its iteration with eps = 1e-7")
    same = ("lr", "momentum", "beta2", "nesterov", "ns_steps", "update_scale", "weight_decay")
    return {name: hyper[name] for name in (*same, "maximize")} | {
        "ns_coeffs": tuple(hyper["ns_coefficients"]),
        "eps": hyper["eps2"],
        "use_adjusted_lr": hyper["adjust_lr"] == "match_rms_adamw",
        "use_muon": True,
    }


def in_float64(optimizer: Any, t: int) -> None:
    """Make a step whose iteration is in float64, where it is in bfloat16 otherwise."""
    from functools import partial

    import torch
    from pytorch_optimizer.optimizer.muon import normuon

    iterate = partial(normuon.zero_power_via_newton_schulz_5, dtype=torch.float64)
    with patch.object(normuon, "zero_power_via_newton_schulz_5", iterate):
        optimizer.step()


def norm(x: Array) -> float:
    return math.sqrt((x * x).sum())


def closed_one(case: Case, inputs: Inputs, index: int) -> tuple[Array, Array, Array]:
    """Return the path of one parameter, and its momentum and averages at the end."""
    from ..oracle_muon import factor, iterated

    p, hyper = inputs["p"][index], case.hyper(index)
    sign, mu, lr = (-1 if hyper["maximize"] else 1), hyper["momentum"], hyper["lr"]
    m, v, path = np.zeros_like(p), np.zeros((len(p), 1)), []
    for step in range(case.steps):
        lr = case.lr_changes.get(step, lr)
        if not case.is_missing(index, step):
            g = sign * inputs["g"][index][step]
            m = mu * m + (1 - mu) * g
            x = iterated(mu * m + (1 - mu) * g if hyper["nesterov"] else m, hyper)
            mean = np.array([[sum(e * e for e in row) / len(row)] for row in x])
            v = hyper["beta2"] * v + (1 - hyper["beta2"]) * mean
            y = x / (np.sqrt(v) + hyper["eps2"])
            if hyper["update_scale"] == "preserve_norm":
                size = norm(x) * factor(hyper, *p.shape)
            else:
                size = 0.2 * math.sqrt(p.size)
            p = (1 - lr * hyper["weight_decay"]) * p - lr * size / (norm(y) + hyper["eps2"]) * y
        path.append(p)
    return np.stack(path), m, v


def closed(case: Case, inputs: Inputs) -> Result:
    from ..oracle_muon import counts_of

    paths, m, v = zip(*(closed_one(case, inputs, k) for k in range(3)), strict=True)
    return Result([*paths], {"m": [*m], "v": [*v]}, counts_of(case))


ORACLES: dict[str, dict[str, Oracle]] = {
    "NorMuon": {
        "po": by_class(
            of_po,
            arguments_of_po,
            {"momentum_buffer": "m", "second_momentum_buffer": "v"},
            step=in_float64,
        ),
        "closed": closed,
    },
}
PC, C = ("po", "closed"), ("closed",)
ODD: Hyper = {"lr": 0.01, "momentum": 0.6, "ns_steps": 3, "ns_coefficients": [2.0, -1.5, 0.5]}
ROWS = (
    ("default", PC, {}),
    ("odd", PC, ODD | {"beta2": 0.3}),
    ("not_nesterov", PC, {"nesterov": False}),
    ("match_rms", PC, {"update_scale": "match_rms"}),
    ("match_rms_adamw", PC, {"adjust_lr": "match_rms_adamw", "lr": 0.03}),
    ("eps", C, {"eps": 0.5}),
    ("eps2", PC, {"eps2": 0.3}),
    ("weight_decay", PC, {"weight_decay": 0.3}),
    ("maximize", PC, {"weight_decay": 0.1, "maximize": True}),
    ("missing", PC, {"weight_decay": 0.1}, {"missing": MISSING}),
    ("groups", PC, {}, {"groups": GROUPS}),
    ("lr_change", PC, {}, {"lr_changes": LATER}),
)
CASES: dict[str, tuple[Case, ...]] = {
    "NorMuon": cases_of(
        "NorMuon",
        DEFAULTS["NorMuon"],
        *((*row[:3], {"inputs": "usual", **(row[3] if len(row) > 3 else {})}) for row in ROWS),
        ("tiny", PC, {}, {"inputs": "tiny"}),
        ("huge", PC, {}, {"inputs": "huge"}),
    ),
}
