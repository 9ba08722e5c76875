"""The program of one rank: a function of helpers.ranks is called, and what it returns is written.

python -m helpers.ranks.main MODULE FUNCTION FOLDER THREADS ARGUMENTS
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

import mpi4py

import fastopt


def main(module: str, function: str, folder: str, threads: str, arguments: str) -> None:
    """Write the result of this rank, or how it failed, which ends all of them."""
    mpi4py.rc.thread_level = threads
    from mpi4py import MPI

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


if __name__ == "__main__":
    main(*sys.argv[1:])
