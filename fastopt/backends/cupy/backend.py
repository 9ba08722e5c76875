"""The CuPy backend: one kernel launch updates all parameters of a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from fastopt.backends.cupy import source as cupy_source
from fastopt.backends.cupy.control import Control
from fastopt.backends.cupy.errors import check_device
from fastopt.backends.cupy.launch import Kernels, Lanes, Part, UsualArrays
from fastopt.backends.cupy.source import CAPACITY, scalar_names
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Gradients
from fastopt.core.norms import LANES
from fastopt.errors import BackendUnavailableError

_KERNELS = Kernels(cupy)


class CupyKernel:
    """Runs a rule's CuPy form over all parameters of a bucket, on CuPy's current stream."""

    fused = None

    def __init__(self, bucket: Bucket, extents: Extents) -> None:
        rule, spec, parameters = bucket.rule, bucket.spec, bucket.parameters
        self._spec = spec
        self.wide = spec.real.itemsize == 8
        """Whether the squares of the gradients can leave the range of float64."""
        self._arena = bucket.arena
        self._usual = UsualArrays(parameters, spec, extents)
        self._nothing = Gradients([None] * len(parameters), spec.given, [])
        self._lanes: Array | None = None
        with arrays.on_device_of(self._arena.exact):
            parts = [
                Part(_KERNELS, rule, spec, parameters, k)
                for k in range(0, len(parameters), CAPACITY)
            ]
            self._parts = [part for part in parts if part.count]
            self._try_out([0.0] * len(scalar_names(rule, spec)))
            # Steps may run on another stream than the one that zeroed the arena.
            cupy.cuda.get_current_stream().synchronize()

    def _try_out(self, scalars: list[float]) -> None:
        """Launch without gradients: what is wrong with CUDA shows here, not in a step."""
        try:
            for part in self._parts[:1]:
                none = self._nothing.located()
                part.launch(self._spec.given, none, scalars, self._arena)
        except Exception as error:  # a compiler, a driver, a cache: each has errors of its own
            raise BackendUnavailableError(
                "backend 'cupy' cannot run here: CuPy cannot build or launch a kernel on device "
                f"{arrays.device(self._arena.exact)}: {type(error).__name__}: {error}. It needs "
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
        if not self._parts:
            return np.zeros(0)
        with arrays.on_device_of(self._arena.exact):
            if self._lanes is None:
                self._lanes = cupy.zeros(self.tiles() * LANES)
                self._sums = cupy.zeros(self.tiles())
            first, grads = 0, gradients.located()
            for part in self._parts:
                part.squares(gradients.dtype, grads, factor, self._lanes, first)
                first += part.tiles
            _KERNELS.of(cupy_source.halves)(self._lanes, self._sums, size=self._sums.size)
            return arrays.on_host(self._sums)

    def tiles(self) -> int:
        """Return how many tiles the gradients have."""
        return sum(part.tiles for part in self._parts)

    def measure_to(self, gradients: Gradients, lanes: Array, first: int, layout: Lanes) -> None:
        """Write what a decision needs of the gradients, from their first tile's place on."""
        grads = gradients.located()
        for part in self._parts:
            part.squares_to_decide(gradients.dtype, grads, lanes, first, layout)
            first += part.tiles

    def update_from_table(
        self, gradients: Gradients, mine: Array | None, given: tuple[Array, ...], always: bool
    ) -> None:
        """Update by a row of a table that was decided on.

        ``mine`` chooses the parameters (None: all that have a gradient); ``given`` are the counts,
        the scale and the table. ``always`` launches without gradients too, which compiles.
        """
        grads = gradients.located()
        if mine is not None:
            grads = np.where(mine, grads, 0)
        for part in self._parts:
            if always or part.has_work(grads):
                part.launch_from_table(gradients.dtype, grads, given, self._arena)

    def update(
        self,
        gradients: Gradients,
        table: Sequence[Sequence[float]],
        rows: Sequence[int] | None,
        scale: float,
    ) -> None:
        """Update every parameter that has a gradient: a launch per distinct row."""
        if arrays.capturing(self._arena.exact):
            raise RuntimeError(
                "this step would be captured in a CUDA graph with the scalars of this one step, "
                "and replayed with them for ever; construct the optimizer with capturable=True"
            )
        with np.errstate(all="ignore"):  # a scalar beyond float32 becomes inf, as in NumPy
            scalars = np.array(table, self._spec.real)
            scalars[:, 0] *= self._spec.real.type(scale)
        distinct: dict[bytes, list[int]] = {}
        for number, row in enumerate(scalars):
            distinct.setdefault(row.tobytes(), []).append(number)
        located = gradients.located()
        with arrays.on_device_of(self._arena.exact):
            for same in distinct.values():
                mine = rows is None or np.isin(rows, same)
                grads = np.where(mine, located, 0)
                for part in self._parts:
                    if part.has_work(grads):
                        part.launch(gradients.dtype, grads, scalars[same[0]], self._arena)


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
