"""The text of the loops that Numba compiles for a rule, and the layout of a job; no Numba."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import CodeType
from typing import Any

from fastopt.backends.interface import COMMON_SCALARS, tiny_names
from fastopt.core.dtypes import LR_SCALE, UpdateSpec
from fastopt.core.norms import LANES, TILE
from fastopt.core.passes import Pass, derived_of, fragment_names, number_name
from fastopt.core.quantization import BEYOND, BLOCK, GOLDEN
from fastopt_kernels import Memory, Rule
from fastopt_kernels.around import Fragment

# -------------------------------------------------------------------------------------------------
# Where compiled code finds its arrays: the words of a job, and how work is cut up.

LEAF_LINES = ("PARAM", "GRAD", "OFFSET", "ROW", "STREAM")
"""What the lines of the array ``leaves`` hold of each parameter: the addresses of it and of its
gradient, its places in arena and table, and where its random bits begin."""

MEMBER_LINES = (*LEAF_LINES, "DIVISOR", "MODULUS")
"""What they hold where parameters have members: how that of an element is found as well."""

JOB = (
    *("FUNCTION", "TOTAL", "LEAVES", "COUNT", "CHUNKS"),
    *("TABLE", "DERIVED", "ARENA", "CODES", "SCALES", "PITCH"),  # of an update or a pass
    *("LANES", "SUMS", "FACTOR"),  # of a norm or a pass
    *(
        "KNOWN",
        "AXES",
        "AXES_COUNT",
        "EXTENTS",
        "EXTENTS_COUNT",
        "STEPS",
        "REAL",
    ),  # of a fused step
    *("ROWS", "VARIES"),  # of the table, where parameters have members, and a bit for each column
    *("INDICES", "GIVEN", "VALUES", "HEIGHT", "WIDTH"),  # of gradients of rows,
    *("PARAM", "OFFSET", "ROOM", "FOUND"),  # which are laid out as so many parameters
)
"""The words of a job: what does its chunks and how many they are; addresses and sizes of arrays.
Compiled code finds all its arrays there: handing one over as an argument costs as much as updating
100 elements."""

PROGRAM = ("BUCKETS", "SQUARES_IN_SINGLE", "LANES", "STEP_COUNT", "NORM", "PASSES", "PASSES_AT")
"""The words of a fused step: how many buckets it is of, whether some average squares in float32,
and the addresses of LANES numbers to sum in, of the count of steps, and of the last one's norm; how
many passes come before the updates, and the address of their lines."""

PROGRAM_LINES = ("UPDATE", "MEASURE", "THREADS")
"""What follows for each bucket: the addresses of two jobs, and how many threads do them."""

PASS_LINES = ("SUM", "THREADS", "COPIED", "COPIES", "MAKE", "UNITS", "UNITS_AT", "PARTS_AT")
"""What stands there for each pass: the job that sums (0: none) and how many threads do it; how many
numbers are copied first, and the address of where from and to; the address of what makes scalars of
the sums (0: nothing), for how many units, and the addresses of these and of their parts."""

UNIT = ("SIZE", "MEMORY", "INPUTS", "VALUE", "FIRST_PART", "LAST_PART")
"""The words of what has sums and a memory of its own, an array or all of them: how many elements,
the addresses of memory, inputs, and the loss, and which parts it has."""

PART = ("SUMS", "PITCH", "TILES", "DERIVED")
"""The words of an array as a part of it: the address of its first tile's sum, how many numbers on
the next sum of it is, how many tiles there are, and the address where what is made goes."""

CHUNK = 2_048
"""Elements that are updated in one go: small enough to share out evenly among threads, large enough
that finding the next ones costs nothing."""

PIECE = 1_024
"""Elements whose terms a pass works out before it adds them up: terms stay in the first cache, and
memory is not left alone for long."""

LANES_APART = 4_096
"""Bytes from the lanes of one thread to those of the next: what two threads write all the time must
not share a cache line, nor lie in two that processors fetch together."""


def at(name: str) -> int:
    """Return where a word of a job stands, in bytes from its beginning."""
    return 8 * JOB.index(name)


# -------------------------------------------------------------------------------------------------
# What the loop that Numba compiles does to state on its way from and to memory, as text.
#
# State in the precision of the arithmetic is read and written as it is, that of 16 bits is
# converted on the way. The scale of a block in 8 bits is known only when all of it has been
# updated: until then the block waits in a row of the thread's own, which stays in the processor's
# cache.


def storage_of(rule: Rule, spec: UpdateSpec) -> Storage:
    """Return the texts of a format."""
    kinds = {"real": Storage, "bfloat16": _SixteenBits, "int8": _EightBits}
    return kinds[spec.state](rule, spec)


_CODERS = ("signed_decode", "signed_encode", "positive_decode", "positive_encode")


class Storage:
    """State in the precision of the arithmetic; what is common to all storage."""

    functions: tuple[str, ...] = ()
    """What is compiled in beside what every step needs, by ``backend``."""
    of = "of"
    """What the names of a chunk's arrays end with: ``param_of``."""

    def __init__(self, rule: Rule, spec: UpdateSpec) -> None:
        self.rule = rule
        self.spec = spec
        slots = range(len(rule.state)) if spec.state != "real" else range(0)
        self._drawn = [*slots, *[len(rule.state)] * spec.stochastic]
        if spec.random_scalars:
            self.functions = ("u32", "mixed", "low_half", "high_half", *self.functions)
        if spec.stochastic:
            self.functions += ("narrow_by",)

    def find(self) -> Iterator[str]:
        """Yield what finds the state, for all chunks."""
        yield from ()

    def in_chunk(self, scalars: int, of: str) -> Iterator[str]:
        """Yield what stands before the loops; random scalars follow so many others in the row.

        ``of`` is what the names of the chunk's arrays end with.
        """
        if self._drawn:
            yield f"key_high, key_low = u32(row[{scalars}]), u32(row[{scalars + 1}])"
            yield "step_key = u32(u32(key_high << u32(16)) | key_low)"
            yield f"counter = u32(leaves[{LEAF_LINES.index('STREAM')}, leaf] + start)"
        for word in sorted({slot // 2 for slot in self._drawn}):
            yield f"key{word} = u32(step_key ^ u32({word * GOLDEN % 2**32}))"

    def loops(self, element: Sequence[str], plain: Sequence[str]) -> Iterator[str]:
        """Yield the loop over the elements of a chunk.

        ``plain`` is the element's update in most steps. It has a loop of its own where arithmetic
        takes the time, not memory.
        """
        yield from ["place = counter"] * bool(self._drawn)
        yield from _for_each("count", element)

    @property
    def arrays(self) -> Sequence[str]:
        """What an element's values are loaded from."""
        spec = self.spec
        of_all = ["param", "grad", *self.rule.state, *spec.masters, *spec.constants]
        return [*of_all, *["square"] * spec.modulus]

    def sum(
        self, element: Sequence[str], terms: Sequence[str], add: Sequence[str]
    ) -> Iterator[str]:
        """Yield the loop over a tile that puts ``terms`` of elements into arrays and adds them up.

        ``add`` adds the first ``size`` elements of these arrays to the lanes.
        """
        yield f"for begin in range(0, count, {PIECE}):"
        views = [f"{name}_of = {name}_chunk[begin : begin + size]" for name in self.arrays]
        views += [f"{name}_of = {name}_chunk[:size]" for name in terms]
        piece = [f"size = min({PIECE}, count - begin)", *views, *_for_each("size", element), *add]
        yield from _indented(piece)

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
        return by_chance if self.spec.stochastic else "narrow(param)"

    def _find_codes(self, kind: str) -> str:
        pointer = f"pointer_to(int64_at(job + {at('CODES')}), {kind})"
        return f"codes = carray({pointer}, ({len(self.rule.state)}, int64_at(job + {at('PITCH')})))"


class _SixteenBits(Storage):
    functions = ("widen_state", "narrow_state")

    def loops(self, element: Sequence[str], plain: Sequence[str]) -> Iterator[str]:
        yield from _either(super().loops(plain, plain), super().loops(element, plain))

    def find(self) -> Iterator[str]:
        yield self._find_codes("uint16")

    def in_chunk(self, scalars: int, of: str) -> Iterator[str]:
        for k, slot in enumerate(self.rule.state):
            yield f"{slot}_{of} = codes[{k}, first : first + count]"
        yield from super().in_chunk(scalars, of)

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
        blocks = f"({len(self.rule.state)}, int64_at(job + {at('PITCH')}) // {BLOCK})"
        yield f"scales = carray(pointer_to(int64_at(job + {at('SCALES')}), real), {blocks})"
        # An array each: of rows of one array the compiler does not know that they lie apart.
        for slot in self.rule.state:
            yield f"{slot}_row = empty({BLOCK}, real)"

    def in_chunk(self, scalars: int, of: str) -> Iterator[str]:
        for k, slot in enumerate(self.rule.state):
            yield f"{slot}_{of} = codes[{k}, first : first + count]"
            yield f"{slot}_scales = scales[{k}]"
        yield from super().in_chunk(scalars, of)

    def loops(self, element: Sequence[str], plain: Sequence[str]) -> Iterator[str]:
        yield f"for block_begin in range(0, count, {BLOCK}):"
        yield from _indented(self._block(element, plain))

    def _block(self, element: Sequence[str], plain: Sequence[str]) -> Iterator[str]:
        """Yield what is done with a block: all of it is updated, then all of its state encoded."""
        state = self.rule.state
        yield from self._views()
        for slot in state:
            yield f"{slot}_top = u32(0)"
        place = "place = u32(counter + u32(block_begin))"
        yield from [place] * self.spec.stochastic
        yield from _either(_for_each("block_size", plain), _for_each("block_size", element))
        for slot in state:
            yield from self._scale(slot)
        yield place
        encoded = [*_words(range(len(state))), *map(self._encoded, state)]
        yield from _for_each("block_size", encoded)

    def sum(
        self, element: Sequence[str], terms: Sequence[str], add: Sequence[str]
    ) -> Iterator[str]:
        yield f"for block_begin in range(0, count, {BLOCK}):"
        yield from _indented([*self._views(terms), *_for_each("block_size", element)])
        yield from ["size = count", *add]

    def _views(self, terms: Sequence[str] = ()) -> Iterator[str]:
        """Yield what finds a block of all arrays, and the scales of its state."""
        yield f"block = (first + block_begin) // {BLOCK}"
        yield f"block_size = min({BLOCK}, count - block_begin)"
        # Views of a block: the compiler does not know that block_begin + i is not negative.
        for name in [*self.arrays, *terms]:
            yield f"{name}_of = {name}_chunk[block_begin : block_begin + block_size]"
        for slot in self.rule.state:
            yield f"{slot}_scale = {slot}_scales[block]"

    @property
    def draws(self) -> Sequence[str]:
        return _words([len(self.rule.state)] * self.spec.stochastic)

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


def _either(plain: Iterable[str], otherwise: Iterable[str]) -> Iterator[str]:
    """Yield the loops of a plain step, and those of others."""
    yield "if l2 == zero and tiny_signed == zero and tiny_positive == zero:"
    yield from _indented(plain)
    yield "else:"
    yield from _indented(otherwise)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"    {line}" for line in lines)


# -------------------------------------------------------------------------------------------------
# The text of the loop that Numba compiles for a rule.
#
# Only the number of state arrays and scalars differs between rules, but a loop over tuples of
# arrays is not vectorised (8 times slower), so the names are written out here.

_SOURCE = """
def work(job, thread, first_chunk, last_chunk):
    parameters = int64_at(job + {COUNT_AT})
    leaves = carray(pointer_to(int64_at(job + {LEAVES_AT}), int64), ({LINES}, parameters))
    chunks = carray(pointer_to(int64_at(job + {CHUNKS_AT}), int64), (3, int64_at(job + {TOTAL_AT})))
    {find_table}
    pitch = int64_at(job + {PITCH_AT})
    arena = carray(pointer_to(int64_at(job + {ARENA_AT}), real), ({SLOTS}, pitch))
    {find_all}
    for chunk in range(first_chunk, last_chunk):
        leaf, start, count = chunks[0, chunk], chunks[1, chunk], chunks[2, chunk]
        {without_gradient}
        first = leaves[{OFFSET}, leaf] + start
        {find_row}
        zero = real(0)
        {load_scalars}
        param_at = pointer_to(leaves[{PARAM}, leaf] + start * {param_size}, stored)
        grad_at = pointer_to(leaves[{GRAD}, leaf] + start * {grad_size}, gradient_type)
        param_{of} = carray(param_at, count)
        grad_{of} = carray(grad_at, count)
        {slice_state}
        {elements}
"""

# What does not round to the stored parameter is not its master: somebody wrote the parameter since.
_LOAD_MASTER = (
    "param = widen(param_of[i])",
    "master = master_of[i]",
    "param = master if widen(narrow(master)) == param else param",
)


def loop_source(rule: Rule, spec: UpdateSpec) -> str:
    """Return the source of ``work(job, thread, ...)``, which does chunks of one rule's step.

    It refers by name to ``rule``, ``real``, ``stored``, ``gradient_type`` (types), ``widen``,
    ``narrow``, ``widen_gradient``, ``carray``, ``empty``, ``pointer_to``, ``int64_at``, dtypes, to
    the functions of the spec's storage, and to each fragment's ``<name>_form``.
    """
    storage = storage_of(rule, spec)
    element = list(_element(rule, spec, storage))
    loops = storage.loops(element, list(_element(rule, spec, storage, plain=True)))
    skipped = (f"if leaves[{LEAF_LINES.index('GRAD')}, leaf] == 0:", "    continue")
    return _source(rule, spec, storage, [], skipped, list(loops))


def pass_source(rule: Rule, spec: UpdateSpec, one: Pass) -> str:
    """Return the source of ``work(job, thread, ...)``, which sums tiles in a pass of a rule's step.

    It refers by name to what ``loop_source`` does, and to ``terms``, what the pass sums.
    """
    assert one.sums is not None
    storage, count = storage_of(rule, spec), len(one.sums.names)
    find = [
        f"lanes_at = pointer_to(int64_at(job + {at('LANES')}) + {LANES_APART} * thread, float64)",
        f"lanes = carray(lanes_at, ({count}, {LANES}))",
        f"sums_at = pointer_to(int64_at(job + {at('SUMS')}), float64)",
        f"sums = carray(sums_at, ({count}, int64_at(job + {at('TOTAL')})))",
    ]
    # Terms first, and then their sums: a loop that does both is not vectorised.
    terms = [f"{name}_term" for name in one.sums.names]
    find += [f"{term}_chunk = empty({TILE}, real)" for term in terms]
    element = [*_terms(rule, spec, storage, one), *(f"{term}_of[i] = {term}" for term in terms)]
    squared = [name in one.sums.squared for name in one.sums.names]
    add = [line for k, term in enumerate(terms) for line in _add_to_lanes(k, term, squared[k])]
    elements = [*storage.sum(element, terms, add), *_add_lanes(count)]
    nothing = (
        "lanes[:] = 0.0",
        f"if leaves[{LEAF_LINES.index('GRAD')}, leaf] == 0:",
        "    count = 0",
    )
    return _source(rule, spec, storage, find, nothing, elements, of="chunk")


def _add_to_lanes(number: int, term: str, squared: bool) -> Iterator[str]:
    """Yield what adds the first ``size`` elements of a term to its lanes, as ``core.norms`` says.

    Four rows at a time, so that the lanes are fetched and put back once for four.
    """
    added = "value * value" if squared else "value"
    yield f"lane, rest = lanes[{number}], size % {4 * LANES}"
    yield f"for base in range(0, size - rest, {4 * LANES}):"
    yield f"    rows = {term}_chunk[base : base + {4 * LANES}]"
    yield f"    for j in range({LANES}):"
    yield "        total = lane[j]"
    for row in range(4):
        yield f"        value = float64(rows[j + {row * LANES}])"
        yield f"        total += {added}"
    yield "        lane[j] = total"
    yield f"rows = {term}_chunk[size - rest : size]"
    yield "for j in range(rest):"
    yield "    value = float64(rows[j])"
    yield f"    lane[j % {LANES}] += {added}"


def _add_lanes(count: int) -> Iterator[str]:
    """Yield what adds the lanes of so many sums in halves, and puts the sums of a tile away."""
    yield f"width = {LANES // 2}"
    yield "while width > 0:"
    yield f"    for number in range({count}):"
    yield "        for j in range(width):"
    yield "            lanes[number, j] += lanes[number, j + width]"
    yield "    width //= 2"
    yield f"for number in range({count}):"
    yield "    sums[number, chunk] = lanes[number, 0]"


# The table is by columns here, in the dtype of the arithmetic. Looked up in the loop that updates,
# scalars would keep it from being vectorised (10 times slower), so those of a chunk are looked up
# before it. They are in one array: the compiler compares few places in memory at run time.
_LOOK_UP = """
divisor, modulus = leaves[{DIVISOR}, leaf], leaves[{MODULUS}, leaf]
member, left = start // divisor % modulus, divisor - start % divisor
if left >= count:
    for k in range({WIDTH}):
        if varies >> k & 1:
            looked_up[{CHUNK} * k : {CHUNK} * k + count] = table[k, row_at + member]
elif varies:
    for i in range(count):
        member_of[i] = row_at + member
        left -= 1
        if left == 0:
            left = divisor
            member = member + 1 if member + 1 < modulus else 0
    for k in range({WIDTH}):
        if varies >> k & 1:
            column, found = table[k], looked_up[{CHUNK} * k : {CHUNK} * k + count]
            for i in range(count):
                found[i] = column[member_of[i]]
"""


_SAME_FOR_ALL = """longest = 0
for chunk in range(first_chunk, last_chunk):
    longest = max(longest, chunks[2, chunk])
varies = int64_at(job + {VARIES})
for k in range({WIDTH}):
    if varies >> k & 1 == 0:
        looked_up[{CHUNK} * k : {CHUNK} * k + longest] = table[k, 0]"""


def _find_members(scalars: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what makes room for the scalars of a chunk's elements, and what looks them up."""
    room = [f"member_of = empty({CHUNK}, uint32)"]
    room.append(f"looked_up = empty({len(scalars) * CHUNK}, real)")
    room += _SAME_FOR_ALL.format(VARIES=at("VARIES"), WIDTH=len(scalars), CHUNK=CHUNK).splitlines()
    for k, name in enumerate(scalars):
        room.append(f"{name}_of = looked_up[{k * CHUNK} : {(k + 1) * CHUNK}]")
    places = {name: MEMBER_LINES.index(name) for name in ("DIVISOR", "MODULUS")}
    look_up = _LOOK_UP.format(**places, WIDTH=len(scalars), CHUNK=CHUNK)
    return room, look_up.strip().splitlines()


def _look_up(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    """Yield what looks up the scalars of an element, where parameters have members."""
    if spec.members:
        yield from (f"{name} = {name}_of[i]" for name in _scalars_of(rule, spec))


def _source(
    rule: Rule,
    spec: UpdateSpec,
    storage: Storage,
    find: Sequence[str],
    without_gradient: Sequence[str],
    elements: Sequence[str],
    of: str | None = None,
) -> str:
    """Return the source of a loop over chunks; ``of`` is what its arrays' names end with."""
    of = of or storage.of
    derived = derived_of(rule, spec).names
    masters = [*spec.masters, *spec.constants]
    in_arena = [*(rule.state if spec.state == "real" else ()), *masters]
    slices = [f"{slot}_{of} = arena[{k}, first : first + count]" for k, slot in enumerate(in_arena)]
    find = [*storage.find(), *find]
    if derived:
        shape = f"(int64_at(job + {at('COUNT')}), {len(derived)})"
        find.append(
            f"derived = carray(pointer_to(int64_at(job + {at('DERIVED')}), float64), {shape})"
        )
    if spec.modulus:
        find.append(f"square_{of} = empty({max(CHUNK, TILE)}, real)")
        elements = [*_moduli(rule, spec, of), *elements]
    scalars, width = _scalars_of(rule, spec), len([*COMMON_SCALARS, *rule.scalars, *spec.scalars])
    row_at = f"leaves[{LEAF_LINES.index('ROW')}, leaf]"
    loaded = [f"{name} = real(row[{column}])" for column, name in enumerate(scalars)]
    kind, shape, row = (
        "float64",
        f"(int64_at(job + {at('COUNT')}), {width})",
        f"row = table[{row_at}]",
    )
    lines: Sequence[str] = LEAF_LINES
    if spec.members:
        kind, shape, row = "real", f"({width}, int64_at(job + {at('ROWS')}))", f"row_at = {row_at}"
        room, loaded = _find_members(scalars)
        find, lines = [*find, *room], MEMBER_LINES
    loaded += [f"{number_name(name)} = real(derived[leaf, {k}])" for k, name in enumerate(derived)]
    in_work, in_chunk = ("\n" + " " * depth for depth in (4, 8))
    return _SOURCE.format(
        param_size=spec.stored.itemsize,
        grad_size=spec.gradient.itemsize,
        LINES=len(lines),
        find_table=f"table = carray(pointer_to(int64_at(job + {at('TABLE')}), {kind}), {shape})",
        find_row=row,
        SLOTS=len(in_arena),
        **{name: line for line, name in enumerate(LEAF_LINES)},
        **{f"{name}_AT": at(name) for name in JOB},
        of=of,
        find_all=in_work.join(find),
        without_gradient=in_chunk.join(without_gradient),
        load_scalars=in_chunk.join(loaded),
        slice_state=in_chunk.join([*slices, *storage.in_chunk(len(scalars), of)]),
        elements=in_chunk.join(elements),
    )


def _scalars_of(rule: Rule, spec: UpdateSpec) -> list[str]:
    """Return what the scalars in a row of the table are called, but for random ones."""
    names = [*COMMON_SCALARS, *map(number_name, rule.scalars), *spec.fragment_scalars]
    return [*names, *spec.limit_scalars]


def _moduli(rule: Rule, spec: UpdateSpec, of: str) -> Iterator[str]:
    """Yield what squares the moduli of a chunk, before any of its parameters has changed."""
    yield "for i in range(0, count, 2):"
    yield from _indented(_look_up(rule, spec))
    for part, index in (("re", "i"), ("im", "i + 1")):
        yield from _indented(_gradient(spec, spec.fragments, f"grad_{of}[{index}]"))
        yield f"    {_with_l2(f'widen(param_{of}[{index}])')}"
        yield f"    {part} = grad"
    yield "    square = re * re + im * im"
    yield f"    square_{of}[i] = square"
    yield f"    square_{of}[i + 1] = square"


def _gradient(spec: UpdateSpec, fragments: Sequence[Fragment], element: str) -> Iterator[str]:
    """Yield an element's gradient, after the fragments that act on it, without the L2 term."""
    yield f"plain_grad = widen_gradient({element}) * grad_scale"
    yield "grad = plain_grad"
    for fragment in fragments:
        if fragment.at == "gradient":
            yield f"grad = {_called(spec, fragment)}"


def _with_l2(param: str) -> str:
    return f"grad = grad + l2 * {param} if l2 != zero else grad"


def _own_numbers(spec: UpdateSpec, fragment: Fragment) -> list[str]:
    """Return the scalars of a fragment as an element has them."""
    names = fragment_names(fragment)[: len(fragment.scalars)]
    return [f"{name} * {LR_SCALE}" if name in spec.scaled else name for name in names]


def _called(spec: UpdateSpec, fragment: Fragment, **values: str) -> str:
    """Return the call of a fragment's form; ``values`` are other names of what it takes."""
    own = _own_numbers(spec, fragment)
    made = fragment_names(fragment)[len(own) :]
    taken = [values.get(name, name) for name in fragment.values]
    return f"{fragment.name}_form({', '.join([*taken, *own, *map(number_name, made)])})"


def _begin(
    rule: Rule, spec: UpdateSpec, fragments: Sequence[Fragment], plain: bool = False
) -> Iterator[str]:
    """Yield the parameter and the gradient of an element, as the rule gets them."""
    late = bool(spec.on_param or spec.on_all)
    yield from _LOAD_MASTER if spec.master else ["param = widen(param_of[i])"]
    yield from _gradient(spec, fragments, "grad_of[i]")
    yield from [_with_l2("param")] * (not plain)
    if rule.takes_square:
        yield "square = square_of[i]" if spec.modulus else "square = grad * grad"
    yield from ["before = param"] * late
    decay = "decay"
    for name in spec.rates:
        decay = "own_decay"
        yield f"{name} = {name}_of[i]"
        yield f"{decay} = decay * {name}"
    yield f"param = param - {decay} * param if {decay} != zero else param"
    yield from ["decayed = param"] * late


def _numbers(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    """Yield the scalars of the rule as an element has them."""
    for name in rule.scalars:
        number = number_name(name)
        yield f"{number} * {LR_SCALE}" if name in spec.scaled else number


def _ruled(rule: Rule, spec: UpdateSpec, loaded: Sequence[str]) -> str:
    """Return the call of the rule; ``loaded`` are its slots of state."""
    made = [*rule.memory.handed, *rule.memory.scalars] if rule.memory else []
    numbers = [*_numbers(rule, spec), *map(number_name, made)]
    inputs = ", ".join(["param", "grad", *["square"] * rule.takes_square, *loaded, *numbers])
    return f"{', '.join(['param', *rule.state])}, = rule({inputs})"


def _element(rule: Rule, spec: UpdateSpec, storage: Storage, plain: bool = False) -> Iterator[str]:
    """Yield the update of one element; a plain one has no L2 term, and nothing is flushed."""
    yield from _look_up(rule, spec)
    yield from _begin(rule, spec, spec.fragments, plain)
    loaded = [storage.load(slot) for slot in rule.state]
    if spec.on_all:
        yield from (
            f"{slot}_before = {load}" for slot, load in zip(rule.state, loaded, strict=True)
        )
        loaded = [f"{slot}_before" for slot in rule.state]
    yield _ruled(rule, spec, loaded)
    for fragment in spec.on_param:
        yield f"param = {_called(spec, fragment, after='param')}"
    yield from _keep_bounds(rule, spec)
    for fragment in spec.on_all:
        yield f"param = {_called(spec, fragment, after='param')}"
        for slot in rule.kept:
            old = f"{slot}_before"
            yield f"{slot} = {_called(spec, fragment, before=old, decayed=old, after=slot)}"
    yield from storage.draws
    yield f"param_of[i] = {storage.narrow}"
    if spec.master:
        yield "master_of[i] = param"
    for slot, least in tiny_names(rule).items():
        kept = f"zero if abs({slot}) < {least} else {slot}"
        yield from storage.store(slot, slot if plain else kept)


def _terms(rule: Rule, spec: UpdateSpec, storage: Storage, one: Pass) -> Iterator[str]:
    """Yield what a pass sums of one element."""
    assert one.sums is not None
    names = "".join(f"{name}_term, " for name in one.sums.names)
    fragments, fragment = spec.fragments, one.fragment
    loaded = [storage.load(slot) for slot in rule.state]
    if fragment is None:
        yield from _begin(rule, spec, fragments)
        numbers = [*_numbers(rule, spec), *map(number_name, one.memory.handed)]
        square = ["square"] * rule.takes_square
        yield f"{names}= terms({', '.join(['param', 'grad', *square, *loaded, *numbers])})"
        return
    before = fragments[: fragments.index(fragment)]
    own = _own_numbers(spec, fragment)
    if fragment.at == "gradient":
        yield from _gradient(spec, before, "grad_of[i]")
    else:
        yield from _begin(rule, spec, fragments)
        yield _ruled(rule, spec, loaded)
        for earlier in before:
            if earlier.at == "after" and earlier.on == "param":
                yield f"param = {_called(spec, earlier, after='param')}"
    taken = ["param" if name == "after" else name for name in fragment.values]
    yield f"{names}= terms({', '.join([*taken, *own])})"


def _keep_bounds(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    for name in spec.limits:
        yield f"{name} = {name}_of[i]"
    if spec.bounds != "none":
        yield "param = lower if param < lower else param"
        yield "param = upper if param > upper else param"
    if spec.reset:
        for slot in rule.reset:
            yield f"{slot} = zero if param == lower or param == upper else {slot}"


# -------------------------------------------------------------------------------------------------
# What is made of sums: the function of a rule's memory, whose dictionaries become names.

_MADE = """
{function}

def work(entry, thread, first, last):
    units = carray(pointer_to(int64_at(entry + {UNITS_AT}), int64), (last, {UNIT_WORDS}))
    count = units[last - 1, {LAST_PART}]
    parts = carray(pointer_to(int64_at(entry + {PARTS_AT}), int64), (count, {PART_WORDS}))
    lanes = empty({LANES}, float64)
    for unit in range(first, last):
        if units[unit, {SIZE}] == 0:
            continue
        begin, end = units[unit, {FIRST_PART}], units[unit, {LAST_PART}]
        memory = carray(pointer_to(units[unit, {MEMORY}], float64), {MEMORIES})
        inputs = carray(pointer_to(units[unit, {INPUTS}], float64), {GIVEN})
        {load}
        {returned} = host({arguments})
        {remember}
        for part in range(begin, end):
            derived = carray(pointer_to(parts[part, {DERIVED}], float64), {MADE})
            {write}
"""


def memory_source(one: Pass) -> str | None:
    """Return the source of ``work(entry, thread, first, last)``, which does units of a pass.

    It sums what the tiles of each have come to, and has the memory make its scalars; ``entry`` is
    the address of the pass's line. It refers by name to ``total_of``, ``carray``, ``empty``,
    ``pointer_to``, ``int64_at``, dtypes, and to the globals of the memory's function. None if that
    function is not written as ``Memory`` says, or its text cannot be had.
    """
    memory, sums = one.memory, (one.sums.names if one.sums else ())
    function = _without_dictionaries(memory, sums)
    if function is None:
        return None
    load = [f"scalars_{name} = inputs[{k}]" for k, name in enumerate(memory.inputs)]
    load += [f"memory_{name} = memory[{k}]" for k, name in enumerate(memory.names)]
    if memory.takes_value:
        place = f"pointer_to(units[unit, {UNIT.index('VALUE')}], float64)"
        load.append(f"memory_value = carray({place}, 1)[0]")
    load += [
        f"sums_{name} = total_of(parts, begin, end, {k}, lanes)" for k, name in enumerate(sums)
    ]
    arguments = _flat_arguments(memory, sums)
    load.append(f"sums_size = float64(units[unit, {UNIT.index('SIZE')}])")
    coming = [f"coming_{k}" for k in range(len(memory.names))]
    made = [f"made_{k}" for k in range(len(memory.scalars))]
    remember = [f"memory[{k}] = {name}" for k, name in enumerate(coming)]
    write = [f"derived[{k}] = {name}" for k, name in enumerate(made)]
    in_unit, in_part = ("\n" + " " * depth for depth in (8, 12))
    return _MADE.format(
        **{name: word for word, name in enumerate(UNIT)},
        **{name: word for word, name in enumerate(PART)},
        **{name: 8 * PASS_LINES.index(name) for name in ("UNITS_AT", "PARTS_AT")},
        UNIT_WORDS=len(UNIT),
        PART_WORDS=len(PART),
        LANES=LANES,
        MEMORIES=len(memory.names),
        GIVEN=len(memory.inputs),
        MADE=len(made),
        function=function,
        load=in_unit.join(load),
        returned=", ".join([*coming, *made]) + ",",
        arguments=", ".join(arguments),
        remember=in_unit.join(remember),
        write=in_part.join(write),
    )


def _flat_arguments(memory: Memory, sums: Sequence[str]) -> list[str]:
    """Return what the numbers are called that a memory's function takes, in its order."""
    given = {"scalars": memory.inputs, "memory": memory.names, "sums": (*sums, "size")}
    return [f"{where}_{name}" for where, names in given.items() for name in names]


def _without_dictionaries(memory: Memory, sums: Sequence[str]) -> str | None:
    """Return the source of a memory's function that takes and returns numbers, as ``host``."""
    try:
        text = textwrap.dedent(inspect.getsource(memory.host))
        function = ast.parse(text).body[0]
        if not isinstance(function, ast.FunctionDef) or not _is_source_of(text, memory.host):
            return None
        flat = _Flat(memory, _flat_arguments(memory, sums)).visit(function)
    except (OSError, TypeError, SyntaxError, _NotFlat):
        return None
    return ast.unparse(ast.fix_missing_locations(flat))


def _is_source_of(text: str, function: Callable[..., Any]) -> bool:
    """Return whether a function's text is what it was compiled from: a file may have changed."""
    constants = compile(text, "", "exec").co_consts
    compiled = next(code for code in constants if isinstance(code, CodeType))
    own = function.__code__
    same = all(getattr(compiled, name) == getattr(own, name) for name in _OF_CODE)
    return same and not own.co_freevars


_OF_CODE = ("co_code", "co_consts", "co_names", "co_varnames")


_DICTIONARIES = ("scalars", "memory", "sums")


class _NotFlat(Exception):
    """A function is not written as ``Memory`` says."""


class _Flat(ast.NodeTransformer):
    """Puts names in the place of what a function looks up in its dictionaries and returns."""

    def __init__(self, memory: Memory, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._returned = memory.names, memory.scalars

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Take numbers; the types of the annotations are of no use."""
        body = [self.visit(line) for line in node.body]
        arguments = ast.arguments(
            [], [ast.arg(name) for name in self._arguments], None, [], [], None, []
        )
        return ast.FunctionDef("host", arguments, body, [], None)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Take a number by its name."""
        if not isinstance(node.value, ast.Name) or node.value.id not in _DICTIONARIES:
            return self.generic_visit(node)
        if not isinstance(node.slice, ast.Constant):
            raise _NotFlat
        name = f"{node.value.id}_{node.slice.value!s}"
        if name not in self._arguments or not isinstance(node.ctx, ast.Load):
            raise _NotFlat
        return ast.Name(name, ast.Load())

    def visit_Name(self, node: ast.Name) -> ast.Name:
        """Refuse the dictionaries themselves."""
        if node.id in _DICTIONARIES:
            raise _NotFlat
        return node

    def visit_Return(self, node: ast.Return) -> ast.Return:
        """Return the numbers of both dictionaries, in the order of their names."""
        if not isinstance(node.value, ast.Tuple) or len(node.value.elts) != len(self._returned):
            raise _NotFlat
        values: list[ast.expr] = []
        for names, given in zip(self._returned, node.value.elts, strict=True):
            if not isinstance(given, ast.Dict):
                raise _NotFlat
            named = {
                key.value: value
                for key, value in zip(given.keys, given.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            if named.keys() != set(names):
                raise _NotFlat
            values += [self.visit(named[name]) for name in names]
        return ast.Return(ast.Tuple(values, ast.Load()))
