"""MuonWithAdamW and NorMuon."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastopt
from fastopt_kernels import muon as kernel
from helpers.mutants import arguments, computing, scalars
from helpers.variant import Variant

OF_MATRICES = [
    Variant("normuon", fastopt.NorMuon, {"weight_decay": 0.1}, shape=(1, 1)),
    Variant(
        "normuon_matching",
        fastopt.NorMuon,
        {"lr": 0.01, "update_scale": "match_rms", "nesterov": False, "ns_steps": 3},
        shape=(1, 1),
    ),
    Variant("muon_with_adamw", fastopt.MuonWithAdamW, {"lr": 0.02, "adamw_lr": 0.01}),
]
BAD: dict[str, list[tuple[Any, type[Exception]]]] = {
    "adamw_lr": [(-1.0, ValueError), ("a", TypeError), (None, TypeError), (True, TypeError)],
    "adamw_betas": [((0.9, 1.0), ValueError), (0.9, TypeError), (("a", 0.9), TypeError)],
    "adamw_eps": [(-1e-300, ValueError), ("a", TypeError), (None, TypeError)],
    "adamw_weight_decay": [(-1.0, ValueError), ("a", TypeError), (None, TypeError)],
    "beta2": [(1.0, ValueError), (-0.1, ValueError), ("a", TypeError), (None, TypeError)],
    "update_scale": [("none", ValueError), (None, TypeError), (True, TypeError)],
    "rule": [("sgd", ValueError), (None, TypeError), (True, TypeError)],
}

both = fastopt.MuonWithAdamW


def left_at(name: str, value: Any) -> Any:
    return (both, arguments(both, lambda o: {**o, name: value}))


normuon = fastopt.NorMuon


def normuon_compute(
    xp: Any,
    p: Any,
    g: Any,
    state: Any,
    s: Any,
    axis: int = -1,
    old: bool = False,
    root: bool = True,
    rescaled: bool = True,
    of_m: bool = False,
) -> Any:
    """Compute as the rule does by default, or with one of the mistakes that are made."""
    m = state["m"] + s["one_minus_momentum"] * (g - state["m"])
    u = m - s["one_minus_look"] * (m - g)
    x = kernel.orthogonalized(xp, u, (s["a"], s["b"], s["c"]), s["eps"], 5)
    mean = ((m if of_m else x) ** 2).mean(axis=axis, keepdims=True)
    if axis == -2:
        mean = mean.mean(axis=-1, keepdims=True) + 0 * state["v"]
    v = state["v"] + s["one_minus_beta2"] * (mean - state["v"])
    seen = state["v"] if old else v
    y = x / ((np.sqrt(seen) if root else seen) + s["eps2"])
    norms = [np.sqrt((z * z).sum(axis=(-2, -1), keepdims=True)) for z in (x, y)]
    size = norms[0] / (norms[1] + s["eps2"]) if rescaled else 1.0
    factor = kernel.factor_of("original", *p.shape[-2:])
    return p - s["lr"] * factor * (size * y), {"m": m, "v": v}


def normuon_with(**mistake: Any) -> Any:
    return (normuon, computing(normuon, lambda *values: normuon_compute(*values, **mistake)))


MUTANTS = {
    "NorMuon_mean_over_all": normuon_with(axis=-2),
    "NorMuon_rows_before_the_step": normuon_with(old=True),
    "NorMuon_no_root": normuon_with(root=False),
    "NorMuon_not_rescaled": normuon_with(rescaled=False),
    "NorMuon_rows_of_the_momentum": normuon_with(of_m=True),
    "NorMuon_beta2_ignored": (normuon, arguments(normuon, lambda o: {**o, "beta2": 0.95})),
    "NorMuon_eps2_ignored": (normuon, arguments(normuon, lambda o: {**o, "eps2": 1e-10})),
    "NorMuon_never_matched": (
        normuon,
        arguments(normuon, lambda o: {**o, "update_scale": "preserve_norm"}),
    ),
    "MuonWithAdamW_one_rate": (
        both,
        arguments(both, lambda o: {**o, "adamw_lr": o.get("lr", 1e-3)}),
    ),
    "MuonWithAdamW_one_decay": (
        both,
        arguments(both, lambda o: {**o, "adamw_weight_decay": o.get("weight_decay", 0.1)}),
    ),
    "MuonWithAdamW_all_to_adamw": left_at("rule", "adamw"),
    "MuonWithAdamW_rule_ignored": left_at("rule", "auto"),
    "MuonWithAdamW_betas_of_adamw_ignored": left_at("adamw_betas", (0.9, 0.999)),
    "MuonWithAdamW_eps_of_adamw_ignored": left_at("adamw_eps", 1e-8),
    "MuonWithAdamW_rate_of_adamw_ignored": left_at("adamw_lr", 1e-3),
    "MuonWithAdamW_never_matched": left_at("adjust_lr", "original"),
    "MuonWithAdamW_nesterov_ignored": (
        both,
        scalars(both, lambda made, o, t: {"one_minus_look": 0.0}),
    ),
}
