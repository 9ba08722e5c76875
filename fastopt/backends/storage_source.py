"""What the loop that Numba compiles does to state on its way from and to memory, as text.

State in the precision of the arithmetic is read and written as it is, that of 16 bits is converted
on the way. The scale of a block in 8 bits is known only when all of it has been updated: until then
the block waits in a row of the thread's own, which stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fastopt.backends.job import LEAF_LINES, at
from fastopt.codes import BEYOND, BLOCK
from fastopt.formats import Format
from fastopt.random_bits import GOLDEN
from fastopt_kernels import Rule


def storage_of(rule: Rule, format: Format) -> Storage:
    """Return the texts of a format."""
    kinds = {"real": Storage, "bfloat16": _SixteenBits, "int8": _EightBits}
    return kinds[format.state](rule, format)


_CODERS = ("signed_decode", "signed_encode", "positive_decode", "positive_encode")


class Storage:
    """State in the precision of the arithmetic; what is common to all storage."""

    functions: tuple[str, ...] = ()
    """What is compiled in beside what every step needs, by ``numba_backend``."""
    of = "of"
    """What the names of a chunk's arrays end with: ``param_of``."""

    def __init__(self, rule: Rule, format: Format) -> None:
        self.rule = rule
        self.format = format
        slots = range(len(rule.state)) if format.state != "real" else range(0)
        self._drawn = [*slots, *[len(rule.state)] * format.stochastic]
        if format.random_scalars:
            self.functions = ("u32", "mixed", "low_half", "high_half", *self.functions)
        if format.stochastic:
            self.functions += ("narrow_by",)

    def find(self) -> Iterator[str]:
        """Yield what finds the state, for all chunks."""
        yield from ()

    def in_chunk(self, scalars: int) -> Iterator[str]:
        """Yield what stands before the loops; random scalars follow so many others in the row."""
        if self._drawn:
            yield f"key_high, key_low = u32(row[{scalars}]), u32(row[{scalars + 1}])"
            yield "step_key = u32(u32(key_high << u32(16)) | key_low)"
            yield f"counter = u32(leaves[{LEAF_LINES.index('STREAM')}, leaf] + start)"
        for word in sorted({slot // 2 for slot in self._drawn}):
            yield f"key{word} = u32(step_key ^ u32({word * GOLDEN % 2**32}))"

    def loops(self, element: Sequence[str], usual: Sequence[str]) -> Iterator[str]:
        """Yield the loop over the elements of a chunk.

        ``usual`` is the element's update in most steps. It has a loop of its own where arithmetic
        takes the time, not memory.
        """
        yield from ["place = counter"] * bool(self._drawn)
        yield from _for_each("count", element)

    @property
    def draws(self) -> Sequence[str]:
        """What draws the random bits of an element."""
        return _words(self._drawn)

    def load(self, slot: str) -> str:
        """Return a slot of an element in the precision of the arithmetic."""
        return f"{slot}_of[i]"

    def store(self, slot: str, value: str) -> Iterator[str]:
        """Yield what writes a slot of an element."""
        yield f"{slot}_of[i] = {value}"

    @property
    def narrow(self) -> str:
        """The parameter as it is stored."""
        by_chance = f"narrow_by(float32(param), {_draw(len(self.rule.state))})"
        return by_chance if self.format.stochastic else "narrow(param)"

    def _find_codes(self, kind: str) -> str:
        pointer = f"pointer_to(word(job + {at('CODES')}), {kind})"
        return f"codes = carray({pointer}, ({len(self.rule.state)}, word(job + {at('PITCH')})))"


class _SixteenBits(Storage):
    functions = ("widen_state", "narrow_state")

    def loops(self, element: Sequence[str], usual: Sequence[str]) -> Iterator[str]:
        yield from _either(super().loops(usual, usual), super().loops(element, usual))

    def find(self) -> Iterator[str]:
        yield self._find_codes("uint16")

    def in_chunk(self, scalars: int) -> Iterator[str]:
        for k, slot in enumerate(self.rule.state):
            yield f"{slot}_of = codes[{k}, first : first + count]"
        yield from super().in_chunk(scalars)

    def load(self, slot: str) -> str:
        return f"widen_state({slot}_of[i])"

    def store(self, slot: str, value: str) -> Iterator[str]:
        draw = _draw(self.rule.state.index(slot))
        yield from [f"{slot} = {value}"] * (value != slot)
        yield f"{slot}_of[i] = narrow_state({slot}, {draw})"


class _EightBits(Storage):
    of = "chunk"
    functions = ("bits", "float_of", "exponent", "low_cut", "high_cut", *_CODERS)

    def find(self) -> Iterator[str]:
        yield self._find_codes("uint8")
        blocks = f"({len(self.rule.state)}, word(job + {at('PITCH')}) // {BLOCK})"
        yield f"scales = carray(pointer_to(word(job + {at('SCALES')}), real), {blocks})"
        # An array each: of rows of one array the compiler does not know that they lie apart.
        for slot in self.rule.state:
            yield f"{slot}_row = empty({BLOCK}, real)"

    def in_chunk(self, scalars: int) -> Iterator[str]:
        for k, slot in enumerate(self.rule.state):
            yield f"{slot}_chunk = codes[{k}, first : first + count]"
            yield f"{slot}_scales = scales[{k}]"
        yield from super().in_chunk(scalars)

    def loops(self, element: Sequence[str], usual: Sequence[str]) -> Iterator[str]:
        yield f"for block_begin in range(0, count, {BLOCK}):"
        yield from _indented(self._block(element, usual))

    def _block(self, element: Sequence[str], usual: Sequence[str]) -> Iterator[str]:
        """Yield what is done with a block: all of it is updated, then all of its state encoded."""
        state = self.rule.state
        yield f"block = (first + block_begin) // {BLOCK}"
        yield f"block_size = min({BLOCK}, count - block_begin)"
        # Views of a block: the compiler does not know that block_begin + i is not negative.
        chunks = ["param", "grad", *state, *self.format.masters, *self.format.limits]
        for name in [*chunks, *["square"] * self.format.modulus]:
            yield f"{name}_of = {name}_chunk[block_begin : block_begin + block_size]"
        for slot in state:
            yield f"{slot}_scale = {slot}_scales[block]"
            yield f"{slot}_top = u32(0)"
        place = "place = u32(counter + u32(block_begin))"
        yield from [place] * self.format.stochastic
        yield from _either(_for_each("block_size", usual), _for_each("block_size", element))
        for slot in state:
            yield from self._scale(slot)
        yield place
        encoded = [*_words(range(len(state))), *map(self._encoded, state)]
        yield from _for_each("block_size", encoded)

    @property
    def draws(self) -> Sequence[str]:
        return _words([len(self.rule.state)] * self.format.stochastic)

    def load(self, slot: str) -> str:
        return f"{self._coder(slot)}_decode({slot}_of[i]) * {slot}_scale"

    def store(self, slot: str, value: str) -> Iterator[str]:
        yield from [f"{slot} = {value}"] * (value != slot)
        yield f"{slot}_row[i] = {slot}"
        yield f"{slot}_top = max({slot}_top, u32(bits({slot}) & u32(0x7FFFFFFF)))"

    def _scale(self, slot: str) -> Iterator[str]:
        """Yield what finds a block's scale, and its inverse."""
        yield f"if {slot}_top >= u32({BEYOND}):"
        yield f"    {slot}_row[:] = 0"
        yield f"    {slot}_scales[block] = float_of(u32(0x7FC00000))"
        yield f"    {slot}_inverse = zero"
        yield "else:"
        yield f"    scale_exponent = exponent({slot}_top)"
        yield f"    {slot}_scale = float_of(u32(scale_exponent << u32(23)))"
        yield f"    {slot}_scales[block] = {slot}_scale if {slot}_top != u32(0) else zero"
        yield f"    {slot}_inverse = float_of(u32(u32(u32(254) - scale_exponent) << u32(23)))"

    def _encoded(self, slot: str) -> str:
        draw = _draw(self.rule.state.index(slot), "cut")
        return f"{slot}_of[i] = {self._coder(slot)}_encode({slot}_row[i], {slot}_inverse, {draw})"

    def _coder(self, slot: str) -> str:
        return "signed" if slot in self.rule.signed else "positive"


def _words(slots: Sequence[int]) -> list[str]:
    """Return what draws the random bits of some slots of the element at ``place``."""
    words = sorted({slot // 2 for slot in slots})
    drawn = [f"word{w} = mixed(u32(place ^ key{w}))" for w in words]
    return [*drawn, "place = u32(place + u32(1))"] if words else []


def _draw(slot: int, part: str = "half") -> str:
    return f"{'high' if slot % 2 else 'low'}_{part}(word{slot // 2})"


def _for_each(count: str, element: Iterable[str]) -> Iterator[str]:
    yield f"for i in range({count}):"
    yield from _indented(element)


def _either(usual: Iterable[str], otherwise: Iterable[str]) -> Iterator[str]:
    """Yield the loops of a usual step, and those of others."""
    yield "if l2 == zero and tiny_signed == zero and tiny_positive == zero:"
    yield from _indented(usual)
    yield "else:"
    yield from _indented(otherwise)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"    {line}" for line in lines)
