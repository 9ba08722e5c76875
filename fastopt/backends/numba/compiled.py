"""What is compiled beside the rules: the step around them, norms, half precision, and codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import carray, float32, float64, int64
from numba.extending import register_jitable

from fastopt.backends.numba import headers
from fastopt.backends.numba.codegen import (
    CHUNK,
    LANES_APART,
    LEAF_LINES,
    PART,
    PASS_LINES,
    PROGRAM,
    PROGRAM_LINES,
    at,
)
from fastopt.backends.numba.runtime import (
    bits,
    float_of,
    int32_at,
    int64_at,
    narrow_float16,
    pointer_to,
    prefetch,
    run_chunks,
    widen_float16,
)
from fastopt.core import quantization
from fastopt.core.buckets import NOT_MEASURED
from fastopt.core.dtypes import UpdateSpec
from fastopt.core.norms import CLIP_EPS, LANES, SQUARES_OVERFLOW, TOO_SMALL

# -------------------------------------------------------------------------------------------------
# How numbers are read and written: widened exactly, narrowed by rounding to nearest even.
#
# Numba has no 16-bit floats on a CPU, so its loops see them as uint16. bfloat16 is the upper half
# of a float32. float16 is converted by the processor where it can, else by its bits.
#
# Every constant is a typed scalar: Python's integers would widen the bits to 64, and half as many
# of them fit the processor's registers.

_u32, _u16 = np.uint32, np.uint16


class Conversion(NamedTuple):
    """From what is stored to the arithmetic and back, for one number; to be compiled."""

    widen: Callable[[Any], Any]
    narrow: Callable[[Any], Any]


@register_jitable  # type: ignore[untyped-decorator]  # numba has no types
def same(number: Any) -> Any:
    """Return a number that is stored as it is computed with."""
    return number


@register_jitable  # type: ignore[untyped-decorator]
def widen_bfloat16(stored: Any) -> Any:
    """Return the bits of a bfloat16 as a float32."""
    return float_of(_u32(_u32(stored) << _u32(16)))


@register_jitable  # type: ignore[untyped-decorator]
def _narrow_bfloat16(value: Any) -> Any:
    all_bits = bits(value)
    odd = (all_bits >> _u32(16)) & _u32(1)
    rounded = _u16((all_bits + _u32(0x7FFF) + odd) >> _u32(16))
    return rounded if value == value else _u16(0x7FC0)  # NaN could round to infinity


# The exponents of float32 and float16 differ by 112 (0x38000000 in place); float16 has 13 bits less
# of a fraction. Its denormals are multiples of 2**-24, which a float32 between 0.5 and 1 is too.


@register_jitable  # type: ignore[untyped-decorator]
def _widen_float16(stored: Any) -> Any:
    all_bits = _u32(stored)
    magnitude = all_bits & _u32(0x7FFF)
    normal = float_of(_u32((magnitude << _u32(13)) + _u32(0x38000000)))
    denormal = np.float32(np.int32(magnitude)) * np.float32(2.0**-24)
    infinite = float_of(_u32((magnitude << _u32(13)) | _u32(0x7F800000)))
    size = denormal if magnitude < _u32(0x0400) else normal
    size = infinite if magnitude >= _u32(0x7C00) else size
    return -size if all_bits >= _u32(0x8000) else size


@register_jitable  # type: ignore[untyped-decorator]
def _narrow_float16(value: Any) -> Any:
    all_bits = bits(value)
    sign = (all_bits >> _u32(16)) & _u32(0x8000)
    magnitude = _u32(all_bits & _u32(0x7FFFFFFF))
    odd = (magnitude >> _u32(13)) & _u32(1)
    normal = (magnitude - _u32(0x38000000) + _u32(0x0FFF) + odd) >> _u32(13)
    denormal = bits(float_of(magnitude) + np.float32(0.5)) - _u32(0x3F000000)
    rounded = denormal if magnitude < _u32(0x38800000) else normal
    rounded = _u32(0x7C00) if magnitude >= _u32(0x477FF000) else rounded  # from 65520 on
    rounded = _u32(0x7E00) if magnitude > _u32(0x7F800000) else rounded  # NaN
    return _u16(rounded | sign)


@register_jitable  # type: ignore[untyped-decorator]
def _widen_single(stored: Any) -> Any:
    return np.float64(stored)


@register_jitable  # type: ignore[untyped-decorator]
def _narrow_single(value: Any) -> Any:
    return np.float32(value)


def _by_single(half: Conversion) -> Conversion:
    """Return how float64 becomes half precision: by way of float32, so that it is rounded twice."""
    widen_half, narrow_half = half

    @register_jitable  # type: ignore[untyped-decorator]
    def widen(stored: Any) -> Any:
        return np.float64(widen_half(stored))

    @register_jitable  # type: ignore[untyped-decorator]
    def narrow(value: Any) -> Any:
        return narrow_half(np.float32(value))

    return Conversion(widen, narrow)


EXACT = Conversion(same, same)
SINGLE = Conversion(_widen_single, _narrow_single)
BFLOAT16 = Conversion(widen_bfloat16, _narrow_bfloat16)
FLOAT16_BY_BITS = Conversion(_widen_float16, _narrow_float16)
FLOAT16 = Conversion(widen_float16, narrow_float16)


READS_HALVES: bool = (
    "+f16c" in numba.core.registry.cpu_target.target_context.codegen().magic_tuple()[-1]
)
"""Whether the processor converts float16; without it LLVM would call a function that is missing."""


def conversion(dtype: np.dtype[Any], real: np.dtype[Any]) -> Conversion:
    """Return how numbers of a dtype are read for arithmetic in another, and written after it."""
    if dtype == real:
        return EXACT
    if real.itemsize == 8:
        return SINGLE if dtype.itemsize == 4 else _by_single(_half(dtype))
    return _half(dtype)


def _half(dtype: np.dtype[Any]) -> Conversion:
    if dtype.name == "bfloat16":
        return BFLOAT16
    return FLOAT16 if READS_HALVES else FLOAT16_BY_BITS


# -------------------------------------------------------------------------------------------------
# Codes of 16 and 8 bits for one number at a time, to be compiled; the formulas are in
# ``core.quantization``.
#
# Every constant is a typed scalar: Python's integers would widen the bits to 64.

_u8, _f32 = np.uint8, np.float32
_NORMAL = _f32(2.0**-126)
_HALF_NORMAL = _f32(2.0**-14)  # the smallest of float16
_FIRST, _SECOND = map(_u32, quantization.MULTIPLIERS)
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
    return _u32(word & _u32((1 << quantization.CUT_OFF) - 1))


@register_jitable  # type: ignore[untyped-decorator]
def high_cut(word: Any) -> Any:
    """Return the draw of an 8-bit slot of odd number."""
    return _u32(word >> _u32(32 - quantization.CUT_OFF))


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
    chosen = quantization.grid(signed)
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


_SIGNED, _POSITIVE = quantization.SIGNED.normal, quantization.POSITIVE.normal
_CUT_OFF = _u32(quantization.CUT_OFF)
_SIGN = _u32(0x80 << quantization.CUT_OFF)
_SMALLEST = _u32((quantization.POSITIVE.low - 1 << 23) + (1 << quantization.CUT_OFF))


# ``core.quantization`` subtracts the exponent below the smallest normal code. In the byte that is
# kept here that exponent is 0, but for the bit of the sign, which is overwritten.


@register_jitable  # type: ignore[untyped-decorator]
def signed_encode(value: Any, inverse: Any, draw: Any) -> Any:
    """Round a float32 to the code of state that can be negative, by a draw."""
    every = bits(value)
    size = float_of(_u32(every & _u32(0x7FFFFFFF))) * inverse
    code = _u32(_evenly(size, _SIGNED) + draw)
    code = _u32(code & ~_SIGN) | _u32(_u32(every >> _u32(24 - quantization.CUT_OFF)) & _SIGN)
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


def functions(names: Iterable[str], spec: UpdateSpec) -> dict[str, Function]:
    """Return what the loop of a format calls by these names."""
    narrow = to_bfloat16 if spec.stored.name == "bfloat16" else to_float16
    known = {**_FUNCTIONS, "narrow_by": narrow}
    return {name: known[name] for name in names}


# -------------------------------------------------------------------------------------------------
# What the Numba backend compiles beside the rules: the step around them, and norms.

compare: Callable[..., int] = headers.build(int64_at, int32_at)
_compare = register_jitable(compare)
_AHEAD = 8_192
"""Bytes that are asked for before they are needed."""

_LINES = len(LEAF_LINES)
_PARAM_LINE, _GRAD, _OFFSET_LINE, _ROW_LINE, _STREAM_LINE = range(_LINES)
_FUNCTION, _TOTAL, _LEAVES, _COUNT, _CHUNKS = (
    at(name) for name in ("FUNCTION", "TOTAL", "LEAVES", "COUNT", "CHUNKS")
)
_LANES, _SUMS, _FACTOR = (at(name) for name in ("LANES", "SUMS", "FACTOR"))
_KNOWN, _AXES, _AXES_COUNT = (at(name) for name in ("KNOWN", "AXES", "AXES_COUNT"))
_EXTENTS, _EXTENTS_COUNT = (at(name) for name in ("EXTENTS", "EXTENTS_COUNT"))
_STEPS, _REAL, _TABLE = (at(name) for name in ("STEPS", "REAL", "TABLE"))
_BUCKETS, _IN_SINGLE, _SUM_LANES, _STEP_COUNT, _NORM, _PASSES, _PASSES_AT = (
    8 * k for k in range(len(PROGRAM))
)
_LINES_AT, _LINE_BYTES = 8 * len(PROGRAM), 8 * len(PROGRAM_LINES)
_UPDATE, _MEASURE, _THREADS = (8 * k for k in range(len(PROGRAM_LINES)))
_PASS_BYTES = 8 * len(PASS_LINES)
_SUM, _PASS_THREADS, _COPIED, _COPIES, _MAKE, _UNITS = (
    8 * PASS_LINES.index(name) for name in ("SUM", "THREADS", "COPIED", "COPIES", "MAKE", "UNITS")
)
_PART_SUMS, _PITCH, _TILES = (PART.index(name) for name in ("SUMS", "PITCH", "TILES"))


NO_LIMIT = -1.0
"""The limit of a step whose norm is not measured."""


def run(pool: int, threads: int, job: int) -> None:
    """Do a job's chunks."""
    run_chunks(pool, threads, int64_at(job + _FUNCTION), job, int64_at(job + _TOTAL))


