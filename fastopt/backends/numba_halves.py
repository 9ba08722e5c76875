"""How numbers are read and written: widened exactly, narrowed by rounding to nearest even.

Numba has no 16-bit floats on a CPU, so its loops see them as uint16. bfloat16 is the upper half of
a float32. float16 is converted by the processor where it can, else by its bits.

Every constant is a typed scalar: Python's integers would widen the bits to 64, and half as many of
them fit the processor's registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable

from fastopt.backends.numba_intrinsics import bits, float_of, narrow_float16, widen_float16

_u32, _u16 = np.uint32, np.uint16


class Conversion(NamedTuple):
    """From what is stored to the arithmetic and back, for one number; to be compiled."""

    widen: Callable[[Any], Any]
    narrow: Callable[[Any], Any]


@register_jitable  # type: ignore[untyped-decorator]  # numba has no types
def same(number: Any) -> Any:
    """Return a number that is stored as it is computed with."""
    return number


@register_jitable  # type: ignore[untyped-decorator]
def widen_bfloat16(stored: Any) -> Any:
    """Return the bits of a bfloat16 as a float32."""
    return float_of(_u32(_u32(stored) << _u32(16)))


@register_jitable  # type: ignore[untyped-decorator]
def _narrow_bfloat16(value: Any) -> Any:
    all_bits = bits(value)
    odd = (all_bits >> _u32(16)) & _u32(1)
    rounded = _u16((all_bits + _u32(0x7FFF) + odd) >> _u32(16))
    return rounded if value == value else _u16(0x7FC0)  # NaN could round to infinity


# The exponents of float32 and float16 differ by 112 (0x38000000 in place); float16 has 13 bits less
# of a fraction. Its denormals are multiples of 2**-24, which a float32 between 0.5 and 1 is too.


@register_jitable  # type: ignore[untyped-decorator]
def _widen_float16(stored: Any) -> Any:
    all_bits = _u32(stored)
    magnitude = all_bits & _u32(0x7FFF)
    normal = float_of(_u32((magnitude << _u32(13)) + _u32(0x38000000)))
    denormal = np.float32(np.int32(magnitude)) * np.float32(2.0**-24)
    infinite = float_of(_u32((magnitude << _u32(13)) | _u32(0x7F800000)))
    size = denormal if magnitude < _u32(0x0400) else normal
    size = infinite if magnitude >= _u32(0x7C00) else size
    return -size if all_bits >= _u32(0x8000) else size


@register_jitable  # type: ignore[untyped-decorator]
def _narrow_float16(value: Any) -> Any:
    all_bits = bits(value)
    sign = (all_bits >> _u32(16)) & _u32(0x8000)
    magnitude = _u32(all_bits & _u32(0x7FFFFFFF))
    odd = (magnitude >> _u32(13)) & _u32(1)
    normal = (magnitude - _u32(0x38000000) + _u32(0x0FFF) + odd) >> _u32(13)
    denormal = bits(float_of(magnitude) + np.float32(0.5)) - _u32(0x3F000000)
    rounded = denormal if magnitude < _u32(0x38800000) else normal
    rounded = _u32(0x7C00) if magnitude >= _u32(0x477FF000) else rounded  # from 65520 on
    rounded = _u32(0x7E00) if magnitude > _u32(0x7F800000) else rounded  # NaN
    return _u16(rounded | sign)


@register_jitable  # type: ignore[untyped-decorator]
def _widen_single(stored: Any) -> Any:
    return np.float64(stored)


@register_jitable  # type: ignore[untyped-decorator]
def _narrow_single(value: Any) -> Any:
    return np.float32(value)


def _by_single(half: Conversion) -> Conversion:
    """Return how float64 becomes half precision: by way of float32, so that it is rounded twice."""
    widen_half, narrow_half = half

    @register_jitable  # type: ignore[untyped-decorator]
    def widen(stored: Any) -> Any:
        return np.float64(widen_half(stored))

    @register_jitable  # type: ignore[untyped-decorator]
    def narrow(value: Any) -> Any:
        return narrow_half(np.float32(value))

    return Conversion(widen, narrow)


EXACT = Conversion(same, same)
SINGLE = Conversion(_widen_single, _narrow_single)
BFLOAT16 = Conversion(widen_bfloat16, _narrow_bfloat16)
FLOAT16_BY_BITS = Conversion(_widen_float16, _narrow_float16)
FLOAT16 = Conversion(widen_float16, narrow_float16)


READS_HALVES: bool = (
    "+f16c" in numba.core.registry.cpu_target.target_context.codegen().magic_tuple()[-1]
)
"""Whether the processor converts float16; without it LLVM would call a function that is missing."""


def conversion(dtype: np.dtype[Any], real: np.dtype[Any]) -> Conversion:
    """Return how numbers of a dtype are read for arithmetic in another, and written after it."""
    if dtype == real:
        return EXACT
    if real.itemsize == 8:
        return SINGLE if dtype.itemsize == 4 else _by_single(_half(dtype))
    return _half(dtype)


def _half(dtype: np.dtype[Any]) -> Conversion:
    if dtype.name == "bfloat16":
        return BFLOAT16
    return FLOAT16 if READS_HALVES else FLOAT16_BY_BITS
