"""Saved state in another storage than the optimizer's, stored anew (``convert=True``).

Codes become the float32 that they stand for, exactly; numbers become codes by rounding to nearest,
once. What does not have the shape of the parameter is left as it is, and refused by the checks that
follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt import codes, stored_state
from fastopt.arrays import Array
from fastopt.buckets import Bucket
from fastopt.errors import CheckpointError
from fastopt.rounding import rounded
from fastopt.slots import SCALE
from fastopt.stored_state import ORDER


def recoded(name: str, entry: dict[str, Any], param: Array, bucket: Bucket) -> list[str]:
    """Change an entry to what a bucket's arena keeps of a parameter; return what was changed."""
    changes: list[str] = []
    wanted = bucket.format.state
    order = stored_state.order_of_blocks(param, bucket.format).get(ORDER, [])
    before = entry.get(ORDER, [])
    for slot in bucket.rule.state:
        kind = stored_state.kind_of(entry.get(slot))
        if kind == wanted and (kind != "int8" or before == order):
            continue
        signed = slot in bucket.rule.signed
        values = _decoded(entry, slot, kind, param, before, signed)
        if values is None:
            return changes
        if wanted == "real":
            entry[slot] = values
        else:
            _encode(name, entry, slot, values, wanted, order, signed)
        changes.append(f"state:{name}.{slot}: {kind or values.dtype} -> {wanted}")
    entry.pop(ORDER, None)
    if order:
        entry[ORDER] = order
    return changes


def _decoded(
    entry: dict[str, Any], slot: str, kind: str | None, param: Array, order: Any, signed: bool
) -> Array | None:
    """Return a slot in numbers, in the shape of its parameter; None if it does not have that."""
    pair = (2,) * (param.dtype.kind == "c")
    value, scales = entry.get(slot), entry.get(slot + SCALE)
    shape = param.shape if kind == "real" else (*param.shape, *pair)
    if kind is None or not isinstance(value, np.ndarray) or value.shape != shape:
        return None
    if kind == "real":
        return value
    if kind == "bfloat16":
        numbers = value.astype(np.float32)
    else:
        blocks = -(-value.size // codes.BLOCK)
        fits = isinstance(scales, np.ndarray) and scales.shape == (blocks,)
        if not fits or not _is_order(order, param.ndim):
            return None
        flat = _padded(_flat(value, order, param.ndim))
        numbers = codes.from_int8(flat, entry.pop(slot + SCALE), signed)[: value.size]
        numbers = _shaped(numbers, value.shape, order, param.ndim)
    return np.ascontiguousarray(numbers).view(np.complex64)[..., 0] if pair else numbers


def _encode(
    name: str,
    entry: dict[str, Any],
    slot: str,
    values: Array,
    wanted: str,
    order: list[int],
    signed: bool,
) -> None:
    axes = values.ndim
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], axis=-1)
    numbers = fitting(f"state:{name}.{slot}", values, np.dtype(np.float32))
    if wanted == "bfloat16":
        entry[slot] = stored_state.shown(codes.to_bfloat16(numbers, codes.HALF))
        return
    flat = _padded(_flat(numbers, order, axes))
    made, entry[slot + SCALE] = codes.to_int8(flat, codes.HALF_OF_INT8, signed)
    entry[slot] = _shaped(made[: numbers.size], numbers.shape, order, axes)


def fitting(what: str, values: Array, dtype: np.dtype[Any]) -> Array:
    """Return saved numbers in another dtype; CheckpointError if one overflows there."""
    made = rounded(values, dtype)
    if (lost := np.isfinite(values) & ~np.isfinite(made)).any():
        raise CheckpointError(
            f"{what}: {values[lost].flat[0]} is infinite in {dtype}, so {values.dtype} cannot be "
            "converted to it here"
        )
    return made


def _is_order(order: Any, axes: int) -> bool:
    whole = isinstance(order, list) and all(type(axis) is int for axis in order)
    return whole and (not order or sorted(max(axis, ~axis) for axis in order) == [*range(axes)])


def _turned(array: Array, order: Sequence[int], axes: int) -> Array:
    """Return a view whose axes are in memory order; a last axis of pairs stays the last."""
    rest = range(axes, array.ndim)
    turned = array.transpose([*(max(axis, ~axis) for axis in order or range(axes)), *rest])
    return np.flip(turned, tuple(place for place, axis in enumerate(order) if axis < 0))


def _flat(array: Array, order: Sequence[int], axes: int) -> Array:
    return _turned(array, order, axes).reshape(-1)


def _shaped(flat: Array, shape: tuple[int, ...], order: Sequence[int], axes: int) -> Array:
    made = np.empty(shape, flat.dtype)
    turned = _turned(made, order, axes)
    turned[...] = flat.reshape(turned.shape)
    return made


def _padded(flat: Array) -> Array:
    """Return whole blocks, the last one filled up with zeros."""
    made = np.zeros(-(-flat.size // codes.BLOCK) * codes.BLOCK, flat.dtype)
    made[: flat.size] = flat
    return made