@register_jitable  # type: ignore[untyped-decorator]
def _locate_gradients(job: int, params: int, grads: int) -> bool:
    """Look at the arrays of a bucket; write the addresses of its gradients into its job.

    Returns whether all are as expected, and no gradient is missing. If not, some addresses may have
    been written: whoever makes the step then writes them all anew.
    """
    count = int64_at(job + _COUNT)
    # Only GRAD is meant, one of the first lines; where parameters have members more lines follow.
    leaves = carray(pointer_to(int64_at(job + _LEAVES), int64), (_LINES, count))
    known = carray(pointer_to(int64_at(job + _KNOWN), int64), (count + 1, 7))
    axes = carray(pointer_to(int64_at(job + _AXES), int64), (int64_at(job + _AXES_COUNT), 2))
    extents = carray(
        pointer_to(int64_at(job + _EXTENTS), int64), (2, int64_at(job + _EXTENTS_COUNT))
    )
    return _compare(params, grads, known, axes, extents, leaves[_GRAD], True) == 0  # type: ignore[no-any-return]


@register_jitable  # type: ignore[untyped-decorator]
def _sum_of_squares(pool: int, program: int) -> float:
    """Return the sum of squares of all gradients, in the order of ``core.norms``."""
    lanes = carray(pointer_to(int64_at(program + _SUM_LANES), float64), LANES)
    lanes[:] = 0.0
    tile = 0
    for bucket in range(int64_at(program + _BUCKETS)):
        line = program + _LINES_AT + _LINE_BYTES * bucket
        job = int64_at(line + _MEASURE)
        carray(pointer_to(int64_at(job + _FACTOR), float64), 1)[0] = 1.0
        total = int64_at(job + _TOTAL)
        run_chunks(pool, int64_at(line + _THREADS), int64_at(job + _FUNCTION), job, total)
        sums = carray(pointer_to(int64_at(job + _SUMS), float64), total)
        for k in range(total):
            lanes[tile % LANES] += sums[k]
            tile += 1
    return _lanes_together(lanes)  # type: ignore[no-any-return]


