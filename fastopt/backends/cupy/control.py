"""Steps that are decided on the device: what it keeps of an optimizer and of the loss's scale."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt.backends.cupy import control_source
from fastopt.backends.cupy.control_source import (
    COUNTS,
    MANY_TILES,
    MEASURED,
    NO_ROW,
    SCALES,
    TALLIES,
    Settings,
    note,
    rescale,
)
from fastopt.backends.cupy.launch import BucketLaunch, Kernels, Lookup, MeasureLayout
from fastopt.backends.cupy.passes import Passes
from fastopt.backends.cupy.shapes import SHAPES
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket, Gradients
from fastopt.core.loss_scale import Scale, ScalePolicy

# -------------------------------------------------------------------------------------------------
# Memory of a device that the host reads now and then, with and without waiting for it.

if TYPE_CHECKING:
    from fastopt.backends.cupy.backend import CupyKernel


class Counted(NamedTuple):
    """What the device knows of the steps so far.

    So many ``steps`` were made, ``skipped`` were not, for what was in a gradient, and ``overrun``
    were not because no row of scalars was there for them. ``norm`` is that of the last one's
    gradients, NOT_MEASURED where nothing asked for it.
    """

    steps: int
    skipped: int
    overrun: int
    norm: float


Place = tuple[Array, int]
"""Where the outcome of a step stands: memory of the device, and the number of the step in it."""


class ScaleState(NamedTuple):
    """What the device says of a scale; ``given_up`` are skips in a row that were too many."""

    scale: Scale
    given_up: int


class Readback:
    """Some int64 on a device, zeros at first, in one piece so that one copy brings all of them."""

    def __init__(self, cupy: Any, size: int) -> None:
        self._cupy = cupy
        self.memory: Any = cupy.zeros(size, np.int64)
        self.requested: bool = False
        """Whether a copy is on its way."""

    def write(self, values: Array) -> None:
        """Write all of it."""
        self.memory[...] = self._cupy.asarray(values)

    def request(self) -> None:
        """Have it copied to the host, some time; ``arrived`` returns the copy."""
        self.memory.data.copy_to_host_async(self._pinned.ptr, self.memory.nbytes)
        self._event.record()
        self.requested = True

    def arrived(self) -> Array | None:
        """Return the copy that was asked for, once, if it is here; else None."""
        if not self.requested or not self._event.done:
            return None
        self.requested = False
        return np.frombuffer(self._pinned, np.int64, self.memory.size)

    def fetch(self) -> Array:
        """Wait for all that the device has to do, and return what is there."""
        self._cupy.cuda.Device(arrays.device(self.memory)).synchronize()  # steps on any stream
        self.requested = False
        return arrays.on_host(self.memory)

    @cached_property
    def _pinned(self) -> Any:
        # Not a pool's, which could hand it out again while a copy is on its way there.
        memory = self._cupy.cuda.PinnedMemory(self.memory.nbytes)
        return self._cupy.cuda.PinnedMemoryPointer(memory, 0)

    @cached_property
    def _event(self) -> Any:
        return self._cupy.cuda.Event(disable_timing=True)


# -------------------------------------------------------------------------------------------------
# The scale of a loss as a device keeps it, beside the decisions that it follows.

OUTCOMES = 1024
"""Steps whose outcomes share a piece of memory; it is kept as long as one of them may be read."""

_TALLIES = len(SCALES)  # where they begin
_SINGLES = _TALLIES + len(TALLIES)
_MOST = 2**63 - 1


class ScaleMemory:
    """The memory of a scale, all of it on the current device; it stays where it is."""

    def __init__(self, kernels: Kernels, policy: ScalePolicy) -> None:
        self._kernels = kernels
        self._cupy = kernels.cupy
        counts = {"growth_interval": policy.growth_interval, "max_skips": policy.max_skips}
        self._policy = policy._replace(**{k: min(v, _MOST) for k, v in counts.items()})
        self._readback = Readback(self._cupy, _SINGLES + 1)
        memory = self._readback.memory
        self._scales = memory[:_TALLIES].view(np.float64)
        self._tallies = memory[_TALLIES:_SINGLES]
        self._singles = memory[_SINGLES:].view(np.float32)
        # Once before they count, so that they are compiled when a step is captured.
        self._kernels.of(note)(self._cupy.zeros(1, np.int64), self._tallies, size=1)
        self.update([])

    @property
    def device(self) -> int | None:
        """The number of the device."""
        return arrays.device(self._scales)

    def here(self) -> AbstractContextManager[Any]:
        """Return a context for work on the device."""
        return arrays.on_device_of(self._scales)

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph instead of being run."""
        return arrays.capturing(self._scales)

    @property
    def inverse(self) -> Array:
        """What gradients are multiplied by, of shape ()."""
        return self._scales[1]  # type: ignore[no-any-return]  # cupy's

    def factor(self, dtype: np.dtype[Any]) -> Array:
        """Return what a loss is multiplied by, of shape () and in float32 or float64."""
        scales = self._singles if dtype == np.float32 else self._scales
        return scales[0]  # type: ignore[no-any-return]  # cupy's

    def upload(self, scale: Scale) -> None:
        """Write the scale and what is counted."""
        values = np.zeros(_SINGLES + 1, np.int64)
        both = np.array([scale.value, 1.0 / scale.value])
        values[:_TALLIES].view(np.float64)[:] = both
        values[_TALLIES:_SINGLES] = (scale.good_steps, scale.skips, 0, 0, 0)
        with np.errstate(over="ignore"):
            values[_SINGLES:].view(np.float32)[:] = both
        self._readback.write(values)

    # A step ------------------------------------------------------------------------------------

    def note(self, control: Control) -> None:
        """Launch what notes whether the step that was decided on last is made."""
        self._kernels.of(note)(control.counts, self._tallies, size=1)

    def update(self, elsewhere: Sequence[bool]) -> None:
        """Launch what lets the scale follow the steps noted, and those made or not elsewhere."""
        others = (int(any(elsewhere)), int(not all(elsewhere)))
        written = (self._scales, self._tallies, self._singles)
        self._kernels.of(rescale)(*self._policy, *others, *written, size=1)

    # What the device says ----------------------------------------------------------------------

    def request(self) -> None:
        """Have all of it copied to the host, some time; ``arrived`` returns it."""
        if not self._readback.requested:
            self._readback.request()

    def arrived(self) -> ScaleState | None:
        """Return what was asked for, once, if it is here; else None."""
        read = self._readback.arrived()
        return None if read is None else _read_scale(read)

    def fetch(self) -> ScaleState:
        """Wait for all that the device has to do, and return what it says."""
        return _read_scale(self._readback.fetch())

    def forget_given_up(self) -> None:
        """Write that the host has heard of too many skips."""
        self._tallies[TALLIES.index("given_up")] = 0


