"""A step over several ranks of one machine, beside torch.distributed on gloo, and what is hidden.

    pip install -e '.[mpi,benchmarks]' && pip install torch      # torch is not needed
    python benchmarks/distributed.py                             # at most eight minutes
    python benchmarks/distributed.py --parts 1M overlap          # these; the rest of the file stays

Starts itself under ``mpiexec`` with 2 and 4 ranks, one thread in each. What is timed, of all alike:
from gradients that lie ready in plain arrays on every rank to parameters that have been stepped
with their mean; ranks begin together, and the slowest counts. PyTorch's backward pass only hands
over gradients that are there (``rank_contenders.py``). Up to 20 million parameters contenders are
in the same processes and take turns step by step; larger ones come one after another, and what the
memory has no room for is left out and named. All end in the same parameters, or it says so.

``overlap``: a backward pass that takes as long as its gradients take to be sent, once with ``step``
after it and once with ``backward()`` within it. It either computes (then it and the sending share
this machine's processors) or sleeps (as where a GPU does the work).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = ("DataParallel", "Sharded")
THEIRS = {"DataParallel": "torch DDP", "Sharded": "torch ZeRO"}
BESIDE = ("DataParallel, fast", "by hand")
SIZES = {"1M": (1_000_000, 256, 41), "20M": (20_000_000, 1024, 11), "200M": (200_000_000, 2048, 4)}
"""Parameters, the side of the matrices that they are in, and the rounds."""
APART = "200M"
"""Where contenders come one after another."""
PARTS = ("link", "1M", "20M", "overlap", "200M")
RANKS = (2, 4)
MINUTES = 7.5
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


def bytes_per_parameter(name: str, ranks: int) -> float:
    """Return what a rank needs for float32: parameters, gradients, sums or buckets, state."""
    mine = 1 / ranks
    return (
        4
        * {
            "DataParallel": 1 + 1 + 1 + 2,
            "DataParallel, fast": 1 + 1 + 1 + 2,
            "Sharded": 1 + 1 + mine + 2 * mine,
            "by hand": 1 + 1 + 1 + 2,
            "torch DDP": 1 + 1 + 1 + 2,
            "torch ZeRO": 1 + 1 + 1 + 2 * mine,
        }[name]
    )


# A rank ------------------------------------------------------------------------------------------


def begin_together(comm: Any) -> None:
    """Wait for all ranks, asleep: who waits awake takes the processor from those it waits for."""
    waiting = comm.Ibarrier()
    while not waiting.Test():
        time.sleep(1e-4)


def timed(comm: Any, work: Callable[[], object]) -> float:
    """Return the seconds of the slowest rank."""
    begin_together(comm)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    begin_together(comm)
    return max(comm.allgather(seconds))


def arrays_of(parameters: int, side: int, seed: int, scale: float) -> list[Any]:
    """Return matrices and vectors, with numbers that repeat after a million."""
    import numpy as np

    numbers = scale * np.random.default_rng(seed).standard_normal(1_000_003, np.float32)
    found = []
    for _ in range(max(parameters // (side * side), 1)):
        found += [np.resize(numbers, (side, side)), np.resize(numbers, side)]
    return found


def on_a_rank(task: Mapping[str, Any]) -> None:
    """Do what one rank does of a measurement; rank 0 prints what was found."""
    from mpi4py import MPI
    from rank_contenders import made

    from fastopt.cli.main import machine
    from fastopt.cli.timing import Times

    comm = MPI.COMM_WORLD
    torch = any(name.startswith("torch") for name in task["names"])
    if torch:
        import torch.distributed

        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{task['meet']}", rank=comm.rank, world_size=comm.size
        )
    size, side = task["parameters"], task["side"]
    grads = arrays_of(size, side, 1 + comm.rank, 1e-3)
    contenders = {
        name: made(name, arrays_of(size, side, 0, 1.0), grads, comm) for name in task["names"]
    }
    found: dict[str, Any]
    if task["link"]:
        found = link(comm)
    elif task["overlap"]:
        found = {name: overlap(comm, one, grads) for name, one in contenders.items()}
    else:
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(-1, task["rounds"]):
            order = list(contenders)
            turn = number % len(order)
            for name in order[turn:] + order[:turn]:
                took = timed(comm, contenders[name].step)
                if number >= 0:  # the first one makes connections and compiles
                    seconds[name].append(took)
        found = {name: asdict(Times.of(all_)) for name, all_ in seconds.items()}
    ends = {name: one.params[0].ravel()[:1000].tolist() for name, one in contenders.items()}
    if comm.rank == 0:
        told = {"found": found, "ends": ends, "machine": machine()}
        if torch:
            told["machine"]["versions"]["torch"] = torch.__version__
        told["machine"]["versions"]["MPI"] = MPI.Get_library_version().split("\n")[0]
        Path(task["told"]).write_text(json.dumps(told), encoding="utf-8")
    if torch:
        torch.distributed.destroy_process_group()


def link(comm: Any) -> dict[str, float]:
    """Return the seconds of a short message, and the bytes per second each way of long ones."""
    import numpy as np
    from mpi4py import MPI

    other, count = 1 - comm.rank, 2_000
    word = np.zeros(1, np.uint8)

    def short() -> None:
        for _ in range(count):
            for sender in (0, 1):
                if comm.rank == sender:
                    comm.Send(word, other)
                else:
                    comm.Recv(word, other)

    size, length = 40 << 20, 2 << 20
    here, there = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def long() -> None:
        under_way = []
        for first in range(0, size, length):
            piece = slice(first, first + length)
            under_way += [comm.Irecv(there[piece], other), comm.Isend(here[piece], other)]
        MPI.Request.Waitall(under_way)

    short_ones = [timed(comm, short) for _ in range(5)]
    long_ones = [timed(comm, long) for _ in range(15)]
    return {
        "seconds": statistics.median(short_ones) / (2 * count),
        "bytes_per_second": size / statistics.median(long_ones),
    }


def overlap(comm: Any, contender: Any, grads: Sequence[Any]) -> dict[str, Any]:
    """Return the seconds of a pass and its step, the gradients sent after it or within it."""
    import numpy as np

    opt, rounds = contender.opt, 7
    sending = []
    for _ in range(rounds):
        sending.append(timed(comm, lambda: opt.add(grads)))
        opt.reset()
    comm_seconds = statistics.median(sending)
    square = np.ones((192, 192), np.float32)
    out = np.empty_like(square)

    def products(seconds: float) -> int:
        """Return how many products take so long on a processor of one's own."""
        start = time.process_time()
        for _ in range(50):
            np.matmul(square, square, out=out)
        return max(1, round(50 * seconds / (time.process_time() - start)))

    share = comm_seconds / len(grads)
    count = comm.bcast(products(share))
    passes = {
        "computes": lambda: [np.matmul(square, square, out=out) for _ in range(count)],
        "sleeps": lambda: time.sleep(share),
    }
    found: dict[str, Any] = {"sending": comm_seconds}
    for kind, layer in passes.items():

        def alone(layer: Callable[[], object] = layer) -> None:
            for _ in grads:
                layer()

        def after(alone: Callable[[], object] = alone) -> None:
            alone()
            opt.step(grads)

        def within(layer: Callable[[], object] = layer) -> None:
            with opt.backward() as handed:
                for position in reversed(range(len(grads))):
                    layer()
                    handed.ready(str(position), grads[position])
            opt.step()

        seconds: dict[str, list[float]] = {"alone": [], "after": [], "within": []}
        for number in range(rounds + 1):
            for name, work in (("alone", alone), ("after", after), ("within", within)):
                took = timed(comm, work)
                if number:
                    seconds[name].append(took)
        medians = {name: statistics.median(all_) for name, all_ in seconds.items()}
        found[kind] = medians | {"hidden": (medians["after"] - medians["within"]) / comm_seconds}
    return found