@register_jitable  # type: ignore[untyped-decorator]
def _lanes_together(lanes: Any) -> float:
    """Return the sum of lanes, which are added in halves; they are changed."""
    width = LANES // 2
    while width > 0:
        for j in range(width):
            lanes[j] += lanes[j + width]
        width //= 2
    return lanes[0]  # type: ignore[no-any-return]


@register_jitable  # type: ignore[untyped-decorator]
def total_of(parts: Any, begin: int, end: int, number: int, lanes: Any) -> float:
    """Return the sum of some tiles' sums of a number, as the function of this name in the core."""
    lanes[:] = 0.0
    tile = 0
    for part in range(begin, end):
        first = parts[part, _PART_SUMS] + 8 * parts[part, _PITCH] * number
        sums = carray(pointer_to(first, float64), parts[part, _TILES])
        for k in range(parts[part, _TILES]):
            lanes[tile % LANES] = sums[k] if tile < LANES else lanes[tile % LANES] + sums[k]
            tile += 1
    return _lanes_together(lanes)  # type: ignore[no-any-return]


@register_jitable  # type: ignore[untyped-decorator]
def _make_passes(pool: int, program: int) -> None:
    """Make the scalars that updates need of sums and memory, and the coming memory."""
    first, passes = int64_at(program + _PASSES_AT), int64_at(program + _PASSES)
    for number in range(passes):
        line = first + _PASS_BYTES * number
        copied = int64_at(line + _COPIED)
        places = carray(pointer_to(int64_at(line + _COPIES), int64), (copied, 2))
        for k in range(copied):
            target = carray(pointer_to(places[k, 1], float64), 1)
            target[0] = carray(pointer_to(places[k, 0], float64), 1)[0]
    for number in range(passes):
        line = first + _PASS_BYTES * number
        job, make = int64_at(line + _SUM), int64_at(line + _MAKE)
        if job != 0:
            threads, total = int64_at(line + _PASS_THREADS), int64_at(job + _TOTAL)
            run_chunks(pool, threads, int64_at(job + _FUNCTION), job, total)
        if make != 0:
            run_chunks(pool, 1, make, line, int64_at(line + _UNITS))


