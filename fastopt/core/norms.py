"""Norms of gradients in one order of summation on every backend, and clipping by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastopt.core import arrays
from fastopt.core import tree as trees
from fastopt.core.arrays import Array, blocks, sharing
from fastopt.core.dtypes import real_dtype, wide
from fastopt.core.hyperparameters import POSITIVE, POSITIVE_OR_INF
from fastopt.core.rows import RowGrad
from fastopt.core.signals import Deferred

# -------------------------------------------------------------------------------------------------
# The norm of many gradients together: float64, in one order, on every backend.
#
# The order of a sum decides its last bits, so it is laid down here and is the same for every
# backend and number of threads. The squares of a gradient are summed in tiles of ``TILE``
# elements: in each tile lane j adds the elements j, j + 64, j + 128, ... one after another, and
# then the lanes are added in halves: 32 to 32, 16 to 16, and so on. The tiles' sums are summed in
# the same way.

TILE = 4_096
LANES = 64

SMALLER = 2.0**-600
"""Finite gradients multiplied by this have a finite sum of squares, in float64 too."""

CLIP_EPS = 1e-6
"""What PyTorch's clip_grad_norm_ adds to a norm that it divides by."""

SQUARES_OVERFLOW = 2.0**63
"""From this norm on a step counts as not finite where float32 averages squares of gradients.

2^64 is the first number whose square float32 does not hold; a gradient of this norm may have an
element as large, and the squares of a complex one's two parts are added.
"""

TOO_SMALL = 2.0**-900
"""A sum of squares below this may have lost some of them to underflow."""

Squares = Callable[[float], Iterable[Array]]
"""Given a factor, returns each bucket's sums of the squares of (factor * gradient), by tiles."""


class Norm(NamedTuple):
    """The norm of all gradients, and whether every one of their elements is finite."""

    value: float
    finite: bool


def total_norm(squares: Squares) -> Norm:
    """Return the root of the sum of squares; finite whenever the norm itself is.

    The squares of float64 gradients can overflow or underflow where their norm does not. Then they
    are summed once more, multiplied by a power of two, which is exact.
    """
    total, unit = total_of(squares(1.0)), 1.0
    if total == math.inf:
        total, unit = total_of(squares(SMALLER)), 1.0 / SMALLER
    elif total < TOO_SMALL:
        total, unit = total_of(squares(1.0 / SMALLER)), SMALLER
    return Norm(math.sqrt(total) * unit, math.isfinite(total))


def norms_by_member(given: Sequence[Array | None], sizes: Sequence[int]) -> tuple[Array, Array]:
    """Return the norm of each member's gradients, and whether all of their elements are finite.

    ``given`` are arrays of shape (members, n) of real numbers, None for a missing one of n numbers
    (``sizes``). Each norm has the bits that the gradients of this member alone have as a step's.
    """
    there = next(grad for grad in given if grad is not None)

    def total(factor: float) -> Array:
        columns = [
            _tiles_by_member(grad, size, factor) for grad, size in zip(given, sizes, strict=True)
        ]
        return _totals_by_member([one for one in columns if one is not None], len(there))

    with arrays.on_device_of(there), np.errstate(all="ignore"):
        totals, units = arrays.on_host(total(1.0)), np.ones(len(there))
        for factor, beyond in ((SMALLER, totals == np.inf), (1.0 / SMALLER, totals < TOO_SMALL)):
            if beyond.any():
                totals = np.where(beyond, arrays.on_host(total(factor)), totals)
                units[beyond] = 1.0 / factor
        return np.sqrt(totals) * units, np.isfinite(totals)


