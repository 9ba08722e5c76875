"""Rounding of arrays to another floating dtype: to nearest, ties to even."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.arrays import Array


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return values of any floating dtype in another one, each the nearest that it has: once."""
    with np.errstate(all="ignore"):
        if dtype.name == "bfloat16" and values.dtype == np.float64:
            values = _to_odd(values)
        return values.astype(dtype)


def narrowed(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return what the arithmetic ends in as parameters of a dtype, as a step rounds them.

    Half precision is rounded from float32, to which float64 is rounded before: twice.
    """
    with np.errstate(all="ignore"):
        if dtype.itemsize == 2:
            values = values.astype(np.float32, copy=False)
        return values.astype(dtype, copy=False)


def _to_odd(values: Array) -> Array:
    """Return float64 in float32: what it does not hold becomes the odd one of its neighbours.

    The cast from float64 to bfloat16 goes by float32, which would round twice. An odd number of
    float32 is neither of bfloat16 nor a tie between two of them, and lies on the right side.
    """
    single = values.astype(np.float32)
    back = single.astype(np.float64)
    inexact = (back != values) & np.isfinite(values) & np.isfinite(back)
    away = inexact & (np.abs(back) > np.abs(values))
    bits = (single.view(np.uint32) - away.astype(np.uint32)) | inexact.astype(np.uint32)
    odd: Array = bits.view(np.float32)
    return odd