def _read_scale(read: Array) -> ScaleState:
    value = float(read[:1].view(np.float64)[0])
    good_steps, skips, given_up, *_ = read[_TALLIES:_SINGLES].tolist()
    return ScaleState(Scale(value, good_steps, skips), given_up)


# -------------------------------------------------------------------------------------------------
# What a device keeps of an optimizer whose steps are decided there, and what is launched.

_NOTHING = MeasureLayout(-1, False)  # no tiles: the norm of such a step is not measured
_SINGLE = len(COUNTS) + len(MEASURED)  # where the scale stands in single precision


class Control:
    """The memory and the launches of one optimizer; all of it on one device and its current stream.

    Only ``fetch`` and ``wait`` wait for the device. Memory that a captured step reads stays where
    it is: a table is written in place as long as its rows fit.
    """

    def __init__(self, kernels: Kernels, like: Array) -> None:
        self._kernels = kernels
        self._cupy = kernels.cupy
        self._like = like
        self._layout = _NOTHING
        self._outcomes: Array | None = None
        self._next = 0
        self._tables: dict[Hashable, Array] = {}
        self._outgrown: list[Array] = []

    # Memory, allocated when it is needed first -------------------------------------------------

    @cached_property
    def _readback(self) -> Readback:
        return Readback(self._cupy, _SINGLE + 1)

    @cached_property
    def counts(self) -> Array:
        """What is counted on the device (``COUNTS``); the first is the row of the coming update.

        Kernels that look their scalars up take all of it for that one number.
        """
        return self._readback.memory[: len(COUNTS)]  # type: ignore[no-any-return]  # cupy's

    @cached_property
    def _measured(self) -> Array:
        return self._readback.memory[len(COUNTS) : _SINGLE].view(np.float64)  # type: ignore[no-any-return]  # cupy's

    @cached_property
    def _scale(self) -> dict[np.dtype[Any], Array]:
        single = self._readback.memory[_SINGLE:].view(np.float32)[:1]
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

    def here(self) -> AbstractContextManager[Any]:
        """Return a context for work on the device."""
        return arrays.on_device_of(self._like)

    def memory_of_graphs(self) -> AbstractContextManager[Any]:
        """Return a context in which memory is allocated that replays write to, and nobody else.

        What is worked out there for a while is freed, and stays in a pool of its own.
        """
        return self._cupy.cuda.using_allocator(self._pool.malloc)  # type: ignore[no-any-return]  # cupy's

    @cached_property
    def _pool(self) -> Any:
        return self._cupy.cuda.MemoryPool()

    # What the host says ------------------------------------------------------------------------

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph instead of being run."""
        return arrays.capturing(self._like)

    @property
    def can_capture(self) -> bool:
        """Whether steps can be captured: an older CuPy copies addresses to the device in each."""
        return self._kernels.by_value

    def upload_counts(self, steps: int, skipped: int, norm: float) -> None:
        """Write the counts, and the norm of the last step's gradients, or NOT_MEASURED."""
        values = np.zeros(_SINGLE + 1, np.int64)
        values[: len(COUNTS)] = (NO_ROW, steps, skipped, 0)
        values[len(COUNTS) : _SINGLE].view(np.float64)[0] = norm
        self._readback.write(values)

    def upload_settings(self, settings: Settings) -> None:
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

    def measure(self, work: Sequence[tuple[CupyKernel, Gradients]]) -> None:
        """Measure all gradients."""
        layout = MeasureLayout(
            sum(k.tiles() for k, _ in work), any(k.squares_may_overflow for k, _ in work)
        )
        sums = layout.tiles * _factors(layout)
        if self._layout != layout:
            self._layout = layout
            self._sums = self._cupy.zeros(max(1, sums))
        first = 0
        for kernel, gradients in work:
            kernel.measure_to(gradients, self._sums, first, layout)
            first += kernel.tiles()

    def decide(self, grad_scale: Any, measured: bool, in_single: bool) -> Place:
        """Decide on a step, by what was measured last if that is so.

        ``in_single`` says whether some rule averages squares in float32, which can overflow.
        Returns where the outcome will stand.
        """
        on_device = arrays.kind(grad_scale) == "cupy"
        layout = self._layout if measured else _NOTHING
        memory, number = place = self._place()
        arguments = (
            *(self._sums, layout.tiles, int(layout.scaled), int(in_single)),
            1.0 if on_device else grad_scale,
            arrays.address(grad_scale) if on_device else 0,
            grad_scale.itemsize if on_device else 0,
            *(self._settings, self._limit, number, self.counts, self._measured),
            *(self._scale[np.dtype(np.float32)], memory),
        )
        shape = SHAPES["decide" if layout.tiles < MANY_TILES else "decide_by_many"]
        self._kernels.of(control_source.decide)(
            *arguments, size=shape.threads, block_size=shape.threads
        )
        return place

    def _place(self) -> Place:
        """Return a place for the outcome of the coming step; captured ones share one."""
        captured = self._of_captured  # it is made before a capture, which could not
        if self.capturing():
            return captured, 0
        if self._outcomes is None or self._next == OUTCOMES:
            self._outcomes, self._next = self._cupy.zeros(2 * OUTCOMES), 0
        self._next += 1
        return self._outcomes, self._next - 1

    @cached_property
    def _of_captured(self) -> Array:
        return self._cupy.zeros(2)  # type: ignore[no-any-return]  # cupy's

    def outcome(self, place: Place) -> tuple[bool, float]:
        """Wait, and return whether a step was made, and the norm of its gradients."""
        memory, number = place
        with self.here():
            if self.capturing():
                raise RuntimeError(
                    "the outcome of a step cannot be read while a stream is captured in a CUDA "
                    "graph; read it before or after"
                )
            self._cupy.cuda.Device(arrays.device(memory)).synchronize()
            made, norm = arrays.on_host(memory[2 * number : 2 * number + 2]).tolist()
        return bool(made), norm

    def update(
        self,
        kernel: CupyKernel,
        gradients: Gradients,
        lookup: Lookup,
        derived: Array | None,
        always: bool,
    ) -> None:
        """Update parameters by the row of a table that was decided on.

        ``derived`` are the derived scalars of all of them. ``always`` launches without gradients
        too, which compiles what is needed.
        """
        table_arguments = (self.counts, self._scale[lookup.table.dtype], lookup.table)
        kernel.update_from_table(gradients, lookup.chosen, table_arguments, always, derived)

    def passes(self, buckets: Sequence[Bucket], shared: Mapping[str, float]) -> Passes:
        """Return what runs the passes of some buckets' updates."""
        with self.here():
            return Passes(self._kernels, buckets, shared)

    def run_passes(self, passes: Passes, works: Sequence[BucketLaunch]) -> None:
        """Launch all passes of the step that was decided on."""
        passes.run(works, self.counts, self._scale)

    def row(self, lookup: Lookup, width: int) -> Array:
        """Return the row of scalars that was decided on, the gradient scale included."""
        table = lookup.table[: len(lookup.table) // width * width].reshape(-1, width)
        row = table[self._cupy.maximum(self.counts[:1], 0)][0]
        row[:1] *= self._scale[table.dtype][:1]
        return row  # type: ignore[no-any-return]  # cupy's

    @property
    def made(self) -> Array:
        """Whether the step that was decided on is made: a truth value on the device."""
        return self.counts[0] >= 0  # type: ignore[no-any-return]  # cupy's

    def undo(self) -> None:
        """Count the step that was decided on as not made."""
        row, steps, skipped, _ = (self.counts[k : k + 1] for k in range(len(COUNTS)))
        steps -= row >= 0
        skipped -= row == control_source.SKIPPED_ROW

    def scale_memory(self, policy: ScalePolicy) -> ScaleMemory:
        """Return memory for the scale of a loss."""
        return ScaleMemory(self._kernels, policy)

    # What the device says ----------------------------------------------------------------------

    def request(self) -> None:
        """Have the counts copied to the host, some time; ``arrived`` returns them."""
        self._readback.request()

    @property
    def requested(self) -> bool:
        """Whether counts are on their way."""
        return self._readback.requested

    def arrived(self) -> Counted | None:
        """Return the counts that were asked for, once, if they are here; else None."""
        read = self._readback.arrived()
        return None if read is None else _read_counts(read)

    def fetch(self) -> Counted:
        """Wait for all that the device has to do, and return the counts."""
        return _read_counts(self._readback.fetch())

    def wait(self) -> None:
        """Wait until what was written is there, for steps on any stream."""
        self._cupy.cuda.get_current_stream().synchronize()


def _factors(layout: MeasureLayout) -> int:
    return len(control_source.FACTORS) if layout.scaled else 1


def _read_counts(read: Array) -> Counted:
    counts = dict(zip(COUNTS, read.tolist(), strict=False))
    norm = float(read[len(COUNTS) :].view(np.float64)[0])
    return Counted(
        counts["steps"], counts["skipped"], counts["overrun"], math.nan if norm != norm else norm
    )
