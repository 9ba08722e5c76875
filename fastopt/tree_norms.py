"""Norms of many arrays together, outside of a step: the 2-norm in the bits of a step's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.backends import array_namespace
from fastopt.formats import real_dtype
from fastopt.norms import LANES, PIECE, lane_sums, piece_counts, total_norm, total_of

HOST_BATCH, DEVICE_BATCH = 2**16, 2**24
"""Elements that are widened to float64 in one go: as the cache holds, or for few launches."""


def norm(given: Sequence[Array], order: float) -> float:
    """Return (sum of |x|^order)^(1/order) over all elements of all arrays; the maximum for inf.

    Summed in float64. It neither overflows nor underflows where the norm itself does not.
    """
    flats = _in_order(given, magnitudes=order != 2.0)
    with np.errstate(all="ignore"):
        if order == 2.0:
            return total_norm(partial(_squares, flats)).value
        largest = _largest(flats)
        if order == math.inf or largest == 0.0 or not math.isfinite(largest):
            return largest
        total = total_of(_sums(flats, lambda values: (abs(values) / largest) ** order))
        return largest * float(np.float64(total) ** (1.0 / order))


def _in_order(given: Sequence[Array], magnitudes: bool) -> list[Array]:
    """Return the elements of each array, flat, in the order in which a step's norm adds them.

    Complex elements as their magnitudes, or as their real and imaginary parts.
    """

    def place(array: Array) -> tuple[int, str]:
        device = arrays.device(array) if arrays.kind(array) == "cupy" else None
        return (-1 if device is None else device, array.dtype.name)

    return [_flat(array, magnitudes) for array in sorted(given, key=place)]


def _flat(array: Array, magnitudes: bool) -> Array:
    with arrays.on_device_of(array):
        flat = arrays.layout_of(array).turn(array).reshape(-1)
        if flat.dtype.kind != "c":
            return flat
        if magnitudes:
            return abs(flat)
        together = flat if flat.flags.c_contiguous else flat.copy()
        return together.view(real_dtype(flat.dtype))


def _squares(flats: Sequence[Array], factor: float) -> Iterator[Array]:
    def square(values: Array) -> Array:
        values *= factor
        values *= values
        return values

    return _sums(flats, square)


def _sums(flats: Sequence[Array], term: Callable[[Array], Array]) -> Iterator[Array]:
    """Yield the sums, by pieces, of what ``term`` makes of float64 values; of 0 it makes 0."""
    for batch in _batches(flats):
        with arrays.on_device_of(batch[0]):
            terms = term(_padded(batch)).reshape(-1, PIECE // LANES, LANES)
            yield arrays.on_host(lane_sums(terms))


def _largest(flats: Sequence[Array]) -> float:
    """Return the largest magnitude; NaN if there is a NaN."""
    found = [0.0]
    for batch in _batches(flats):
        with arrays.on_device_of(batch[0]):
            found.append(float(abs(_padded(batch)).max()))
    return float(np.max(found))


def _batches(flats: Sequence[Array]) -> Iterator[list[Array]]:
    """Cut flat arrays, and put the parts together into batches of one device."""
    batch: list[Array] = []
    room, where = 0, None
    for flat in flats:
        on_host = arrays.kind(flat) == "numpy"
        most = HOST_BATCH if on_host else DEVICE_BATCH
        device = None if on_host else arrays.device(flat)
        for start in range(0, flat.size, most):
            part = flat[start : start + most]
            needed = PIECE * -(-part.size // PIECE)
            if batch and (needed > room or device != where):
                yield batch
                batch = []
            if not batch:
                room, where = most, device
            batch.append(part)
            room -= needed
    if batch:
        yield batch


def _padded(batch: Sequence[Array]) -> Array:
    """Return the elements in float64, each array's pieces filled up with zeros."""
    counts = piece_counts(part.size for part in batch)
    values: Array = array_namespace(batch[0]).zeros(sum(counts) * PIECE)
    at = 0
    for part, count in zip(batch, counts, strict=True):
        values[at : at + part.size] = part
        at += count * PIECE
    return values
