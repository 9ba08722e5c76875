"""State in 16 and 8 bits follows the exponents of scale_safe by powers of two: with no error."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from cuda.fake_cupy import FakeCupy
from cuda.runs import installed
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_scale_safe import PATHS, STEPS, in_units, make, same, slots_of
from variants import CPU_BACKENDS, VARIANTS, Variant

from fastopt import codes
from fastopt.optimizer import Optimizer
from fastopt.pieces import EightBits, Piece, SixteenBits

STATEFUL = [v for v in VARIANTS if v.name != "sgd"]
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", STATEFUL, ids=str)
each_storage = pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])


@each_backend
@each_storage
@pytest.mark.parametrize("variant", [v for v in STATEFUL if v.name != "adadelta"], ids=str)
@pytest.mark.parametrize("power", [-110, 83])
def test_gradients_times_a_power_of_two_make_the_same_bits_in_other_units(
    variant: Variant, power: int, state_dtype: str, backend: str
) -> None:
    options = {**variant.options, **({"eps": 0.0} if "eps" in in_units(variant, power) else {})}
    options |= {"initial_accumulator_value": 0.0} if "initial" in str(options) else {}
    variant = Variant(variant.name, variant.optimizer, options)
    params, plain = make(np.float32), make(np.float32)
    more: dict[str, Any] = {"backend": backend, "state_dtype": state_dtype}
    one = variant(params, scale_safe=True, **more, **in_units(variant, power))
    other = variant(plain, **more)
    for step in range(STEPS):
        one.step(make(np.float32, step, 2.0**power))
        other.step(make(np.float32, step))
    same(params, plain)
    moved, stayed = slots_of(one), slots_of(other)
    assert moved["second"].keys() == stayed["second"].keys()
    if state_dtype == "int8":  # the scales alone have the unit
        for name, codes_here in stayed["second"].items():
            if codes_here.dtype == np.uint8:
                np.testing.assert_array_equal(moved["second"][name], codes_here)


def trained(
    variant: Variant, xp: Any, path: str, backend: str = "auto", **options: Any
) -> tuple[Optimizer, dict[str, Any]]:
    params = {name: xp.asarray(value) for name, value in make(np.float32).items()}
    opt = variant(params, backend=backend, scale_safe=True, **options)
    for step, factor in enumerate(PATHS[path]):
        grads = make(np.float32, step, factor)
        opt.step({name: xp.asarray(grad) for name, grad in grads.items()})
    return opt, params


@each_storage
@each_variant
@pytest.mark.parametrize("path", ["jumping", "and_back"])
def test_every_backend_makes_the_same_bits(variant: Variant, path: str, state_dtype: str) -> None:
    ends = []
    with installed(FakeCupy()) as cupy:
        places = [(np, name) for name in CPU_BACKENDS]
        places += [(cupy, "cupy")] if shutil.which("g++") else []
        for xp, backend in places:
            opt, params = trained(variant, xp, path, backend, state_dtype=state_dtype, seed=7)
            entries = opt.state_dict()["state"]
            ends.append(
                {
                    f"{name}.{slot}": np.asarray(x)
                    for name, e in entries.items()
                    for slot, x in e.items()
                }
                | {name: np.asarray(p.get() if xp is cupy else p) for name, p in params.items()}
            )
    for end in ends[1:]:
        assert end.keys() == ends[0].keys()
        for name, value in end.items():
            assert value.tobytes() == ends[0][name].tobytes(), name


@each_backend
@pytest.mark.parametrize("name", ["adam", "adamw_amsgrad", "rmsprop_momentum"])
@pytest.mark.parametrize("path", ["1e-25", "1e25", "growing", "falling"])
@pytest.mark.parametrize(("state_dtype", "close"), [("bfloat16", 2**-6), ("int8", 2**-3)])
def test_a_run_stays_as_close_to_float64_as_its_bits_allow(
    name: str, path: str, state_dtype: str, close: float, backend: str
) -> None:
    variant = next(v for v in VARIANTS if v.name == name)
    _, params = trained(variant, np, path, backend, state_dtype=state_dtype, eps=0.0)
    start = make(np.float32)
    exact = {name: value.astype(np.float64) for name, value in start.items()}
    opt = variant(exact, backend="numpy", eps=0.0)
    for step, factor in enumerate(PATHS[path]):
        grads = make(np.float32, step, factor)
        opt.step({name: grad.astype(np.float64) for name, grad in grads.items()})
    way, apart = exact["second"] - start["second"], params["second"] - exact["second"]
    assert np.isfinite(params["second"]).all()
    assert np.sqrt((apart**2).mean()) <= close * np.sqrt((way**2).mean())


# Pieces ------------------------------------------------------------------------------------------

FLOATS = arrays(np.float32, 256, elements=st.floats(-1e10, 1e10, width=32))


@given(FLOATS, st.integers(-60, 60))
def test_powers_of_two_there_and_back_change_no_bit(values: np.ndarray[Any, Any], by: int) -> None:
    values[abs(values) < 1e-15] = 0
    half = codes.to_bfloat16(values, codes.HALF)
    eight, scales = codes.to_int8(values, codes.HALF_OF_INT8, signed=True)
    places = {
        "real": (Piece(values), values, lambda: values),
        "bfloat16": (SixteenBits(half), half, lambda: codes.from_bfloat16(half)),
        "int8": (EightBits(scales), scales, lambda: codes.from_int8(eight, scales, signed=True)),
    }
    for piece, stored, numbers in places.values():
        before, wide = stored.copy(), numbers().astype(np.float64)
        size = piece.largest()
        piece.rescale(by)
        np.testing.assert_array_equal(numbers().astype(np.float64), wide * 2.0**by)
        assert piece.largest() == size * 2.0**by
        assert abs(wide).max(initial=0.0) <= size
        piece.rescale(-by)
        np.testing.assert_array_equal(stored, before)


def test_what_leaves_the_range_is_0_or_infinite_and_nan_stays() -> None:
    for power, tiny, huge in ((-200, 0.0, 0.0), (200, np.inf, np.inf)):
        values = np.array([1.0, 0.0, np.nan, -np.inf, -1.0], np.float32)
        half = codes.to_bfloat16(values, codes.HALF)
        Piece(values).rescale(power)
        SixteenBits(half).rescale(power)
        for found in (values, codes.from_bfloat16(half)):
            np.testing.assert_array_equal(found, [tiny, 0.0, np.nan, -np.inf, -huge])


def test_denormal_numbers_become_0_as_on_a_gpu() -> None:
    values = np.array([2.0**-60, 2.0**-27, -(2.0**-26)], np.float32)
    half = codes.to_bfloat16(values, codes.HALF)
    Piece(values).rescale(-100)
    SixteenBits(half).rescale(-100)
    for found in (values, codes.from_bfloat16(half)):
        np.testing.assert_array_equal(found, [0.0, 0.0, -(2.0**-126)])
