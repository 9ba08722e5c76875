"""What ranks send each other: a few words that all hear, and arrays from each to each.

A rank is one of the processes that train together. Everything is sent from rank to rank and waited
for with a time limit, so that a rank that is gone is named instead of waited for for ever.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Protocol

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Flag, Number
from fastopt.errors import RankError

WORDS = 4096
"""Bytes: what is said in one message; the rest of longer words comes in a second one."""

TIME_LIMIT = 1800.0
"""Seconds that the others wait for a rank, unless another limit is given."""

SECONDS = Number(low=0.0, low_open=True)

_LENGTH = 8  # bytes that say how long the words are

_SPINS = 2_000  # looks before the processor is left to others for a while
_NAP = 5e-5  # seconds


class Pending(Protocol):
    """What is under way."""

    def wait(self) -> None:
        """Wait until all of it has been sent and has come in; RankError if it does not."""


class Ranks(ABC):
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: the number of this one, from 0 on.
        size: how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.in_threads: bool = True
        """Whether any thread may send and receive."""
        self._lost: str | None = None

    @property
    def lost(self) -> str | None:
        """Why nothing more can be sent; None as long as something can."""
        return self._lost

    @lost.setter
    def lost(self, why: str) -> None:
        self._lost = why
        self._end()

    def _end(self) -> None:
        """Do what has to be done once nothing more can be sent."""

    @property
    def others(self) -> list[int]:
        """The numbers of all others."""
        return [rank for rank in range(self.size) if rank != self.rank]

    @abstractmethod
    def tell(self, words: bytes) -> list[bytes]:
        """Tell all others something, and return what each one has said, this one too."""

    @abstractmethod
    def exchange(
        self, outgoing: Sequence[Array | None], incoming: Sequence[Array | None]
    ) -> Pending:
        """Begin to send an array to each rank, and to fill one from each; None: nothing.

        They are contiguous, and stay as they are until ``wait`` returns. Those that are sent and
        received between two ranks are of the same length.
        """

    @abstractmethod
    def sum_up(self, array: Array, root: int | None) -> None:
        """Put the sum of all ranks' arrays into that of one, or of all (None), in any order."""

    def check(self) -> None:
        """Raise RankError if ranks have been lost before."""
        if self.lost is not None:
            raise RankError(
                f"ranks were lost before ({self.lost}), so nothing more can be sent; load the last "
                "checkpoint in new processes"
            )

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send what the others wait for: nothing more can be sent if an error comes in between."""
        try:
            yield
        except BaseException as error:
            if self.lost is None and self.size > 1:
                self.lost = f"{type(error).__name__} came in the middle of sending: {error}"
            raise

    def lose(self, why: str, ranks: Sequence[int], error: BaseException | None = None) -> NoReturn:
        """Raise RankError, now and from now on."""
        self.lost = why
        raise RankError(why, tuple(ranks)) from error


def _sleep_not() -> None:
    time.sleep(0)


_leave_the_processor: Callable[[], object] = getattr(os, "sched_yield", _sleep_not)  # not Windows'


def _fill(array: Array, host: Array) -> None:
    with arrays.on_device_of(array):
        array[...] = arrays.like(host, array)


def _bytes_of(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def named(ranks: Sequence[int]) -> str:
    """Return how some ranks are called in an error."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) != 1)} {shown}"


# -------------------------------------------------------------------------------------------------
# MPI.


