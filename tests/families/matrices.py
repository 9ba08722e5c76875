"""MuonWithAdamW."""

from __future__ import annotations

from typing import Any

import fastopt
from helpers.mutants import arguments, scalars
from helpers.variant import Variant

OF_MATRICES = [
    Variant("muon_with_adamw", fastopt.MuonWithAdamW, {"lr": 0.02, "adamw_lr": 0.01}),
]
BAD: dict[str, list[tuple[Any, type[Exception]]]] = {
    "adamw_lr": [(-1.0, ValueError), ("a", TypeError), (None, TypeError), (True, TypeError)],
    "adamw_betas": [((0.9, 1.0), ValueError), (0.9, TypeError), (("a", 0.9), TypeError)],
    "adamw_eps": [(-1e-300, ValueError), ("a", TypeError), (None, TypeError)],
    "adamw_weight_decay": [(-1.0, ValueError), ("a", TypeError), (None, TypeError)],
    "rule": [("sgd", ValueError), (None, TypeError), (True, TypeError)],
}

both = fastopt.MuonWithAdamW


def left_at(name: str, value: Any) -> Any:
    return (both, arguments(both, lambda o: {**o, name: value}))


MUTANTS = {
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
