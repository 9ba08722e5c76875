"""Numbers in 16 and 8 bits: what is on the grid stays, what is not goes up by chance, unbiased."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.backends.numpy.backend import Draws
from fastopt.core import quantization
from fastopt.core.arrays import Array

DRAWS = np.array([0, 1, 0x7FFF, 0x8000, 0xFFFF], np.uint32)
ALL_DRAWS = np.arange(2**16, dtype=np.uint32)
DRAWS_OF_INT8 = np.array([0, 1, 0x3FFFF, 0x40000, 0x7FFFF], np.uint32)
ALL_OF_INT8 = np.arange(2**19, dtype=np.uint32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [np.dtype(np.float16), BFLOAT16]
each_sign = pytest.mark.parametrize("signed", [False, True])
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def bits(values: Array) -> Array:
    return np.asarray(values).view(f"u{values.itemsize}")


def narrow(dtype: Any) -> Callable[[Array, Array], Array]:
    return quantization.to_bfloat16 if dtype == BFLOAT16 else quantization.to_float16


def grid_values(signed: bool) -> Array:
    """Return every number that a code stands for, by the definition of the small floats."""
    exponents, lowest = (7, -6) if signed else (15, -14)
    sizes = [k / 16 * 2.0**lowest for k in range(16)]
    sizes += [(1 + k / 16) * 2.0 ** (lowest + e) for e in range(exponents) for k in range(16)]
    return np.array(sizes + [-size for size in sizes] * signed, np.float32)


# What is kept ------------------------------------------------------------------------------------


@each_sign
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-7, 1.0, 2.0**63, 2.0**126])
def test_what_an_8_bit_code_stands_for_is_kept_whatever_the_draw(signed: bool, scale: Any) -> None:
    values = grid_values(signed) * np.float32(scale)
    assert values.size == 256
    for draw in DRAWS_OF_INT8:
        code, scales = quantization.to_int8(values, np.full(256, draw), signed)
        assert scales.tolist() == [scale]
        assert np.array_equal(bits(quantization.from_int8(code, scales, signed)), bits(values))
    assert len(set(code.tolist())) == 256


@each_half
def test_what_16_bits_can_hold_is_kept_whatever_the_draw(dtype: Any) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    values = every.view(dtype).astype(np.float32)
    real = ~np.isnan(values)
    for draw in DRAWS:
        got = narrow(dtype)(values, np.full(values.size, draw))
        assert np.array_equal(got[real], every[real])
        assert np.isnan(got[~real].view(dtype).astype(np.float32)).all()


def test_bfloat16_is_read_as_its_own_library_reads_it() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    right = every.view(BFLOAT16).astype(np.float32)
    got = quantization.from_bfloat16(every)
    assert np.array_equal(got, right, equal_nan=True)


# The two neighbours, and the mean ----------------------------------------------------------------


@each_half
@pytest.mark.parametrize("exponent", [-140, -126, -40, -24, -20, -15, -14, -1, 0, 9, 15, 30, 127])
def test_16_bits_are_a_neighbour_and_in_the_mean_the_number(dtype: Any, exponent: int) -> None:
    infinity = int(np.array(np.inf, dtype).view(np.uint16))
    grid = np.arange(infinity, dtype=np.uint16).view(dtype).astype(float)  # finite, in order
    rng = np.random.default_rng(exponent + 200)
    for value in np.ldexp(rng.uniform(1, 2, 4) * [1, -1, 1, -1], exponent).astype(np.float32):
        if abs(value) > grid[-1]:
            continue
        drawn = narrow(dtype)(np.full(2**16, value), ALL_DRAWS).view(dtype).astype(float)
        place = int(np.searchsorted(grid, abs(float(value))))
        neighbours = np.copysign(grid[place - 1 : place + 1], value)
        assert set(drawn.tolist()) <= set(neighbours.tolist())
        # The sum that finds float16's denormals has 23 bits of 2**-14; all else is exact.
        slack = 2.0**-37 if dtype == np.float16 else 0.0
        assert abs(drawn.mean() - float(value)) <= slack


@each_sign
@pytest.mark.parametrize("exponent", [0, -1, -5, -6, -7, -10, -13, -14, -15, -17])
def test_8_bits_are_a_neighbour_and_in_the_mean_the_number(signed: bool, exponent: int) -> None:
    grid = np.unique(grid_values(signed).astype(float))
    rng = np.random.default_rng(exponent + 50)
    for size in np.ldexp(rng.uniform(1, 1.9375, 3), exponent).astype(np.float32):
        value = -size if signed else size
        blocks = np.full((2**19 // 255 + 1, quantization.BLOCK), value)
        blocks[:, 0] = 1.5  # it gives the scale, 1
        draws = np.zeros(blocks.shape, np.uint32)
        draws[:, 1:] = np.resize(ALL_OF_INT8, (len(blocks), 255))
        code, scales = quantization.to_int8(blocks.reshape(-1), draws.reshape(-1), signed)
        whole = quantization.from_int8(code, scales, signed).reshape(blocks.shape)
        drawn = whole[:, 1:].reshape(-1)[: 2**19].astype(float)
        place = int(np.searchsorted(grid, float(value)))
        below, above = grid[place - 1], grid[place]
        assert set(drawn.tolist()) <= {below, above}
        if not signed and below == 0:  # positive state never becomes zero
            assert set(drawn.tolist()) == {above}
            continue
        # The sum that finds the denormal codes is rounded to a 2**19th of their distance.
        slack = (above - below) * 2.0**-19 if abs(value) < 2.0 ** (-6 if signed else -14) else 0.0
        assert abs(drawn.mean() - float(value)) <= slack


@each_sign
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), spread=st.integers(0, 60), middle=st.integers(-60, 60))
def test_a_block_is_nowhere_further_off_than_its_grid(
    signed: bool, seed: int, spread: int, middle: int
) -> None:
    rng = np.random.default_rng(seed)
    values = np.ldexp(rng.uniform(0.5, 1, 512), middle + rng.integers(-spread, spread + 1, 512))
    values = values.astype(np.float32) * (rng.choice([-1, 1], 512) if signed else 1)
    values = values.astype(np.float32)
    draws = rng.integers(0, 2**19, 512, dtype=np.uint32)
    code, scales = quantization.to_int8(values, draws, signed)
    got = quantization.from_int8(code, scales, signed).astype(float).reshape(2, -1)
    sizes = np.abs(values.astype(float)).reshape(2, -1)
    largest = sizes.max(axis=1)
    assert (np.log2(scales.astype(float)) % 1 == 0).all()
    assert (largest <= 1.9375 * scales).all()
    assert (largest > 1.9375 * scales / 2).all()
    finest = scales[:, None] * (2.0**-10 if signed else 2.0**-18)
    assert (np.abs(got - values.reshape(2, -1)) <= np.maximum(sizes / 16, finest)).all()


# What is not finite, zero, or beyond -------------------------------------------------------------


@each_sign
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_own_block_nan_and_no_other(signed: bool, bad: float) -> None:
    values = np.ones(3 * quantization.BLOCK, np.float32)
    values[quantization.BLOCK + 7] = bad
    code, scales = quantization.to_int8(values, 0, signed)
    got = quantization.from_int8(code, scales, signed).reshape(3, -1)
    assert np.isnan(got[1]).all()
    assert (got[[0, 2]] == 1).all()


@each_sign
def test_zeros_stay_zeros_and_what_is_too_large_is_as_infinity(signed: bool) -> None:
    code, scales = quantization.to_int8(
        np.zeros(256, np.float32), quantization.HALF_OF_INT8, signed
    )
    assert not code.any()
    assert not scales.any()
    top = np.float32(1.9375 * 2.0**126)
    for draw in DRAWS_OF_INT8:
        most, more = (
            quantization.from_int8(
                *quantization.to_int8(np.full(256, size), np.full(256, draw), signed), signed
            )
            for size in (top, np.nextafter(top, np.float32(np.inf)))
        )
        assert (most == top).all()
        assert np.isnan(more).all()
    for value, kept in [(2.0**-126, True), (1e-45, False)]:  # denormal numbers are 0 on a GPU
        tiny = np.full(256, value, np.float32)
        got = quantization.from_int8(
            *quantization.to_int8(tiny, np.full(256, np.uint32(0)), signed), signed
        )
        assert (got > 0).all() if kept and not signed else (got == 0).all()


@each_half
def test_16_bits_keep_what_is_not_finite(dtype: Any) -> None:
    values = np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32)
    values = np.concatenate([values, np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view("f4")])
    for draw in DRAWS:
        got = narrow(dtype)(values, np.full(6, draw)).view(dtype).astype(np.float32)
        assert np.isnan(got).tolist() == [True, True, False, False, True, True]
        assert got[2:4].tolist() == [np.inf, -np.inf]


def test_float16_overflows_by_chance_between_its_largest_number_and_65536() -> None:
    for value, infinite in [(65504.0, 0), (65520.0, 2**15), (65536.0, 2**16), (1e30, 2**16)]:
        got = quantization.to_float16(np.full(2**16, value, np.float32), ALL_DRAWS).view(np.float16)
        assert int(np.isinf(got).sum()) == infinite


# The random bits ---------------------------------------------------------------------------------


def test_mixed_arrays_are_mixed_numbers_and_all_differ() -> None:
    some = np.concatenate([np.arange(5000), [0x12345678, 0xFFFFFFFF]]).astype(np.uint32)
    expected = [quantization.mix(int(number)) for number in some]
    quantization.mix_in_place(some)
    assert some.tolist() == expected
    assert len(set(expected)) == some.size


def test_keys_and_streams_differ_by_seed_step_and_name() -> None:
    seeds = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**64 - 1]
    steps = [1, 2, 3, 2**31, 2**32, 2**32 + 1, 2**33 + 1, 2**62]
    keys = [quantization.key(seed, t) for seed in seeds for t in steps]
    assert len(set(keys)) == len(keys)
    names = ["W", "b", "0.W", "0", "1", "é", "\ud800", ""]
    assert len({quantization.stream(name) for name in names}) == len(names)
    assert quantization.stream("123456789") == 0xCBF43926  # the CRC's own check value


COUNT = 100_000


def uniforms(seed: int, t: int, slot: int, size: int = 16, first: int = 0) -> Array:
    key = quantization.key(seed, t)
    drawn = Draws([(first, COUNT)], float(key >> 16), float(key & 0xFFFF)).of(slot, size)
    assert drawn.max() < 2**size
    return (drawn + 0.5) / 2**size


def correlation(one: Array, two: Array) -> float:
    """Return a correlation in units of its standard deviation for independent numbers."""
    return float(np.mean((one - 0.5) * (two - 0.5)) * 12 * np.sqrt(one.size))


@pytest.mark.parametrize("size", [16, quantization.CUT_OFF])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_draws_are_uniform_and_independent_of_each_other(seed: int, size: int) -> None:
    base = uniforms(seed, 1, 0, size)
    for slot in range(4):
        for t in (1, 2, 1000):
            drawn = uniforms(seed, t, slot, size)
            assert abs(drawn.mean() - 0.5) * np.sqrt(12 * COUNT) < 5
            assert abs(drawn.var() - 1 / 12) * np.sqrt(180 * COUNT) < 5
            for lag in (1, 2, 16, 256):
                assert abs(correlation(drawn[lag:], drawn[:-lag])) < 5
            if (slot, t) != (0, 1):
                assert abs(correlation(base, drawn)) < 5
    assert abs(correlation(base, uniforms(seed + 1, 1, 0, size))) < 5
    assert abs(correlation(base, uniforms(seed, 1, 0, size, first=12345))) < 5


def test_counters_go_round_at_2_to_the_32() -> None:
    around = Draws([(2**32 - 3, 6)], 1.0, 2.0).of(0)
    apart = [Draws([(2**32 - 3, 3)], 1.0, 2.0).of(0), Draws([(0, 3)], 1.0, 2.0).of(0)]
    assert around.tolist() == np.concatenate(apart).tolist()
    gathered = Draws([(2**32 - 3, 3), (0, 3)], 1.0, 2.0).of(0)
    assert around.tolist() == gathered.tolist()
