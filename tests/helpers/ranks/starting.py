"""Functions of helpers.ranks are called on several ranks, which mpiexec starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

LIMIT = 120.0
"""Seconds after which ranks are killed, and the test has failed."""

MARK = "FASTOPT_TEST_START"
"""An environment variable that tells the processes of one start from all others."""

EXIT = 10.0
"""Seconds that a process may take to be gone after the launcher has ended."""


def launcher() -> str | None:
    """Return mpiexec: that beside this Python, or the one on the path."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


class Started(NamedTuple):
    """How a start ended: what each rank has written (None: nothing), and how the launcher ended."""

    ranks: list[Any]
    output: str
    returncode: int
    seconds: float
    left_over: list[int]
    """Processes of it that were still there after it, and have been killed."""


def start(
    count: int,
    program: str,
    folder: Path,
    arguments: dict[str, Any],
    *,
    outlived: bool = False,
    threads: str = "multiple",
    limit: float = LIMIT,
) -> Started:
    """Call ``module.function`` of helpers.ranks on so many ranks; AssertionError at the limit.

    ``outlived`` says whether the launcher is kept from knowing that one is killed.
    """
    found = launcher()
    assert found is not None
    module, _, function = program.partition(".")
    place = folder / uuid.uuid4().hex
    place.mkdir()
    mark = uuid.uuid4().hex
    environment = {
        "PYTHONPATH": os.pathsep.join(one for one in sys.path if one),
        MARK: mark,
        **({"FASTOPT_TEST_OUTLIVED": "1"} if outlived else {}),
        # More ranks than processors, for Open MPI.
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    python = [sys.executable, "-m", "helpers.ranks.main", module, function, str(place), threads]
    begin = time.monotonic()
    launched = subprocess.Popen(
        [found, "-n", str(count), *python, json.dumps(arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    late = False
    try:
        output, _ = launched.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
        kill_all(processes_of(mark))
        launched.kill()
        output, _ = launched.communicate()
    seconds = time.monotonic() - begin
    left = [] if late else still_there(mark)
    kill_all(left)
    written = [place / f"{rank}.json" for rank in range(count)]
    ranks = [json.loads(file.read_text()) if file.exists() else None for file in written]
    assert not late, f"{program} did not end in {limit:g} s\n{ranks}\n{output}"
    return Started(ranks, output, launched.returncode, seconds, left)


def on_ranks(
    count: int,
    program: str,
    folder: Path,
    /,
    *,
    threads: str = "multiple",
    aborts: bool = False,
    **arguments: Any,
) -> list[Any]:
    """Return what a function of helpers.ranks returns on each rank; AssertionError if it raises.

    ``aborts`` says whether it loses ranks, so that all are ended then.
    """
    ended = start(count, program, folder, arguments, threads=threads)
    failed = [one["failed"] for one in ended.ranks if one and "failed" in one]
    assert not failed, "\n".join([*failed, ended.output])
    assert (ended.returncode != 0) == aborts, ended
    assert all(ended.ranks), ended
    assert not ended.left_over, ended
    return [one["result"] for one in ended.ranks]


def processes_of(mark: str) -> list[int]:
    """Return the processes that were started with this mark, the launcher's among them."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            environment = Path("/proc", entry, "environ").read_bytes()
            state = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended meanwhile, or is another user's
            continue
        if f"{MARK}={mark}".encode() in environment and state != "Z":
            found.append(int(entry))
    return found


def still_there(mark: str) -> list[int]:
    """Return the processes of a mark that do not end by themselves in a few seconds."""
    until = time.monotonic() + EXIT
    while (found := processes_of(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def kill_all(processes: Sequence[int]) -> None:
    """Kill processes, whether they are there or not."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
