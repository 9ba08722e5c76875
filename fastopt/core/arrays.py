"""One array: its kind, its place in memory, its layout, and whether arrays share memory."""

from __future__ import annotations

import ctypes
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from math import gcd
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastopt.core.tree import Leaf

# -------------------------------------------------------------------------------------------------
# Facts about one array: its kind, its place in memory, and its elements as one flat view.

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


def namespace_of(array: Array) -> ModuleType:
    """Return the module, numpy or cupy, that the array belongs to."""
    return sys.modules["cupy"] if kind(array) == "cupy" else np


def device(array: Array) -> int | None:
    """Return the number of the CUDA device that holds the array; None for the host."""
    held_by = getattr(array, "device", None)
    return getattr(held_by, "id", None)


def location(array: Array) -> str:
    """Return where an array is, in words."""
    number = device(array)
    return "in host memory" if number is None else f"a CuPy array on device {number}"


def address(array: Array) -> int:
    """Return the address of the array's first element."""
    if type(array) is np.ndarray and _READS_HEADERS:
        return _word_at(id(array) + object.__basicsize__).value
    if type(array).__module__.partition(".")[0] == "cupy":
        return int(array.data.ptr)  # type: ignore[attr-defined]  # cupy.cuda.MemoryPointer
    return int(array.__array_interface__["data"][0])


# The address of its elements is what an array's C structure begins with, after what all objects
# have. Read there it takes a tenth of the microsecond that __array_interface__ does.
_word_at = ctypes.c_size_t.from_address


class _Word:
    """The address of a NumPy array's elements where its C structure cannot be read."""

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def value(self) -> int:
        return address(self._array)


def address_words(given: Sequence[Array]) -> list[Any]:
    """Return for each of some NumPy arrays an object whose ``value`` is its address now.

    It can be read as long as the array lives.
    """
    if _READS_HEADERS:
        return [_word_at(id(array) + object.__basicsize__) for array in given]
    return [_Word(array) for array in given]


def _reads_headers() -> bool:
    """Return whether addresses can be read from the C structure of arrays."""
    if sys.implementation.name != "cpython":
        return False
    tried = np.zeros(3)
    return all(
        _word_at(id(one) + object.__basicsize__).value == one.__array_interface__["data"][0]
        for one in (tried, tried[1:], tried[::-1], np.zeros(0))
    )


_READS_HEADERS = _reads_headers()


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

    def in_memory_order(self, array: Array) -> Array:
        """Return a view with the axes turned; the array itself where there is nothing to turn."""
        if self.plain:
            return array
        turned: Array = array[self.flips].transpose(self.axes)
        return turned

    def in_shape(self, flat: Array, inner: tuple[int, ...] = ()) -> Array:
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


def layout_of(array: Array, keep: int | None = None) -> Layout:
    """Return the layout that brings the array's elements closest to one after another.

    The axis to ``keep`` is not reversed.
    """
    if array.flags.c_contiguous:  # also where axes of length 0 or 1 have odd strides
        ndim = array.ndim
        return Layout(array.shape, True, (..., *(slice(None),) * ndim), tuple(range(ndim)))
    strides = [abs(s) if axis == keep else s for axis, s in enumerate(array.strides)]
    flips = tuple(slice(None, None, -1) if stride < 0 else slice(None) for stride in strides)
    axes = tuple(sorted(range(array.ndim), key=lambda axis: -abs(strides[axis])))
    return Layout(array.shape, False, (..., *flips), axes)


def flat_view(array: Array, layout: Layout) -> Array | None:
    """Return the elements as a contiguous 1-d view of the same memory; None if there are gaps."""
    turned = layout.in_memory_order(array)
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
    """Return an array where the target is: on its device if it has one, else in host memory."""
    if kind(target) != "cupy":
        return on_host(values) if kind(values) == "cupy" else values
    with on_device_of(target):
        return sys.modules["cupy"].asarray(values)  # type: ignore[no-any-return]  # cupy's


def capturing(array: Array) -> bool:
    """Return whether work on a CuPy array would now go into a CUDA graph instead of being done."""
    with on_device_of(array):
        try:
            return bool(sys.modules["cupy"].cuda.get_current_stream().is_capturing())
        except RuntimeError as error:
            if getattr(error, "status", None) != _CAPTURE_IMPLICIT:
                raise
            raise RuntimeError(
                "the default stream waits for all streams but those made with non_blocking=True, "
                "and one that it waits for is being captured in a CUDA graph: capture on "
                "cupy.cuda.Stream(non_blocking=True), or make this step before or after"
            ) from error


