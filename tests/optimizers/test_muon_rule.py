"""Muon's rule equals PyTorch and pytorch_optimizer in float64, and the iterated polynomial."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastopt_kernels import muon
from fastopt_kernels.muon import rule
from helpers.rule_forms import One, given, is_missing, lr_at, options_of, vectors_of, worst
from helpers.vectors import Vector

VECTORS = vectors_of("muon")
DEFAULTS = {
    "lr": 1e-3,
    "momentum": 0.95,
    "nesterov": True,
    "ns_coefficients": [3.4445, -4.775, 2.0315],
    "ns_steps": 5,
    "eps": 1e-7,
    "adjust_lr": "original",
    "weight_decay": 0.1,
    "maximize": False,
}


def scalars(options: dict[str, Any], lr: float) -> dict[str, float]:
    kept = 1.0 - options["momentum"]
    a, b, c = options["ns_coefficients"]
    return {
        "one_minus_momentum": kept,
        "one_minus_look": kept if options["nesterov"] else 0.0,
        "a": a,
        "b": b,
        "c": c,
        "eps": options["eps"],
        "lr": lr,
    }


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_the_rule_equals_the_oracle(vector: Vector) -> None:
    paths, ones = [], []
    for k, (p, grads) in enumerate(zip(given(vector, "p"), given(vector, "g"), strict=True)):
        options = options_of(vector, k, DEFAULTS)
        made = rule(options["ns_steps"], options["adjust_lr"])
        lr, one, path = float(options["lr"]), One(p, {"m": np.zeros_like(p)}), []
        for step in range(vector.info["steps"]):
            lr = lr_at(vector, step, lr)
            if not is_missing(vector, k, step):
                grad = -grads[step] if options["maximize"] else grads[step]
                decayed = one.p - lr * options["weight_decay"] * one.p
                one.p, one.state = made(np, decayed, grad, one.state, scalars(options, lr))
                one.t += 1
            path.append(one.p)
        paths.append(np.stack(path))
        ones.append(one)
    assert worst(vector, paths, ones) <= 1e-11


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (6, 2), (1, 5), (5, 1)])
def test_matrices_of_one_shape_can_stand_side_by_side(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    param, grad, m = (rng.standard_normal((2, *shape)) for _ in range(3))
    numbers = scalars(DEFAULTS, 0.1)
    made = rule(5, "match_rms_adamw")
    both, state = made(np, param, grad, {"m": m}, numbers)
    for k in range(2):
        alone, own = made(np, param[k], grad[k], {"m": m[k]}, numbers)
        np.testing.assert_allclose(both[k], alone, rtol=1e-13)
        np.testing.assert_array_equal(state["m"][k], own["m"])


def test_nothing_that_is_handed_in_is_changed() -> None:
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal((6, 2)) for _ in range(3)]
    for array in arrays:
        array.flags.writeable = False
    param, grad, m = arrays
    rule(5, "original")(np, param, grad, {"m": m}, scalars(DEFAULTS, 0.1))


def test_float32_stays_float32() -> None:
    param, grad, m = (np.ones((2, 3), np.float32) for _ in range(3))
    numbers = scalars(DEFAULTS, 0.1)
    p, state = rule(5, "original")(np, param, grad, {"m": m}, numbers)
    assert (p.dtype, state["m"].dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (3, 6, 10), (3, 10, 6)])
def test_large_matrices_in_strips_are_as_others(shape: tuple[int, ...], monkeypatch: Any) -> None:
    u = np.random.default_rng(0).standard_normal(shape)
    before = u.copy()
    arguments = np, u, (3.4445, -4.775, 2.0315), 1e-7, 5
    whole = muon.orthogonalized(*arguments)
    monkeypatch.setattr(muon, "STRIPS_FROM", 1)
    in_strips = muon.orthogonalized(*arguments)
    np.testing.assert_allclose(in_strips, whole, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(u, before)
