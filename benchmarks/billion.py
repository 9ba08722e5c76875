"""10^9 parameters on one machine: memory and time of a step that is shared out over four ranks.

    pip install -e '.[mpi]'
    python benchmarks/billion.py                       # 10^9 parameters: 16 GB in all
    python benchmarks/billion.py --parameters 1e8      # a tenth of it

Parameters and Adam's state are bfloat16 without master weights, rounded stochastically. The
gradient of each layer is made when its turn comes, a product over ``--rows`` rows as in a backward
pass, and handed in through ``backward().ready``. What a rank has to hold, in bytes for P parameters
on n ranks:

    2 P                parameters
    2 * 2 P / n        state (m and v) of its share
    4 P / n            float32 sums of its share's gradients

and beside these what is under way: gradients that wait to be sent, and what comes in from others.
Beside the formula stands what the system measured: the peak of a rank's resident memory, in which
pages of shared libraries and of MPI's shared memory count in every rank, and how much of it was
there after a first step with a few parameters, before the large ones were made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LAYER = 2048  # a layer is a matrix of LAYER x LAYER
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def formula(parameters: int, ranks: int) -> dict[str, float]:
    """Return the bytes that a rank has to hold."""
    return {
        "parameters": 2.0 * parameters,
        "state": 4.0 * parameters / ranks,
        "sums": 4.0 * parameters / ranks,
    }


def memory(which: str) -> int:
    """Return VmRSS or VmHWM (its peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(which + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"this system does not say {which}")


def on_a_rank(parameters: int, steps: int, rows_each: int, told: Path) -> None:
    """Make steps; rank 0 writes what all have measured."""
    import ml_dtypes
    import numpy as np
    from mpi4py import MPI

    import fastopt

    comm = MPI.COMM_WORLD

    def shared(params: Any) -> Any:
        opt = fastopt.Adam(
            params,
            lr=1e-3,
            state_dtype="bfloat16",
            master_weights=False,
            stochastic_rounding=True,
            backend="numba",
        )
        return fastopt.distributed.Sharded(opt, comm)

    few = np.zeros((LAYER, 64), ml_dtypes.bfloat16)
    shared(few).step(few + 1)
    rng = np.random.default_rng(comm.Get_rank())
    x, error = (rng.standard_normal((rows_each, LAYER), np.float32) for _ in range(2))
    np.matmul(x.T, error)
    before = memory("VmRSS")
    layers = max(parameters // LAYER**2, 1)
    params = {f"layer{k}": np.zeros((LAYER, LAYER), ml_dtypes.bfloat16) for k in range(layers)}
    opt = shared(params)
    rows: list[dict[str, float]] = []
    for _ in range(steps):
        comm.Barrier()
        start = time.perf_counter()
        with opt.backward() as handed:
            for k in reversed(range(layers)):
                made = np.matmul(x.T, error).astype(ml_dtypes.bfloat16)
                handed.ready(f"layer{k}", made)
        sent = time.perf_counter()
        opt.step()
        rows.append({"backward": sent - start, "step": time.perf_counter() - sent})
    moved = float(np.abs(params["layer0"].astype(np.float32)).max())
    mine: dict[str, Any] = {
        "before": before,
        "peak": memory("VmHWM"),
        "state": opt.nbytes,
        "moved": moved,
        "seconds": rows,
    }
    found = comm.gather(mine)
    if comm.Get_rank() == 0:
        size = sum(array.size for array in params.values())
        told.write_text(json.dumps({"parameters": size, "of_ranks": found}), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    from distributed import mpiexec  # the file beside this one

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rows", type=int, default=512, help="that a gradient sums; default: 512")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "billion.json")
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.told is not None:
        on_a_rank(int(given.parameters), given.steps, given.rows, given.told)
        return
    told = given.json.with_suffix(".told")
    command = [mpiexec(), "-n", str(given.ranks), sys.executable, "-m", "mpi4py", __file__]
    command += ["--parameters", str(given.parameters), "--steps", str(given.steps)]
    command += ["--rows", str(given.rows)]
    load = os.getloadavg()[0]
    subprocess.run([*command, "--told", str(told)], check=True, env=os.environ | ONE_THREAD)
    found = json.loads(told.read_text(encoding="utf-8"))
    told.unlink()
    found = {"ranks": given.ranks, "rows": given.rows, "load": load, **found}
    found["formula"] = formula(found["parameters"], given.ranks)
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(report(found))


def report(found: dict[str, Any]) -> str:
    """Return what was found as text."""
    gb = 1e-9
    parts = found["formula"]
    lines = [
        f"{found['parameters']:,} parameters on {found['ranks']} ranks; of each, formula: "
        + ", ".join(f"{name} {gb * size:.2f} GB" for name, size in parts.items())
        + f", together {gb * sum(parts.values()):.2f} GB"
    ]
    for rank, one in enumerate(found["of_ranks"]):
        last = one["seconds"][-1]
        lines.append(
            f"rank {rank}: peak {gb * one['peak']:.2f} GB, {gb * one['before']:.2f} GB of which "
            f"before all, so {gb * (one['peak'] - one['before']):.2f} GB; state "
            f"{gb * one['state']:.2f} GB; gradients {last['backward']:.1f} s, step "
            f"{last['step']:.1f} s"
        )
    lines.append(f"all ranks together: {gb * sum(one['peak'] for one in found['of_ranks']):.2f} GB")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
