"""Ranks that send CuPy arrays by NCCL, and words by MPI or over TCP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.distributed.ranks import SECONDS, TIME_LIMIT, MpiRanks, Pending, Ranks, is_mpi
from fastopt.distributed.tcp import TcpRanks
from fastopt.errors import RankError

if TYPE_CHECKING:
    from fastopt.backends.cupy.nccl import Communicator


def nccl(comm: Any = None, *, time_limit: float = TIME_LIMIT) -> Ranks:
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
        with self.sending():
            identity = words.tell(own)[0]
        self._comm: Communicator = backend.Communicator(self.size, identity, self.rank)

    def _end(self) -> None:
        """Give the words up too: what is heard no more belongs to nothing."""
        if self._words.lost is None:
            self._words.lost = self._lost or ""

    def tell(self, words: bytes) -> list[bytes]:
        """Tell all others something, and return what each one has said, this one too."""
        self.check()
        try:
            return self._words.tell(words)
        except RankError as error:
            self.lose(str(error), error.ranks, error)

    def exchange(
        self, outgoing: Sequence[Array | None], incoming: Sequence[Array | None]
    ) -> Pending:
        """Begin to send an array to each rank, and to fill one from each; None: nothing."""
        self.check()
        sent, filled = self._there(outgoing), self._there(incoming)
        first = next((one for some in (sent, filled) for one in some if one is not None), None)
        if first is None:
            return _Event(self, None, [])
        on_host = [
            (array, there)
            for array, there in zip(incoming, filled, strict=True)
            if there is not None and there is not array
        ]
        with arrays.on_device_of(first):
            return _Event(self, self._comm.exchange(sent, filled), on_host)

    def _there(self, given: Sequence[Array | None]) -> list[Array | None]:
        """Return what is to be sent or filled: nothing of this rank, and nothing empty.

        Arrays in host memory, such as pieces of a checkpoint, pass through the device.
        """
        found: list[Array | None] = []
        for rank, array in enumerate(given):
            if array is None or not array.size or rank == self.rank:
                found.append(None)
            else:
                found.append(array if arrays.kind(array) == "cupy" else self._comm.copy_of(array))
        return found

    def sum_up(self, array: Array, root: int | None) -> None:
        """Put the sum of all ranks' arrays into that of one, or of all (None), in any order."""
        self.check()
        if array.size and self.size > 1:
            with arrays.on_device_of(array):
                _Event(self, self._comm.sum_up(array, root), []).wait()

    def finish(self, event: Any) -> None:
        """Wait for an event; RankError if it takes too long."""
        if not self._comm.finishes(event, self._time_limit):
            self.lose(
                f"a rank sent nothing by NCCL for {self._time_limit:g} s: it has ended, hangs, or "
                "takes longer than that between two steps (then set time_limit)",
                (),
            )


class _Event:
    """What is under way, and arrays in host memory that are filled from the device afterwards."""

    def __init__(
        self, ranks: NcclRanks, event: Any, on_host: Sequence[tuple[Array | None, Array]]
    ) -> None:
        self._ranks, self._event, self._on_host = ranks, event, on_host

    def wait(self) -> None:
        """Wait until all of it has been sent and has come in; RankError if it does not."""
        if self._event is not None:
            self._ranks.finish(self._event)
        for array, there in self._on_host:
            if array is not None:
                array[...] = arrays.on_host(there)
