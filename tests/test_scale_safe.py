"""Gradients whose squares float32 does not hold train as ordinary ones do, under scale_safe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from variants import CPU_BACKENDS, VARIANTS, Variant

import fastopt
from fastopt.errors import CheckpointError
from fastopt.optimizer import Optimizer

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)

SHAPES = {"first": (3,), "second": (70, 60), "third": (), "empty": (0, 4)}
STEPS = 17  # state is flushed in two of them


def make(dtype: Any, seed: int = 0, factor: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    drawn = {name: rng.uniform(0.1, 1.0, shape) for name, shape in SHAPES.items()}
    signs = {name: np.sign(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    # Each rounded once, so that a power of two makes no other numbers of them.
    return {
        name: np.array(np.float32(signs[name] * drawn[name]) * np.array(factor, dtype), dtype)
        for name in SHAPES
    }


def slots_of(opt: Optimizer) -> dict[str, dict[str, Any]]:
    entries = opt.state_dict()["state"]
    return {
        name: {k: v for k, v in entry.items() if isinstance(v, np.ndarray)}
        for name, entry in entries.items()
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def in_units(variant: Variant, power: int) -> dict[str, Any]:
    """Return a variant's hyperparameters, for gradients that are 2^power times what they were."""
    options = dict(variant(np.ones(1)).param_groups[0])
    changed = {}
    if options.get("eps"):
        inside = options.get("eps_inside_sqrt", False)
        changed["eps"] = math.ldexp(options["eps"], power * (2 if inside else 1))
    if not options.get("eps", 0) and "eps" not in options:  # nothing is divided: lr has the unit
        changed["lr"] = math.ldexp(options["lr"], -power)
    if "initial_accumulator_value" in options:
        start = options["initial_accumulator_value"]
        changed["initial_accumulator_value"] = math.ldexp(start, 2 * power)
    return changed


# The same steps in other units -------------------------------------------------------------------


@each_backend
@each_variant
@pytest.mark.parametrize("weight_decay", [0.0, 0.125])
@pytest.mark.parametrize("power", [-60, 0, 50])
def test_gradients_of_ordinary_squares_make_the_same_bits_as_without(
    variant: Variant, weight_decay: float, power: int, backend: str
) -> None:
    """Times 2^power in float64 holds for every formula: its table of units is right."""
    params, plain = make(np.float64), make(np.float64)
    more = in_units(variant, power) if variant.name != "adadelta" else {}
    power = 0 if variant.name == "adadelta" else power
    decays = fastopt.AdamW is variant.optimizer
    unit = 1.0 if decays else 2.0**power
    one = variant(
        params, backend=backend, scale_safe=True, **{**more, "weight_decay": weight_decay * unit}
    )
    other = variant(plain, backend=backend, weight_decay=weight_decay)
    for step in range(STEPS):
        one.step(make(np.float64, step, 2.0**power))
        other.step(make(np.float64, step))
    same(params, plain)


@each_backend
@each_variant
@pytest.mark.parametrize("power", [-110, -83, 60, 83, 110])
def test_gradients_times_a_power_of_two_make_the_same_bits_in_other_units(
    variant: Variant, power: int, backend: str
) -> None:
    if variant.name == "adadelta":
        pytest.skip("its eps is of a gradient and of a step too: see the runs in float64")
    if "initial_accumulator_value" in variant.options:
        variant = Variant(variant.name, variant.optimizer, {"lr_decay": 0.1, "eps": 0.0})
    if "eps" in variant.options or fastopt.Adam is variant.optimizer or "rms" in variant.name:
        variant = Variant(variant.name, variant.optimizer, {**variant.options, "eps": 0.0})
    params, plain = make(np.float32), make(np.float32)
    one = variant(params, backend=backend, scale_safe=True, **in_units(variant, power))
    other = variant(plain, backend=backend)
    for step in range(STEPS):
        one.step(make(np.float32, step, 2.0**power))
        other.step(make(np.float32, step))
    same(params, plain)
    exponents = {entry["exponent"] for entry in one.state_dict()["state"].values()}
    assert exponents != {0}
