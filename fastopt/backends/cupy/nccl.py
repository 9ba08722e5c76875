"""NCCL: arrays between the GPUs of several processes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import cupy
from cupy.cuda import nccl

from fastopt.core import arrays
from fastopt.core.arrays import Array

_NAP = 5e-5  # seconds


def check() -> None:
    """Raise RuntimeError if NCCL cannot be loaded."""
    if not nccl.available:
        raise RuntimeError(
            "NCCL is not installed here: pip install nvidia-nccl-cu12 (or -cu13, as CUDA is); or "
            "hand in a communicator of mpi4py, for which CuPy arrays pass through host memory"
        )


def unique_id() -> bytes:
    """Return what a communicator is known by; one process makes it for all."""
    check()
    return json.dumps([int(number) for number in nccl.get_unique_id()]).encode()


class Communicator:
    """This process's end: it sends and receives arrays of the current device, on its stream."""

    def __init__(self, size: int, identity: bytes, rank: int) -> None:
        check()
        self._comm = nccl.NcclCommunicator(size, tuple(json.loads(identity)), rank)

    def copy_of(self, array: Array) -> Array:
        """Return a copy of an array in host memory on the current device."""
        copied: Array = cupy.asarray(array)
        return copied

    def exchange(self, outgoing: Sequence[Array | None], incoming: Sequence[Array | None]) -> Any:
        """Send an array to each rank and fill one from each; return an event that comes after."""
        stream = cupy.cuda.get_current_stream()
        nccl.groupStart()
        try:
            for rank, array in enumerate(incoming):
                if array is not None:
                    at = arrays.address(array)
                    self._comm.recv(at, array.nbytes, nccl.NCCL_UINT8, rank, stream.ptr)
            for rank, array in enumerate(outgoing):
                if array is not None:
                    at = arrays.address(array)
                    self._comm.send(at, array.nbytes, nccl.NCCL_UINT8, rank, stream.ptr)
        finally:
            nccl.groupEnd()
        return stream.record()

    def sum_up(self, array: Array, root: int | None) -> Any:
        """Add up float32 or float64 arrays of all ranks in place, on one or on all (None)."""
        stream = cupy.cuda.get_current_stream()
        dtype = nccl.NCCL_FLOAT32 if array.dtype.itemsize == 4 else nccl.NCCL_FLOAT64
        at = arrays.address(array)
        if root is None:
            self._comm.allReduce(at, at, array.size, dtype, nccl.NCCL_SUM, stream.ptr)
        else:
            self._comm.reduce(at, at, array.size, dtype, nccl.NCCL_SUM, root, stream.ptr)
        return stream.record()

    def finishes(self, event: Any, seconds: float) -> bool:
        """Wait for an event; False, with the communicator given up, if it takes too long."""
        until = time.monotonic() + seconds
        while not event.done:
            self._comm.check_async_error()
            if time.monotonic() > until:
                self._comm.abort()
                return False
            time.sleep(_NAP)
        self._comm.check_async_error()
        return True
