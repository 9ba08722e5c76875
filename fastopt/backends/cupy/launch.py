"""Launches over the arrays of a bucket, and how they look; CuPy is handed in, not imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from operator import attrgetter, call, is_
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

import numpy as np

from fastopt.backends.cupy import control_source, pass_source
from fastopt.backends.cupy import source as cupy_source
from fastopt.backends.cupy.shapes import SHAPES, shape_of
from fastopt.backends.cupy.source import CAPACITY, LARGE_CAPACITY, Addresses, block_length, blocks
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Arena, Gradients, Parameter
from fastopt.core.dtypes import UpdateSpec, dtype_of, real_dtype
from fastopt.core.norms import TILE
from fastopt.core.passes import derived_of
from fastopt_kernels import Rule

if TYPE_CHECKING:
    from fastopt.backends.cupy.backend import CupyKernel

# -------------------------------------------------------------------------------------------------
# Launches over the arrays of a bucket; ``backend``, which imports CuPy, hands the module in.


class MeasureLayout(NamedTuple):
    """What is measured of the ``tiles`` of all gradients (see ``core.norms``).

    The sums of squares; with ``scaled`` then those of the gradients multiplied by each other factor
    that they may need.
    """

    tiles: int
    scaled: bool


class Lookup(NamedTuple):
    """Some parameters of a bucket and where they find their scalars, if a device decides on a step.

    ``chosen`` are the parameters (None: all that have a gradient), ``table`` their rows of scalars
    and ``for_memory`` those of what the update's memories are given; None where that is
    nothing. The decision writes which row is taken (``control_source.COUNTS``).
    """

    chosen: Array | None
    table: Array
    for_memory: Array | None


class BucketLaunch(NamedTuple):
    """What is launched for one bucket in such a step; ``number`` is its place among all buckets."""

    number: int
    kernel: CupyKernel
    gradients: Gradients
    lookups: Sequence[Lookup]

    @property
    def there(self) -> bool:
        """Whether any parameter has a gradient."""
        return self.gradients.active is None or bool(self.gradients.active)


class Kernels:
    """CuPy's kernels, each made once; CuPy compiles one at its first launch on a device."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy
        self._made: dict[tuple[Any, ...], Any] = {}

    @cached_property
    def by_value(self) -> bool:
        """Whether kernels take addresses by value: CuPy has void scalars from 14.1 on."""
        try:
            self.cupy.ElementwiseKernel("V16 x", "raw int64 y", "y[0] = 0", no_return=True)
        except ValueError:
            return False
        return True

    def addresses(self, parameters: int) -> Addresses:
        """Return how launches take addresses where there are so many parameters on this device."""
        large = parameters > CAPACITY and self._large_arguments
        return Addresses(LARGE_CAPACITY if large else CAPACITY, self.by_value)

    @cached_property
    def _large_arguments(self) -> bool:
        """Whether the arguments of a kernel can be 32 KB: from CUDA 12.1 and Volta on."""
        cuda = self.cupy.cuda
        versions = (cuda.runtime.driverGetVersion(), *_compiler_version(cuda))
        volta = int(cuda.Device().compute_capability) >= 70
        return self.by_value and volta and min(versions) >= 12_010

    def of(self, text: Callable[..., dict[str, Any]], *about: Any) -> Any:
        """Return the kernel whose text a function gives for these arguments."""
        key = (text, *about)
        if key not in self._made:
            self._made[key] = self.cupy.ElementwiseKernel(**text(*about))
        return self._made[key]


def _compiler_version(cuda: Any) -> list[int]:
    """Return the version of NVRTC, as the driver's is written; nothing if it does not say."""
    try:
        major, minor = cuda.nvrtc.getVersion()
    except Exception:  # no compiler: launches say so themselves
        return []
    return [1_000 * major + 10 * minor]


