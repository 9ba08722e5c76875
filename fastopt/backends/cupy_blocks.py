"""The table that tells each block of a kernel's threads which elements are its own; no CuPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastopt.arrays import Array
from fastopt.parameters import Parameter

BLOCK_FIELDS = ("parameter", "start", "count", "place", "axes")
"""What the table says of each block: which parameter, its first element there, how many elements,
where their state begins in a slot of the arena, and where the table goes on to say of a parameter
with gaps how its elements stand in memory: the number of its axes, then the length of each and its
stride in bytes. -1 for one without gaps."""


def fields(draws: bool) -> tuple[str, ...]:
    """Return the fields of a block; where a kernel draws also the counter of its first element."""
    return (*BLOCK_FIELDS, *["counter"] * draws)


def blocks(parameters: Sequence[Parameter], length: int, draws: bool = False) -> tuple[Array, int]:
    """Return the table of blocks, and how many there are.

    It is a line of ``fields`` for every ``length`` elements, then the axes that these refer to.
    """
    sizes = np.array([parameter.size for parameter in parameters], np.int64)
    counts = -(-sizes // length)
    which = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    place = np.array([parameter.offset for parameter in parameters], np.int64)[which] + start
    count = np.minimum(sizes[which] - start, length)
    axes_at, axes = np.full(len(sizes), -1), [np.zeros(0, np.int64)]
    end = len(fields(draws)) * len(which)
    for k, parameter in enumerate(parameters):
        if parameter.apart:
            lines = np.array(parameter.axes(), np.int64)
            axes_at[k] = end
            axes.append(np.array([len(lines), *lines.reshape(-1)]))
            end += axes[-1].size
    streams = np.array([parameter.stream for parameter in parameters], np.int64)
    counter = [(streams[which] + start) % 2**32] * draws
    lines = np.stack([which, start, count, place, axes_at[which], *counter], axis=1)
    return np.concatenate([lines.reshape(-1), *axes]), len(which)
