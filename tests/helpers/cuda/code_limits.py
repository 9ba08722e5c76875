"""The kernels whose machine code is held to limits: a table that a test and a benchmark go by."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fastopt.backends.cupy import control_source, pass_source
from fastopt.backends.cupy import source as cupy_source
from fastopt.backends.cupy.shapes import SHAPES, shape_of
from fastopt.backends.cupy.source import Addresses
from fastopt.core.dtypes import UpdateSpec
from fastopt_kernels import adam, lamb

ARCHITECTURES = (80, 90, 100)


class Limited(NamedTuple):
    """A kernel: as many ``blocks`` on a multiprocessor at least, and ``instructions`` at most.

    These are for one element, of which a thread has ``elements``; None: they are not counted.
    ``wide``: it reads 16 bytes at a time.
    """

    text: dict[str, Any]
    threads: int
    blocks: int
    elements: int = 1
    instructions: int | None = None
    wide: bool = True


_FLOAT, _DOUBLE, _HALF = (np.dtype(t) for t in (np.float32, np.float64, np.float16))
_BFLOAT = np.dtype(ml_dtypes.bfloat16)


def _update(spec: UpdateSpec, from_table: bool, blocks: int, instructions: int) -> Limited:
    text = cupy_source.kernel(adam.RULE, spec, Addresses(), from_table)
    threads = shape_of(adam.RULE, spec).threads
    elements = cupy_source.block_length(spec, threads) // threads
    return Limited(text, threads, blocks, elements, instructions)


def table() -> dict[str, Limited]:
    """Return all of them by name."""
    found: dict[str, Limited] = {}
    for name, spec, blocks, instructions in (
        ("Adam float32", UpdateSpec.of(_FLOAT, True), 6, 70),
        ("Adam bfloat16 with masters", UpdateSpec.of(_BFLOAT, True), 6, 95),
        ("Adam float32, state in bfloat16", UpdateSpec.of(_FLOAT, True, state="bfloat16"), 6, 95),
        ("Adam float32, state in int8", UpdateSpec.of(_FLOAT, True, state="int8"), 4, 110),
        ("Adam float64", UpdateSpec.of(_DOUBLE, True), 4, 125),
    ):
        found[name] = _update(spec, False, blocks, instructions)
        found[f"{name}, from a table"] = _update(spec, True, blocks, instructions)
    squares, lanes = SHAPES["squares"].threads, SHAPES["pass"].threads
    for dtype in (_FLOAT, _DOUBLE, _HALF, _BFLOAT):
        text = control_source.squares(dtype, Addresses())
        found[f"squares of {dtype}"] = Limited(text, squares, 8)
        for wide in (False, True):
            name = f"squares of {dtype} to decide by{', at three scales' * wide}"
            text = control_source.squares_to_decide(dtype, Addresses(), wide)
            found[name] = Limited(text, squares, 8)
    many = SHAPES["decide_by_many"].threads
    found["decision"] = Limited(control_source.decide(), many, 1, wide=False)
    spec = UpdateSpec.of(_FLOAT, True)
    text = pass_source.sums(lamb.RULE, spec, Addresses(), True, 0)
    found["sums of LAMB"] = Limited(text, lanes, 8)
    text = pass_source.follow(lamb.RULE, spec, 0, Addresses())
    found["what follows from them"] = Limited(text, lanes, 8, wide=False)
    return found
