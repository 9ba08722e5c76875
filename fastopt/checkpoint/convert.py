"""Saved parameters and state in the dtypes and storage of another optimizer (``convert=True``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

import numpy as np

from fastopt.checkpoint import state_dict
from fastopt.checkpoint.state_dict import ORDER
from fastopt.core import quantization
from fastopt.core.arrays import Array, on_host
from fastopt.core.buckets import SCALE, Bucket, OptimizerState
from fastopt.core.dtypes import MASTER, State, wide
from fastopt.core.options import STORAGE
from fastopt.core.param_groups import ParamGroup
from fastopt.core.quantization import narrowed, rounded
from fastopt.errors import CheckpointError

# -------------------------------------------------------------------------------------------------
# Saved state in another storage than the optimizer's, stored anew (``convert=True``).
#
# Codes become the float32 that they stand for, exactly; numbers become codes by rounding to
# nearest, once. What does not have the shape of the parameter is left as it is, and refused by the
# checks that follow.


def recoded(name: str, entry: dict[str, Any], param: Array, bucket: Bucket) -> list[str]:
    """Change an entry to what a bucket's arena keeps of a parameter; return what was changed."""
    changes: list[str] = []
    wanted = bucket.spec.state
    order = state_dict.order_of_blocks(param, bucket.spec).get(ORDER, [])
    before = entry.get(ORDER, [])
    for slot in bucket.rule.state:
        kind = state_dict.kind_of(entry.get(slot))
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
    entry: dict[str, Any], slot: str, kind: State | None, param: Array, order: Any, signed: bool
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
    elif kind == "int8":
        blocks = -(-value.size // quantization.BLOCK)
        fits = isinstance(scales, np.ndarray) and scales.shape == (blocks,)
        if not fits or not _is_order(order, param.ndim):
            return None
        flat = _padded(_flat(value, order, param.ndim))
        numbers = quantization.from_int8(flat, entry.pop(slot + SCALE), signed)[: value.size]
        numbers = _shaped(numbers, value.shape, order, param.ndim)
    else:
        assert_never(kind)
    return np.ascontiguousarray(numbers).view(np.complex64)[..., 0] if pair else numbers


def _encode(
    name: str,
    entry: dict[str, Any],
    slot: str,
    values: Array,
    wanted: Literal["bfloat16", "int8"],
    order: list[int],
    signed: bool,
) -> None:
    axes = values.ndim
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], axis=-1)
    numbers = fitting(f"state:{name}.{slot}", values, np.dtype(np.float32))
    if wanted == "bfloat16":
        entry[slot] = state_dict.shown(quantization.to_bfloat16(numbers, quantization.HALF))
    elif wanted == "int8":
        flat = _padded(_flat(numbers, order, axes))
        made, entry[slot + SCALE] = quantization.to_int8(flat, quantization.HALF_OF_INT8, signed)
        entry[slot] = _shaped(made[: numbers.size], numbers.shape, order, axes)
    else:
        assert_never(wanted)


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
    made = np.zeros(-(-flat.size // quantization.BLOCK) * quantization.BLOCK, flat.dtype)
    made[: flat.size] = flat
    return made


# -------------------------------------------------------------------------------------------------
# Saved values in the dtypes of an optimizer that takes them over (``convert=True``), rounded once.
#
# A parameter in full precision is its master weight, where one was saved that rounds to it; else it
# is the parameter itself. From that the parameter and the master weight that are wanted here are
# made. State is converted slot by slot. What differs in more than a floating dtype is left as it
# is, and refused by the checks that follow.


def converted(state: OptimizerState, saved: Any) -> tuple[Any, tuple[str, ...]]:
    """Return a state_dict, or a checkpoint's content, as this optimizer keeps it, and the changes.

    Raises CheckpointError for a finite number that is infinite in the dtype wanted.
    """
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
        return saved, ()  # whatever it is, it is refused
    entries, params = dict(saved["state"]), saved.get("params")
    params = dict(params) if isinstance(params, Mapping) else params
    values = params if isinstance(params, dict) else {}
    changes: list[str] = []
    for bucket in state.buckets:
        for leaf, _, slots in bucket.state():
            entry = entries.get(leaf.name)
            if isinstance(entry, Mapping):
                entry = dict(entry)
                changes += recoded(leaf.name, entry, leaf.array, bucket)
                one = _Entry(leaf.name, entry, values, changes)
                one.convert(leaf.array, slots)
                entries[leaf.name] = one.entry
    parts = {"state": entries} if params is None else {"state": entries, "params": params}
    if "groups" in saved:
        parts["groups"] = _stored_as_here(state.groups, saved["groups"])
    return {**saved, **parts}, tuple(sorted(changes))


def _stored_as_here(groups: Sequence[ParamGroup], saved: Any) -> Any:
    """Return saved groups with what they say of storage in the words of this optimizer's."""
    if not isinstance(saved, list) or not all(isinstance(group, Mapping) for group in saved):
        return saved  # it is refused
    ours = [{name: group[name] for name in STORAGE} for group in groups]
    if all(each == ours[0] for each in ours):
        ours = ours[:1] * len(saved)
    if len(ours) != len(saved):
        return saved
    return [{**group, **own} for group, own in zip(saved, ours, strict=True)]


class _Entry:
    """What was saved of one parameter; ``params`` are all that were saved, by name."""

    def __init__(
        self, name: str, entry: dict[str, Any], params: dict[str, Any], changes: list[str]
    ) -> None:
        self.entry = entry
        self._name = name
        self._param = f"param:{name}"
        self._params = params
        self._changes = changes

    def convert(self, here: Array, slots: Mapping[str, Array]) -> None:
        """Convert it for a parameter, and its state, as they are kept here."""
        master, param = self.entry.get(MASTER), self._params.get(self._name)
        known = [each for each in (master, param) if each is not None]
        if all(_alike(each, here) for each in known):
            if MASTER in slots:
                source = _whole(master, param)
                self._with_master(on_host(here) if source is None else source, here, slots[MASTER])
            else:
                self._without_master(_whole(master, param), here)
        for slot, view in slots.items():
            if _alike(self.entry.get(slot), view):
                what = f"state:{self._name}.{slot}"
                self.entry[slot] = self._as(what, self.entry[slot], view.dtype)

    def _with_master(self, whole: Array, here: Array, slot: Array) -> None:
        if MASTER not in self.entry:
            self._changes.append(f"state:{self._name}.{MASTER}: from the parameter")
            self.entry[MASTER] = fitting(f"state:{self._name}.{MASTER}", whole, slot.dtype)
        elif self._differs(here):
            self.entry[MASTER] = whole
        if self._differs(here):  # the parameter is the rounded copy of its master weight
            master = rounded(self.entry[MASTER], slot.dtype)
            # As a step rounds it: half precision by way of float32.
            self._replace_parameter(fitting(self._param, master, wide(here.dtype)), here)

    def _without_master(self, whole: Array | None, here: Array) -> None:
        if self.entry.pop(MASTER, None) is not None:
            self._changes.append(f"state:{self._name}.{MASTER}: left out")
        if whole is not None and self._differs(here):
            self._replace_parameter(whole, here)

    def _differs(self, here: Array) -> bool:
        """Return whether the parameter was saved, in another dtype."""
        saved = self._params.get(self._name)
        return saved is not None and saved.dtype != here.dtype

    def _replace_parameter(self, whole: Array, here: Array) -> None:
        before = self._params[self._name].dtype
        self._params[self._name] = fitting(self._param, whole, here.dtype)
        self._changes.append(f"{self._param}: {before} -> {here.dtype}")

    def _as(self, what: str, value: Array, dtype: np.dtype[Any]) -> Array:
        if value.dtype == dtype:
            return value
        self._changes.append(f"{what}: {value.dtype} -> {dtype}")
        return fitting(what, value, dtype)


def _whole(master: Any, param: Any) -> Any:
    """Return the parameter in the highest precision that was saved; None if it was not."""
    if master is None or param is None:
        return master if param is None else param
    # What does not round to the parameter is not its master: somebody wrote the parameter since.
    agrees = narrowed(master, param.dtype) == param
    return np.where(agrees, master, param.astype(master.dtype))


def _alike(saved: Any, here: Array) -> bool:
    """Return whether a saved array differs from one in use in nothing but a floating dtype."""
    if not isinstance(saved, np.ndarray) or saved.shape != here.shape:
        return False
    return _number_kind(saved.dtype) == _number_kind(here.dtype) != "other"


def _number_kind(dtype: np.dtype[Any]) -> str:
    if not dtype.isnative or dtype.itemsize > 16:
        return "other"
    real = dtype.kind == "f" or dtype.name == "bfloat16"
    return "real" if real else "complex" if dtype.kind == "c" else "other"