_CAPTURE_IMPLICIT = 906
"""CUDA's error for work on the legacy stream while a blocking stream is captured."""


def on_device_of(array: Array) -> AbstractContextManager[Any]:
    """Return a context for work on the array: CuPy works on its current device, not the array's."""
    return array.device if kind(array) == "cupy" else nullcontext()  # type: ignore[return-value]  # cupy.cuda.Device


# -------------------------------------------------------------------------------------------------
# Arrays of one shape, piece by piece: pieces that fit the cache, and are never 0-d.

BLOCK = 32_768
"""Elements of a piece in host memory, so that its temporaries stay in the cache."""


def copy_of(array: Array) -> Array:
    """Return a copy, where the array is."""
    with on_device_of(array):
        return array.copy()


def keep_within(own: Array, limits: tuple[Any, ...]) -> None:
    """Keep an array within a lower and an upper bound, if there are any; NaN stays."""
    if not limits:
        return
    lower, upper = limits
    xp = namespace_of(own)
    with on_device_of(own):
        xp.copyto(own, lower, where=own < lower)
        xp.copyto(own, upper, where=own > upper)


def write_beyond(
    array: Array, here: Array, way: Array, share: float, limits: tuple[Any, ...]
) -> None:
    """Write here + share * way into an array, within limits; ``way`` is overwritten."""
    with np.errstate(all="ignore"):
        way *= share
        way += here.astype(way.dtype, copy=False)
        array[...] = way.astype(array.dtype, copy=False)
        keep_within(array, limits)


def blocks(*given: Array) -> Iterator[tuple[Array, ...]]:
    """Yield matching pieces of arrays of one shape, as views of at least one dimension.

    Arithmetic on a 0-d array gives a scalar, and in NumPy 1 one of another precision. Arrays with
    gaps, or in different orders, and those of a device come in one piece.
    """
    layout = layout_of(given[0])
    flat = [view for array in given if (view := flat_view(array, layout)) is not None]
    if len(flat) < len(given):
        yield tuple(array[None] for array in given)
        return
    size = flat[0].size
    step = BLOCK if kind(given[0]) == "numpy" else max(size, 1)
    for start in range(0, size, step):
        yield tuple(array[start : start + step] for array in flat)


# -------------------------------------------------------------------------------------------------
# Whether parameters share memory, found out without comparing each with each.
#
# A thousand columns of one matrix reach over one another, so where they begin and end says nothing.
# But each is made of runs of bytes at distances that are multiples of a period (the length of a
# row), so that the place within the period, address mod period, is the same for all its runs.
# Arrays whose places there do not meet, or whose extents do not, are apart. The others are compared
# exactly.


@dataclass(frozen=True, slots=True)
class _Span:
    """Where an array lies: runs of bytes between two addresses, a multiple of a period apart."""

    position: int
    low: int
    high: int
    run: int
    period: int  # 0: there is one run

    @classmethod
    def of(cls, position: int, array: Array) -> _Span:
        low, high = extent(array)
        return cls(position, low, high, *_runs(array))

    def within(self, period: int) -> Iterator[tuple[int, int]]:
        """Yield where the runs begin and end within a period that divides their own."""
        first = self.low % period
        last = first + self.run
        if self.run >= period:
            yield 0, period
        elif last <= period:
            yield first, last
        else:
            yield first, period
            yield 0, last - period


def _runs(array: Array) -> tuple[int, int]:
    """Return how long an array's runs of bytes are, and what divides all distances between them."""
    run, period = array.itemsize, 0
    for stride, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1 and stride == run and period == 0:
            run *= length
        elif length > 1:
            period = gcd(period, stride)
    return run, period


def check_apart(leaves: Sequence[Leaf]) -> None:
    """Raise ValueError if two parameters share memory: each would be updated twice."""
    if found := sharing([leaf.array for leaf in leaves]):
        one, two = (leaves[position] for position in found)
        same = "are the same array" if one.array is two.array else "share memory"
        raise ValueError(
            f"{one.path} and {two.path} {same}, so they would be updated twice; "
            "hand in each parameter once"
        )


