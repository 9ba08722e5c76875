"""The program of one rank: a function of helpers.ranks is called, and what it returns is written.

python -m helpers.ranks.main MODULE FUNCTION FOLDER THREADS ARGUMENTS
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

import mpi4py

import fastopt


def main(module: str, function: str, folder: str, threads: str, arguments: str) -> None:
    """Write the result of this rank, or how it failed, which ends all of them."""
    mpi4py.rc.thread_level = threads
    from mpi4py import MPI

    (Path(folder) / f"{os.getpid()}.pid").touch()
    fastopt.set_num_threads(1)
    comm = MPI.COMM_WORLD
    file = Path(folder) / f"{comm.Get_rank()}.json"
    try:
        found = getattr(importlib.import_module(f"helpers.ranks.{module}"), function)
        result = found(comm, **json.loads(arguments))
        file.write_text(json.dumps({"result": result}))
    except BaseException:
        file.write_text(json.dumps({"failed": traceback.format_exc()}))
        comm.Abort(1)


def outlived(folder: Path) -> int:
    """Go on in a child; return its exit status once all ranks are gone, however this one ended.

    The launcher sees the parent alone. So it does not come to know of a rank that is killed, as if
    its clean-up was switched off (which MPICH's -disable-auto-cleanup does now and then alone).
    """
    child = os.fork()
    if not child:
        return -1
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    while any(is_running(int(file.stem)) for file in folder.glob("*.pid")):
        time.sleep(0.02)
    return 0 if status == -9 else status


def is_running(process: int) -> bool:
    """Return whether a process is there, and has not ended."""
    try:
        state = Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


if __name__ == "__main__":
    ended = outlived(Path(sys.argv[3])) if "FASTOPT_TEST_OUTLIVED" in os.environ else -1
    if ended >= 0:
        sys.exit(ended)
    main(*sys.argv[1:])
