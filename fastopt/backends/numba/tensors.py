"""Gradients that are tensors, found through DLPack's C functions: no array is made of each.

Making an array of a tensor costs two thirds of a microsecond, more than the update of a small one.
With DLPack 1.3 a library offers C functions by which another one asks where a tensor's elements
are (``__dlpack_c_exchange_api__`` of the class, which PyTorch has): a tenth of a microsecond. What
steps are handed are the same arrays every time, windows, whose address is set to what was found: it
is the field of PyArrayObject that ``headers`` reads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba.extending import register_jitable

from fastopt.backends.numba.headers import _DATA, _ITEMS, _TYPE
from fastopt.backends.numba.runtime import ask, int64_at, store
from fastopt.core import arrays
from fastopt.core.arrays import Array

_HEAD = 5  # words of a job, before those of the tensors
_FLOAT = 2  # DLDataTypeCode: kDLFloat
_HOST = 1  # DLDevice: kDLCPU, number 0
_WORDS = 6  # of a DLTensor: data, device, axes and dtype, shape, strides, offset
_FROM_OBJECT = 5  # the word of DLPackExchangeAPI with dltensor_from_py_object_no_sync
_EXCHANGE = b"dlpack_exchange_api"


@register_jitable  # type: ignore[untyped-decorator]  # numba has no types
def _found(job: int, line: int, tensor: int) -> int:
    """Return where a tensor's elements are; 0 if it is not as the line says, or cannot be asked."""
    function, clear, view = int64_at(job), int64_at(job + 8), int64_at(job + 16)
    if ask(function, tensor, view) != 0:
        ask(clear, 0, 0)
        return 0
    if int64_at(view + 8) != _HOST or int64_at(view + 16) != int64_at(line + 16):
        return 0
    shape, strides = int64_at(view + 24), int64_at(view + 32)
    for axis in range(int64_at(line + 24)):
        usual = line + 32 + 16 * axis
        if int64_at(shape + 8 * axis) != int64_at(usual):
            return 0
        if int64_at(strides + 8 * axis) != int64_at(usual + 8):
            return 0
    return int64_at(view) + int64_at(view + 40)  # type: ignore[no-any-return]  # it is one


def locate(job: int, params: int, grads: int) -> bool:
    """Set every window to its gradient's elements; False if anything needs a closer look.

    ``params`` and ``grads`` are the addresses of lists, ``job`` that of these words: the address of
    what tells of a tensor (it takes the tensor and where to, and returns 0 unless it has set an
    error), of what clears that error, of room for a DLTensor, and of the gradients' class; and how
    many parameters there are. Then for each of them: the address of its elements, that of its
    window's field, axes and dtype as one word, how many axes there are, and the length and the
    stride of each, in elements.
    """
    kind, count = int64_at(job + 24), int64_at(job + 32)
    param_items, grad_items = int64_at(params + _ITEMS), int64_at(grads + _ITEMS)
    line = job + 8 * _HEAD
    for k in range(count):
        if _found(job, line, int64_at(param_items + 8 * k)) != int64_at(line):
            return False
        grad = int64_at(grad_items + 8 * k)
        if int64_at(grad + _TYPE) != kind:
            return False
        place = _found(job, line, grad)
        size = int64_at(line + 16) >> 43 & 0x1F  # of an element in bytes: the dtype's bits by 8
        if place == 0 or place & (size - 1):  # a window is as aligned as its parameter
            return False
        store(int64_at(line + 8), place)
        line += 32 + 16 * int64_at(line + 24)
    return True


def function_of(exchange: Any) -> int | None:
    """Return the address of the C function that tells of a tensor; None if there is none."""
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    try:
        address = get(("PyCapsule_GetPointer", ctypes.pythonapi))(exchange, _EXCHANGE)
    except ValueError:  # it is no such capsule
        return None
    major, _ = (ctypes.c_uint32 * 2).from_address(address)
    words = (ctypes.c_uint64 * (_FROM_OBJECT + 1)).from_address(address)
    return words[_FROM_OBJECT] or None if major == 1 else None


def layout_is_known() -> bool:
    """Try on an array whether its address is where it is expected to be, and can be set."""
    first, second = np.arange(3.0), np.arange(3.0, 6.0)
    window = first.view()
    place = ctypes.c_void_p.from_address(id(window) + _DATA)
    if place.value != arrays.address(first):
        return False
    place.value = arrays.address(second)
    return bool((window == second).all())


class TensorWindows:
    """Arrays that gradients, which are tensors of one class in host memory, are seen through.

    What they show is there as long as these tensors are.
    """

    def __init__(
        self, locate: Callable[..., bool], function: int, kind: type, params: Sequence[Array]
    ) -> None:
        self.windows: list[Array] = [param.view() for param in params]
        self._view = np.zeros(_WORDS, np.int64)
        self._kind = kind  # keeps its address good
        clear = ctypes.cast(ctypes.pythonapi.PyErr_Clear, ctypes.c_void_p).value
        assert clear is not None
        words = [function, clear, arrays.address(self._view), id(kind), len(params)]
        for param, window in zip(params, self.windows, strict=True):
            number = _FLOAT | 8 * param.itemsize << 8 | 1 << 16  # DLDataType
            words += [
                arrays.address(param),
                id(window) + _DATA,
                param.ndim | number << 32,
                param.ndim,
            ]
            for length, stride in zip(param.shape, param.strides, strict=True):
                words += [length, stride // param.itemsize]
        self._job = np.array(words, np.int64)
        self._address = arrays.address(self._job)
        self._locate = locate

    def look(self, params: list[Any], grads: list[Any]) -> bool:
        """Set the windows to these gradients, in the order of the parameters.

        False if a parameter is not where it was, or a gradient is not like its parameter.
        """
        return self._locate(self._address, id(params), id(grads))
