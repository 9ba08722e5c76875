"""Memory of a device that the host reads now and then, with and without waiting for it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array


class Told:
    """Some int64 on a device, zeros at first, in one piece so that one copy brings all of them."""

    def __init__(self, cupy: Any, size: int) -> None:
        self._cupy = cupy
        self.memory: Any = cupy.zeros(size, np.int64)
        self.requested = False
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
