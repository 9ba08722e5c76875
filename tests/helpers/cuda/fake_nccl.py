"""NCCL for the emulated CUDA, whose memory is the host's: what is sent goes by MPI.

It has of ``cupy.cuda.nccl`` what is used here, with its signatures, and is as strict: sends and
receives belong into groups, and count bytes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from mpi4py import MPI

available = True
NCCL_UINT8, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 1, 7, 8, 0

_DTYPES = {NCCL_UINT8: np.uint8, NCCL_FLOAT32: np.float32, NCCL_FLOAT64: np.float64}
_group: list[Any] | None = None


def get_unique_id() -> tuple[int, ...]:
    """Return 128 signed bytes, as NCCL does."""
    return tuple(int(number) - 128 for number in np.random.default_rng().integers(0, 256, 128))


def groupStart() -> None:
    """Begin to collect what is sent and received."""
    global _group
    assert _group is None
    _group = []


def groupEnd() -> None:
    """Send and receive it."""
    global _group
    assert _group is not None
    begun = [start() for start in _group]
    _group = None
    MPI.Request.Waitall(begun)


def _memory(address: int, count: int, datatype: int) -> Any:
    dtype = np.dtype(_DTYPES[datatype])
    raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(raw, dtype)


class NcclCommunicator:
    """A communicator of all ranks of MPI."""

    def __init__(self, ndev: int, identity: tuple[int, ...], rank: int) -> None:
        assert len(identity) == 128
        assert all(-128 <= number < 128 for number in identity)
        self._comm = MPI.COMM_WORLD.Dup()
        assert self._comm.Get_size() == ndev
        assert self._comm.Get_rank() == rank
        every = self._comm.allgather(identity)
        assert every == [identity] * ndev

    def send(self, at: int, count: int, datatype: int, peer: int, stream: int) -> None:
        """Send so many elements to another rank."""
        assert _group is not None
        assert peer != self._comm.Get_rank()
        _group.append(lambda: self._comm.Isend(_memory(at, count, datatype), peer))

    def recv(self, at: int, count: int, datatype: int, peer: int, stream: int) -> None:
        """Receive so many elements from another rank."""
        assert _group is not None
        assert peer != self._comm.Get_rank()
        _group.append(lambda: self._comm.Irecv(_memory(at, count, datatype), peer))

    def allReduce(
        self, here: int, there: int, count: int, datatype: int, op: int, stream: int
    ) -> None:
        """Add up over all ranks, for all of them."""
        assert op == NCCL_SUM
        assert here == there
        self._comm.Allreduce(MPI.IN_PLACE, _memory(here, count, datatype))

    def reduce(
        self, here: int, there: int, count: int, datatype: int, op: int, root: int, stream: int
    ) -> None:
        """Add up over all ranks, for one of them."""
        assert op == NCCL_SUM
        own = _memory(here, count, datatype)
        if self._comm.Get_rank() == root:
            self._comm.Reduce(MPI.IN_PLACE, own, root=root)
        else:
            self._comm.Reduce(own, None, root=root)

    def check_async_error(self) -> None:
        """Nothing goes wrong."""

    def abort(self) -> None:
        """Nothing waits."""
