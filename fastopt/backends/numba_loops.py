"""What the Numba backend compiles beside the rules: the step around them, and norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import carray, float64, int64
from numba.extending import register_jitable

from fastopt.backends import array_headers
from fastopt.backends.job import LANES_APART, LEAF_LINES, at
from fastopt.backends.numba_intrinsics import half, pointer_to, prefetch, word
from fastopt.backends.numba_pool import share
from fastopt.norms import LANES

compare = array_headers.build(word, half)
_compare = register_jitable(compare)
_AHEAD = 8_192
"""Bytes that are asked for before they are needed."""

_LINES, _GRAD = len(LEAF_LINES), LEAF_LINES.index("GRAD")
_FUNCTION, _TOTAL, _LEAVES, _COUNT, _CHUNKS = (
    at(name) for name in ("FUNCTION", "TOTAL", "LEAVES", "COUNT", "CHUNKS")
)
_LANES, _SUMS, _FACTOR = (at(name) for name in ("LANES", "SUMS", "FACTOR"))
_KNOWN, _AXES, _AXES_COUNT = (at(name) for name in ("KNOWN", "AXES", "AXES_COUNT"))
_EXTENTS, _EXTENTS_COUNT = (at(name) for name in ("EXTENTS", "EXTENTS_COUNT"))
_STEPS, _CLOCK = (at(name) for name in ("STEPS", "CLOCK"))


def step(pool: int, threads: int, job: int, params: int, grads: int) -> bool:
    """Do a job's chunks; given the addresses of the lists of arrays, look before and count after.

    Returns False, with nothing done, if an array is not as expected or a gradient is None.
    """
    count = word(job + _COUNT)
    if params != 0:
        leaves = carray(pointer_to(word(job + _LEAVES), int64), (_LINES, count))
        known = carray(pointer_to(word(job + _KNOWN), int64), (count + 1, 6))
        axes = carray(pointer_to(word(job + _AXES), int64), (word(job + _AXES_COUNT), 2))
        extents = carray(pointer_to(word(job + _EXTENTS), int64), (2, word(job + _EXTENTS_COUNT)))
        if _compare(params, grads, known, axes, extents, leaves[_GRAD]) != 0:
            return False
    share(pool, threads, word(job + _FUNCTION), job, word(job + _TOTAL))
    if params != 0:
        steps = carray(pointer_to(word(job + _STEPS), int64), count)
        for leaf in range(count):
            steps[leaf] += 1
        carray(pointer_to(word(job + _CLOCK), int64), 1)[0] += 1
    return True


def squares(given: Any, widen: Callable[[Any], Any], itemsize: int) -> Callable[..., None]:
    """Return the loop that sums the squares of gradients of a type by pieces, to be compiled."""

    def work(job: int, lane_number: int, begin: int, end: int) -> None:
        leaves = carray(pointer_to(word(job + _LEAVES), int64), (_LINES, word(job + _COUNT)))
        pieces = carray(pointer_to(word(job + _CHUNKS), int64), (3, word(job + _TOTAL)))
        sums = carray(pointer_to(word(job + _SUMS), float64), word(job + _TOTAL))
        factor = carray(pointer_to(word(job + _FACTOR), float64), 1)[0]
        lane = carray(pointer_to(word(job + _LANES) + LANES_APART * lane_number, float64), LANES)
        for piece in range(begin, end):
            leaf, start, count = pieces[0, piece], pieces[1, piece], pieces[2, piece]
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
            sums[piece] = lane[0]

    return work
