"""One slot of one parameter, however it is stored: how large it is, and powers of two times it."""

from __future__ import annotations

import numpy as np

from fastopt import arrays, codes
from fastopt.arrays import Array

_PART = 100
"""2^power is multiplied by in parts: float32 has no 2^128."""


class Piece:
    """A parameter's piece of a slot in the precision of the arithmetic."""

    def __init__(self, values: Array) -> None:
        self._values = values

    def largest(self) -> float:
        """Return the largest magnitude, 0 if there is none; in 8 bits something up to twice it."""
        return largest(self._values)

    def rescale(self, power: int) -> None:
        """Multiply by 2^power, in place; what is not a normal number any more becomes 0."""
        _rescale(self._values, power)


class SixteenBits(Piece):
    """The bits of bfloat16, which are the upper half of a float32."""

    def largest(self) -> float:
        """Return the largest magnitude, 0 if there is none."""
        with arrays.on_device_of(self._values):
            return largest(codes.from_bfloat16(self._values))

    def rescale(self, power: int) -> None:
        """Multiply by 2^power: exact, so that nothing is to be rounded."""
        with arrays.on_device_of(self._values):
            wide = codes.from_bfloat16(self._values)
            _rescale(wide, power)
            bits = wide.view(np.uint32)
            bits >>= 16
            self._values[...] = bits


class EightBits(Piece):
    """Codes in 8 bits, relative to the scales of their blocks: only these have a magnitude.

    ``values`` are the scales.
    """

    def largest(self) -> float:
        """Return twice the largest scale: no code comes to as much."""
        return 2.0 * super().largest()


def largest(values: Array) -> float:
    """Return the largest magnitude in an array, 0 if it is empty."""
    if not values.size:
        return 0.0
    with arrays.on_device_of(values), np.errstate(all="ignore"):
        return float(abs(values).max())


def _rescale(values: Array, power: int) -> None:
    with arrays.on_device_of(values), np.errstate(all="ignore"):
        while power:
            part = max(-_PART, min(_PART, power))
            values *= 2.0**part
            power -= part
        # As a GPU has it for float32, where such numbers are 0.
        values *= abs(values) >= float(np.finfo(values.dtype).smallest_normal)
