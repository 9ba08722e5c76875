"""Numbers in 16 and 8 bits: codes, rounding to nearest, random bits for stochastic rounding."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array

# -------------------------------------------------------------------------------------------------
# Numbers in 16 and 8 bits: the formulas, in NumPy. Every backend ends in these bits.
#
# All rounding is stochastic: up with a probability that is the part left over, by a draw of as many
# random bits as are cut off. Rounding to nearest would lose an average that keeps 0.999: what comes
# in at a step is less than half a unit in 8 bits of fraction.
#
# bfloat16 is the upper half of a float32. An 8-bit code is a small float, relative to the largest
# magnitude of its block of 256: three bits of exponent after a sign, or four without one, then four
# of fraction, with denormals. The block's scale is a power of two, so scaling is exact and what
# does not change stays where it is.

BLOCK = 256
"""Consecutive real numbers of one parameter that share a scale."""

CUT_OFF = 19
"""Bits that an 8-bit code has less of a fraction than a float32."""

HALF, HALF_OF_INT8 = 1 << 15, 1 << CUT_OFF - 1
"""The draws that round to nearest, for what is encoded once."""

_NORMAL = np.float32(2.0**-126)  # what is below is 0 on a GPU
_NAN = 0x7FC0
_INFINITE = 0x7F800000
BEYOND = 0x7EF80001
"""The bits of the first magnitude that 8 bits do not have: above 1.9375 * 2**126."""
_u32 = np.uint32


class Grid(NamedTuple):
    """The codes of signed or positive state, relative to a scale."""

    low: int  # the exponent of the smallest normal code, as in a float32
    top: int  # the largest code, without the sign

    @property
    def normal(self) -> np.float32:
        """The smallest normal code's number."""
        return np.float32(2.0 ** (self.low - 127))


SIGNED = Grid(low=121, top=127)
POSITIVE = Grid(low=113, top=255)


def grid(signed: bool) -> Grid:
    """Return the codes of state that can be negative, or cannot."""
    return SIGNED if signed else POSITIVE


def to_bfloat16(values: Array, draws: Array | int) -> Array:
    """Return float32 as the bits of bfloat16; NaN stays NaN."""
    bits: Array = np.asarray(values.view(np.uint32) + np.asarray(draws, np.uint32))
    bits >>= 16
    rounded: Array = bits.astype(np.uint16)
    rounded[np.isnan(values)] = _NAN
    return rounded


def from_bfloat16(codes: Array) -> Array:
    """Return bits of bfloat16 as float32, exactly."""
    bits: Array = codes.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def to_float16(values: Array, draws: Array) -> Array:
    """Return float32 as the bits of float16; what is beyond 65504 may become infinite."""
    bits = values.view(np.uint32)
    size = bits & _u32(0x7FFFFFFF)
    shifted = _evenly(size, np.float32(2.0**-14))
    rounded = (shifted - _u32(0x38000000) + (draws >> 3)) >> 13
    rounded = np.where(size >= 0x47800000, _u32(0x7C00), rounded)  # from 65536 on
    rounded = np.where(size > _INFINITE, _u32(0x7E00), rounded)
    signs = bits >> 16 & _u32(0x8000)
    halves: Array = (rounded | signs).astype(np.uint16)
    return halves


def _evenly(bits: Array, normal: np.float32) -> Array:
    """Return the bits of magnitudes, evenly spaced below the smallest normal number, as above it.

    Adding the smallest normal number to a denormal one leaves the latter's bits as the fraction of
    the sum; the exponent, which the addition has made 1, is subtracted again.
    """
    small = bits < normal.view(np.uint32)
    sums = np.where(small, bits, 0).view(np.float32) + normal
    return np.where(small, sums.view(np.uint32) - _u32(1 << 23), bits)


def to_int8(values: Array, draws: Array | int, signed: bool) -> tuple[Array, Array]:
    """Return float32 as 8-bit codes and the scales of their blocks; ``values`` are whole blocks.

    ``draws`` have CUT_OFF bits. A block with NaN, infinity, or a number beyond 1.9375 * 2**126
    becomes NaN, all of it: nothing can be hidden.
    """
    values = values.reshape(-1, BLOCK)
    largest = np.abs(values).view(np.uint32).max(axis=1)
    broken = largest >= BEYOND
    if broken.any():
        values = np.where(broken[:, None], np.float32(0), values)
    # Rounded up, so that the largest code is never exceeded; what that stands for, 1.9375 * 2**e,
    # still has the scale 2**e.
    exponent = np.clip(largest + _u32(0x7FFFF) >> 23, _u32(27), _u32(253))
    scales = (exponent << 23).view(np.float32)
    inverse = (_u32(254) - exponent << 23).view(np.float32)
    sizes = np.abs(values) * inverse[:, None]
    scales[largest == 0] = 0
    scales[broken] = np.nan
    draw = np.asarray(draws, np.uint32)
    draw = draw.reshape(-1, BLOCK) if draw.ndim else draw
    return _rounded(sizes, draw, values, signed).reshape(-1), scales


