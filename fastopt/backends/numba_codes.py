"""Codes of 16 and 8 bits for one number at a time, to be compiled; the formulas are in ``codes``.

Every constant is a typed scalar: Python's integers would widen the bits to 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from fastopt import codes, random_bits
from fastopt.backends.numba_halves import widen_bfloat16
from fastopt.backends.numba_intrinsics import bits, float_of
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
def to_float16(value: Any, draw: Any) -> Any:
    """Round a float32 to the bits of a float16, by a draw."""
    every = bits(value)
    size = _u32(every & _u32(0x7FFFFFFF))
    even = _u32(bits(float_of(size) + _HALF_NORMAL) - _u32(1 << 23))
    even = even if size < _u32(0x38800000) else size
    rounded = _u32(even - _u32(0x38000000) + (draw >> _u32(3))) >> _u32(13)
    rounded = _u32(0x7C00) if size >= _u32(0x47800000) else rounded
    rounded = _u32(0x7E00) if size > _u32(0x7F800000) else rounded
    return _u16(rounded | ((every >> _u32(16)) & _u32(0x8000)))


class Coder(NamedTuple):
    """Between a float32 and its 8-bit code, for one sort of state."""

    decode: Function
    encode: Function


def eight_bits(signed: bool) -> Coder:
    """Return the coder of state that can be negative, or cannot."""
    chosen = codes.grid(signed)
    low, top, normal = chosen.low, _u32(chosen.top), chosen.normal
    first = _u32(low << 23)
    below, offset = _u32(low - 1 << 23), _u32((low - 1 << 23) - 4)

    @register_jitable  # type: ignore[untyped-decorator]
    def decode(code: Any) -> Any:
        every = _u32(code)
        size = _u32(every & top)
        small = size < _u32(16)
        base = _u32(size + _u32(16)) if small else size
        value = float_of(_u32(_u32(base << _u32(19)) + below))
        value = value - normal if small else value
        if signed:
            return float_of(_u32(bits(value) | _u32((every & _u32(0x80)) << _u32(24))))
        return value

    @register_jitable  # type: ignore[untyped-decorator]
    def encode(value: Any, inverse: Any, draw: Any) -> Any:
        every = bits(value)
        size = float_of(_u32(every & _u32(0x7FFFFFFF))) * inverse
        plain = bits(size)
        even = _u32(bits(size + normal) - _u32(1 << 23))
        even = even if plain < first else plain
        code = _u32(_u32(_u32(even + _u32(draw << _u32(3))) - offset) >> _u32(19))
        most = code if code < top else top
        if signed:
            return _u8(most | (_u32(every >> _u32(24)) & _u32(0x80)))
        nothing = most == _u32(0) and value >= _NORMAL
        return _u8(1) if nothing else _u8(most)

    return Coder(decode, encode)


@register_jitable  # type: ignore[untyped-decorator]
def exponent(largest: Any) -> Any:
    """Return the exponent of a block's scale, given the bits of its largest magnitude."""
    found = _u32(largest + _u32(0x7FFFF)) >> _u32(23)
    found = found if found > _u32(27) else _u32(27)
    return found if found < _u32(253) else _u32(253)


SIGNED, POSITIVE = eight_bits(signed=True), eight_bits(signed=False)

_FUNCTIONS: dict[str, Function] = {
    **{"u32": _u32, "bits": bits, "float_of": float_of, "exponent": exponent},
    **{"mixed": mixed, "low_half": low_half, "high_half": high_half},
    **{"widen_state": widen_bfloat16, "narrow_state": to_bfloat16},
    **{"signed_decode": SIGNED.decode, "signed_encode": SIGNED.encode},
    **{"positive_decode": POSITIVE.decode, "positive_encode": POSITIVE.encode},
}


def functions(names: Iterable[str], format: Format) -> dict[str, Function]:
    """Return what the loop of a format calls by these names."""
    narrow = to_bfloat16 if format.stored.name == "bfloat16" else to_float16
    known = {**_FUNCTIONS, "narrow_by": narrow}
    return {name: known[name] for name in names}
