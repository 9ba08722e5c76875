"""What CPython and NumPy keep at the head of a list and of an array, read by compiled code.

Asking an array for its address, dtype, shape and strides costs about a microsecond in Python; the
update of a small array takes less. So the step's arrays are compared with what is expected in one
compiled call that reads their headers: the fields of PyListObject and PyArrayObject, which C
extensions read through inlined macros and which are therefore fixed. ``layout_is_known`` tries the
reading on real arrays first; where it fails, every array is looked at in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Parameter

_OBJECT = object.__basicsize__  # the reference count and the type, the last word
_ITEMS = list.__basicsize__ - 16  # of a list: the address of its items, before `allocated`
_TYPE, _DATA, _NDIM, _SHAPE, _STRIDES, _DTYPE, _FLAGS = (
    _OBJECT + offset for offset in (-8, 0, 8, 16, 24, 40, 48)
)
_ALIGNED, _WRITEABLE = 0x100, 0x400  # NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE
_NEVER = -(2**62)  # a stride that no array has

Read = Callable[[int], int]


def build(int64_at: Read, int32_at: Read) -> Callable[..., int]:
    """Return the comparison, to be compiled; the arguments read memory at an address."""

    def compare(
        params: int,  # address of the list of parameters
        grads: int,  # address of the list of gradients
        known: Any,  # a line per parameter, see HeaderCheck; the last line is of constants
        axes: Any,  # a line per axis: length, and stride of a gradient in the parameter's order
        extents: Any,  # where all parameters begin and end, ordered
        addresses: Any,  # out: where each gradient's elements are, 0 for None
        whole: bool,  # the lists are of all leaves, of which a line says which one it is of
    ) -> int:
        """Return the number of missing gradients, or -1 where an array is not as expected."""
        none, array_type, dtype, _, _, _, _ = known[-1]
        low, high = extents[0], extents[1]
        missing = 0
        param_items = int64_at(params + _ITEMS)
        grad_items = int64_at(grads + _ITEMS)
        for i in range(len(known) - 1):
            this, its_dtype, data, nbytes, ndim, first, position = known[i]
            at = 8 * position if whole else 8 * i
            param = int64_at(param_items + at)
            if (
                param != this
                or int64_at(param + _DATA) != data
                or int64_at(param + _DTYPE) != its_dtype
            ):
                return -1
            if int32_at(param + _NDIM) != ndim or not int32_at(param + _FLAGS) & _WRITEABLE:
                return -1
            grad = int64_at(grad_items + at)
            absent = grad == none
            if not absent and (
                int64_at(grad + _TYPE) != array_type or int64_at(grad + _DTYPE) != dtype
            ):
                return -1
            if not absent and (
                int32_at(grad + _NDIM) != ndim or not int32_at(grad + _FLAGS) & _ALIGNED
            ):
                return -1
            for axis in range(ndim):
                length, usual = axes[first + axis]
                if int64_at(int64_at(param + _SHAPE) + 8 * axis) != length:
                    return -1
                if absent:
                    continue
                if int64_at(int64_at(grad + _SHAPE) + 8 * axis) != length:
                    return -1
                stride = int64_at(int64_at(grad + _STRIDES) + 8 * axis)
                if stride != usual and length > 1:
                    return -1
            if absent:
                missing += 1
                addresses[i] = 0
                continue
            data = int64_at(grad + _DATA)
            before = np.searchsorted(low, data + nbytes) - 1
            if before >= 0 and high[before] > data:
                return -1  # may share memory with a parameter
            addresses[i] = data
        return missing

    return compare


class HeaderCheck:
    """What the arrays of one bucket must look like, and the compiled comparison with it.

    ``expected`` are the comparison's arguments: a line per parameter with its address as a Python
    object, the addresses of its dtype and of its first element, the bytes of its gradient, its
    number of axes, where those begin in the second array, and which of all leaves it is
    (``positions``; without them the parameters are all there are); a last line with the addresses
    of None, of ndarray and of the gradients' dtype (there is one object of each native dtype). Then
    the axes, and the extents of all parameters of the optimizer.
    """

    def __init__(
        self,
        compare: Callable[..., int],
        parameters: Sequence[Parameter],
        extents: Extents,
        dtype: np.dtype[Any] | None = None,
        positions: Sequence[int] | None = None,
    ) -> None:
        self._compare = compare
        given = [p.leaf.array for p in parameters]
        dtype = np.dtype((dtype or given[0].dtype).type)
        first = np.cumsum([0, *[a.ndim for a in given[:-1]]])
        known = [
            (id(a), id(a.dtype), arrays.address(a), a.size * dtype.itemsize, a.ndim, begin, at)
            for a, begin, at in zip(given, first, positions or range(len(given)), strict=True)
        ]
        known.append((id(None), id(np.ndarray), id(dtype), 0, 0, 0, 0))
        axes = [axis for p in parameters for axis in _axes(p, dtype)]
        self.expected: tuple[Array, ...] = (
            np.array(known, np.intp),
            np.array(axes, np.intp).reshape(-1, 2),
            np.array([extents.low, extents.high], np.intp),
        )

    def __call__(self, params: list[Any], grads: list[Any], addresses: Array) -> int | None:
        """Return how many gradients are None; None if an array is not as expected."""
        missing = self._compare(id(params), id(grads), *self.expected, addresses, False)
        return None if missing < 0 else missing


def _axes(parameter: Parameter, dtype: np.dtype[Any]) -> Iterator[tuple[int, int]]:
    shape = parameter.layout.shape
    strides = parameter.usual_strides(dtype) or (_NEVER,) * len(shape)
    return zip(shape, strides, strict=True)


def layout_is_known(compare: Callable[..., int]) -> bool:
    """Try the comparison on arrays that are as expected, and on some that are not."""
    from fastopt.core.tree import Leaf

    dtype = np.dtype(np.float32)
    params = [np.zeros((2, 3), dtype), np.zeros((), dtype), np.zeros((4, 5), dtype, "F")]
    leaves = [Leaf("", "", "", param) for param in params]
    parameters = [Parameter.of(leaf, 0) for leaf in leaves]
    check = HeaderCheck(compare, parameters, Extents(leaves))
    found = np.zeros(3, np.intp)
    grads: list[Any] = [np.zeros_like(param) for param in params]
    if check(params, grads, found) != 0 or found.tolist() != [*map(arrays.address, grads)]:
        return False
    if check(params, [grads[0], None, grads[2]], found) != 1 or found[1] != 0:
        return False
    wrong = [grads[0].T, grads[0][:, ::-1], grads[0].astype(float), np.float32(1), params[2]]
    return all(check(params, [bad, *grads[1:]], found) is None for bad in wrong)
