"""What a device keeps of an optimizer whose steps are decided there, and what is launched."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.backends import cupy_control_source, cupy_norm_source
from fastopt.backends.cupy_control_source import COUNTS, MEASURED
from fastopt.backends.cupy_launch import Kernels
from fastopt.backends.cupy_scale import CupyScale
from fastopt.backends.cupy_told import Told
from fastopt.backends.decisions import Counts, DeviceSide, Lanes, Settings
from fastopt.backends.scale_memory import Answer, ScaleMemory
from fastopt.norms import LANES
from fastopt.scale_policy import ScalePolicy

_NOTHING = Lanes(-1, False)  # was measured
_SINGLE = len(COUNTS) + len(MEASURED)  # where the scale stands in single precision


class CupyControl:
    """The memory and the launches of one optimizer; all of it on one device and its current stream.

    Only ``fetch`` and ``wait`` wait for the device. Memory that a captured step reads stays where
    it is: a table is written in place as long as its rows fit.
    """

    def __init__(self, kernels: Kernels, like: Array) -> None:
        self._kernels = kernels
        self._cupy = kernels.cupy
        self._like = like
        self._layout = _NOTHING
        self._tables: dict[Hashable, Array] = {}
        self._outgrown: list[Array] = []

    # Memory, allocated when it is needed first -------------------------------------------------

    @cached_property
    def _told(self) -> Told:
        return Told(self._cupy, _SINGLE + 1)

    @cached_property
    def _counts(self) -> Array:
        return self._told.memory[: len(COUNTS)]  # type: ignore[no-any-return]  # cupy's

    @cached_property
    def _measured(self) -> Array:
        return self._told.memory[len(COUNTS) : _SINGLE].view(np.float64)  # type: ignore[no-any-return]  # cupy's

    @cached_property
    def _scale(self) -> dict[np.dtype[Any], Array]:
        single = self._told.memory[_SINGLE:].view(np.float32)[:1]
        return {np.dtype(np.float32): single, np.dtype(np.float64): self._measured[1:]}

    @cached_property
    def _settings(self) -> Any:
        return self._cupy.zeros(len(Settings._fields), np.int64)

    @cached_property
    def _limit(self) -> Array:
        return self._settings[-1:].view(np.float64)  # type: ignore[no-any-return]  # cupy's

    @cached_property
    def _sums(self) -> Array:
        return self._cupy.zeros(1)  # type: ignore[no-any-return]  # cupy's; until there is more

    @cached_property
    def _lanes(self) -> Array:
        return self._sums

    def here(self) -> AbstractContextManager[Any]:
        """Return a context for work on the device."""
        return arrays.on_device_of(self._like)

    # What the host says ------------------------------------------------------------------------

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph instead of being run."""
        return arrays.capturing(self._like)

    @property
    def can_capture(self) -> bool:
        """Whether steps can be captured: an older CuPy copies addresses to the device in each."""
        return self._kernels.by_value

    def send_counts(self, counts: Counts) -> None:
        """Write the counts."""
        told = np.zeros(_SINGLE + 1, np.int64)
        told[: len(COUNTS)] = (-1, counts.clock, counts.skipped, counts.overrun)
        told[len(COUNTS) : _SINGLE].view(np.float64)[0] = counts.norm
        self._told.write(told)

    def send_settings(self, settings: Settings) -> None:
        """Write the settings."""
        numbers = np.array(settings[:-1], np.int64)
        limit = np.array([settings.limit], np.float64)
        self._settings[...] = self._cupy.asarray(np.append(numbers, limit.view(np.int64)))

    def table(self, name: Hashable, rows: Array, capacity: int) -> Array:
        """Write the rows of a table into its memory, which has room for so many; return it."""
        memory = self._tables.get(name)
        room = max(capacity, 1 << (len(rows) - 1).bit_length()) * rows.shape[1]
        if memory is None or memory.size < rows.size or memory.dtype != rows.dtype:
            if memory is not None:
                self._outgrown.append(memory)  # kernels on another stream may read it still
            memory = self._tables[name] = self._cupy.zeros(room, rows.dtype)
        memory[: rows.size] = self._cupy.asarray(rows.reshape(-1))
        return memory

    # Launches ----------------------------------------------------------------------------------

    def measure(self, sides: Sequence[DeviceSide]) -> None:
        """Measure all gradients."""
        layout = Lanes(sum(s.pieces() for s in sides), any(s.wide for s in sides))
        sums = layout.pieces * _factors(layout)
        if self._layout != layout:
            self._layout = layout
            self._lanes = self._cupy.zeros(max(1, sums * LANES))
            self._sums = self._cupy.zeros(max(1, sums))
        first = 0
        for side in sides:
            side.measure_to(self._lanes, first, layout)
            first += side.pieces()
        if sums:
            self._kernels.of(cupy_norm_source.halves)(self._lanes, self._sums, size=sums)

    def decide(self, grad_scale: Any, measured: bool, squares: bool) -> None:
        """Decide on a step, by what was measured last if that is so.

        ``squares`` says whether some rule averages squares in float32, which can overflow.
        """
        on_device = arrays.kind(grad_scale) == "cupy"
        layout = self._layout if measured else _NOTHING
        given = (
            *(self._sums, layout.pieces, int(layout.wide), int(squares)),
            1.0 if on_device else grad_scale,
            arrays.address(grad_scale) if on_device else 0,
            grad_scale.itemsize if on_device else 0,
            *(self._settings, self._limit, self._counts, self._measured),
            self._scale[np.dtype(np.float32)],
        )
        self._kernels.of(cupy_control_source.decide)(*given, size=LANES, block_size=LANES)

    def update(
        self, side: DeviceSide, tables: Sequence[tuple[Array | None, Array]], always: bool
    ) -> None:
        """Update parameters by the row that was decided on.

        Each of the ``tables`` comes with which parameters are updated by it (None: all).
        ``always`` launches without gradients too, which compiles what is needed.
        """
        for mine, table in tables:
            side.update_by((self._counts, self._scale[table.dtype], table), mine, always)

    def scale(self, policy: ScalePolicy) -> CupyScale:
        """Return memory for the scale of a loss."""
        return CupyScale(self._kernels, policy)

    def rescale(self, scale: ScaleMemory, answer: Answer) -> None:
        """Have a scale follow the last decision, and write whether the step was made."""
        scale.follow(self._counts, answer)

    # What the device says ----------------------------------------------------------------------

    def request(self) -> None:
        """Have the counts copied to the host, some time; ``arrived`` returns them."""
        self._told.request()

    @property
    def requested(self) -> bool:
        """Whether counts are on their way."""
        return self._told.requested

    def arrived(self) -> Counts | None:
        """Return the counts that were asked for, once, if they are here; else None."""
        told = self._told.arrived()
        return None if told is None else _read(told)

    def fetch(self) -> Counts:
        """Wait for all that the device has to do, and return the counts."""
        return _read(self._told.fetch())

    def wait(self) -> None:
        """Wait until what was written is there, for steps on any stream."""
        self._cupy.cuda.get_current_stream().synchronize()


def _factors(layout: Lanes) -> int:
    return len(cupy_norm_source.FACTORS) if layout.wide else 1


def _read(told: Array) -> Counts:
    counts = dict(zip(COUNTS, told.tolist(), strict=False))
    norm = float(told[len(COUNTS) :].view(np.float64)[0])
    return Counts(
        counts["clock"], counts["skipped"], counts["overrun"], math.nan if norm != norm else norm
    )
