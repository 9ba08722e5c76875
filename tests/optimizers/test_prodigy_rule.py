"""Prodigy's rule equals its authors' package, pytorch_optimizer and the paper, as recorded."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastopt.optimizers.common import one_minus_power
from fastopt_kernels.prodigy import RULE
from helpers.rule_forms import FORMS, Vector, run, vectors_of, worst

VECTORS = vectors_of("prodigy")
DEFAULTS = {
    "lr": 1.0,
    "betas": [0.9, 0.999],
    "beta3": None,
    "eps": 1e-8,
    "d0": 1e-6,
    "d_coef": 1.0,
    "growth_rate": math.inf,
    "bias_correction": False,
    "safeguard_warmup": False,
    "decoupled_weight_decay": True,
    "weight_decay": 0.0,
    "maximize": False,
}


def scalars(options: dict[str, Any], lr: float, t: int) -> dict[str, float]:
    beta1, beta2 = options["betas"]
    d0 = options["d0"]
    if options["bias_correction"]:
        lr = lr * math.sqrt(one_minus_power(beta2, t)) / one_minus_power(beta1, t)
    return {
        "one_minus_beta1": 1.0 - beta1,
        "one_minus_beta2": 1.0 - beta2,
        "beta3": math.sqrt(beta2) if options["beta3"] is None else options["beta3"],
        "take": 1.0 / d0 if options["safeguard_warmup"] else lr / d0,
        "rate": lr / d0,
        "first": 1.0 if t == 1 else 0.0,
        "eps": options["eps"],
        "decay": lr * options["weight_decay"] * options["decoupled_weight_decay"],
        "lr": lr,
        "d0": d0,
        "d_coef": options["d_coef"],
        "growth_rate": options["growth_rate"],
    }


def begin(options: dict[str, Any]) -> dict[str, float]:
    return {"d": options["d0"], "d_max": options["d0"], "numerator": 0.0}


def coupled(options: dict[str, Any]) -> float:
    return 0.0 if options["decoupled_weight_decay"] else float(options["weight_decay"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_the_rule_equals_the_oracle(vector: Vector, form: str) -> None:
    paths, ones, past = run(vector, RULE, form, DEFAULTS, scalars, begin, coupled)
    assert worst(vector, paths, ones, past) <= 1e-11


def test_memory_stays_where_no_gradient_has_been_seen() -> None:
    assert RULE.memory
    scalars = {"beta3": 0.5, "d0": 1.0, "d_coef": 1.0, "growth_rate": 2.0}
    before = {"d": 1.0, "d_max": 1.0, "numerator": 3.0}
    memory, made = RULE.memory.host(scalars, before, {"along": 0.0, "length": 0.0})
    assert memory == before
    assert made == {"next_d": 1.0, "moves": 0.0}
