"""Ranks with CuPy arrays come to the bits of ranks with NumPy arrays, by MPI and by NCCL."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.cuda.device import REAL
from helpers.ranks.starting import launcher

pytest.importorskip("mpi4py")

TESTS = Path(__file__).parents[1]
RANKS = 2


@pytest.mark.parametrize("way", ["mpi", "aware", "nccl", "tcp"])
def test_ranks_on_devices_end_in_the_bits_of_the_host(cupy: Any, way: str) -> None:
    if REAL and way != "mpi" and cupy.cuda.runtime.getDeviceCount() < RANKS:
        pytest.skip("needs a device for each rank")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    paths = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "MASTER_ADDR": "127.0.0.1",
        "FASTOPT_PORT": str(port),
    }
    mpiexec = launcher()
    if mpiexec is None:
        pytest.skip("needs mpiexec")
    command = [mpiexec, "-n", str(RANKS), sys.executable, "-m", "helpers.cuda.ranks_program", way]
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assert len(found) == (12 if way == "mpi" else 4)
    for name, ranks in found.items():
        [wanted, _], *_ = ranks
        every = [got for _, got in ranks]
        assert all(got == every[0] for got in every), name
        assert every[0] == wanted, name
        made = [outcome[0] for outcome in wanted[1]]
        assert made == [True, True, False, True, True], name
