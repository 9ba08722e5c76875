"""Launches over the arrays of a bucket, and how they look; CuPy is handed in, not imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt.backends.cupy import control_source, pass_source
from fastopt.backends.cupy import source as cupy_source
from fastopt.backends.cupy.source import CAPACITY, THREADS, blocks
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Arena, Gradients, Parameter
from fastopt.core.dtypes import UpdateSpec, dtype_of, real_dtype
from fastopt.core.norms import LANES, TILE
from fastopt.core.passes import derived_of
from fastopt_kernels import Rule

if TYPE_CHECKING:
    from fastopt.backends.cupy.backend import CupyKernel

# -------------------------------------------------------------------------------------------------
# Launches over the arrays of a bucket; ``backend``, which imports CuPy, hands the module in.


class MeasureLayout(NamedTuple):
    """What is measured of the ``tiles`` of all gradients, lane by lane (see ``core.norms``).

    The sums of squares; with ``wide`` then those of the gradients multiplied by each other factor
    that they may need.
    """

    tiles: int
    wide: bool


class Lookup(NamedTuple):
    """Some parameters of a bucket and where they find their scalars, if a device decides on a step.

    ``chosen`` are the parameters (None: all that have a gradient), ``table`` their rows of scalars
    and ``for_memory`` those of what the rule's memory is given; None where it is given nothing. The
    decision writes which row is taken (``control_source.COUNTS``).
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

    def of(self, text: Callable[..., dict[str, Any]], *about: Any) -> Any:
        """Return the kernel whose text a function gives for these arguments."""
        key = (text, *about)
        if key not in self._made:
            self._made[key] = self.cupy.ElementwiseKernel(**text(*about))
        return self._made[key]


class LaunchBatch:
    """At most CAPACITY parameters: those whose addresses fit a launch.

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
    ) -> None:
        self._kernels = kernels
        self._memory = [part.reshape(-1) for part in arena.parts]
        self._pitch = arena.exact.shape[1]
        self._updates: dict[tuple[Any, bool], Any] = {}
        self.first = first
        self._range = slice(first, first + CAPACITY)
        self._parameters = parameters[self._range]
        self._addresses = np.zeros((2, CAPACITY), np.int64)
        own = [arrays.address(parameter.flat) for parameter in self._parameters]
        self._addresses[0, : len(own)] = own
        self._rule = rule
        self._spec = spec
        self._derives = bool(derived_of(rule, spec).names)
        self._blocks, self.count = self._table(
            THREADS * cupy_source.pack(spec), bool(spec.random_scalars), spec.members
        )

    def _table(self, length: int, draws: bool = False, members: bool = False) -> tuple[Array, int]:
        table, count = blocks(self._parameters, length, draws, members)
        return self._kernels.cupy.asarray(table), count

    def _with(self, grads: Array) -> Any:
        """Return what a kernel takes as addresses."""
        own = grads[self._range]
        self._addresses[1, : len(own)] = own
        if self._kernels.by_value:
            return np.void(self._addresses.tobytes())
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
        size = self.count * THREADS
        kernel(
            self._with(grads), self._blocks, self._pitch, *numbers, size=size, block_size=THREADS
        )

    def _update(self, grad_dtype: Any, from_table: bool) -> Any:
        """Return the update kernel for gradients of a dtype."""
        spec, looked_up = self._spec.with_gradients(grad_dtype), from_table or self._spec.members
        about = (self._rule, spec, self._kernels.by_value, looked_up)
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
        lanes: Array,
        first: int,
        tiles: int,
        from_table: bool,
    ) -> None:
        """Launch the pass of this number; it writes the lanes of its sums.

        They are those of ``tiles`` tiles in all for each sum; this part's begin at the ``first``.
        """
        about = (
            self._rule,
            self._spec.with_gradients(grad_dtype),
            self._kernels.by_value,
            from_table,
        )
        kernel = self._kernels.of(pass_source.sums, *about, number)
        table, own = self._tile_table
        arguments = (self._with(grads), table, self._pitch, *scalars)
        arguments += (*self._derived(derived), first, tiles, *self._memory, lanes)
        kernel(*arguments, size=own * LANES, block_size=LANES)

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
        about = (self._rule, self._spec, number, self._kernels.by_value)
        kernel = self._kernels.of(pass_source.follow, *about)
        starts, sizes, *rest = arguments
        size = len(self._parameters) * LANES
        leading = (self._with(grads), starts, sizes, self.first, *rest)
        kernel(*leading, remembered, derived, size=size, block_size=LANES)

    @cached_property
    def _tile_table(self) -> tuple[Array, int]:
        return self._table(TILE)

    @property
    def tiles(self) -> int:
        """How many tiles the gradients have."""
        return self._tile_table[1]

    def squares(
        self, grad_dtype: Any, grads: Array, factor: float, lanes: Array, first: int
    ) -> None:
        """Sum the squares of (factor * gradient) by lanes, from the first tile's place on."""
        kernel = self._kernels.of(control_source.squares, grad_dtype, self._kernels.by_value)
        self._over_tiles(kernel, grads, first, factor, lanes)

    def squares_to_decide(
        self, grad_dtype: Any, grads: Array, lanes: Array, first: int, layout: MeasureLayout
    ) -> None:
        """Write all the lanes that a decision needs, from the first tile's place on."""
        text = control_source.squares_to_decide
        kernel = self._kernels.of(text, grad_dtype, self._kernels.by_value, layout.wide)
        self._over_tiles(kernel, grads, first, layout.tiles, lanes)

    def _over_tiles(self, kernel: Any, grads: Array, *rest: Any) -> None:
        table, tiles = self._tile_table
        kernel(self._with(grads), table, *rest, size=tiles * LANES, block_size=LANES)


# -------------------------------------------------------------------------------------------------
# What a bucket's CuPy arrays usually look like, compared from the host.


class UsualArrays:
    """The expectations of one bucket: what they let through needs no closer look.

    Shapes, strides and addresses are known on the host; no element is read, so nothing waits for
    the device.
    """

    def __init__(self, parameters: Sequence[Parameter], spec: UpdateSpec, extents: Extents) -> None:
        self._shapes = [(p.leaf.array, p.layout.shape) for p in parameters]
        self._own = parameters[0].dtype
        dtypes = [dtype_of(real, self._own) for real in spec.readable]
        self._strides = {dtype: [p.usual_strides(dtype) for p in parameters] for dtype in dtypes}
        self._device = arrays.device(parameters[0].leaf.array)
        self._sizes = np.array([p.leaf.array.size for p in parameters], np.int64)
        self._extents = extents

    def bind(self, params: list[Any], grads: list[Any]) -> Gradients | None:
        """Return the gradients as they stand; None if any array is unusual."""
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
        return Gradients.of(grads, real_dtype(dtype), at)

    def _may_overlap(self, grads: Array, nbytes: Array) -> bool:
        """Return whether a gradient may share memory with a parameter, which is written."""
        if not len(self._extents.high):
            return False
        before = np.searchsorted(self._extents.low, grads + nbytes) - 1
        return bool(((before >= 0) & (self._extents.high[before] > grads)).any())
