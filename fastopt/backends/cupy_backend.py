"""The CuPy backend: one kernel launch updates all parameters of a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import cupy
import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.backends import COMMON_SCALARS, cupy_source
from fastopt.backends.cupy_arrays import UsualArrays
from fastopt.backends.cupy_source import CAPACITY, THREADS
from fastopt.errors import BackendUnavailableError
from fastopt.parameters import Parameter
from fastopt_kernels import Rule


@cache
def _kernel(rule: Rule, dtype: np.dtype[Any]) -> tuple[Any, bool]:
    """Return the kernel of a rule, and whether it takes the addresses by value."""
    try:
        return cupy.ElementwiseKernel(**cupy_source.kernel(rule, dtype, by_value=True)), True
    except ValueError:  # CuPy before 14.1 has no void scalars
        return cupy.ElementwiseKernel(**cupy_source.kernel(rule, dtype, by_value=False)), False


class _Launch:
    """One launch of a rule's kernel, over at most CAPACITY parameters.

    Nothing here waits for the device. The static tables and the arena live as long as the driver,
    so no kernel reads freed memory; what is allocated in a step (a table of addresses, converted
    gradients) goes back to CuPy's pool, which hands memory out again in the order of the current
    stream: after the kernel that reads it.
    """

    def __init__(self, rule: Rule, parameters: Sequence[Parameter], arena: Array) -> None:
        self._kernel, self._by_value = _kernel(rule, arena.dtype)
        self._addresses = np.zeros((2, CAPACITY), np.int64)
        self._addresses[0, : len(parameters)] = [arrays.address(p.flat) for p in parameters]
        blocks = cupy_source.blocks(parameters, arena.dtype)
        self.size = len(blocks) * THREADS
        self._blocks = cupy.asarray(blocks.reshape(-1))
        self._arena = arena.reshape(-1)
        self._pitch = arena.shape[1]

    def __call__(self, grads: Array, scalars: Sequence[Any]) -> None:
        """Update the parameters; ``grads`` holds their gradients' addresses, 0 for none."""
        self._addresses[1, : len(grads)] = grads
        addresses = (
            np.void(self._addresses.tobytes())
            if self._by_value
            else cupy.asarray(self._addresses.reshape(-1))
        )
        self._kernel(
            addresses,
            self._blocks,
            self._pitch,
            *scalars,
            self._arena,
            size=self.size,
            block_size=THREADS,
        )


class CupyDriver:
    """Runs a rule's CuPy form over all parameters of a bucket, on CuPy's current stream."""

    at_once = False

    def step_at_once(
        self,
        params: list[Array],
        grads: list[Array | None],
        row: Sequence[float],
        steps: Array,
        clock: Array,
    ) -> bool:
        """Never possible: the host only launches, and looks in Python."""
        return False

    def __init__(self, rule: Rule, parameters: Sequence[Parameter], arena: Array) -> None:
        self._dtype = arena.dtype
        self._arena = arena
        self._usual = UsualArrays(parameters)
        self._grads = np.zeros(len(parameters), np.int64)
        self._held: Sequence[Array | None] = ()
        with arrays.on_device_of(arena):
            parts = [
                (slice(first, first + CAPACITY), _Launch(rule, some, arena))
                for first in range(0, len(parameters), CAPACITY)
                if (some := parameters[first : first + CAPACITY])
            ]
            self._parts = [(members, launch) for members, launch in parts if launch.size]
            self._try_out(len(COMMON_SCALARS) + len(rule.scalars))
            # Steps may run on another stream than the one that zeroed the arena.
            cupy.cuda.get_current_stream().synchronize()

    def _try_out(self, scalars: int) -> None:
        """Launch without gradients: what is wrong with CUDA shows here, not in a step."""
        try:
            for members, launch in self._parts[:1]:
                launch(self._grads[members], [0.0] * scalars)
        except Exception as error:  # a compiler, a driver, a cache: each has errors of its own
            raise BackendUnavailableError(
                "backend 'cupy' cannot run here: CuPy cannot build or launch a kernel on device "
                f"{arrays.device(self._arena)}: {type(error).__name__}: {error}. It needs NVRTC "
                "and CUDA's headers: pip install 'cupy-cuda12x[ctk]', or a CUDA toolkit."
            ) from error

    def accepts(self, params: list[Any], grads: list[Any]) -> int | None:
        """Look at all arrays from the host, without reading what is in them."""
        found = self._usual.addresses(params, grads)
        if found is None:
            return None
        self._grads, self._held = found, grads
        return sum(grad is None for grad in grads)

    def hold(self, grads: Sequence[Array | None]) -> None:
        """Keep the gradients until the next step, and note their addresses."""
        self._held = grads
        at = [0 if grad is None else arrays.address(grad) for grad in grads]
        self._grads = np.array(at, np.int64)

    def update(self, table: Sequence[Sequence[float]], rows: Sequence[int] | None) -> None:
        """Update every parameter whose gradient is not None: a launch per distinct row."""
        with np.errstate(all="ignore"):  # a scalar beyond float32 becomes inf, as in NumPy
            scalars = np.array(table, self._dtype)
        distinct: dict[bytes, list[int]] = {}
        for number, row in enumerate(scalars):
            distinct.setdefault(row.tobytes(), []).append(number)
        with arrays.on_device_of(self._arena):
            for same in distinct.values():
                mine = rows is None or np.isin(rows, same)
                for members, launch in self._parts:
                    grads = np.where(mine, self._grads, 0)[members]
                    if grads.any():
                        launch(grads, scalars[same[0]])


class CupyBackend:
    """Updates CuPy arrays with kernels that CuPy compiles."""

    name = "cupy"
    alignment = 64
    """State of every array begins at 256 bytes or more, so 16 bytes can be loaded at once."""

    def state(self, slots: int, size: int, like: Array) -> Array:
        """Return a zeroed arena on the device of the given array."""
        with arrays.on_device_of(like):
            arena: Array = cupy.zeros((slots, size), like.dtype)
        return arena

    def driver(self, rule: Rule, parameters: Sequence[Parameter], arena: Array) -> CupyDriver:
        """Return the driver of some parameters."""
        return CupyDriver(rule, parameters, arena)


def backend() -> CupyBackend:
    """Return this file's backend; BackendUnavailableError if no device answers."""
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendUnavailableError(
            f"backend 'cupy' cannot run here: CuPy {cupy.__version__} imports, but no device "
            f"answers: {error}. Look at nvidia-smi: a driver must run that is new enough for "
            "this CuPy's CUDA, and CUDA_VISIBLE_DEVICES must not hide the device; or use NumPy "
            "arrays with FASTOPT_BACKEND=auto."
        ) from error
    return CupyBackend()
