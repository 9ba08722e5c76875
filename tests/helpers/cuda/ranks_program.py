"""What ranks with CuPy arrays do, against ranks with NumPy arrays: python -m this way.

``way`` is mpi (through host memory), aware (MPI reads the device's memory), nccl, or tcp (NCCL,
with words over TCP). Rank 0 prints what the arrays come to, as JSON: by optimizer, NumPy's hash and
CuPy's of every rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mpi4py import MPI

import fastopt
from fastopt.distributed import DataParallel, Sharded, mpi, nccl
from fastopt.distributed.ranks import Ranks
from helpers.cuda.device import REAL, cupy_or_skip

SHAPES = {"a": (130, 90), "b": (7,), "c": (40, 30), "d": ()}
COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.Get_rank(), COMM.Get_size()


def values(seed: int, xp: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {k: xp.asarray(rng.standard_normal(s).astype("f")) for k, s in SHAPES.items()}


def hash_of(params: dict[str, Any]) -> str:
    parts = [np.ascontiguousarray(fastopt.core.arrays.on_host(one)) for one in params.values()]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def trained(optimizer: Any, kind: Any, comm: Any, xp: Any, fast: bool) -> tuple[str, list[Any]]:
    params = values(0, xp)
    made = optimizer(params, lr=0.01, max_grad_norm=1.0, on_nonfinite="skip")
    limit = None if isinstance(comm, Ranks) else 60.0
    opt = kind(made, comm, time_limit=limit, fast=fast)
    outcomes = []
    for step in range(4):
        for number in range(RANK, 6, SIZE):
            opt.add(values(100 + 6 * step + number, xp), weight=1 + number % 2)
        if step == 1:
            with opt.backward() as handed:
                for name, grad in values(99 + RANK, xp).items():
                    handed.ready(name, grad)
        if step == 2:
            bad = values(7, xp)
            bad["a"][RANK] = np.nan if RANK == SIZE - 1 else 0.0
            opt.add(bad)
        outcome = opt.step()
        outcomes.append([bool(outcome), repr(outcome.grad_norm)])
    with TemporaryDirectory() as folder:  # of rank 0, in the end of all
        path = COMM.bcast(f"{folder}/run.safetensors")
        opt.save(path)
        opt.step(values(300 + RANK, xp))
        opt.load(path)
        COMM.Barrier()
    scaler = fastopt.LossScaler(init_scale=4.0)
    scaled = {name: 4.0 * one for name, one in values(200 + RANK, xp).items()}
    outcomes.append([bool(scaler.step(opt, scaled)), ""])
    scaler.update()
    return hash_of(params), outcomes


def main(way: str) -> None:
    warnings.simplefilter("ignore")
    cupy = cupy_or_skip()
    if not REAL and way in ("nccl", "tcp"):
        from helpers.cuda import fake_nccl

        sys.modules["cupy.cuda.nccl"] = cupy.cuda.nccl = fake_nccl
    if REAL:
        cupy.cuda.Device(RANK % cupy.cuda.runtime.getDeviceCount()).use()
    comm: Any = COMM
    if way == "aware":
        comm = mpi(COMM, cuda_aware=True, time_limit=60.0)
    elif way == "nccl":
        comm = nccl(COMM, time_limit=60.0)
    elif way == "tcp":
        os.environ |= {"RANK": str(RANK), "WORLD_SIZE": str(SIZE)}
        comm = nccl(time_limit=60.0)
    found = {}
    several = (fastopt.LAMB, fastopt.Prodigy) if way == "mpi" else ()
    for optimizer in (fastopt.AdamW, *several):
        for kind in (DataParallel, Sharded):
            for fast in (False, True):
                got = trained(optimizer, kind, comm, cupy, fast)
                name = f"{optimizer.__name__} {kind.__name__}" + " fast" * fast
                wanted = got if fast else trained(optimizer, kind, COMM, np, fast)
                found[name] = COMM.allgather([wanted, got])
    if RANK == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
