"""The time of two trees of fastopt against each other, block by block in turns.

    python benchmarks/against.py OLD_TREE NEW_TREE [--json PATH]

Each tree has a process of its own; both hold the same arrays, and one works while the other waits.
A row's ratio is old time / new time, the median of the runs: above 1 the new tree is faster. Of a
block the fastest of several batches counts, since other work on the machine only ever adds time.
CuPy runs on the CUDA that this checkout's tests emulate, with kernels that do nothing: what is
measured is the host's.
Exits with 1 if the geometric mean of all rows is below 0.97, or a row below 0.94.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEAN, LEAST = 0.97, 0.94
RUNS = 5
BATCH = 0.005  # seconds that a batch takes, at least
BLOCK = 0.15  # seconds that a block takes, at least
BATCHES = 5  # in a block, at least


@dataclass(frozen=True)
class Row:
    """What is timed: steps of Adam on arrays of float32, its construction, or the import."""

    backend: str
    arrays: int
    elements: int
    what: str = "step"

    @property
    def name(self) -> str:
        sizes = f" {self.arrays} x {self.elements}" if self.arrays else ""
        return f"{self.backend}: {self.what}{sizes}".strip()


CLIPPED, FRESH = "step with max_grad_norm", "other gradient arrays each time"
IMPORT = Row("process", 0, 0, "import fastopt")
ROWS = (
    Row("numba", 1, 10),
    Row("numba", 1, 100),
    Row("numba", 10, 1_000),
    Row("numba", 200, 1_000),
    Row("numba", 1, 100_000),
    Row("numba", 1, 20_000_000),
    Row("numpy", 10, 10),
    Row("numpy", 1, 20_000_000),
    Row("numba", 1_000, 100, "construct"),
    IMPORT,
    Row("cupy", 1, 100),
    Row("cupy", 300, 100),
    Row("cupy", 1, 100, CLIPPED),
    Row("cupy", 300, 100, CLIPPED),
)


# In the process of a tree ---------------------------------------------------------------------


@contextmanager
def _namespace(backend: str) -> Iterator[Any]:
    if backend != "cupy":
        yield importlib.import_module("numpy")
        return
    emulation: Any = importlib.import_module("helpers.cuda.emulation.cuda")
    with emulation.installed().idle():
        yield importlib.import_module("cupy")


def _work(row: Row, xp: Any) -> Callable[[], object]:
    """Return what is timed."""
    import numpy as np

    import fastopt

    rng = np.random.default_rng(0)
    params = [xp.asarray(rng.standard_normal(row.elements, np.float32)) for _ in range(row.arrays)]
    if row.what == "construct":
        return lambda: fastopt.Adam(params, backend=row.backend)
    sets = [
        [xp.asarray(rng.standard_normal(row.elements, np.float32)) for _ in range(row.arrays)]
        for _ in range(4 if FRESH in row.what else 1)
    ]
    more = {"max_grad_norm": 1.0} if CLIPPED in row.what else {}
    opt = fastopt.Adam(params, backend=row.backend, **more)
    opt.warmup()
    given = itertools.cycle(sets)
    return lambda: opt.step(next(given))


def _batch(work: Callable[[], object], count: int) -> float:
    numbers = range(count)
    start = time.perf_counter()
    for _ in numbers:
        work()
    return time.perf_counter() - start


def _block(work: Callable[[], object], count: int) -> float:
    """Return the seconds that one call takes, in the fastest batch of a block."""
    gc.collect()
    gc.disable()
    try:
        _batch(work, max(1, count // 2))
        end, times = time.perf_counter() + BLOCK, []
        while len(times) < BATCHES or time.perf_counter() < end:
            times.append(_batch(work, count) / count)
        return min(times)
    finally:
        gc.enable()


def _serve() -> None:
    """Answer a row with "ready", and "go" with the seconds of a block, until another row comes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed is no answer
    line = sys.stdin.readline()
    while line:
        row = Row(**json.loads(line))
        with _namespace(row.backend) as xp:
            work, count = _work(row, xp), 1
            for _ in range(3):
                work()
            while count < 100_000 and _batch(work, count) < BATCH:
                count *= 2
            print("ready", file=answers, flush=True)
            while (line := sys.stdin.readline()).strip() == "go":
                print(_block(work, count), file=answers, flush=True)
            del work


# In the process that asks ---------------------------------------------------------------------


class Tree:
    """A tree, and a process that works with it."""

    def __init__(self, path: Path) -> None:
        if not (path / "fastopt" / "__init__.py").is_file():
            raise SystemExit(f"{path} is no checkout of fastopt; name the folder that holds it")
        tests = Path(__file__).resolve().parent.parent / "tests"
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (path, path / "kernels", tests))),
            "PYTHONSAFEPATH": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, words: str) -> str:
        """Return the answer to a line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"{self.environment['PYTHONPATH']}: the process has ended, see above")
        return answer

    def prepare(self, row: Row) -> None:
        """Make what a row needs, and warm up."""
        if row is IMPORT:
            self.seconds(row)
        else:
            self.ask(json.dumps(vars(row)))

    def seconds(self, row: Row) -> float:
        """Return the seconds that a row takes now."""
        return min(self._import() for _ in range(3)) if row is IMPORT else float(self.ask("go"))

    def _import(self) -> float:
        start = time.perf_counter()
        command = [sys.executable, "-c", "import fastopt"]
        subprocess.run(command, env=self.environment, check=True)
        return time.perf_counter() - start

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(old: Tree, new: Tree, row: Row) -> dict[str, Any]:
    """Return a row's ratio, and what it is of; who begins changes from run to run."""
    for tree in (old, new):
        tree.prepare(row)
    times: dict[Tree, list[float]] = {old: [], new: []}
    for run in range(RUNS):
        for tree in (old, new) if run % 2 == 0 else (new, old):
            times[tree].append(tree.seconds(row))
    ratios = [a / b for a, b in zip(times[old], times[new], strict=True)]
    return {
        "row": row.name,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "old": statistics.median(times[old]),
        "new": statistics.median(times[new]),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all rows, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    given = parser.parse_args(argv)
    old, new = Tree(given.old.resolve()), Tree(given.new.resolve())
    found = []
    print(f"{'row':<42}{'old':>12}{'new':>12}   old/new  (least .. most)")
    for row in ROWS:
        if given.only in row.name:
            found.append(measure(old, new, row))
            it = found[-1]
            low, high = min(it["ratios"]), max(it["ratios"])
            print(
                f"{it['row']:<42}{1e6 * it['old']:>9.2f} µs{1e6 * it['new']:>9.2f} µs"
                f"   {it['ratio']:.3f}    ({low:.3f} .. {high:.3f})",
                flush=True,
            )
    for tree in (old, new):
        tree.close()
    if not found:
        parser.error(f"no row's name holds {given.only!r}")
    mean = statistics.geometric_mean(it["ratio"] for it in found)
    least = min(found, key=lambda it: it["ratio"])
    good = mean >= MEAN and least["ratio"] >= LEAST
    print(f"geometric mean {mean:.3f} (at least {MEAN}), least {least['ratio']:.3f} ({LEAST})")
    if given.json:
        given.json.write_text(json.dumps({"mean": mean, "rows": found}, indent=1) + "\n")
    return int(not good)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        _serve()
    else:
        sys.exit(main())
