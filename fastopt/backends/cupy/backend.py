"""The CuPy backend: one kernel launch updates all parameters of a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from fastopt.backends.cupy import source as cupy_source
from fastopt.backends.cupy.control import CupyControl
from fastopt.backends.cupy.errors import check_device
from fastopt.backends.cupy.launch import Kernels, Part, UsualArrays
from fastopt.backends.cupy.source import CAPACITY, scalar_names
from fastopt.backends.interface import Lanes
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import Arena, Parameter
from fastopt.core.dtypes import Format
from fastopt.core.norms import LANES
from fastopt.errors import BackendUnavailableError
from fastopt_kernels import Rule

_KERNELS = Kernels(cupy)


class CupyDriver:
    """Runs a rule's CuPy form over all parameters of a bucket, on CuPy's current stream."""

    step_at_once = None

    @property
    def device_side(self) -> CupyDriver:
        """What works by decisions that were made on the device: the driver itself."""
        return self

    def __init__(
        self, rule: Rule, parameters: Sequence[Parameter], arena: Arena, format: Format
    ) -> None:
        self._format = format
        self.wide = format.real.itemsize == 8
        self._arena = arena
        self._usual = UsualArrays(parameters, format)
        self._given = format.given  # of the gradients at hand
        self._none = np.zeros(len(parameters), np.int64)
        self._grads = self._none
        self._held: Sequence[Array | None] = ()
        self._lanes: Array | None = None
        with arrays.on_device_of(arena.exact):
            parts = [
                Part(_KERNELS, rule, format, parameters, k)
                for k in range(0, len(parameters), CAPACITY)
            ]
            self._parts = [part for part in parts if part.count]
            self._try_out([0.0] * len(scalar_names(rule, format)))
            # Steps may run on another stream than the one that zeroed the arena.
            cupy.cuda.get_current_stream().synchronize()

    def _try_out(self, scalars: list[float]) -> None:
        """Launch without gradients: what is wrong with CUDA shows here, not in a step."""
        try:
            for part in self._parts[:1]:
                part.launch(self._given, self._none, scalars, self._arena)
        except Exception as error:  # a compiler, a driver, a cache: each has errors of its own
            raise BackendUnavailableError(
                "backend 'cupy' cannot run here: CuPy cannot build or launch a kernel on device "
                f"{arrays.device(self._arena.exact)}: {type(error).__name__}: {error}. It needs "
                "NVRTC and CUDA's headers: pip install 'cupy-cuda12x[ctk]', or a CUDA toolkit."
            ) from error

    def warm_up(self, norm: bool) -> None:
        """Compile the sum of squares; the update was compiled at construction."""
        if norm:
            held, self._grads = self._grads, self._none
            self.squares(1.0)
            self._grads = held

    def take_usual(self, params: list[Any], grads: list[Any]) -> int | None:
        """Look at all arrays from the host, without reading what is in them."""
        found = self._usual.addresses(params, grads)
        if found is None:
            return None
        self._given, self._grads = found
        self._held = grads
        return sum(grad is None for grad in grads)

    def take_flat(self, grads: Sequence[Array | None]) -> None:
        """Keep the gradients until the next step, and note their addresses."""
        self._held = grads
        self._given = next((g.dtype for g in grads if g is not None), self._given)
        at = [0 if grad is None else arrays.address(grad) for grad in grads]
        self._grads = np.array(at, np.int64)

    def squares(self, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient), by pieces.

        This waits for the device, once: the host works out the scalars of the step from the norm.
        """
        if not self._parts:
            return np.zeros(0)
        with arrays.on_device_of(self._arena.exact):
            if self._lanes is None:
                self._lanes = cupy.zeros(self.pieces() * LANES)
                self._sums = cupy.zeros(self.pieces())
            first = 0
            for part in self._parts:
                part.squares(self._given, self._grads, factor, self._lanes, first)
                first += part.pieces
            _KERNELS.of(cupy_source.halves)(self._lanes, self._sums, size=self._sums.size)
            return arrays.on_host(self._sums)

    def gradients(self) -> list[Array]:
        """Return the gradients of the coming step."""
        return [grad for grad in self._held if grad is not None]

    def pieces(self) -> int:
        """Return how many pieces the gradients have."""
        return sum(part.pieces for part in self._parts)

    def measure_to(self, lanes: Array, first: int, layout: Lanes) -> None:
        """Write what a decision needs of the gradients, from their first piece's place on."""
        for part in self._parts:
            part.squares_to_decide(self._given, self._grads, lanes, first, layout)
            first += part.pieces

    def update_by(self, given: tuple[Array, ...], mine: Array | None, always: bool) -> None:
        """Update by a row of a table that was decided on."""
        grads = self._grads if mine is None else np.where(mine, self._grads, 0)
        for part in self._parts:
            if always or part.has_work(grads):
                part.launch_from_table(self._given, grads, given, self._arena)

    def update(self, table: Sequence[Sequence[float]], rows: Sequence[int] | None) -> None:
        """Update every parameter whose gradient is not None: a launch per distinct row."""
        if arrays.capturing(self._arena.exact):
            raise RuntimeError(
                "this step would be captured in a CUDA graph with the scalars of this one step, "
                "and replayed with them for ever; construct the optimizer with capturable=True"
            )
        with np.errstate(all="ignore"):  # a scalar beyond float32 becomes inf, as in NumPy
            scalars = np.array(table, self._format.real)
        distinct: dict[bytes, list[int]] = {}
        for number, row in enumerate(scalars):
            distinct.setdefault(row.tobytes(), []).append(number)
        with arrays.on_device_of(self._arena.exact):
            for same in distinct.values():
                mine = rows is None or np.isin(rows, same)
                grads = np.where(mine, self._grads, 0)
                for part in self._parts:
                    if part.has_work(grads):
                        part.launch(self._given, grads, scalars[same[0]], self._arena)


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

    def driver(
        self, rule: Rule, parameters: Sequence[Parameter], arena: Arena, format: Format
    ) -> CupyDriver:
        """Return the driver of some parameters."""
        return CupyDriver(rule, parameters, arena, format)

    def control(self, like: Array) -> CupyControl:
        """Return what steps are decided with on the array's device."""
        return CupyControl(_KERNELS, like)


def backend() -> CupyBackend:
    """Return this file's backend; BackendUnavailableError if no device answers."""
    try:
        check_device(cupy)
    except RuntimeError as error:
        raise BackendUnavailableError(f"backend 'cupy' cannot run here: {error}") from error
    return CupyBackend()
