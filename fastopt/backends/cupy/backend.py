"""The CuPy backend: one kernel launch updates all parameters of a bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import cupy
import numpy as np

from fastopt.backends.cupy.control import Control
from fastopt.backends.cupy.errors import check_device
from fastopt.backends.cupy.launch import Kernels, LaunchBatch, MeasureLayout, UsualArrays
from fastopt.backends.cupy.source import scalar_names
from fastopt.backends.interface import ScalarRows
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Gradients
from fastopt.core.passes import derived_of
from fastopt.errors import BackendUnavailableError
from fastopt_kernels import AnyRule, ArrayRule, Rule

_KERNELS = Kernels(cupy)


class CupyKernel:
    """Runs a rule's CuPy form over all parameters of a bucket, on CuPy's current stream."""

    def __init__(self, bucket: Bucket, extents: Extents) -> None:
        rule, spec, parameters = bucket.rule, bucket.spec, bucket.parameters
        self._spec = spec
        self.squares_may_overflow: bool = spec.real.itemsize == 8
        """Whether the squares of the gradients can leave the range of float64."""
        self._arena = bucket.arena
        self._usual = UsualArrays(parameters, spec, extents)
        self._nothing = Gradients([None] * len(parameters), spec.gradient, [])
        self._sums: Array | None = None
        self._passes = derived_of(rule, spec).passes
        self._members = bucket.members
        with arrays.on_device_of(self._arena.numbers):
            how = _KERNELS.addresses(len(parameters))
            about = (_KERNELS, cast(Rule, rule), spec, parameters, bucket.arena)
            firsts = range(0, len(parameters), how.capacity)
            parts = [LaunchBatch(*about, first, how) for first in firsts]
            self._parts = [part for part in parts if part.count]
            self._try_out(rule)
            # Steps may run on another stream than the one that zeroed the arena.
            cupy.cuda.get_current_stream().synchronize()

    def _try_out(self, rule: AnyRule) -> None:
        """Launch without gradients: what is wrong with CUDA shows here, not in a step."""
        try:
            if isinstance(rule, ArrayRule):
                self.squares(self._nothing, 1.0)
                return
            count = len(scalar_names(rule, self._spec))
            scalars: Sequence[Any] = [0.0] * count
            if self._members is not None:
                scalars = self._one_row(np.zeros((self._members, count), self._spec.real))
            columns = max(len(derived_of(rule, self._spec).names), 1)
            derived = cupy.zeros(columns * len(self._nothing.arrays))
            for part in self._parts[:1]:
                none = self._nothing.located()
                part.launch(self._spec.gradient, none, scalars, derived)
        except Exception as error:  # a compiler, a driver, a cache: each has errors of its own
            raise BackendUnavailableError(
                "backend 'cupy' cannot run here: CuPy cannot build or launch a kernel on device "
                f"{arrays.device(self._arena.numbers)}: {type(error).__name__}: {error}. It needs "
                "NVRTC and CUDA's headers: pip install 'cupy-cuda12x[ctk]', or a CUDA toolkit."
            ) from error

    def warm_up(self, norm: bool) -> None:
        """Compile the sum of squares; the update was compiled at construction."""
        if norm:
            self.squares(self._nothing, 1.0)

    def bind(self, params: list[Any], grads: list[Any]) -> Gradients | None:
        """Look at all arrays from the host, without reading what is in them."""
        return self._usual.bind(params, grads)

    def squares(self, gradients: Gradients, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient), by tiles.

        This waits for the device, once: the host works out the scalars of the step from the norm.
        """
        self._refuse_capture()
        if not self._parts:
            return np.zeros(0)
        with arrays.on_device_of(self._arena.numbers):
            if self._sums is None:
                self._sums = cupy.zeros(self.tiles())
            first, grads = 0, gradients.located()
            for part in self._parts:
                part.squares(gradients.dtype, grads, factor, self._sums, first)
                first += part.tiles
            return arrays.on_host(self._sums)

    def tiles(self) -> int:
        """Return how many tiles the gradients have."""
        return sum(part.tiles for part in self._parts)

    def measure_to(
        self, gradients: Gradients, sums: Array, first: int, layout: MeasureLayout
    ) -> None:
        """Write what a decision needs of the gradients, from their first tile's place on."""
        grads = gradients.located()
        for part in self._parts:
            part.squares_to_decide(gradients.dtype, grads, sums, first, layout)
            first += part.tiles

    def update_from_table(
        self,
        gradients: Gradients,
        chosen: Array | None,
        table_arguments: tuple[Array, ...],
        always: bool,
        derived: Array | None = None,
    ) -> None:
        """Update by a row of a table that was decided on.

        ``chosen`` says which parameters (None: all that have a gradient); ``table_arguments`` are
        the counts, whose first is the number of the row, the scale and the table. ``always``
        launches without gradients too, which compiles. ``derived`` are the derived scalars of all
        parameters, on the device.
        """
        grads = _chosen(gradients, chosen)
        for part in self._parts:
            if always or part.has_work(grads):
                part.launch(gradients.dtype, grads, table_arguments, derived, from_table=True)

    def sums_from_table(
        self,
        number: int,
        gradients: Gradients,
        chosen: Array | None,
        table_arguments: tuple[Array, ...],
        derived: Array,
        sums: Array,
        first: int,
        tiles: int,
    ) -> None:
        """Write the sums of a pass by tiles, by a row of a table; ``first`` is the first tile."""
        about = (_chosen(gradients, chosen), table_arguments, derived, sums)
        self._sum(number, gradients.dtype, *about, first, tiles, from_table=True)

    def _sum(
        self,
        number: int,
        dtype: np.dtype[Any],
        grads: Array,
        scalars: Sequence[Any] | Array,
        derived: Array,
        sums: Array,
        first: int,
        tiles: int,
        from_table: bool,
    ) -> None:
        """Launch a pass over all parts."""
        for part in self._parts:
            about = (scalars, derived, sums, first, tiles, from_table)
            part.sums(number, dtype, grads, *about)
            first += part.tiles

    def follow(
        self,
        number: int,
        gradients: Gradients,
        chosen: Array | None,
        arguments: Sequence[Any],
        remembered: Array,
        derived: Array,
    ) -> None:
        """Make scalars of the sums over each array in a pass, and bring its memory up to date."""
        grads = _chosen(gradients, chosen)
        for part in self._parts:
            part.follow(number, grads, arguments, remembered, derived)

    def of_rows(
        self,
        place: int,
        indices: Array,
        values: Array,
        scalars: Sequence[float],
        scale: float,
    ) -> None:
        """Return None: rows are updated as a parameter of their own."""

    def sums(
        self,
        number: int,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array,
    ) -> Array:
        """Return the sums of a pass by tiles; this waits for the device."""
        one, tiles = self._passes[number], self.tiles()
        assert one.sums is not None
        count = len(one.sums.names)
        if not tiles:
            return np.zeros((count, 0))
        with arrays.on_device_of(self._arena.numbers):
            sums = cupy.zeros(count * tiles)
            made = cupy.asarray(derived.reshape(-1))
            for scalars, grads in self._by_row(gradients, table, rows, scale):
                about = (grads, scalars, made, sums)
                self._sum(number, gradients.dtype, *about, 0, tiles, from_table=False)
            return arrays.on_host(sums).reshape(count, tiles)

    def update(
        self,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array | None = None,
    ) -> None:
        """Update every parameter that has a gradient: a launch per distinct row."""
        self._refuse_capture()
        with arrays.on_device_of(self._arena.numbers):
            made = None if derived is None else cupy.asarray(derived.reshape(-1))
            for scalars, grads in self._by_row(gradients, table, rows, scale):
                for part in self._parts:
                    if part.has_work(grads):
                        part.launch(gradients.dtype, grads, scalars, made)

    def _refuse_capture(self) -> None:
        """Raise if what is launched now would go into a CUDA graph."""
        if arrays.capturing(self._arena.numbers):
            raise RuntimeError(
                "this step would be captured in a CUDA graph with the scalars of this one step, "
                "and replayed with them for ever; construct the optimizer with capturable=True, "
                "and on_nonfinite='propagate' or 'skip'"
            )

    def _one_row(self, rows: Array) -> tuple[Array, ...]:
        """Return what a kernel looks scalars of members up by, given their rows of this step."""
        one = cupy.asarray(np.ones(1, self._spec.real))
        return cupy.asarray(np.zeros(1, np.int64)), one, cupy.asarray(rows.reshape(-1))

    def _by_row(
        self,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
    ) -> Iterator[tuple[Sequence[Any] | Array, Array]]:
        """Yield each distinct row of scalars, and the addresses of the gradients that it is for."""
        with np.errstate(all="ignore"):  # a scalar beyond float32 becomes inf, as in NumPy
            scalars = np.array(table, self._spec.real)
            scalars[:, 0] *= self._spec.real.type(scale)
        if self._members is not None:
            for first in range(0, len(scalars), self._members):
                chosen = rows is None or np.equal(rows, first)
                looked_up = self._one_row(scalars[first : first + self._members])
                yield looked_up, np.where(chosen, gradients.located(), 0)
            return
        if rows is None:
            yield scalars[0], gradients.located()
            return
        distinct: dict[bytes, list[int]] = {}
        for number, row in enumerate(scalars):
            distinct.setdefault(row.tobytes(), []).append(number)
        located = gradients.located()
        for same in distinct.values():
            yield scalars[same[0]], np.where(np.isin(rows, same), located, 0)