def sharing(given: Sequence[Array]) -> tuple[int, int] | None:
    """Return the positions of two arrays that share memory; None if no two do."""
    if len(set(map(id, given))) == len(given) and all(map(_owns_memory, given)):
        return None
    by_device: dict[int | None, list[_Span]] = {}
    for position, array in enumerate(given):
        if array.size:
            span = _Span.of(position, array)
            by_device.setdefault(device(array), []).append(span)
    for spans in by_device.values():
        for cluster in _clusters(spans):
            for one, two in _candidates(cluster):
                if share_memory(given[one.position], given[two.position]):
                    return one.position, two.position
    return None


def _owns_memory(array: Array) -> bool:
    return type(array) is np.ndarray and array.flags.owndata


def _clusters(spans: Iterable[_Span]) -> Iterator[list[_Span]]:
    """Yield the spans that reach over one another, directly or through others."""
    cluster: list[_Span] = []
    reach = 0
    for span in sorted(spans, key=lambda span: span.low):
        if cluster and span.low >= reach:
            yield cluster
            cluster = []
        cluster.append(span)
        reach = max(reach, span.high)
    yield cluster


def _candidates(cluster: Sequence[_Span]) -> Iterator[tuple[_Span, _Span]]:
    """Yield the pairs that meet both within the common period and in their extents."""
    period = reduce(gcd, (span.period for span in cluster)) or 1
    pieces = sorted(
        ((*piece, span) for span in cluster for piece in span.within(period)),
        key=lambda piece: piece[0],
    )
    reaching: list[tuple[int, _Span]] = []
    for first, last, span in pieces:
        reaching = [(end, other) for end, other in reaching if end > first]
        for _, other in reaching:
            if other.low < span.high and span.low < other.high:
                yield other, span
        reaching.append((last, span))


# -------------------------------------------------------------------------------------------------
# Where all parameters lie in memory, to find a gradient that shares it with one of them.


_OWNS_MEMORY = attrgetter("flags.owndata")


class Extents:
    """Where all parameters lie in memory, to find a gradient that shares it with one of them."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._leaves = sorted(
            (leaf for leaf in leaves if leaf.array.size), key=lambda leaf: extent(leaf.array)
        )
        bounds = [extent(leaf.array) for leaf in self._leaves]
        self.low: Array = np.array([low for low, _ in bounds], np.intp)
        # The highest address of this parameter and of all before it: extents of strided ones nest.
        high = np.array([high for _, high in bounds], np.intp)
        self.high: Array = np.maximum.accumulate(high) if len(high) else high
        self._lows, self._highs = self.low.tolist(), self.high.tolist()
        owners = [_owner(leaf) for leaf in leaves]
        # Where every parameter's memory is known to belong to a NumPy array, another array that
        # has memory of its own needs no look at addresses.
        known = all(type(o) is np.ndarray and o.flags.owndata for o in owners)
        self._owners = {id(owner): owner for owner in owners} if known else None

    @property
    def owners(self) -> frozenset[int] | None:
        """The ids of the arrays that hold the parameters' memory; None if not all are known."""
        return None if self._owners is None else frozenset(self._owners)

    def apart(self, grads: Sequence[Array]) -> bool:
        """Return whether NumPy gradients surely share no memory with a parameter."""
        owners = self._owners
        if owners is not None and all(map(_OWNS_MEMORY, grads)):
            # Memory of its own shares none with parameters that are no views of it.
            return owners.keys().isdisjoint(map(id, grads))
        for grad in grads:
            low, high = extent(grad)
            before = bisect_left(self._lows, high) - 1
            if before >= 0 and self._highs[before] > low:
                return False
        return True

    def check_apart(self, grad: Array, path: str) -> None:
        """Raise ValueError if a gradient shares memory with a parameter, which is written."""
        if type(grad) is np.ndarray and self.apart([grad]):
            return
        low, high = extent(grad)
        position = bisect_left(self._lows, high) - 1
        while position >= 0 and self._highs[position] > low:
            leaf = self._leaves[position]
            if share_memory(grad, leaf.array):
                raise ValueError(
                    f"{path} shares memory with {leaf.path}, which the step writes; "
                    "hand in a gradient with memory of its own"
                )
            position -= 1


def _owner(leaf: Leaf) -> object:
    """Return what holds the memory that a parameter is a view of."""
    owner: object = leaf.array
    while (base := getattr(owner, "base", None)) is not None:
        owner = base
    return owner