class LaunchBatch:
    """Those parameters from the ``first`` on whose addresses fit a launch.

    Nothing here waits for the device. What a kernel reads is never freed before: static tables and
    the arena live as long as the bucket's CupyKernel; what is allocated in a step (converted
    gradients, a table of addresses) goes back to CuPy's pool, which hands memory out again in the
    order of the current stream, so after the kernel.
    """

    def __init__(
        self,
        kernels: Kernels,
        rule: Rule,
        spec: UpdateSpec,
        parameters: Sequence[Parameter],
        arena: Arena,
        first: int,
        how: Addresses,
    ) -> None:
        self._kernels = kernels
        self._how = how
        self._memory = [part.reshape(-1) for part in arena.parts]
        self._pitch = arena.numbers.shape[1]
        self._updates: dict[tuple[Any, bool], Any] = {}
        self._packed: tuple[Any, Any] = (None, None)  # the last addresses, as a kernel takes them
        self.first = first
        self._range = slice(first, first + how.capacity)
        self._parameters = parameters[self._range]
        self._addresses = np.zeros((2, how.capacity), np.int64)
        own = [arrays.address(parameter.flat) for parameter in self._parameters]
        self._addresses[0, : len(own)] = own
        self._rule = rule
        self._spec = spec
        self._derives = bool(derived_of(rule, spec).names)
        self._threads = shape_of(rule, spec).threads
        self.count: int
        self._blocks, self.count = self._table(block_length(spec, self._threads), spec.members)

    def _table(self, length: int, members: bool = False) -> tuple[Array, int]:
        table, count = blocks(self._parameters, length, members)
        return self._kernels.cupy.asarray(table), count

    def _with(self, grads: Array) -> Any:
        """Return what a kernel takes as addresses."""
        if grads is self._packed[0]:
            return self._packed[1]
        own = grads[self._range]
        self._addresses[1, : len(own)] = own
        if self._how.by_value:
            self._packed = grads, np.void(self._addresses.tobytes())
            return self._packed[1]
        return self._kernels.cupy.asarray(self._addresses.reshape(-1))

    def has_work(self, grads: Array) -> bool:
        """Return whether any gradient is there; ``grads`` holds addresses, 0 for none."""
        return bool(self.count and grads[self._range].any())

    def launch(
        self,
        grad_dtype: Any,
        grads: Array,
        scalars: Sequence[Any] | Array,
        derived: Array | None = None,
        from_table: bool = False,
    ) -> None:
        """Launch the update kernel, for gradients of the dtype ``grad_dtype``.

        ``scalars`` are numbers or, ``from_table``, counts (the first is the row's number), a scale
        and a table; where parameters have members it is always these. ``derived`` are the derived
        scalars of all parameters of the bucket, on the device, if there are any.
        """
        kernel = self._updates.get((grad_dtype, from_table))
        if kernel is None:
            kernel = self._updates[grad_dtype, from_table] = self._update(grad_dtype, from_table)
        numbers = (*scalars, *self._derived(derived), *self._memory)
        leading = (self._with(grads), self._blocks, self._pitch)
        self._run(kernel, self.count, self._threads, *leading, *numbers)

    def _update(self, grad_dtype: Any, from_table: bool) -> Any:
        """Return the update kernel for gradients of a dtype."""
        spec, looked_up = self._spec.with_gradients(grad_dtype), from_table or self._spec.members
        about = (self._rule, spec, self._how, looked_up)
        return self._kernels.of(cupy_source.kernel, *about)

    def _derived(self, derived: Array | None) -> tuple[Any, ...]:
        return (derived, self.first) if self._derives else ()

    def sums(
        self,
        number: int,
        grad_dtype: Any,
        grads: Array,
        scalars: Sequence[Any] | Array,
        derived: Array,
        sums: Array,
        first: int,
        tiles: int,
        from_table: bool,
    ) -> None:
        """Launch the pass of this number; it writes its sums by tiles.

        There are ``tiles`` tiles in all for each sum; this part's begin at the ``first``.
        """
        about = (self._rule, self._spec.with_gradients(grad_dtype), self._how, from_table, number)
        kernel = self._kernels.of(pass_source.sums, *about)
        table, own = self._tile_table
        arguments = (self._with(grads), table, self._pitch, *scalars)
        arguments += (*self._derived(derived), first, tiles, *self._memory, sums)
        self._run(kernel, own, SHAPES["pass"].threads, *arguments)

    def follow(
        self,
        number: int,
        grads: Array,
        arguments: Sequence[Any],
        remembered: Array,
        derived: Array,
    ) -> None:
        """Launch what makes scalars of the sums over each array in the pass of this number.

        ``arguments`` are the starts and sizes of arrays, counts, a table, the sums, and how many
        tiles these are of.
        """
        about = (self._rule, self._spec, number, self._how)
        kernel = self._kernels.of(pass_source.follow, *about)
        starts, sizes, *rest = arguments
        leading = (self._with(grads), starts, sizes, self.first, *rest)
        threads = SHAPES["follow"].threads
        self._run(kernel, len(self._parameters), threads, *leading, remembered, derived)

    @cached_property
    def _tile_table(self) -> tuple[Array, int]:
        return self._table(TILE)

    @property
    def tiles(self) -> int:
        """How many tiles the gradients have."""
        return self._tile_table[1]

    def squares(
        self, grad_dtype: Any, grads: Array, factor: float, sums: Array, first: int
    ) -> None:
        """Sum the squares of (factor * gradient) by tiles, from the first tile's place on."""
        kernel = self._kernels.of(control_source.squares, grad_dtype, self._how)
        self._over_tiles(kernel, grad_dtype, grads, first, factor, sums)

    def squares_to_decide(
        self, grad_dtype: Any, grads: Array, sums: Array, first: int, layout: MeasureLayout
    ) -> None:
        """Write all the sums that a decision needs, from the first tile's place on."""
        text = control_source.squares_to_decide
        kernel = self._kernels.of(text, grad_dtype, self._how, layout.scaled)
        self._over_tiles(kernel, grad_dtype, grads, first, layout.tiles, sums)

    def _over_tiles(self, kernel: Any, dtype: Any, grads: Array, first: int, *rest: Any) -> None:
        table, own = self._tile_table
        blocks_of_threads = -(-own // control_source.tiles_at_once(dtype))
        arguments = (self._with(grads), table, first, own, *rest)
        self._run(kernel, blocks_of_threads, SHAPES["squares"].threads, *arguments)

    @staticmethod
    def _run(kernel: Any, count: int, threads: int, *arguments: Any) -> None:
        """Launch so many blocks of threads."""
        kernel(*arguments, size=count * threads, block_size=threads)


# -------------------------------------------------------------------------------------------------
# What a bucket's CuPy arrays usually look like, compared from the host.


_LOOK = attrgetter("dtype", "shape", "strides")
_DTYPE, _SHAPE, _CONTIGUOUS = map(attrgetter, ("dtype", "shape", "_c_contiguous"))
_DATA, _PTR, _DEVICE = map(attrgetter, ("data", "ptr", "device_id"))
_RETRY = 16


class UsualArrays:
    """The expectations of one bucket: what they let through needs no closer look.

    Shapes, strides and addresses are known on the host; no element is read, so nothing waits for
    the device. Attributes are read by passes over all arrays that stay within C, which takes a
    third of the time of a loop. Gradients that are the very arrays of the step before are what they
    were, but for their shape, which can be set; they are remembered by weak references, since who
    makes new ones in every step needs the memory of the old. A parameter's shape is not looked at
    either: setting it leaves the elements where they are, and gradients of another shape are seen.
    """

    def __init__(self, parameters: Sequence[Parameter], spec: UpdateSpec, extents: Extents) -> None:
        self._params = [p.leaf.array for p in parameters]
        self._shapes = [p.layout.shape for p in parameters]
        self._own = parameters[0].dtype
        self._looks = {
            dtype: [(dtype, p.layout.shape, p.usual_strides(dtype)) for p in parameters]
            for dtype in (dtype_of(real, self._own) for real in spec.readable)
        }
        self._plain = all(p.layout.plain for p in parameters)
        self._array, self._device = type(self._params[0]), arrays.device(self._params[0])
        self._sizes = np.array([p.leaf.array.size for p in parameters], np.int64)
        self._extents = extents
        self._seen: list[Any] = []  # weak references to the gradients of the last step
        self._of_seen: tuple[Any, Array] | None = None  # their dtype and addresses
        self._others = 0  # steps in a row whose gradients were others

    def bind(self, params: list[Any], grads: list[Any]) -> Gradients | None:
        """Return the gradients as they stand; None if any array is unusual."""
        if not all(map(is_, params, self._params)):
            return None
        kinds = [*map(type, grads)]
        complete = kinds.count(self._array) == len(grads)
        # A weak reference to what is gone is None, as a gradient that is missing.
        if self._of_seen is not None and complete:
            if all(map(is_, grads, map(call, self._seen))):
                self._others = 0
                same = [*map(_SHAPE, grads)] == self._shapes
                return Gradients(grads, self._of_seen[0], None, self._of_seen[1]) if same else None
            self._of_seen = None
        return self._bind_others(grads, kinds, complete)

    def _bind_others(self, grads: list[Any], kinds: list[type], complete: bool) -> Gradients | None:
        """Look at gradients that are not those of the step before."""
        there = grads if complete else [grad for grad in grads if grad is not None]
        if not complete and kinds.count(self._array) != len(there):
            return None
        dtype = there[0].dtype if there else self._own
        active = None if complete else [k for k, grad in enumerate(grads) if grad is not None]
        if dtype not in self._looks or not self._usual(there, dtype, active):
            return None
        data = [*map(_DATA, there)]
        devices = [*map(_DEVICE, data)]
        if devices.count(self._device) != len(devices):
            return None
        at = np.array([*map(_PTR, data)], np.int64)
        sizes = self._sizes if active is None else self._sizes[active]
        if self._may_overlap(at, sizes * dtype.itemsize):
            return None
        real = real_dtype(dtype)
        if active is None:
            self._remember(grads, real, at)
            return Gradients(grads, real, None, at)
        addresses = np.zeros(len(grads), np.int64)
        addresses[active] = at
        return Gradients(grads, real, active, addresses)

    def _usual(self, there: list[Any], dtype: Any, active: list[int] | None) -> bool:
        """Return whether gradients have this dtype, and can be read as they stand."""
        if self._plain:  # strides take three times as long
            shapes = self._shapes if active is None else [self._shapes[k] for k in active]
            in_order = [*map(_CONTIGUOUS, there)].count(True) == len(there)
            if in_order and [*map(_SHAPE, there)] == shapes:
                return [*map(_DTYPE, there)].count(dtype) == len(there)
        expected = self._looks[dtype]
        wanted = expected if active is None else [expected[k] for k in active]
        return all(map(_fits, map(_LOOK, there), wanted))

    def _remember(self, grads: list[Any], dtype: Any, at: Array) -> None:
        """Remember gradients, unless the last ones never came again."""
        self._others += 1
        if self._others < 4 or self._others % _RETRY == 0:
            self._seen, self._of_seen = [*map(ref, grads)], (dtype, at)

    def _may_overlap(self, grads: Array, nbytes: Array) -> bool:
        """Return whether a gradient may share memory with a parameter, which is written."""
        if not len(self._extents.high):
            return False
        before = np.searchsorted(self._extents.low, grads + nbytes) - 1
        return bool(((before >= 0) & (self._extents.high[before] > grads)).any())


Look = tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...] | None]
"""What is looked at of a gradient: dtype, shape and strides."""


def _fits(look: Look, wanted: Look) -> bool:
    """Return whether a gradient can be read as it stands.

    CuPy's arrays without elements have strides of 0, and axes of length 1 those of their making.
    """
    (dtype, shape, strides), (own, own_shape, usual) = look, wanted
    if dtype != own or shape != own_shape or usual is None or strides is None:
        return False
    axes = zip(shape, strides, usual, strict=True)
    return 0 in shape or all(length == 1 or one == other for length, one, other in axes)