def _tiles_by_member(grad: Array | None, size: int, factor: float) -> Array | int | None:
    """Return the sums of squares of (factor * gradient) by tiles, a row for each member.

    Of a missing gradient the number of its tiles, whose sums are 0; None if there are none.
    """
    tiles = -(-size // TILE)
    if grad is None or not tiles:
        return tiles or None
    xp = arrays.namespace_of(grad)
    longest = min(TILE, size)
    lanes = _lanes_with_something(longest)
    rows = -(-longest // lanes)
    batch = HOST_BATCH if arrays.kind(grad) == "numpy" else DEVICE_BATCH
    most = max(batch // (tiles * rows * lanes), 1)
    found = []
    for first in range(0, len(grad), most):
        part = grad[first : first + most]
        values: Array = xp.zeros((len(part), tiles * rows * lanes))
        values[:, :size] = part
        values *= factor
        values *= values
        sums = lane_sums(values.reshape(len(part) * tiles, rows, lanes))
        found.append(sums.reshape(len(part), tiles))
    return found[0] if len(found) == 1 else xp.concatenate(found)


def _totals_by_member(tiles: Sequence[Array | int], members: int) -> Array:
    """Return the sum of all tiles of each member, in the order of ``total_of``."""
    count = sum(one if isinstance(one, int) else one.shape[1] for one in tiles)
    xp = next((arrays.namespace_of(one) for one in tiles if not isinstance(one, int)), np)
    lanes = _lanes_with_something(count)
    padded: Array = xp.zeros((members, -(-count // lanes) * lanes))
    at = 0
    for one in tiles:
        if isinstance(one, int):
            at += one
        else:
            padded[:, at : at + one.shape[1]] = one
            at += one.shape[1]
    if not count:
        return padded.sum(axis=1)  # type: ignore[no-any-return]
    return lane_sums(padded.reshape(members, -1, lanes))


def _lanes_with_something(count: int) -> int:
    """Return how many lanes are enough: those of nothing add zeros, which changes no sum."""
    return min(LANES, 1 << max(count - 1, 0).bit_length())


def array_norms(
    sizes: Sequence[int], squares: Callable[[float], Array], real: np.dtype[Any]
) -> list[float]:
    """Return the norm of each of some gradients of these sizes, computed in ``real``.

    ``squares`` gives the sums of squares of (factor * gradient), by tiles; 0 for no gradient.
    """
    found = _by_array(sizes, squares(1.0))
    units = np.ones(len(found))
    again = ((SMALLER, found == np.inf), (1.0 / SMALLER, found < TOO_SMALL))
    for factor, beyond in again if real.itemsize == 8 else ():
        if beyond.any():
            found[beyond] = _by_array(sizes, squares(factor))[beyond]
            units[beyond] = 1.0 / factor
    with np.errstate(all="ignore"):
        return (np.sqrt(found) * units).tolist()  # type: ignore[no-any-return]  # of float


def _by_array(sizes: Sequence[int], tiles: Array) -> Array:
    ends = np.cumsum(tile_counts(sizes)).tolist()
    return np.array([tiles[a:b].sum() for a, b in zip([0, *ends], ends, strict=False)], float)


def total_of(parts: Iterable[Array]) -> float:
    """Return the sum of the sums of all tiles."""
    parts = list(parts)
    if len(parts) == 1 and parts[0].size == 1:  # as so many small arrays have: the same, sooner
        return float(parts[0][0]) + 0.0
    sums = np.concatenate([np.zeros(0), *parts])
    padded = np.zeros(-(-sums.size // LANES) * LANES)
    padded[: sums.size] = sums
    return float(lane_sums(padded.reshape(1, -1, LANES))[0])


def tiles_of(array: Array, factor: float) -> Array:
    """Return the sums of squares of (factor * x) over an array by tiles, on the host."""
    with np.errstate(all="ignore"):
        flats = [_flat(array, magnitudes=False)] if array.size else []
        return np.concatenate([np.zeros(0), *_squares(flats, factor)])


def lane_sums(rows: Array) -> Array:
    """Return the sum of each tile; ``rows`` has the shape (tiles, rows, lanes).

    There are LANES lanes, or a smaller power of two where all others hold zeros.
    """
    if arrays.kind(rows) == "numpy":
        # One row after another, as the last axis stands closest in memory.
        lanes = rows.sum(axis=1)
    else:
        lanes = rows[:, 0]  # CuPy's sum has an order of its own
        for number in range(1, rows.shape[1]):
            lanes = lanes + rows[:, number]
    return _halved(lanes)


def _halved(lanes: Array) -> Array:
    """Return the sum of each row of lanes, which are added in halves."""
    width = lanes.shape[1] // 2
    while width:
        lanes = lanes[:, :width] + lanes[:, width:]
        width //= 2
    return lanes[:, 0]


def tile_counts(sizes: Iterable[int]) -> list[int]:
    """Return how many tiles arrays of these sizes have."""
    return [-(-size // TILE) for size in sizes]


# -------------------------------------------------------------------------------------------------
# Norms of many arrays together, outside of a step: the 2-norm in the bits of a step's.

HOST_BATCH, DEVICE_BATCH = 2**16, 2**24
"""Elements that are widened to float64 in one go: as the cache holds, or for few launches."""


def norm_of(given: Sequence[Array], order: float) -> float:
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


def norm_there(given: Sequence[Array]) -> Array:
    """Return the 2-norm of arrays of one place as a float64 array of shape () there.

    It has the bits of ``norm_of``; nothing waits for a device.
    """
    if arrays.kind(given[0]) == "numpy":
        return np.array(norm_of(given, 2.0))
    flats = _in_order(given, magnitudes=False)
    with arrays.on_device_of(given[0]):
        total = _total_there(flats, 1.0)
        if not any(flat.dtype.itemsize == 8 for flat in flats):
            return arrays.namespace_of(total).sqrt(total)  # type: ignore[no-any-return]
        xp = arrays.namespace_of(total)
        large, small = _total_there(flats, SMALLER), _total_there(flats, 1.0 / SMALLER)
        found = xp.where(total < TOO_SMALL, xp.sqrt(small) * SMALLER, xp.sqrt(total))
        return xp.where(total == math.inf, xp.sqrt(large) / SMALLER, found)  # type: ignore[no-any-return]


def _total_there(flats: Sequence[Array], factor: float) -> Array:
    """Return what ``total_of`` does of the squares of (factor * x), without waiting for it."""

    parts = [*_tile_sums(flats, partial(_squared, factor))]
    xp = arrays.namespace_of(flats[0])
    sums = xp.concatenate([xp.zeros(0), *parts])
    padded = xp.zeros(-(-sums.size // LANES) * LANES)
    padded[: sums.size] = sums
    return lane_sums(padded.reshape(1, -1, LANES))[0]  # type: ignore[no-any-return]


def _in_order(given: Sequence[Array], magnitudes: bool) -> list[Array]:
    """Return the elements of each array, flat, in the order in which a step's norm adds them.

    Complex elements as they are for their ``magnitudes``, or as their real and imaginary parts.
    """

    def place(array: Array) -> tuple[int, str]:
        device = arrays.device(array) if arrays.kind(array) == "cupy" else None
        return (-1 if device is None else device, array.dtype.name)

    alike = len({(type(array), array.dtype) for array in given}) == 1
    if not (alike and type(given[0]) is np.ndarray):
        given = sorted(given, key=place)
    return [_flat(array, magnitudes) for array in given]


def _flat(array: Array, magnitudes: bool) -> Array:
    with arrays.on_device_of(array):
        flat = arrays.layout_of(array).in_memory_order(array).reshape(-1)
        if magnitudes or flat.dtype.kind != "c":
            return flat
        together = flat if flat.flags.c_contiguous else flat.copy()
        return together.view(real_dtype(flat.dtype))


def _squares(flats: Sequence[Array], factor: float) -> Iterator[Array]:
    return _sums(flats, partial(_squared, factor))


def squares_here(flats: Sequence[Array], factor: float) -> Array:
    """Return the sums of the squares of (factor * x) over flat arrays of the host, by tiles."""
    return _tile_sums_here(flats, partial(_squared, factor))


def _squared(factor: float, values: Array) -> Array:
    if factor != 1.0:
        values *= factor
    values *= values
    return values


def _sums(flats: Sequence[Array], term: Callable[[Array], Array]) -> Iterator[Array]:
    """Yield the sums, by tiles, of what ``term`` makes of float64 values; of 0 it makes 0."""
    if all(isinstance(flat, np.ndarray) for flat in flats):
        yield _tile_sums_here(flats, term)
    else:
        yield from map(arrays.on_host, _tile_sums(flats, term))


def _tile_sums_here(flats: Sequence[Array], term: Callable[[Array], Array]) -> Array:
    """Return them of arrays of the host.

    Of a tile that is not full no more is widened and added than it holds: all else adds zeros.
    """
    longest = max((flat.size for flat in flats), default=0)
    lanes = _lanes_with_something(longest)
    sums = np.zeros((sum(tile_counts(flat.size for flat in flats)), lanes))
    room = np.empty(min(HOST_BATCH, -(-longest // lanes) * lanes))
    at = 0
    for flat in flats:
        for start in range(0, flat.size, HOST_BATCH):
            part = flat[start : start + HOST_BATCH]
            if part.size <= lanes:
                only = sums[at]
                only[: part.size] = _widened(part)
                only[:] = term(only)
                at += 1
                continue
            values = room[: -(-part.size // lanes) * lanes]
            values[: part.size] = _widened(part)
            values[part.size :] = 0.0
            values = term(values)
            whole = part.size // TILE
            full = values[: whole * TILE].reshape(whole, TILE // lanes, lanes)
            np.add.reduce(full, 1, out=sums[at : at + whole])
            at += whole
            if whole * TILE < part.size:
                np.add.reduce(values[whole * TILE :].reshape(-1, lanes), 0, out=sums[at])
                at += 1
    return _halved(sums)


def _widened(part: Array) -> Array:
    """Return numbers that become float64 by assignment; of complex ones the magnitudes."""
    return abs(part.astype("D")) if part.dtype.kind == "c" else part


def _tile_sums(flats: Sequence[Array], term: Callable[[Array], Array]) -> Iterator[Array]:
    """Yield them where the arrays are."""
    for batch in _batches(flats):
        with arrays.on_device_of(batch[0]):
            terms = term(_padded(batch)).reshape(-1, TILE // LANES, LANES)
            yield lane_sums(terms)


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
            needed = TILE * -(-part.size // TILE)
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
    """Return the elements in float64, each array's tiles filled up with zeros.

    Of complex elements the magnitudes, worked out in float64.
    """
    counts = tile_counts(part.size for part in batch)
    values: Array = arrays.namespace_of(batch[0]).zeros(sum(counts) * TILE)
    at = 0
    for part, count in zip(batch, counts, strict=True):
        values[at : at + part.size] = _widened(part)
        at += count * TILE
    return values


# -------------------------------------------------------------------------------------------------
# Clip gradients in place, by their norm or by their values; the norm of all of them together.


def global_norm(grads: Any) -> float:
    """Return the 2-norm of all gradients together: sqrt(sum of |g|^2 over all elements).

    In float64 and in one order of summation, so that float32 gradients of 1e25 have a finite norm.
    That order is a step's: the bits are those of ``opt.grad_norm``, if no gradient is None, and all
    have the dtype and memory order of their parameters, which are of one dtype or one group.

    Args:
        grads: an array or a tree of NumPy or CuPy arrays of any floating or complex dtype; None
            counts as zero. It is not written.

    Raises:
        TypeError: for anything else in the tree.
    """
    return norm_of([array for _, array in _leaves(grads, written=False)], 2.0)


def clip_grad_norm_(grads: Any, max_norm: float, norm_type: float = 2.0) -> float:
    """Scale all gradients together down to a norm, in place, and return the norm they had.

    ::

        norm <- (sum of |g|^norm_type over all elements)^(1 / norm_type)    max |g| for inf
        g    <- min(1, max_norm / (norm + 1e-6)) * g

    The norm is taken in float64. If it is infinite, finite gradients become 0 and infinite ones
    NaN; if it is NaN, all become NaN; where ``max_norm`` is infinite all stay as they are. Inside
    a step, ``max_grad_norm`` does the same without writing the gradients, and ``on_nonfinite``
    deals with what is not finite.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> grad = np.array([3.0, 4.0])
        >>> float(fastopt.clip_grad_norm_(grad, 1.0))
        5.0
        >>> grad.round(4)
        array([0.6, 0.8])

    Args:
        grads: an array or a tree of NumPy or CuPy arrays of any floating or complex dtype; None is
            left alone.
        max_norm: the largest norm allowed, > 0, in units of the gradient; inf only measures.
        norm_type: > 0; inf for the largest magnitude.

    Raises:
        ValueError, TypeError: for arguments out of range, and for leaves that are no floating
            arrays, are read-only, or share memory; nothing has been written then.

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks"
    (ICML 2013), algorithm 1, with PyTorch's 1e-6.
    """
    max_norm = POSITIVE_OR_INF("max_norm", max_norm)
    norm_type = POSITIVE_OR_INF("norm_type", norm_type)
    found = [array for _, array in _leaves(grads, written=True)]
    norm = norm_of(found, norm_type)
    factor = clip_factor(max_norm, norm)
    if factor != 1.0:
        with Deferred(), np.errstate(all="ignore"):
            for array in found:
                with arrays.on_device_of(array):
                    _scale(array, factor)
    return norm


def clip_grad_value_(grads: Any, value: float) -> None:
    """Limit every element of every gradient to [-value, value], in place; NaN stays NaN.

    Args:
        grads: an array or a tree of NumPy or CuPy arrays of any real floating dtype; None is left
            alone.
        value: > 0, in units of the gradient.

    Raises:
        ValueError, TypeError: as ``clip_grad_norm_``, and for complex gradients; nothing has been
            written then.
    """
    value = POSITIVE("value", value)
    found = _leaves(grads, written=True)
    for position, array in found:
        if array.dtype.kind == "c":
            raise TypeError(
                f"{_path(grads, position)} is {array.dtype}, which has no order; clip complex "
                "gradients by their norm (clip_grad_norm_)"
            )
    with Deferred(), np.errstate(all="ignore"):
        for _, array in found:
            limit = np.asarray(value).astype(array.dtype)[()]
            with arrays.on_device_of(array):
                array.clip(-limit, limit, out=array)


def _scale(array: Array, factor: float) -> None:
    """Multiply an array by a number, half precision in float32, where the number is not lost."""
    computed = wide(array.dtype)
    if array.dtype != computed:
        for (part,) in blocks(array):
            part[...] = (part.astype(computed) * factor).astype(part.dtype)
    elif array.dtype.kind == "c":
        for component in (array.real, array.imag):
            component *= factor
    else:
        array *= factor


def _path(grads: Any, position: int) -> str:
    return trees.paths(grads, "grads")[position]


def _leaves(grads: Any, written: bool) -> list[tuple[int, Array]]:
    """Return the arrays of a tree, each with its position among the leaves, all checked."""
    leaves = trees.leaves_of(grads)
    if not written:  # NumPy's reductions return scalars for 0-d results
        leaves = [np.asarray(x) if isinstance(x, np.inexact) else x for x in leaves]
    found = [(k, leaf) for k, leaf in enumerate(leaves) if leaf is not None]
    for position, leaf in found:
        if (problem := _problem(leaf, written)) is not None:
            kind, text = problem
            raise kind(f"{_path(grads, position)} {text}")
    if written and (same := sharing([array for _, array in found])):
        one, two = (_path(grads, found[k][0]) for k in same)
        raise ValueError(
            f"{one} and {two} share memory, so they would be clipped twice; hand in each array once"
        )
    return found


def _problem(leaf: Any, written: bool) -> tuple[type[Exception], str] | None:
    """Return what keeps a leaf from being measured, or written."""
    if type(leaf) is RowGrad:
        return TypeError, "is a RowGrad; let the step clip it: max_grad_norm=... or clip_value=..."
    if arrays.kind(leaf) is None:
        got = type(leaf).__name__
        return TypeError, f"must be a numpy.ndarray or cupy.ndarray, or None; got {got}"
    if leaf.dtype.kind not in "fc" and leaf.dtype.name != "bfloat16":
        return TypeError, f"must be of a floating or complex dtype; got {leaf.dtype}"
    if written and not getattr(leaf.flags, "writeable", True):
        return ValueError, "is read-only, and gradients are clipped in place; give a copy"
    if written and arrays.overlaps_itself(leaf):
        return ValueError, (
            f"holds elements that share memory (strides {leaf.strides}, shape {leaf.shape}), so "
            "they would be clipped twice; give a copy"
        )
    return None


def clip_factor(max_norm: float, norm: float) -> float:
    """Return what scales gradients of this norm down to ``max_norm``, and 1 if they are shorter.

    A limit of infinity only measures. Otherwise a norm that is infinite gives 0, NaN gives NaN.
    """
    if max_norm == math.inf:
        return 1.0
    factor = max_norm / (norm + CLIP_EPS)
    return 1.0 if factor > 1.0 else factor