def _chosen(gradients: Gradients, chosen: Array | None) -> Array:
    """Return the addresses of the gradients of some parameters (None: of all), 0 for others."""
    grads = gradients.located()
    return grads if chosen is None else np.where(chosen, grads, 0)


class CupyBackend:
    """Updates CuPy arrays with kernels that CuPy compiles."""

    name = "cupy"
    bridges_gaps = True
    alignment = 64
    """State of every array begins at 256 bytes or more, so 16 bytes can be loaded at once."""

    def allocate(self, like: Array, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """Return zeros on the device of the array ``like``."""
        with arrays.on_device_of(like):
            zeros: Array = cupy.zeros(shape, dtype)
        return zeros

    def kernel(self, bucket: Bucket, extents: Extents) -> CupyKernel:
        """Return the kernel of a bucket."""
        return CupyKernel(bucket, extents)

    def fused(self, *_: object) -> None:
        """Leave steps to the engine."""

    def control(self, like: Array) -> Control:
        """Return what steps are decided with on the array's device."""
        return Control(_KERNELS, like)


def backend() -> CupyBackend:
    """Return this file's backend; BackendUnavailableError if no device answers."""
    try:
        check_device(cupy)
    except RuntimeError as error:
        raise BackendUnavailableError(f"backend 'cupy' cannot run here: {error}") from error
    return CupyBackend()
