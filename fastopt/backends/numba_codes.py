"""Codes of 16 and 8 bits for one number at a time, to be compiled; the formulas are in ``codes``.

Every constant is a typed scalar: Python's integers would widen the bits to 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from fastopt import codes, random_bits
from fastopt.backends.numba_halves import READS_HALVES, widen_bfloat16
from fastopt.backends.numba_intrinsics import bits, float_of, widen_float16
from fastopt.formats import Format

_u32, _u16, _u8, _f32 = np.uint32, np.uint16, np.uint8, np.float32
_NORMAL = _f32(2.0**-126)
_HALF_NORMAL = _f32(2.0**-14)  # the smallest of float16
_FIRST, _SECOND = map(_u32, random_bits.MULTIPLIERS)
Function = Callable[..., Any]


@register_jitable  # type: ignore[untyped-decorator]  # numba has no types
def mixed(word: Any) -> Any:
    """Return 32 bits that look random."""
    word = _u32(word ^ (word >> _u32(16))) * _FIRST
    word = _u32(_u32(word) ^ (_u32(word) >> _u32(15))) * _SECOND
    return _u32(_u32(word) ^ (_u32(word) >> _u32(16)))


@register_jitable  # type: ignore[untyped-decorator]
def low_half(word: Any) -> Any:
    """Return the draw of a slot of even number."""
    return _u32(word & _u32(0xFFFF))


@register_jitable  # type: ignore[untyped-decorator]
def high_half(word: Any) -> Any:
    """Return the draw of a slot of odd number."""
    return _u32(word >> _u32(16))


@register_jitable  # type: ignore[untyped-decorator]
def to_bfloat16(value: Any, draw: Any) -> Any:
    """Round a float32 to the bits of a bfloat16, by a draw."""
    rounded = _u16(_u32(bits(value) + draw) >> _u32(16))
    return rounded if value == value else _u16(0x7FC0)


@register_jitable  # type: ignore[untyped-decorator]
def _evenly(size: Any, normal: Any) -> Any:
    """Return the bits of a magnitude, evenly spaced below the smallest normal number too.

    Below it the sum, its exponent lowered by one, has the larger bits, above it the size itself.
    """
    own, summed = bits(size), _u32(bits(size + normal) - _u32(1 << 23))
    return own if own > summed else summed


@register_jitable  # type: ignore[untyped-decorator]
def to_float16(value: Any, draw: Any) -> Any:
    """Round a float32 to the bits of a float16, by a draw."""
    every = bits(value)
    size = _u32(every & _u32(0x7FFFFFFF))
    even = _evenly(float_of(size), _HALF_NORMAL)
    rounded = _u32(even - _u32(0x38000000) + (draw >> _u32(3))) >> _u32(13)
    rounded = _u32(0x7C00) if size >= _u32(0x47800000) else rounded
    rounded = _u32(0x7E00) if size > _u32(0x7F800000) else rounded
    return _u16(rounded | ((every >> _u32(16)) & _u32(0x8000)))


@register_jitable  # type: ignore[untyped-decorator]
def low_cut(word: Any) -> Any:
    """Return the draw of an 8-bit slot of even number."""
    return _u32(word & _u32((1 << codes.CUT_OFF) - 1))


@register_jitable  # type: ignore[untyped-decorator]
def high_cut(word: Any) -> Any:
    """Return the draw of an 8-bit slot of odd number."""
    return _u32(word >> _u32(32 - codes.CUT_OFF))


# A code whose bits are moved into those of a float16 is the same number there (2**-8 of it, where
# there is a sign): it has two bits of exponent less, or one, and six bits of fraction.


@register_jitable  # type: ignore[untyped-decorator]
def _signed_by_half(code: Any) -> Any:
    every = _u32(code)
    half = _u32((every & _u32(0x80)) << _u32(8)) | _u32((every & _u32(0x7F)) << _u32(6))
    return widen_float16(_u16(half)) * _f32(2.0**8)


@register_jitable  # type: ignore[untyped-decorator]
def _positive_by_half(code: Any) -> Any:
    return widen_float16(_u16(_u32(code) << _u32(6)))


def _decoder(signed: bool) -> Function:
    """Return what decodes 8 bits by integers, for processors that cannot convert float16."""
    chosen = codes.grid(signed)
    top, normal, below = _u32(chosen.top), chosen.normal, _u32(chosen.low - 1 << 23)

    @register_jitable  # type: ignore[untyped-decorator]
    def decode(code: Any) -> Any:
        every = _u32(code)
        size = _u32(every & top)
        small = size < _u32(16)
        base = _u32(size + _u32(16)) if small else size
        value = float_of(_u32(_u32(base << _u32(19)) + below))
        value = value - normal if small else value
        return float_of(_u32(bits(value) | _u32((every & ~top) << _u32(24))))

    return decode  # type: ignore[no-any-return]


_SIGNED, _POSITIVE = codes.SIGNED.normal, codes.POSITIVE.normal
_CUT_OFF = _u32(codes.CUT_OFF)
_SIGN = _u32(0x80 << codes.CUT_OFF)
_SMALLEST = _u32((codes.POSITIVE.low - 1 << 23) + (1 << codes.CUT_OFF))


# ``codes`` subtracts the exponent below the smallest normal code. In the byte that is kept here
# that exponent is 0, but for the bit of the sign, which is overwritten.


@register_jitable  # type: ignore[untyped-decorator]
def signed_encode(value: Any, inverse: Any, draw: Any) -> Any:
    """Round a float32 to the code of state that can be negative, by a draw."""
    every = bits(value)
    size = float_of(_u32(every & _u32(0x7FFFFFFF))) * inverse
    code = _u32(_evenly(size, _SIGNED) + draw)
    code = _u32(code & ~_SIGN) | _u32(_u32(every >> _u32(24 - codes.CUT_OFF)) & _SIGN)
    return _u8(_u32(code) >> _CUT_OFF)


@register_jitable  # type: ignore[untyped-decorator]
def positive_encode(value: Any, inverse: Any, draw: Any) -> Any:
    """Round a float32 to the code of state that is never negative, by a draw."""
    code = _u32(_evenly(value * inverse, _POSITIVE) + draw)
    least = code if code > _SMALLEST else _SMALLEST
    code = least if value >= _NORMAL else code
    return _u8(_u32(code) >> _CUT_OFF)


@register_jitable  # type: ignore[untyped-decorator]
def exponent(largest: Any) -> Any:
    """Return the exponent of a block's scale, given the bits of its largest magnitude."""
    found = _u32(largest + _u32(0x7FFFF)) >> _u32(23)
    return found if found > _u32(27) else _u32(27)


_DECODERS: dict[str, Function] = (
    {"signed_decode": _signed_by_half, "positive_decode": _positive_by_half}
    if READS_HALVES
    else {"signed_decode": _decoder(signed=True), "positive_decode": _decoder(signed=False)}
)
_FUNCTIONS: dict[str, Function] = {
    **{"u32": _u32, "bits": bits, "float_of": float_of, "exponent": exponent, "mixed": mixed},
    **{"low_half": low_half, "high_half": high_half, "low_cut": low_cut, "high_cut": high_cut},
    **{"widen_state": widen_bfloat16, "narrow_state": to_bfloat16},
    **{"signed_encode": signed_encode, "positive_encode": positive_encode, **_DECODERS},
}


def functions(names: Iterable[str], format: Format) -> dict[str, Function]:
    """Return what the loop of a format calls by these names."""
    narrow = to_bfloat16 if format.stored.name == "bfloat16" else to_float16
    known = {**_FUNCTIONS, "narrow_by": narrow}
    return {name: known[name] for name in names}