class MpiRanks(Ranks):
    """The ranks of a communicator of mpi4py.

    Args:
        comm: the communicator; messages travel in a duplicate of it, apart from all others.
        time_limit: seconds that a rank may be silent.
        cuda_aware: whether MPI reads and writes the memory of GPUs; without it CuPy arrays pass
            through host memory.
    """

    def __init__(self, comm: Any, time_limit: float, cuda_aware: bool = False) -> None:
        from mpi4py import MPI

        super().__init__(comm.Get_rank(), comm.Get_size())
        self._mpi = MPI
        self._time_limit = time_limit
        self._cuda_aware = cuda_aware
        self.in_threads: bool = bool(MPI.Query_thread() >= MPI.THREAD_MULTIPLE)
        self.under_way: set[_Begun] = set()
        """Messages whose memory MPI still reads or writes, also after an error."""
        self._comm, number = self._own(comm)
        self._tag = _TAGS * number

    def _own(self, comm: Any) -> tuple[Any, int]:
        """Return the duplicate of a communicator that messages here travel in, and a number.

        There is one for all that ask for it, kept with the communicator; each has its own number.
        """
        if not _keys:
            _keys.append(self._mpi.Comm.Create_keyval())
        kept = comm.Get_attr(_keys[0])
        if kept is None:
            duplicate, request = comm.Idup()
            self.finish([(request, -1)])
            duplicate.Set_errhandler(self._mpi.ERRORS_RETURN)
            kept = [duplicate, 0]
            comm.Set_attr(_keys[0], kept)
        kept[1] += 1
        return kept[0], kept[1] - 1

    def _end(self) -> None:
        """Have this process abort when it ends, since MPI would wait for all ranks then."""
        _worlds.append(self._mpi.COMM_WORLD)

    def tell(self, words: bytes) -> list[bytes]:
        """Tell all others something, and return what each one has said, this one too."""
        self.check()
        if self.size == 1:
            return [words]
        head = len(words).to_bytes(_LENGTH, "little") + words[: WORDS - _LENGTH]
        rooms = {rank: bytearray(WORDS) for rank in self.others}
        self._all(head, rooms, self._tag)
        lengths = {k: int.from_bytes(room[:_LENGTH], "little") for k, room in rooms.items()}
        first = {k: bytes(room[_LENGTH : _LENGTH + lengths[k]]) for k, room in rooms.items()}
        more = words[WORDS - _LENGTH :]
        rest = {k: bytearray(max(n - (WORDS - _LENGTH), 0)) for k, n in lengths.items()}
        if more or any(rest.values()):
            self._all(more, rest, self._tag + 1)
        said = [first[k] + bytes(rest[k]) if k in first else words for k in range(self.size)]
        return said

    def _all(self, words: bytes, rooms: dict[int, bytearray], tag: int) -> None:
        """Send words to all others that want some, and fill their rooms."""
        begun = []
        try:
            for rank, room in rooms.items():
                if room:
                    begun.append((self._comm.Irecv([room, self._mpi.BYTE], rank, tag), rank))
            if words:
                begun += [
                    (self._comm.Isend([words, self._mpi.BYTE], rank, tag), rank)
                    for rank in self.others
                ]
        except self._mpi.Exception as error:
            self._fail(error)
        _Begun(self, begun, [], [words, rooms]).wait()

    def exchange(
        self, outgoing: Sequence[Array | None], incoming: Sequence[Array | None]
    ) -> Pending:
        """Begin to send an array to each rank, and to fill one from each; None: nothing."""
        self.check()
        begun: list[tuple[Any, int]] = []
        after: list[Callable[[], None]] = []
        ready_of: dict[int, Any] = {}
        try:
            for rank, array in enumerate(incoming):
                if array is not None and array.size and rank != self.rank:
                    room = self._room_for(array, after)
                    begun.append(
                        (self._comm.Irecv([room, self._mpi.BYTE], rank, self._tag + 2), rank)
                    )
            for rank, array in enumerate(outgoing):
                if array is not None and array.size and rank != self.rank:
                    if id(array) not in ready_of:  # the same may go to several
                        ready_of[id(array)] = self._ready(array)
                    ready = ready_of[id(array)]
                    begun.append(
                        (self._comm.Isend([ready, self._mpi.BYTE], rank, self._tag + 2), rank)
                    )
        except self._mpi.Exception as error:
            self._fail(error)
        return _Begun(self, begun, after, [*ready_of.values()])

    def sum_up(self, array: Array, root: int | None) -> None:
        """Put the sum of all ranks' arrays into that of one, or of all (None), in any order."""
        self.check()
        if self.size == 1 or not array.size:
            return
        after: list[Callable[[], None]] = []
        mpi, there = self._mpi, array
        if arrays.kind(array) == "cupy":
            if self._cuda_aware:
                arrays.namespace_of(array).cuda.get_current_stream().synchronize()
            else:
                there = arrays.on_host(array)
                after.append(lambda: _fill(array, there))
        buffer = [there, mpi.FLOAT if array.dtype.itemsize == 4 else mpi.DOUBLE]
        try:
            if root is None:
                request = self._comm.Iallreduce(mpi.IN_PLACE, buffer, op=mpi.SUM)
            elif root == self.rank:
                request = self._comm.Ireduce(mpi.IN_PLACE, buffer, op=mpi.SUM, root=root)
            else:
                request = self._comm.Ireduce(buffer, None, op=mpi.SUM, root=root)
        except mpi.Exception as error:
            self._fail(error)
        _Begun(self, [(request, -1)], after, [there]).wait()

    def _ready(self, array: Array) -> Any:
        """Return the bytes of an array for MPI to read."""
        if arrays.kind(array) != "cupy":
            return _bytes_of(array)
        if not self._cuda_aware:
            return _bytes_of(arrays.on_host(array))
        arrays.namespace_of(array).cuda.get_current_stream().synchronize()
        return _bytes_of(array)

    def _room_for(self, array: Array, after: list[Callable[[], None]]) -> Any:
        """Return bytes for MPI to write; what is to be done with them then comes to ``after``."""
        if arrays.kind(array) != "cupy" or self._cuda_aware:
            return _bytes_of(array)
        host = np.empty(array.shape, array.dtype)

        after.append(lambda: _fill(array, host))
        return _bytes_of(host)

    def finish(self, begun: list[tuple[Any, int]]) -> None:
        """Wait for what was begun; RankError that names those that are silent for too long."""
        if not begun:
            return
        requests = [request for request, _ in begun]
        until = None
        looks = 0
        try:
            while not self._mpi.Request.Testall(requests):
                looks += 1
                if looks < _SPINS:
                    _leave_the_processor()
                    continue
                now = time.monotonic()
                if until is None:
                    until = now + self._time_limit
                if now > until:
                    break
                time.sleep(_NAP)
            else:
                return
            silent = sorted({rank for request, rank in begun if not request.Test()})
            silent = self.others if silent == [-1] else silent
        except self._mpi.Exception as error:
            self._fail(error)
        except KeyboardInterrupt:
            self.lost = "an interrupt came while others were waited for"
            raise
        if silent:
            self.lose(
                f"{named(silent)} of {self.size} said nothing for {self._time_limit:g} s, and rank "
                f"{self.rank} waits for it: it has ended, hangs, or takes longer than that between "
                "two steps (then set time_limit)",
                silent,
            )

    def _fail(self, error: Exception) -> NoReturn:
        self.lose(f"MPI says: {error}", (), error)


