"""Codes of 16 and 8 bits for one number at a time, to be compiled; the formulas are in ``codes``.

Every constant is a typed scalar: Python's integers would widen the bits to 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from fastopt import codes, random_bits
from fastopt.formats import Format

_u32, _u16, _u8, _f32 = np.uint32, np.uint16, np.uint8, np.float32
_NORMAL = _f32(2.0**-126)
Function = Callable[..., Any]


def mixed(bits: Any) -> Any:
    """Return 32 bits that look random."""
    bits = _u32(bits ^ (bits >> _u32(16))) * _FIRST
    bits = _u32(_u32(bits) ^ (_u32(bits) >> _u32(15))) * _SECOND
    return _u32(_u32(bits) ^ (_u32(bits) >> _u32(16)))


_FIRST, _SECOND = map(_u32, random_bits.MULTIPLIERS)


def low_half(word: Any) -> Any:
    """Return the draw of a slot of even number."""
    return _u32(word & _u32(0xFFFF))


def high_half(word: Any) -> Any:
    """Return the draw of a slot of odd number."""
    return _u32(word >> _u32(16))


def from_bfloat16(float_of: Function) -> Function:
    """Return what reads the bits of a bfloat16 as a float32."""

    def widen(stored: Any) -> Any:
        return float_of(_u32(_u32(stored) << _u32(16)))

    return widen


def to_bfloat16(bits: Function, float_of: Function) -> Function:
    """Return what rounds a float32 to the bits of a bfloat16, by a draw."""

    def narrow(value: Any, draw: Any) -> Any:
        rounded = _u16(_u32(bits(value) + draw) >> _u32(16))
        return rounded if value == value else _u16(0x7FC0)

    return narrow


def to_float16(bits: Function, float_of: Function) -> Function:
    """Return what rounds a float32 to the bits of a float16, by a draw."""
    normal = _f32(2.0**-14)

    def narrow(value: Any, draw: Any) -> Any:
        every = bits(value)
        size = _u32(every & _u32(0x7FFFFFFF))
        even = _u32(bits(float_of(size) + normal) - _u32(1 << 23))
        even = even if size < _u32(0x38800000) else size
        rounded = _u32(even - _u32(0x38000000) + (draw >> _u32(3))) >> _u32(13)
        rounded = _u32(0x7C00) if size >= _u32(0x47800000) else rounded
        rounded = _u32(0x7E00) if size > _u32(0x7F800000) else rounded
        return _u16(rounded | ((every >> _u32(16)) & _u32(0x8000)))

    return narrow


class Coder(NamedTuple):
    """Between a float32 and its 8-bit code, for one sort of state."""

    decode: Function
    encode: Function


def eight_bits(signed: bool, bits: Function, float_of: Function) -> Coder:
    """Return the coder of state that can be negative, or cannot."""
    chosen = codes.grid(signed)
    low, top, normal = chosen.low, _u32(chosen.top), chosen.normal
    first = _u32(low << 23)
    below, offset = _u32(low - 1 << 23), _u32((low - 1 << 23) - 4)

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


def exponent(largest: Any) -> Any:
    """Return the exponent of a block's scale, given the bits of its largest magnitude."""
    found = _u32(largest + _u32(0x7FFFF)) >> _u32(23)
    found = found if found > _u32(27) else _u32(27)
    return found if found < _u32(253) else _u32(253)


def functions(
    names: Iterable[str], format: Format, bits: Function, float_of: Function
) -> list[Function]:
    """Return what the loop of a format calls by these names."""
    return [_function(name, format, bits, float_of) for name in names]


def _function(name: str, format: Format, bits: Function, float_of: Function) -> Function:
    bfloat16 = to_bfloat16(bits, float_of)
    if name == "narrow_by":
        return bfloat16 if format.stored.name == "bfloat16" else to_float16(bits, float_of)
    if name.startswith(("signed", "positive")):
        sort, _, direction = name.partition("_")
        coder = eight_bits(sort == "signed", bits, float_of)
        return coder.decode if direction == "decode" else coder.encode
    known: dict[str, Function] = {
        **{"u32": _u32, "empty": np.empty, "bits": bits, "float_of": float_of, "mixed": mixed},
        **{"low_half": low_half, "high_half": high_half, "exponent": exponent},
        **{"widen_state": from_bfloat16(float_of), "narrow_state": bfloat16},
    }
    return known[name]
