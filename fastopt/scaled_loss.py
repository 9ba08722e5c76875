"""An array times the scale of a loss, in the array's own dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.formats import SUPPORTED_DTYPES, real_dtype, wide


def times(
    array: Array, factor_of: Callable[[np.dtype[Any]], Any], out: Array | None = None
) -> Array:
    """Return an array times a factor, which is given in float32 or float64; write it to ``out``.

    Half precision is multiplied in float32, which holds a factor that float16 does not. What is
    too large becomes infinite, without a warning: then the step is skipped.
    """
    if array.dtype.name not in SUPPORTED_DTYPES:
        raise TypeError(
            f"LossScaler.multiply takes a number or an array of {', '.join(SUPPORTED_DTYPES)}; "
            f"got {array.dtype}"
        )
    if out is not None:
        _check_out(out, array)
    with np.errstate(all="ignore"):
        factor = factor_of(wide(real_dtype(array.dtype)))
        if out is not None and wide(array.dtype) == array.dtype:
            if out is not array:
                out[...] = array
            out *= factor  # no memory is needed, which a CUDA graph could not have
            return out
        product: Array = array.astype(wide(array.dtype), copy=False) * factor
        product = product.astype(array.dtype, copy=False)
    if out is None:
        return product
    out[...] = product
    return out


def _check_out(out: Array, array: Array) -> None:
    alike = arrays.kind(out) == arrays.kind(array) and arrays.device(out) == arrays.device(array)
    if not alike or (out.dtype, out.shape) != (array.dtype, array.shape):
        raise ValueError(
            f"LossScaler.multiply: out must be an array like the loss, {array.dtype} "
            f"{array.shape}, in the same place; got {getattr(out, 'dtype', type(out).__name__)} "
            f"{getattr(out, 'shape', '')}"
        )
