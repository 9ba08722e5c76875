"""Words over TCP: all hear all, and who is gone or silent is named on every rank."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import RankError
from fastopt.distributed import nccl
from fastopt.distributed.tcp import TcpRanks

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def on_ranks(size: int, work: Callable[[TcpRanks], Any], limit: float = 20.0) -> list[Any]:
    """Return what each rank comes to, or its error."""
    port = free_port()

    def one(rank: int) -> Any:
        with closing(TcpRanks(rank, size, HOST, port, limit)) as ranks:
            try:
                return work(ranks)
            except RankError as error:
                return error

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(one, range(size)))


def test_all_hear_all_in_the_order_of_the_ranks() -> None:
    def work(ranks: TcpRanks) -> list[list[bytes]]:
        short = ranks.tell(b"%d" % ranks.rank)
        empty = ranks.tell(b"")
        long = ranks.tell(bytes([ranks.rank]) * (3_000_000 + ranks.rank))
        return [short, empty, [one[-1:] + b"%d" % len(one) for one in long]]

    expected = [
        [b"0", b"1", b"2"],
        [b"", b"", b""],
        [b"\x003000000", b"\x013000001", b"\x023000002"],
    ]
    assert on_ranks(3, work) == [expected] * 3
    assert on_ranks(1, lambda ranks: ranks.tell(b"alone")) == [[b"alone"]]


@pytest.mark.parametrize("gone", [0, 2])
def test_a_rank_that_is_gone_is_named(gone: int) -> None:
    def work(ranks: TcpRanks) -> None:
        ranks.tell(b"here")
        if ranks.rank == gone:
            for one in ranks._sockets.values():
                one.close()
            return
        ranks.tell(b"again")

    found = on_ranks(3, work)
    for rank in {0, 1, 2} - {gone}:
        assert isinstance(found[rank], RankError), rank
        assert f"rank {gone} of 3 is gone" in str(found[rank])


def test_a_rank_that_is_silent_is_named() -> None:
    over = threading.Event()

    def work(ranks: TcpRanks) -> None:
        if ranks.rank == 1:
            over.wait()
            return
        try:
            ranks.tell(b"here")
        finally:
            if ranks.rank == 0:
                over.set()

    found = on_ranks(3, work, limit=1.0)
    assert "rank 1 of 3 said nothing for 1 s" in str(found[0])
    assert "rank 1 of 3 said nothing" in str(found[2])


def test_afterwards_nothing_is_sent_any_more() -> None:
    def work(ranks: TcpRanks) -> str:
        if ranks.rank == 1:
            ranks._sockets[0].close()
            return ""
        with pytest.raises(RankError):
            ranks.tell(b"here")
        with pytest.raises(RankError, match="ranks were lost before") as caught:
            ranks.tell(b"here")
        return str(caught.value)

    assert "load the last checkpoint" in on_ranks(2, work)[0]


def test_others_that_connect_are_no_ranks() -> None:
    port = free_port()

    def stranger() -> None:
        while True:
            try:
                with socket.create_connection((HOST, port)) as one:
                    one.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return
            except ConnectionError:
                continue

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(TcpRanks, 0, 2, HOST, port, 20.0)
        threads.submit(stranger).result()
        second = threads.submit(TcpRanks, 1, 2, HOST, port, 20.0)
        both = [first.result(), second.result()]
        said = list(threads.map(lambda ranks: ranks.tell(b"%d" % ranks.rank), both))
        for one in both:
            one.close()
    assert said == [[b"0", b"1"]] * 2


def test_ranks_that_do_not_come_are_named() -> None:
    with pytest.raises(RankError, match="ranks 1, 2 did not come"):
        TcpRanks(0, 3, HOST, free_port(), 0.2)
    with pytest.raises(RankError, match="rank 0 was not found"):
        TcpRanks(1, 3, HOST, free_port(), 0.2)


def test_the_environment_has_to_say_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FASTOPT_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="Start with torchrun"):
        nccl()
    with pytest.raises(TypeError, match="communicator of mpi4py"):
        nccl(3)
    with pytest.raises(ValueError, match="time_limit"):
        nccl(time_limit=0.0)


def test_what_is_no_communicator_is_refused() -> None:
    for kind in (fastopt.distributed.DataParallel, fastopt.distributed.Sharded):
        with pytest.raises(TypeError, match="communicator of mpi4py"):
            kind(fastopt.SGD(np.zeros(3)), "MPI")