def _rounded(sizes: Array, draws: Array, values: Array, signed: bool) -> Array:
    """Return the codes of magnitudes in units of their scales, from 0 to below 2."""
    chosen = grid(signed)
    bits = _evenly(sizes.view(np.uint32), chosen.normal)
    codes = bits + draws - _u32(chosen.low - 1 << 23) >> CUT_OFF
    if signed:
        codes |= values.view(np.uint32) >> 24 & _u32(0x80)
    else:
        # What is not zero never becomes zero: m / sqrt(v) would have no bound where v is small.
        codes = np.maximum(codes, values >= _NORMAL)
    return np.asarray(codes, np.uint8)


def from_int8(codes: Array, scales: Array, signed: bool) -> Array:
    """Return 8-bit codes as float32, exactly; the codes are whole blocks, on whatever device."""
    relative = arrays.like(_table(signed), codes)[codes].reshape(-1, BLOCK)
    relative *= scales[:, None]
    return relative.reshape(-1)


@cache
def _table(signed: bool) -> Array:
    """Return what each code stands for, relative to its block's scale."""
    code = np.arange(256, dtype=np.uint32)
    chosen = grid(signed)
    size = code & _u32(chosen.top)
    small = size < 16
    bits = (np.where(small, size + _u32(16), size) << 19) + _u32(chosen.low - 1 << 23)
    values = bits.view(np.float32) - np.where(small, chosen.normal, np.float32(0))
    return np.where(code > chosen.top, -values, values)


# -------------------------------------------------------------------------------------------------
# Rounding of arrays to another floating dtype: to nearest, ties to even.


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return values of any floating dtype in another one, each the nearest that it has: once."""
    with np.errstate(all="ignore"):
        if dtype.name == "bfloat16" and values.dtype == np.float64:
            values = _to_odd(values)
        return values.astype(dtype)


def narrowed(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return what the arithmetic ends in as parameters of a dtype, as a step rounds them.

    Half precision is rounded from float32, to which float64 is rounded before: twice.
    """
    with np.errstate(all="ignore"):
        if dtype.itemsize == 2:
            values = values.astype(np.float32, copy=False)
        return values.astype(dtype, copy=False)


def current(master: Array, stored: Array) -> Array:
    """Return parameters as a step computes with them, NumPy's or CuPy's.

    That is the master where it rounds to what is stored, else what was stored since.
    """
    xp = arrays.namespace_of(master)
    same = narrowed(master, stored.dtype) == stored
    found: Array = xp.where(same, master, stored.astype(master.dtype))
    return found


def _to_odd(values: Array) -> Array:
    """Return float64 in float32: what it does not hold becomes the odd one of its neighbours.

    The cast from float64 to bfloat16 goes by float32, which would round twice. An odd number of
    float32 is neither of bfloat16 nor a tie between two of them, and lies on the right side.
    """
    single = values.astype(np.float32)
    back = single.astype(np.float64)
    inexact = (back != values) & np.isfinite(values) & np.isfinite(back)
    away = inexact & (np.abs(back) > np.abs(values))
    bits = (single.view(np.uint32) - away.astype(np.uint32)) | inexact.astype(np.uint32)
    odd: Array = bits.view(np.float32)
    return odd


# -------------------------------------------------------------------------------------------------
# Random bits that depend on nothing but a seed, a step, a parameter's name and a place in it.
#
# Counter-based: there is no generator whose state would have to be kept, so draws are the same on
# every backend, whatever goes to it together and in which order. All modulo 2**32.

SEEDS = 2**64
"""There are so many seeds, from 0 on."""

MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Of ``mix``, after shifts by 16 and by 15 bits; a last shift by 16 follows.

Source: C. Wellons' hash prospector, ``lowbias32``: bias 0.17 after an exhaustive search.
"""

GOLDEN = 0x9E3779B9
"""2**32 over the golden ratio: the distance between the keys of successive words, and of steps that
are 2**32 apart."""

_LOW = 2**32 - 1


def mix(bits: int) -> int:
    """Return 32 bits that look random, another number for each number: a bijection."""
    bits ^= bits >> 16
    bits = bits * MULTIPLIERS[0] & _LOW
    bits ^= bits >> 15
    bits = bits * MULTIPLIERS[1] & _LOW
    return bits ^ bits >> 16


def mix_in_place(bits: Array) -> None:
    """Mix each of an array of uint32, which multiplies modulo 2**32 by itself."""
    for shift, factor in zip((16, 15), MULTIPLIERS, strict=True):
        bits ^= bits >> shift
        bits *= factor
    bits ^= bits >> 16


def key(seed: int, t: int) -> int:
    """Return the key of a parameter's t-th step (1 for the first)."""
    of_seed = mix(mix(seed & _LOW) ^ seed >> 32)
    return mix(of_seed ^ (mix(t & _LOW) + GOLDEN * (t >> 32)) & _LOW)


def key_scalars(seed: int, t: int) -> tuple[float, float]:
    """Return the halves of the key of a parameter's t-th step, each exact in float32."""
    of_step = key(seed, t)
    return float(of_step >> 16), float(of_step & 0xFFFF)


def stream(name: str) -> int:
    """Return where the counter of a parameter of this name begins."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass"))


def word_key(key: int, word: int) -> int:
    """Return what the counters of a step are combined with (^) for its w-th word of 32 bits.

    Slot s draws from word s // 2: its lowest bits if s is even, else its highest ones. Of 8-bit
    codes these are 19 bits, so that the lowest 6 of the one are among the highest 6 of the other.
    """
    return key ^ word * GOLDEN & _LOW
