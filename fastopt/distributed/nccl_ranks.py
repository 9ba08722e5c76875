"""Ranks that send CuPy arrays by NCCL, and words by MPI or over TCP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Number
from fastopt.distributed.ranks import MpiRanks, Pending, Ranks, is_mpi
from fastopt.distributed.tcp import TcpRanks

if TYPE_CHECKING:
    from fastopt.backends.cupy.nccl import Communicator

SECONDS = Number(low=0.0, low_open=True)


def nccl(comm: Any = None, *, time_limit: float = 1800.0) -> Ranks:
    """Return the ranks of a job whose CuPy arrays NCCL sends, for ``DataParallel`` and ``Sharded``.

    ::

        cupy.cuda.Device(int(os.environ["LOCAL_RANK"])).use()      # before the first array
        opt = fastopt.distributed.DataParallel(opt, fastopt.distributed.nccl())

    Each rank makes its device the current one before. Collective.

    Args:
        comm: a communicator of mpi4py, over which the ranks find each other and agree. Without it
            they do so over TCP, by the environment that ``torchrun`` sets: RANK, WORLD_SIZE,
            MASTER_ADDR, and FASTOPT_PORT or, without that, the port after MASTER_PORT (which
            torchrun itself listens on). Who can connect to that port can take part: keep it
            within the cluster.
        time_limit: seconds that the others wait for a rank, > 0.

    Raises:
        RuntimeError: if NCCL is not installed, or the environment does not say who is who.
        RankError: if not all ranks come within the time limit.
    """
    limit = SECONDS("nccl: time_limit", time_limit)
    words = MpiRanks(comm, limit) if is_mpi(comm) else _over_tcp(comm, limit)
    return NcclRanks(words, limit)


def _over_tcp(comm: Any, limit: float) -> TcpRanks:
    if comm is not None:
        raise TypeError(
            f"nccl takes a communicator of mpi4py, or nothing; got {type(comm).__name__}"
        )
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        host = os.environ["MASTER_ADDR"]
        port = int(os.environ.get("FASTOPT_PORT") or int(os.environ["MASTER_PORT"]) + 1)
    except (KeyError, ValueError) as error:
        raise RuntimeError(
            "nccl() goes by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them; "
            f"wrong or missing: {error}. Start with torchrun, or hand in a communicator: "
            "nccl(MPI.COMM_WORLD)"
        ) from None
    return TcpRanks(rank, size, host, port, limit)


class NcclRanks(Ranks):
    """Ranks that send each other CuPy arrays by NCCL."""

    def __init__(self, words: Ranks, time_limit: float) -> None:
        super().__init__(words.rank, words.size)
        self.in_threads: bool = False  # a thread has a stream of its own
        from fastopt.backends.cupy import nccl as backend  # CuPy, where it is used

        backend.check()
        self._words = words
        self._time_limit = time_limit
        own = backend.unique_id() if self.rank == 0 else b""
        self._comm: Communicator = backend.Communicator(self.size, words.tell(own)[0], self.rank)

    def tell(self, words: bytes) -> list[bytes]:
        """Tell all others something, and return what each one has said, this one too."""
        self.check()
        return self._words.tell(words)

    def exchange(
        self, outgoing: Sequence[Array | None], incoming: Sequence[Array | None]
    ) -> Pending:
        """Begin to send an array to each rank, and to fill one from each; None: nothing."""
        self.check()
        there = [self._there(outgoing), self._there(incoming)]
        first = next((one for some in there for one in some if one is not None), None)
        if first is None:
            return _Event(self, None)
        with arrays.on_device_of(first):
            return _Event(self, self._comm.exchange(*there))

    def _there(self, given: Sequence[Array | None]) -> list[Array | None]:
        """Return what is to be sent or filled: nothing of this rank, and nothing empty."""
        found = [
            None if array is None or not array.size or rank == self.rank else array
            for rank, array in enumerate(given)
        ]
        for array in found:
            if array is not None and arrays.kind(array) != "cupy":
                raise TypeError(
                    "NCCL sends CuPy arrays; for NumPy arrays hand in a communicator of mpi4py"
                )
        return found

    def sum_up(self, array: Array, root: int | None) -> None:
        """Put the sum of all ranks' arrays into that of one, or of all (None), in any order."""
        self.check()
        if array.size and self.size > 1:
            with arrays.on_device_of(array):
                _Event(self, self._comm.sum_up(array, root)).wait()

    def finish(self, event: Any) -> None:
        """Wait for an event; RankError if it takes too long."""
        if not self._comm.finishes(event, self._time_limit):
            self.lose(
                f"a rank sent nothing by NCCL for {self._time_limit:g} s: it has ended, hangs, or "
                "takes longer than that between two steps (then set time_limit)",
                (),
            )


class _Event:
    def __init__(self, ranks: NcclRanks, event: Any) -> None:
        self._ranks, self._event = ranks, event

    def wait(self) -> None:
        """Wait until all of it has been sent and has come in; RankError if it does not."""
        if self._event is not None:
            self._ranks.finish(self._event)
