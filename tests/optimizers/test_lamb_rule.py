"""LAMB's rule equals optax, pytorch_optimizer and the paper, as recorded."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastopt.optimizers.common import one_minus_power
from fastopt_kernels.lamb import RULE
from helpers.rule_forms import FORMS, Vector, run, vectors_of, worst

VECTORS = vectors_of("lamb")
DEFAULTS = {
    "lr": 1e-3,
    "betas": [0.9, 0.999],
    "eps": 1e-6,
    "bias_correction": True,
    "weight_decay": 0.0,
    "maximize": False,
}


def scalars(options: dict[str, Any], lr: float, t: int) -> dict[str, float]:
    beta1, beta2 = options["betas"]
    c1 = c2 = 1.0
    if options["bias_correction"]:
        c1, c2 = one_minus_power(beta1, t), one_minus_power(beta2, t)
    return {
        "one_minus_beta1": 1.0 - beta1,
        "one_minus_beta2": 1.0 - beta2,
        "rescale": math.sqrt(c2) / c1,
        "eps": math.sqrt(c2) * (options["eps"] or 1e-300),
        "weight_decay": options["weight_decay"],
        "lr": lr,
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_the_rule_equals_the_oracle(vector: Vector, form: str) -> None:
    paths, ones, past = run(vector, RULE, form, DEFAULTS, scalars)
    assert worst(vector, paths, ones, past) <= 1e-11


@pytest.mark.parametrize(
    ("param", "update", "trust"),
    [(4.0, 16.0, 0.5), (0.0, 16.0, 1.0), (4.0, 0.0, 1.0), (0.0, 0.0, 1.0)],
)
def test_the_trust_ratio_is_1_where_a_norm_is_0(param: float, update: float, trust: float) -> None:
    assert RULE.memory
    sums = {"param_norm": param, "update_norm": update}
    assert RULE.memory.host({}, {}, sums) == ({}, {"trust": trust})
