"""What other libraries store, as NumPy arrays and plain numbers, without importing them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.errors import CheckpointError


def array_of(value: Any, place: str) -> Array:
    """Return an array, a tensor in host memory or a number as a NumPy array.

    The array may share memory with the tensor. ``place`` is what errors call it.
    """
    place_of = getattr(getattr(value, "device", None), "type", "cpu")
    if isinstance(place_of, str) and place_of != "cpu":
        raise CheckpointError(
            f"{place} is on the device {value.device}; move it to host memory first, with .cpu()"
        )
    try:
        array = _read(value)
    except Exception as error:
        raise CheckpointError(
            f"{place} cannot be read as a NumPy array; got {_described(value)}: {error}"
        ) from error
    if array.dtype.kind in "OUSMmV" and array.dtype.name != "bfloat16":
        raise CheckpointError(f"{place} must be numbers; got {_described(value)}")
    return array


def _read(value: Any) -> Array:
    if arrays.kind(value) == "cupy":
        return arrays.on_host(value)
    if callable(detach := getattr(value, "detach", None)):
        value = detach()  # a tensor that takes part in autograd does not become an array
    if callable(numpy := getattr(value, "numpy", None)):
        value = numpy()
    return np.asarray(value)


def _described(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    return f"{type(value).__name__}" if dtype is None else f"{type(value).__name__} of {dtype}"


def plain(value: Any, place: str) -> Any:
    """Return a hyperparameter as a Python value; pairs, and tensors with one element, too."""
    if isinstance(value, bool | int | float | str):
        return value
    if value is None:
        raise CheckpointError(f"{place} is missing; got None")
    if isinstance(value, list | tuple):
        return tuple(plain(one, f"{place}[{k}]") for k, one in enumerate(value))
    array = array_of(value, place)
    if array.size != 1:
        raise CheckpointError(f"{place} must be one number; got {array.dtype} {array.shape}")
    return array.item()


def count_of(value: Any, place: str) -> int:
    """Return a number of steps, which some libraries store as a floating-point number."""
    number = plain(value, place)
    whole = isinstance(number, int | float) and not isinstance(number, bool) and number % 1 == 0
    if not whole or not 0 <= number < 2**63:
        raise CheckpointError(f"{place} must be a whole number from 0 on; got {number!r}")
    return int(number)
