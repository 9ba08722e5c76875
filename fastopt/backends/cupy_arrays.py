"""What a bucket's CuPy arrays usually look like, compared from the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.formats import Format, dtype_of, real_dtype
from fastopt.parameters import Parameter


class UsualArrays:
    """The expectations of one bucket: what they let through needs no closer look.

    Shapes, strides and addresses are known on the host; no element is read, so nothing waits for
    the device.
    """

    def __init__(self, parameters: Sequence[Parameter], format: Format) -> None:
        self._shapes = [(p.leaf.array, p.layout.shape) for p in parameters]
        self._own = parameters[0].dtype
        dtypes = [dtype_of(real, self._own) for real in format.readable]
        self._strides = {dtype: [p.usual_strides(dtype) for p in parameters] for dtype in dtypes}
        self._device = arrays.device(parameters[0].leaf.array)
        self._sizes = np.array([p.leaf.array.size for p in parameters], np.int64)
        self._extents = parameters[0].everywhere

    def addresses(self, params: list[Any], grads: list[Any]) -> tuple[np.dtype[Any], Array] | None:
        """Return the dtype of the gradients' real numbers, and their addresses, 0 for None.

        Returns None if any array is unusual.
        """
        found = []
        dtype = next((getattr(g, "dtype", None) for g in grads if g is not None), None)
        dtype = dtype or self._own
        if dtype not in self._strides:
            return None
        expected = zip(self._shapes, self._strides[dtype], strict=True)
        for param, grad, ((array, shape), strides) in zip(params, grads, expected, strict=True):
            if param is not array or param.shape != shape:
                return None
            if grad is None:
                found.append(0)
                continue
            if arrays.kind(grad) != "cupy" or grad.dtype != dtype:
                return None
            memory = grad.data
            if grad.shape != shape or grad.strides != strides or memory.device_id != self._device:
                return None
            found.append(memory.ptr)
        at = np.array(found, np.int64)
        if self._may_overlap(at, self._sizes * dtype.itemsize):
            return None
        return real_dtype(dtype), at

    def _may_overlap(self, grads: Array, nbytes: Array) -> bool:
        """Return whether a gradient may share memory with a parameter, which is written."""
        if not len(self._extents.high):
            return False
        before = np.searchsorted(self._extents.low, grads + nbytes) - 1
        return bool(((before >= 0) & (self._extents.high[before] > grads)).any())
