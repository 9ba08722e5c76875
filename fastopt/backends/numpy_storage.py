"""State of a block in the NumPy backend: decoded before an update, rounded by chance after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt import codes, random_bits
from fastopt.arena import Arena
from fastopt.arrays import Array


class Draws:
    """The random bits of a block in one step.

    ``counters`` give of every parameter in the block the counter of its first number there, and how
    many there are; ``high`` and ``low`` are the halves of the step's key.
    """

    def __init__(self, counters: Sequence[tuple[int, int]], high: float, low: float) -> None:
        self._counters = counters
        self._key = int(high) << 16 | int(low)
        self._word = -1
        self._bits: Array | None = None

    def of(self, slot: int, size: int = 16) -> Array:
        """Return the draws of a slot, of so many bits; slots are asked for in their order."""
        word = slot // 2
        if self._bits is None or self._word != word:
            self._bits, self._word = self._mixed(word), word
        return self._bits >> (32 - size) if slot % 2 else self._bits & np.uint32((1 << size) - 1)

    def _mixed(self, word: int) -> Array:
        runs = [_count(first, size) for first, size in self._counters]
        bits = runs[0] if len(runs) == 1 else np.concatenate(runs)
        bits ^= np.uint32(random_bits.word_key(self._key, word))
        random_bits.mix_in_place(bits)
        return bits

    def rounded(self, values: Array, slot: int, dtype: np.dtype[Any]) -> Array:
        """Return float32 in a dtype of 16 bits, by the draws of a slot."""
        narrow = codes.to_bfloat16 if dtype.name == "bfloat16" else codes.to_float16
        return narrow(values, self.of(slot)).view(dtype)


class State:
    """The state of consecutive places in an arena, slot by slot."""

    __slots__ = ("_codes", "_exact", "_scales")

    def __init__(self, arena: Arena, first: int, size: int) -> None:
        place = slice(first, first + size)
        self._exact = tuple(slot[place] for slot in arena.exact)
        self._codes = () if arena.codes is None else tuple(slot[place] for slot in arena.codes)
        blocks = slice(first // codes.BLOCK, -(-(first + size) // codes.BLOCK))
        self._scales = () if arena.scales is None else tuple(s[blocks] for s in arena.scales)

    def load(self, signed: Sequence[bool]) -> tuple[Array, ...]:
        """Return the slots of the rule, which ``signed`` belongs to, and then the others."""
        if not self._codes:
            return self._exact
        if not self._scales:
            return (*map(codes.from_bfloat16, self._codes), *self._exact)
        read = zip(self._codes, self._scales, signed, strict=True)
        return (*(_from_int8(*slot) for slot in read), *self._exact)

    def store(self, values: Sequence[Array], signed: Sequence[bool], draws: Draws) -> None:
        """Round the slots of the rule, if they are kept in codes."""
        for slot, target in enumerate(self._codes):
            if not self._scales:
                target[:] = codes.to_bfloat16(values[slot], draws.of(slot))
                continue
            size, scales = target.size, self._scales[slot]
            whole = (
                _padded(values[slot], scales.size),
                _padded(draws.of(slot, codes.CUT_OFF), scales.size),
            )
            code, scales[:] = codes.to_int8(*whole, signed[slot])
            target[:] = code[:size]


def _from_int8(code: Array, scales: Array, signed: bool) -> Array:
    values = codes.from_int8(_padded(code, scales.size), scales, signed)
    return values[: code.size]


def _padded(values: Array, blocks: int) -> Array:
    """Return values with zeros behind them, up to whole blocks."""
    missing = blocks * codes.BLOCK - values.size
    return np.concatenate([values, np.zeros(missing, values.dtype)]) if missing else values


def _count(first: int, size: int) -> Array:
    """Return so many counters from the first on, modulo 2**32."""
    counters = np.arange(size, dtype=np.uint32)
    counters += np.uint32(first % 2**32)
    return counters
