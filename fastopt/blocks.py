"""Arrays of one shape, piece by piece: pieces that fit the cache, and are never 0-d."""

from __future__ import annotations

from collections.abc import Iterator

from fastopt import arrays
from fastopt.arrays import Array

BLOCK = 32_768
"""Elements of a piece in host memory, so that its temporaries stay in the cache."""


def blocks(*given: Array) -> Iterator[tuple[Array, ...]]:
    """Yield matching pieces of arrays of one shape, as views of at least one dimension.

    Arithmetic on a 0-d array gives a scalar, and in NumPy 1 one of another precision. Arrays with
    gaps, or in different orders, and those of a device come in one piece.
    """
    layout = arrays.layout_of(given[0])
    flat = [view for array in given if (view := arrays.flat_view(array, layout)) is not None]
    if len(flat) < len(given):
        yield tuple(array[None] for array in given)
        return
    size = flat[0].size
    step = BLOCK if arrays.kind(given[0]) == "numpy" else max(size, 1)
    for start in range(0, size, step):
        yield tuple(array[start : start + step] for array in flat)