# All of them -------------------------------------------------------------------------------------


def mpiexec() -> str:
    """Return the path of mpiexec, that of this Python's environment first."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        sys.exit("distributed.py needs mpiexec: pip install -e '.[mpi]'")
    return found


def measured(ranks: int, seconds: float, **task: Any) -> dict[str, Any]:
    """Return what ranks have found, or why not: {"left out": ...}."""
    with tempfile.TemporaryDirectory() as folder:
        given = {
            "overlap": False,
            "link": False,
            **task,
            "meet": f"{folder}/meet",
            "told": f"{folder}/told",
        }
        command = [
            mpiexec(),
            "-n",
            str(ranks),
            sys.executable,
            __file__,
            "--task",
            json.dumps(given),
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=seconds,
                env=os.environ | ONE_THREAD,
            )
        except subprocess.TimeoutExpired:
            return {"left out": f"took longer than {seconds:.0f} s"}
        if done.returncode or not Path(given["told"]).exists():
            return {"left out": f"failed: {done.stderr.strip()[-500:]}"}
        found = json.loads(Path(given["told"]).read_text(encoding="utf-8"))
    check_ends(found["ends"])
    return found


def check_ends(ends: Mapping[str, Sequence[float]]) -> None:
    """Say who ends elsewhere than the first."""
    names = list(ends)
    for name in names[1:]:
        off = max(abs(a - b) for a, b in zip(ends[names[0]], ends[name], strict=True))
        if off > 1e-4:
            print(f"WARNING: {name} ends {off:.1e} away from {names[0]}", flush=True)


def free_bytes() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    return 0.0


def ratios(seconds: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times as fast as PyTorch's each of ours is."""
    return {
        name: seconds[THEIRS[name]]["median"] / seconds[name]["median"]
        for name in OURS
        if name in seconds and THEIRS[name] in seconds
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=HERE / "results" / "distributed.json")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS, help="default: 2 4")
    parser.add_argument("--spare", type=float, default=2.0, help="GB of memory to leave; default 2")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.task is not None:
        on_a_rank(json.loads(given.task))
        return
    try:
        import torch  # noqa: F401
    except ImportError:
        theirs: list[str] = []
    else:
        theirs = list(THEIRS.values())
    until = time.monotonic() + 60 * MINUTES
    result: dict[str, Any] = {"machine": {}, "rows": [], "overlap": []}
    if given.json.exists() and set(given.parts) != set(PARTS):
        result = json.loads(given.json.read_text(encoding="utf-8"))
    sizes = {SIZES[part][0] for part in given.parts if part in SIZES}
    rows = [
        row
        for row in result["rows"]
        if row["parameters"] not in sizes or row["ranks"] not in given.ranks
    ]

    def write() -> None:
        result["rows"] = sorted(rows, key=lambda row: (row["parameters"], row["ranks"]))
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def run(ranks: int, names: list[str], parameters: int, side: int, rounds: int) -> None:
        need = sum(bytes_per_parameter(name, ranks) for name in names)
        need -= 4 * (len(names) - 1)  # they share gradients
        row: dict[str, Any] = {
            "ranks": ranks,
            "parameters": parameters,
            "together": len(names) > 1,
            "load": os.getloadavg()[0],
        }
        left = until - time.monotonic()
        room = free_bytes() - 1e9 * given.spare
        if ranks * parameters * need > room:
            gb = ranks * parameters * need / 1e9
            found: dict[str, Any] = {
                "left out": f"needs {gb:.0f} GB, and {room / 1e9:.0f} are free"
            }
        elif left < 20:
            found = {"left out": "no time was left"}
        else:
            found = measured(
                ranks, left, names=names, parameters=parameters, side=side, rounds=rounds
            )
        if "found" in found:
            result["machine"] = found["machine"]
            row |= {"seconds": found["found"], "ratios": ratios(found["found"])}
        else:
            row |= {"left out": dict.fromkeys(names, found["left out"])}
        rows.append(row)
        print(said(row), flush=True)

    for part in given.parts:
        if part == "link":
            task = {"names": [], "parameters": 1, "side": 1, "rounds": 1}
            result["link"] = measured(2, until - time.monotonic(), link=True, **task)
            result["link"].pop("machine", None)
            print(json.dumps(result["link"]), flush=True)
            continue
        if part == "overlap":
            result["overlap"] = [overlapped(until - time.monotonic())]
            continue
        for ranks in given.ranks:
            if part != APART:
                run(ranks, [*OURS, *BESIDE, *theirs], *SIZES[part])
                write()
                continue
            first = len(rows)
            for name in (*OURS, *theirs):
                run(ranks, [name], *SIZES[part])
            rows[first:] = [joined(rows[first:])]
            print(said(rows[-1]), flush=True)
            write()
    write()


