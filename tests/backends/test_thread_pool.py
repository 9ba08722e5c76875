"""The threads of the Numba backend: they help, and nobody waits for one that does not come."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from helpers.processes import python
from helpers.variants import HAS_NUMBA

pytestmark = [
    pytest.mark.skipif(not HAS_NUMBA, reason="the threads are those of the numba backend"),
    pytest.mark.xdist_group("apart"),
]
SIZE = 300_001  # above the size from which a step uses threads, and no multiple of anything


def steps(number: int = 6) -> Array:
    """Train a little, and return the parameter."""
    rng = np.random.default_rng(5)
    param = rng.standard_normal(SIZE).astype(np.float32)
    opt = fastopt.AdamW(param, backend="numba", max_grad_norm=3.0)
    for _ in range(number):
        opt.step(rng.standard_normal(SIZE).astype(np.float32))
    return param


@pytest.fixture
def pool() -> Any:
    """The pool of this process, in use."""
    from fastopt.backends.numba import backend as numba_backend

    steps(1)
    return numba_backend._pool()


@pytest.fixture
def alone() -> Iterator[Array]:
    """What one thread computes."""
    fastopt.set_num_threads(1)
    try:
        yield steps()
    finally:
        fastopt.set_num_threads(None)


def read(pool: Any, place: str) -> int:
    from fastopt.backends.numba import runtime

    offset = pool.address - pool._memory.ctypes.data + getattr(runtime, place)
    return int(pool._memory[offset : offset + 8].view(np.int64)[0])


def write(pool: Any, place: str, value: int) -> None:
    from fastopt.backends.numba import runtime

    offset = pool.address - pool._memory.ctypes.data + getattr(runtime, place)
    pool._memory[offset : offset + 8].view(np.int64)[0] = value


def expect(pool: Any, place: str, value: int) -> None:
    """Wait until a word has a value, however long that takes."""
    while read(pool, place) != value:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [1, 2, 3, 7, 40])
def test_every_number_of_threads_ends_in_the_same_bits(
    pool: Any, alone: Array, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.core import config

    fastopt.set_num_threads(None)
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", number)
    np.testing.assert_array_equal(steps(), alone)
    assert pool._made >= number - 1


def test_threads_that_never_come_are_not_waited_for(
    pool: Any, alone: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.core import config

    fastopt.set_num_threads(None)
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 200)
    monkeypatch.setattr(pool, "_made", 199)  # of which most do not exist
    np.testing.assert_array_equal(steps(), alone)


def test_a_step_that_finds_the_pool_taken_is_made_alone(pool: Any, alone: Array) -> None:
    fastopt.set_num_threads(None)
    expect(pool, "_BUSY", 0)
    write(pool, "_CLAIMED", 1)
    try:
        before = read(pool, "_ROUND")
        np.testing.assert_array_equal(steps(), alone)
        assert read(pool, "_ROUND") == before
    finally:
        write(pool, "_CLAIMED", 0)
    steps(1)
    assert read(pool, "_ROUND") > before


def test_idle_threads_go_to_sleep_and_a_large_step_wakes_them(pool: Any) -> None:
    if pool._made == 0:
        pytest.skip("this machine has one processor")
    expect(pool, "_ASLEEP", pool._made)
    param = np.ones(4_000_000, np.float32)
    opt = fastopt.SGD(param, lr=1.0, backend="numba")
    rounds = read(pool, "_ROUND")
    opt.step(param * 0.5)
    assert read(pool, "_ROUND") == rounds + 2
    assert (param == 0.5).all()
    expect(pool, "_ASLEEP", pool._made)


def test_many_python_threads_step_at_once_and_are_done_with_the_pool(
    pool: Any, alone: Array
) -> None:
    fastopt.set_num_threads(None)
    results: list[Array] = []
    crowd = [threading.Thread(target=lambda: results.append(steps())) for _ in range(6)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert len(results) == 6
    for result in results:
        np.testing.assert_array_equal(result, alone)
    assert read(pool, "_CLAIMED") == 0
    expect(pool, "_BUSY", 0)


def test_a_system_without_posix_threads_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastopt.backends.numba import runtime

    monkeypatch.setattr(runtime.llvmlite.binding, "address_of_symbol", lambda name: None)
    assert runtime.Pool(lambda function, name: pytest.fail("compiled")).threads(8) == 1


def test_no_more_threads_can_be_made(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastopt.backends.numba import backend as numba_backend
    from fastopt.backends.numba import runtime

    class Refused(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(runtime.threading, "Thread", Refused)
    other = runtime.Pool(numba_backend._cached_function)
    assert other.threads(8) == 1
    assert other.threads(8) == 1


FORKS = """
if not hasattr(os, "fork"):
    print("survived"), sys.exit()
expected = work()
stop = threading.Event()

def go_on():
    while not stop.is_set():
        work(1)

other = threading.Thread(target=go_on)
other.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        same = work() == expected
        made = [thread for thread in threading.enumerate() if thread.name.startswith("fastopt")]
        os._exit(0 if same and made else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
other.join()
assert work() == expected
print("survived")
"""


def test_children_forked_in_the_midst_of_steps_have_threads_of_their_own(
    cache_folder: Path,
) -> None:
    environment = {"NUMBA_NUM_THREADS": "2", "PYTHONWARNINGS": "default"}
    if (os.cpu_count() or 1) < 2:
        pytest.skip("this machine has one processor")
    assert python(FORKS, cache_folder, **environment) == "survived\n"


@pytest.mark.parametrize("pause", ["0", "0.05"])
def test_a_program_ends_while_its_threads_look_for_work_or_sleep(
    cache_folder: Path,
    pause: str,
) -> None:
    code = f"work(1)\nimport time; time.sleep({pause})\nprint('ended')"
    for _ in range(5):
        assert python(code, cache_folder) == "ended\n"


def test_a_step_at_the_very_end_of_a_program_is_made(cache_folder: Path) -> None:
    code = """
import atexit
atexit.register(lambda: print(work() == expected))
expected = work()
"""
    assert python(code, cache_folder) == "True\n"