def step(pool: int, program: int, params: int, grads: int, scale: float, limit: float) -> bool:
    """Make a whole step of all buckets of a program, given the addresses of the lists of arrays.

    With a ``limit`` of 0 or more the norm is measured, and scaled down to it (NO_LIMIT: neither).
    Tables of members are scaled already: with these ``scale`` is 1, and there is no limit. Returns
    False, with nothing done, if an array is not as expected, a gradient is None, or the norm is not
    an ordinary one; ``judge`` (engine/policy.py) then decides. What scales a step and what refuses
    it is said there, here, in backends/numpy/fused.py and in backends/cupy/decide.cuh: change all.
    """
    buckets = int64_at(program + _BUCKETS)
    for bucket in range(buckets):
        job = int64_at(program + _LINES_AT + _LINE_BYTES * bucket + _UPDATE)
        if not _locate_gradients(job, params, grads):
            return False
    norm = NOT_MEASURED
    if limit >= 0.0:
        total = _sum_of_squares(pool, program)
        if not TOO_SMALL <= total < np.inf:
            return False
        norm = np.sqrt(total) * abs(scale)
        factor = limit / (norm + CLIP_EPS)
        if factor > 1.0:
            factor = 1.0
        if int64_at(program + _IN_SINGLE) != 0 and not norm * factor < SQUARES_OVERFLOW:
            return False
        scale = scale * factor
    for bucket in range(buckets):
        line = program + _LINES_AT + _LINE_BYTES * bucket
        job = int64_at(line + _UPDATE)
        if scale != 1.0:
            # The gradient scale, in place: before every step the table is written anew.
            first = carray(pointer_to(int64_at(job + _TABLE), float64), 1)
            first[0] *= float64(float32(scale)) if int64_at(job + _REAL) == 4 else scale
    _make_passes(pool, program)
    for bucket in range(buckets):
        line = program + _LINES_AT + _LINE_BYTES * bucket
        job = int64_at(line + _UPDATE)
        run_chunks(
            pool, int64_at(line + _THREADS), int64_at(job + _FUNCTION), job, int64_at(job + _TOTAL)
        )
    for bucket in range(buckets):
        job = int64_at(program + _LINES_AT + _LINE_BYTES * bucket + _UPDATE)
        count = int64_at(job + _COUNT)
        steps = carray(pointer_to(int64_at(job + _STEPS), int64), count)
        for leaf in range(count):
            steps[leaf] += 1
    carray(pointer_to(int64_at(program + _STEP_COUNT), int64), 1)[0] += 1
    carray(pointer_to(int64_at(program + _NORM), float64), 1)[0] = norm
    return True


