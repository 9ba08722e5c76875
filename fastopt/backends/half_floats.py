"""float16 and bfloat16 as bits: widened to float32 exactly, narrowed by rounding to nearest even.

Numba has no 16-bit floats on a CPU, so its loops see them as uint16. bfloat16 is the upper half of
a float32. float16 is converted by the processor where it can (``numba_backend``), else as here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Conversion(NamedTuple):
    """From the stored bits to float32 and back, for one number; to be compiled."""

    widen: Callable[[Any], Any]
    narrow: Callable[[Any], Any]


def same(number: Any) -> Any:
    """Return a number that is stored as it is computed with."""
    return number


EXACT = Conversion(same, same)

# Constants of the float32 format. Each is a typed scalar: Python's integers would widen the bits to
# 64, and half as many of them fit the processor's registers.
_u32 = np.uint32


def bfloat16(bits: Callable[[Any], Any], float_of: Callable[[Any], Any]) -> Conversion:
    """Return the conversions of bfloat16, given those between a float32 and its bits."""

    def widen(stored: Any) -> Any:
        return float_of(_u32(_u32(stored) << _u32(16)))

    def narrow(value: Any) -> Any:
        all_bits = bits(value)
        odd = (all_bits >> _u32(16)) & _u32(1)
        rounded = np.uint16((all_bits + _u32(0x7FFF) + odd) >> _u32(16))
        return rounded if value == value else np.uint16(0x7FC0)  # NaN could round to infinity

    return Conversion(widen, narrow)


def float16(bits: Callable[[Any], Any], float_of: Callable[[Any], Any]) -> Conversion:
    """Return the conversions of float16, given those between a float32 and its bits.

    The exponents of the two formats differ by 112 (0x38000000 in place); float16 has 13 bits less
    of a fraction. Its denormals are multiples of 2**-24, which a float32 between 0.5 and 1 is too.
    """

    def widen(stored: Any) -> Any:
        all_bits = _u32(stored)
        magnitude = all_bits & _u32(0x7FFF)
        normal = float_of(_u32((magnitude << _u32(13)) + _u32(0x38000000)))
        denormal = np.float32(np.int32(magnitude)) * np.float32(2.0**-24)
        infinite = float_of(_u32((magnitude << _u32(13)) | _u32(0x7F800000)))
        size = denormal if magnitude < _u32(0x0400) else normal
        size = infinite if magnitude >= _u32(0x7C00) else size
        return -size if all_bits >= _u32(0x8000) else size

    def narrow(value: Any) -> Any:
        all_bits = bits(value)
        sign = (all_bits >> _u32(16)) & _u32(0x8000)
        magnitude = _u32(all_bits & _u32(0x7FFFFFFF))
        odd = (magnitude >> _u32(13)) & _u32(1)
        normal = (magnitude - _u32(0x38000000) + _u32(0x0FFF) + odd) >> _u32(13)
        denormal = bits(float_of(magnitude) + np.float32(0.5)) - _u32(0x3F000000)
        rounded = denormal if magnitude < _u32(0x38800000) else normal
        rounded = _u32(0x7C00) if magnitude >= _u32(0x477FF000) else rounded  # from 65520 on
        rounded = _u32(0x7E00) if magnitude > _u32(0x7F800000) else rounded  # NaN
        return np.uint16(rounded | sign)

    return Conversion(widen, narrow)