def overlapped(seconds: float) -> dict[str, Any]:
    """Return what is hidden on two ranks."""
    parameters, side, rounds = SIZES["20M"]
    load = os.getloadavg()[0]
    task = {"names": list(OURS), "parameters": parameters, "side": side, "rounds": rounds}
    found = measured(2, seconds, overlap=True, **task)
    row = {"ranks": 2, "parameters": parameters, "load": load, **found}
    row.pop("machine", None)
    row.pop("ends", None)
    print(json.dumps(row, indent=1), flush=True)
    return row


def joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rows of contenders that came one after another as one."""
    seconds = {name: t for row in rows for name, t in row.get("seconds", {}).items()}
    left_out = {name: why for row in rows for name, why in row.get("left out", {}).items()}
    return {
        "ranks": rows[0]["ranks"],
        "parameters": rows[0]["parameters"],
        "together": False,
        "load": max(row["load"] for row in rows),
        "seconds": seconds,
        "ratios": ratios(seconds),
        "left out": left_out,
    }


def said(row: Mapping[str, Any]) -> str:
    """Return a row as text."""
    parts = [
        f"{name} {1e3 * times['median']:.1f} ms" for name, times in row.get("seconds", {}).items()
    ]
    parts += [f"{name} is {ratio:.2f} x as fast" for name, ratio in row.get("ratios", {}).items()]
    parts += [f"{name} left out: {why}" for name, why in row.get("left out", {}).items()]
    return f"{row['ranks']} ranks, {row['parameters']:,} parameters: " + "; ".join(parts)


if __name__ == "__main__":
    main()
