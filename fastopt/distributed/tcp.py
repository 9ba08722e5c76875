"""Ranks that tell each other words over TCP: rank 0 hears all, and tells all what all have said."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from fastopt.core.arrays import Array
from fastopt.distributed.ranks import Pending, Ranks, named

Result = TypeVar("Result")

_GREETING = b"fastopt"

_LATER = 5.0
"""Seconds that others wait longer than rank 0, which knows who is silent and tells them."""


class TcpRanks(Ranks):
    """Ranks that tell each other words over TCP, and send no arrays."""

    def __init__(self, rank: int, size: int, host: str, port: int, time_limit: float) -> None:
        self._sockets: dict[int, socket.socket] = {}
        super().__init__(rank, size)
        self._time_limit = time_limit
        until = time.monotonic() + time_limit
        if rank == 0:
            self._hear_all(host, port, until)
        else:
            self._find(host, port, until)

    def _hear_all(self, host: str, port: int, until: float) -> None:
        with socket.create_server(("", port)) as server:
            while len(self._sockets) < self.size - 1:
                server.settimeout(max(until - time.monotonic(), 0.001))
                try:
                    found, _ = server.accept()
                except TimeoutError as error:
                    missing = [k for k in range(1, self.size) if k not in self._sockets]
                    self.close()
                    self.lose(f"{named(missing)} did not come to {host}:{port}", missing, error)
                other = _greeted(found)
                if other is None or not 0 < other < self.size or other in self._sockets:
                    found.close()  # it is no rank, or one that is there already
                else:
                    self._sockets[other] = self._ready(found)

    def _find(self, host: str, port: int, until: float) -> None:
        while True:
            try:
                found = socket.create_connection((host, port), timeout=self._time_limit)
                break
            except OSError as error:
                if time.monotonic() > until:
                    self.lose(f"rank 0 was not found at {host}:{port}: {error}", [0], error)
                time.sleep(0.05)
        self._sockets[0] = self._ready(found)
        found.settimeout(self._time_limit + _LATER)
        self._with(0, lambda one: one.sendall(_GREETING + self.rank.to_bytes(8, "little")))

    def close(self) -> None:
        """End all connections; nothing can be said any more."""
        for one in self._sockets.values():
            one.close()

    def __del__(self) -> None:
        self.close()

    def _ready(self, found: socket.socket) -> socket.socket:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.settimeout(self._time_limit)
        return found

    def tell(self, words: bytes) -> list[bytes]:
        """Tell all others something, and return what each one has said, this one too."""
        self.check()
        if self.rank:
            said = self._with(0, lambda one: _asked(one, words))
            if said[:1] != b"=":
                self.lose(said[1:].decode(), ())
            return _split(said[1:])
        until = time.monotonic() + self._time_limit  # for all of them together
        every = [words]
        for other in range(1, self.size):
            self._sockets[other].settimeout(max(until - time.monotonic(), 0.001))
            every.append(self._with(other, _read_framed))
            self._sockets[other].settimeout(self._time_limit)
        together = b"=" + b"".join(len(one).to_bytes(8, "little") + one for one in every)
        for other in range(1, self.size):
            self._with(other, lambda one: _write(one, together))
        return every

    def _with(self, other: int, work: Callable[[socket.socket], Result]) -> Result:
        try:
            return work(self._sockets[other])
        except OSError as error:
            slow = isinstance(error, TimeoutError)
            how = f"said nothing for {self._time_limit:g} s" if slow else "is gone"
            self._give_up(f"{named([other])} of {self.size} {how}", other, error)

    def _give_up(self, why: str, other: int, error: OSError) -> NoReturn:
        for rank, one in self._sockets.items():
            if rank != other and self.rank == 0:
                try:
                    _write(one, b"!" + why.encode())
                except OSError:
                    continue
        self.lose(why, [other], error)

    def exchange(
        self, outgoing: Sequence[Array | None], incoming: Sequence[Array | None]
    ) -> Pending:
        """Raise TypeError: arrays go another way."""
        raise TypeError("words alone are sent over TCP")

    def sum_up(self, array: Array, root: int | None) -> None:
        """Raise TypeError: arrays go another way."""
        raise TypeError("words alone are sent over TCP")


def _greeted(found: socket.socket) -> int | None:
    """Return which rank has connected; None for what is none."""
    found.settimeout(5.0)
    try:
        greeting = _read(found, len(_GREETING) + 8)
    except OSError:
        return None
    ours = greeting.startswith(_GREETING)
    return int.from_bytes(greeting[len(_GREETING) :], "little") if ours else None


def _read(one: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = one.recv(min(count - len(found), 1 << 20))
        if not piece:
            raise ConnectionError("the connection has ended")
        found += piece
    return bytes(found)


def _read_framed(one: socket.socket) -> bytes:
    return _read(one, int.from_bytes(_read(one, 8), "little"))


def _write(one: socket.socket, words: bytes) -> None:
    one.sendall(len(words).to_bytes(8, "little") + words)


def _asked(one: socket.socket, words: bytes) -> bytes:
    _write(one, words)
    return _read_framed(one)


def _split(together: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(together):
        count = int.from_bytes(together[at : at + 8], "little")
        found.append(together[at + 8 : at + 8 + count])
        at += 8 + count
    return found
