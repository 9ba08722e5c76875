"""What a bucket's CuPy arrays usually look like, compared from the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.parameters import Parameter


class UsualArrays:
    """The expectations of one bucket: what they let through needs no closer look.

    Shapes, strides and addresses are known on the host; no element is read, so nothing waits for
    the device.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._expected = [(p.leaf.array, p.layout.shape, p.usual_strides()) for p in parameters]
        first = parameters[0].leaf.array
        self._dtype, self._device = first.dtype, arrays.device(first)
        self._nbytes = np.array([p.flat.nbytes for p in parameters], np.int64)
        self._extents = parameters[0].everywhere

    def addresses(self, params: list[Any], grads: list[Any]) -> Array | None:
        """Return the gradients' addresses, 0 for those that are None; None if any is unusual."""
        found = []
        for param, grad, expected in zip(params, grads, self._expected, strict=True):
            array, shape, strides = expected
            if param is not array or param.shape != shape:
                return None
            if grad is None:
                found.append(0)
                continue
            if arrays.kind(grad) != "cupy" or grad.dtype != self._dtype:
                return None
            memory = grad.data
            if grad.shape != shape or grad.strides != strides or memory.device_id != self._device:
                return None
            found.append(memory.ptr)
        at = np.array(found, np.int64)
        return None if self._may_overlap(at) else at

    def _may_overlap(self, grads: Array) -> bool:
        """Return whether a gradient may share memory with a parameter, which is written."""
        if not len(self._extents.high):
            return False
        before = np.searchsorted(self._extents.low, grads + self._nbytes) - 1
        return bool(((before >= 0) & (self._extents.high[before] > grads)).any())