class _Begun:
    """Messages of MPI that are under way."""

    def __init__(
        self,
        ranks: MpiRanks,
        begun: list[tuple[Any, int]],
        after: list[Callable[[], None]],
        kept: list[Any],
    ) -> None:
        self._ranks, self._begun, self._after, self._kept = ranks, begun, after, kept
        ranks.under_way.add(self)

    def wait(self) -> None:
        """Wait until all of it has been sent and has come in; RankError if it does not."""
        self._ranks.finish(self._begun)
        self._ranks.under_way.discard(self)
        self._kept.clear()
        for write in self._after:
            write()


_worlds: list[Any] = []  # in which ranks were lost

_GRACE = 1.0  # seconds that the others have to say what they have found, before all are ended


def _abort_if_lost() -> None:
    """End all ranks, at the end of a process that has lost some: MPI_Finalize waits for ever."""
    if not _worlds:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            stream.flush()
    time.sleep(_GRACE)
    _worlds[0].Abort(1)


# What is registered first is called last, after what others have to do at the end.
atexit.register(_abort_if_lost)

_TAGS = 3  # of each user of a communicator: words, the rest of them, arrays

_keys: list[int] = []


def mpi(comm: Any, *, cuda_aware: bool = False, time_limit: float = TIME_LIMIT) -> Ranks:
    """Return the ranks of a communicator of mpi4py, for ``DataParallel`` and ``Sharded``.

    ::

        opt = fastopt.distributed.Sharded(opt, fastopt.distributed.mpi(comm, cuda_aware=True))

    Both take the communicator itself as well, which is the same as ``mpi(comm)``. Collective.

    Args:
        comm: the communicator. Messages travel in a duplicate of it, apart from the program's own.
        cuda_aware: whether this MPI reads and writes the memory of GPUs itself. CuPy arrays are
            handed to it as they are then, and pass through host memory otherwise. MPI does not say
            reliably whether it can: one that cannot ends the process at the first message.
        time_limit: seconds that the others wait for a rank, > 0.

    Raises:
        TypeError: for what is no communicator of mpi4py.
        RankError: if not all ranks come within the time limit.
    """
    if not is_mpi(comm):
        raise TypeError(
            "mpi takes a communicator of mpi4py (from mpi4py import MPI; MPI.COMM_WORLD); got "
            f"{type(comm).__name__}"
        )
    aware = Flag()("mpi: cuda_aware", cuda_aware)
    return MpiRanks(comm, SECONDS("mpi: time_limit", time_limit), aware)


def is_mpi(comm: Any) -> bool:
    """Return whether something is a communicator of mpi4py."""
    return any(k.__name__ == "Intracomm" for k in type(comm).__mro__) and hasattr(comm, "Dup")