def squares(given: Any, widen: Callable[[Any], Any], itemsize: int) -> Callable[..., None]:
    """Return the loop that sums the squares of gradients of a type by tiles, to be compiled."""

    def work(job: int, thread: int, begin: int, end: int) -> None:
        leaves = carray(
            pointer_to(int64_at(job + _LEAVES), int64), (_LINES, int64_at(job + _COUNT))
        )
        tiles = carray(pointer_to(int64_at(job + _CHUNKS), int64), (3, int64_at(job + _TOTAL)))
        sums = carray(pointer_to(int64_at(job + _SUMS), float64), int64_at(job + _TOTAL))
        factor = carray(pointer_to(int64_at(job + _FACTOR), float64), 1)[0]
        lane = carray(pointer_to(int64_at(job + _LANES) + LANES_APART * thread, float64), LANES)
        for tile in range(begin, end):
            leaf, start, count = tiles[0, tile], tiles[1, tile], tiles[2, tile]
            lane[:] = 0.0
            if leaves[_GRAD, leaf] == 0:  # no gradient in this step
                count = 0
            first = leaves[_GRAD, leaf] + start * itemsize
            rest = count % (4 * LANES)
            values = carray(pointer_to(first, given), count)
            for start_of_rows in range(0, count - rest, 4 * LANES):
                # Four rows at a time, so that the lanes are fetched and put back once for four; one
                # after another, which is the order that the norm is defined by. The processor sees
                # no pattern in that, so it is told what comes.
                rows = values[start_of_rows : start_of_rows + 4 * LANES]
                coming = first + start_of_rows * itemsize + _AHEAD
                for line in range(0, 4 * LANES * itemsize, 64):
                    prefetch(coming + line)
                for j in range(LANES):
                    value = widen(rows[j]) * factor
                    total = lane[j] + value * value
                    value = widen(rows[j + LANES]) * factor
                    total += value * value
                    value = widen(rows[j + 2 * LANES]) * factor
                    total += value * value
                    value = widen(rows[j + 3 * LANES]) * factor
                    lane[j] = total + value * value
            tail = values[count - rest :]
            for j in range(rest):
                value = widen(tail[j]) * factor
                lane[j % LANES] += value * value
            width = LANES // 2
            while width > 0:
                for j in range(width):
                    lane[j] += lane[j + width]
                width //= 2
            sums[tile] = lane[0]

    return work


# Gradients of rows --------------------------------------------------------------------------------

_DIGIT = 11
"""Bits that rows are sorted by in one go: the counts of all such numbers fit the first cache."""

_INDICES, _GIVEN, _VALUES, _HEIGHT, _WIDTH, _PARAM, _OFFSET, _ROOM, _FOUND = (
    at(name)
    for name in (
        *("INDICES", "GIVEN", "VALUES", "HEIGHT", "WIDTH", "PARAM", "OFFSET", "ROOM", "FOUND"),
    )
)


def row_words(given: int) -> int:
    """Return how many words the layout of so many rows needs to work in."""
    return 5 * given


