"""Random bits that depend on nothing but a seed, a step, a parameter's name and a place in it.

Counter-based: there is no generator whose state would have to be kept, so draws are the same on
every backend, whatever goes to it together and in which order. All modulo 2**32.
"""

from __future__ import annotations

import zlib

from fastopt.arrays import Array

SEEDS = 2**64
"""There are so many seeds, from 0 on."""

MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Of ``mix``, after shifts by 16 and by 15 bits; a last shift by 16 follows.

Source: C. Wellons' hash prospector, ``lowbias32``: bias 0.17 after an exhaustive search.
"""

GOLDEN = 0x9E3779B9
"""2**32 over the golden ratio: what keys of words and of steps beyond 2**32 are apart."""

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


def stream(name: str) -> int:
    """Return where the counter of a parameter of this name begins."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass"))


def word_key(key: int, word: int) -> int:
    """Return what the counters of a step are combined with (^) for its w-th word of 32 bits.

    Slot s draws from word s // 2: its lowest bits if s is even, else its highest ones. Of 8-bit
    codes these are 19 bits, so that the lowest 6 of the one are among the highest 6 of the other.
    """
    return key ^ word * GOLDEN & _LOW
