"""Numbers in 16 and 8 bits: what is on the grid stays, what is not goes up by chance, unbiased."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastopt import codes, random_bits
from fastopt.arrays import Array

DRAWS = np.array([0, 1, 0x7FFF, 0x8000, 0xFFFF], np.uint32)
each_sign = pytest.mark.parametrize("signed", [False, True])


def bits(values: Array) -> Array:
    return np.asarray(values).view(f"u{values.itemsize}")


def grid_values(signed: bool) -> Array:
    """Return every number that a code stands for, by the definition of the small floats."""
    exponents, lowest = (8, -6) if signed else (16, -14)
    sizes = [k / 16 * 2.0**lowest for k in range(16)]
    sizes += [(1 + k / 16) * 2.0 ** (lowest + e) for e in range(exponents - 1) for k in range(16)]
    return np.array(sizes + [-size for size in sizes] * signed, np.float32)


@each_sign
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-7, 1.0, 2.0**63])
def test_what_an_8_bit_code_stands_for_is_kept_whatever_the_draw(signed: bool, scale: Any) -> None:
    values = grid_values(signed) * np.float32(scale)
    assert values.size == 256
    for draw in DRAWS:
        code, scales = codes.to_int8(values, np.full(256, draw), signed)
        assert scales.tolist() == [scale]
        assert np.array_equal(bits(codes.from_int8(code, scales, signed)), bits(values))
    assert len(set(code.tolist())) == 256


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_what_16_bits_can_hold_is_kept_whatever_the_draw(dtype: Any) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    values = every.view(dtype).astype(np.float32)
    narrow = codes.to_float16 if dtype == np.float16 else codes.to_bfloat16
    real = ~np.isnan(values)
    for draw in DRAWS:
        got = narrow(values, np.full(values.size, draw))
        assert np.array_equal(got[real], every[real])
        assert np.isnan(got[~real].view(dtype).astype(np.float32)).all()


def test_mixed_arrays_are_mixed_numbers() -> None:
    some = np.array([0, 1, 2, 0x12345678, 0xFFFFFFFF], np.uint32)
    expected = [random_bits.mix(int(number)) for number in some]
    random_bits.mix_in_place(some)
    assert some.tolist() == expected
    assert len(set(expected)) == 5