@register_jitable  # type: ignore[untyped-decorator]
def _sorted_rows(given: Any, height: int, room: int) -> Any:
    """Return the rows that indices name, ascending, and where each stood; equal ones in order.

    If an index names no row, the last one returned is -1.
    """
    count = len(given)
    bytes_each = 8 * count
    rows = carray(pointer_to(room, int64), count)
    order = carray(pointer_to(room + bytes_each, int64), count)
    other_rows = carray(pointer_to(room + 2 * bytes_each, int64), count)
    other_order = carray(pointer_to(room + 3 * bytes_each, int64), count)
    last, ascending = 0, True
    for i in range(count):
        row = given[i] + height if given[i] < 0 else given[i]
        if row < 0 or row >= height:
            rows[count - 1] = -1
            return rows, order
        ascending = ascending and row >= last
        rows[i], order[i], last = row, i, row
    counts = np.empty(1 << _DIGIT, np.int64)
    shift = 0
    while not ascending and (height - 1) >> shift > 0:  # digit by digit, the lowest first
        counts[:] = 0
        for i in range(count):
            counts[(rows[i] >> shift) & ((1 << _DIGIT) - 1)] += 1
        before = 0
        for digit in range(1 << _DIGIT):
            before, counts[digit] = before + counts[digit], before
        for i in range(count):
            digit = (rows[i] >> shift) & ((1 << _DIGIT) - 1)
            place = counts[digit]
            counts[digit] = place + 1
            other_rows[place], other_order[place] = rows[i], order[i]
        rows, other_rows = other_rows, rows
        order, other_order = other_order, order
        shift += _DIGIT
    return rows, order


def row_layout(
    given: Any, widen: Callable[[Any], Any], narrow: Callable[[Any], Any], itemsize: int, size: int
) -> Callable[..., None]:
    """Return what lays out gradients of rows as those of so many parameters, to be compiled.

    ``given`` is the type of gradients, which ``widen`` and ``narrow`` convert for a sum, and
    ``itemsize`` their bytes; ``size`` are those of a parameter's real number. FOUND becomes the
    number of rows, ascending and each once, or -1 if an index names none. Gradients of a row that
    is named several times are added, in the order in which they stand, each sum rounded to their
    dtype; all others are left where they are.
    """

    def work(job: int, thread: int, begin: int, end: int) -> None:
        count, width = int64_at(job + _GIVEN), int64_at(job + _WIDTH)
        found_at = carray(pointer_to(job + _FOUND, int64), 1)
        room = int64_at(job + _ROOM)
        indices = carray(pointer_to(int64_at(job + _INDICES), int64), count)
        rows, order = _sorted_rows(indices, int64_at(job + _HEIGHT), room)
        if rows[count - 1] < 0:
            found_at[0] = -1
            return
        first = carray(pointer_to(room + 32 * count, int64), count)
        found = 0
        for i in range(count):
            if i == 0 or rows[i] != rows[i - 1]:
                first[found] = i
                found += 1
        found_at[0] = found
        pieces = (width + CHUNK - 1) // CHUNK
        leaves = carray(pointer_to(int64_at(job + _LEAVES), int64), (_LINES, found))
        chunks = carray(pointer_to(int64_at(job + _CHUNKS), int64), (3, found * pieces))
        param, offset = int64_at(job + _PARAM), int64_at(job + _OFFSET)
        values, sums = int64_at(job + _VALUES), int64_at(job + _SUMS)
        for k in range(found):
            i = first[k]
            start = rows[i] * width
            leaves[_PARAM_LINE, k] = param + start * size
            leaves[_OFFSET_LINE, k] = offset + start
            leaves[_ROW_LINE, k] = 0
            leaves[_STREAM_LINE, k] = 0
            after = first[k + 1] if k + 1 < found else count
            leaves[_GRAD, k] = values + order[i] * width * itemsize
            if after - i > 1:
                total = carray(pointer_to(sums, given), width)
                one = carray(pointer_to(leaves[_GRAD, k], given), width)
                for j in range(width):
                    total[j] = one[j]
                for place in range(i + 1, after):
                    at_more = values + order[place] * width * itemsize
                    more = carray(pointer_to(at_more, given), width)
                    for j in range(width):
                        total[j] = narrow(widen(total[j]) + widen(more[j]))
                leaves[_GRAD, k] = sums
                sums += width * itemsize
            for piece in range(pieces):
                chunk = k * pieces + piece
                chunks[0, chunk], chunks[1, chunk] = k, piece * CHUNK
                chunks[2, chunk] = min(CHUNK, width - piece * CHUNK)

    return work
