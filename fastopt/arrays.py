"""Facts about one array: its kind, its place in memory, and its elements as one flat view."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
"""numpy.ndarray or cupy.ndarray: this package uses only what both have."""


def kind(value: object) -> str | None:
    """Return "numpy" or "cupy" for the arrays this package can update, None for anything else.

    Subclasses are refused (np.matrix multiplies differently, masked arrays skip elements), except
    np.memmap. CuPy is recognised without importing it.
    """
    if type(value) is np.ndarray or type(value) is np.memmap:
        return "numpy"
    cupy = sys.modules.get("cupy")
    if cupy is not None and type(value) is getattr(cupy, "ndarray", None):
        return "cupy"
    return None


def device(array: Array) -> int | None:
    """Return the number of the CUDA device that holds the array; None for the host."""
    held_by = getattr(array, "device", None)
    return getattr(held_by, "id", None)


def address(array: Array) -> int:
    """Return the address of the array's first element."""
    if type(array).__module__.partition(".")[0] == "cupy":
        return int(array.data.ptr)  # type: ignore[attr-defined]  # cupy.cuda.MemoryPointer
    return int(array.__array_interface__["data"][0])


def extent(array: Array) -> tuple[int, int]:
    """Return the first address that the array's elements touch, and the first one after them."""
    low = high = address(array)
    if array.flags.c_contiguous:
        return low, low + array.nbytes
    if array.size == 0:
        return low, low
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        low, high = (low, high + reach) if reach >= 0 else (low + reach, high)
    return low, high + array.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """How the axes of an array are turned so that its elements stand one after another.

    ``flips`` are indices that reverse axes of negative stride, ``axes`` the order of decreasing
    stride. A gradient is read through its parameter's layout, so that elements keep their partners
    whatever the order of either array in memory.
    """

    shape: tuple[int, ...]
    plain: bool  # nothing is turned: C order
    flips: tuple[Any, ...]  # begins with an ellipsis: array[()] copies a 0-d array, array[...] not
    axes: tuple[int, ...]

    @property
    def flipped(self) -> bool:
        """Whether any axis is reversed."""
        return any(flip.step is not None for flip in self.flips[1:])

    def turn(self, array: Array) -> Array:
        """Return a view with the axes turned."""
        turned: Array = array[self.flips].transpose(self.axes)
        return turned

    def unturn(self, flat: Array, inner: tuple[int, ...] = ()) -> Array:
        """Return a flat array as a view in the parameter's own shape, with more axes behind."""
        turned = flat.reshape(tuple(self.shape[axis] for axis in self.axes) + inner)
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        behind = range(len(self.axes), turned.ndim)
        array: Array = turned.transpose((*inverse, *behind))[(*self.flips, *map(_all_of, behind))]
        return array

    @property
    def order(self) -> list[int]:
        """The axes by decreasing stride, ~axis for one that runs backwards; [] for C order.

        Axes of length 1 have no say; neither have any where there are no elements.
        """
        said = [axis for axis in self.axes if self.shape[axis] > 1 and 0 not in self.shape]
        order = [~axis if self.flips[1 + axis].step is not None else axis for axis in said]
        return order if order != sorted(said) else []


def _all_of(axis: int) -> slice:
    return slice(None)


def layout_of(array: Array) -> Layout:
    """Return the layout that brings the array's elements closest to one after another."""
    strides = array.strides
    flips = tuple(slice(None, None, -1) if stride < 0 else slice(None) for stride in strides)
    axes = tuple(sorted(range(array.ndim), key=lambda axis: -abs(strides[axis])))
    plain = array.flags.c_contiguous  # also where axes of length 0 or 1 have odd strides
    if plain:
        axes, flips = tuple(range(array.ndim)), (slice(None),) * array.ndim
    return Layout(array.shape, plain, (..., *flips), axes)


def flat_view(array: Array, layout: Layout) -> Array | None:
    """Return the elements as a contiguous 1-d view of the same memory; None if there are gaps."""
    turned = layout.turn(array)
    return turned.reshape(-1) if turned.flags.c_contiguous else None


def overlaps_itself(array: Array) -> bool:
    """Return whether two elements may share memory, as in a broadcast array."""
    reach = array.itemsize
    for stride, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return array.size > 0
            reach = stride * (length - 1) + reach
    return False


def share_memory(first: Array, second: Array) -> bool:
    """Return whether two arrays share an element; True where that is too hard to find out."""
    (low, high), (other_low, other_high) = extent(first), extent(second)
    if high <= other_low or other_high <= low:
        return False
    one, two = _in_place_of(first), _in_place_of(second)
    try:
        return bool(np.shares_memory(one, two, max_work=100_000))  # type: ignore[arg-type]  # the stub knows 0 and -1
    except np.exceptions.TooHardError:
        return True


@dataclass(frozen=True)
class _Interface:
    __array_interface__: dict[str, Any]


def _in_place_of(array: Array) -> Array:
    """Return a NumPy array of the same addresses, which are compared and never followed."""
    if kind(array) == "numpy":
        return array
    return np.asarray(
        _Interface(
            {
                "version": 3,
                "shape": array.shape,
                "strides": array.strides,
                "typestr": f"|V{array.itemsize}",
                "data": (address(array), False),
            }
        )
    )


def on_host(array: Array) -> Array:
    """Return a C-ordered copy in host memory, as a NumPy array."""
    if kind(array) == "cupy":
        return array.get(order="C")  # type: ignore[attr-defined,no-any-return]  # cupy's
    return np.array(array, order="C")


def like(values: Array, target: Array) -> Array:
    """Return a NumPy array where the target is: on its device, if that is one."""
    if kind(target) != "cupy":
        return values
    with on_device_of(target):
        return sys.modules["cupy"].asarray(values)  # type: ignore[no-any-return]  # cupy's


def capturing(array: Array) -> bool:
    """Return whether work on a CuPy array would now go into a CUDA graph instead of being done."""
    with on_device_of(array):
        return bool(sys.modules["cupy"].cuda.get_current_stream().is_capturing())


def on_device_of(array: Array) -> AbstractContextManager[Any]:
    """Return a context for work on the array: CuPy works on its current device, not the array's."""
    return array.device if kind(array) == "cupy" else nullcontext()  # type: ignore[return-value]  # cupy.cuda.Device
