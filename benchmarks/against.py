"""The time of two trees of fastopt against each other, block by block in turns.

    python benchmarks/against.py OLD_TREE NEW_TREE [--json PATH]

Each tree has a process of its own; both hold the same arrays, and one works while the other waits.
A row's ratio is old time / new time, the median of the runs: above 1 the new tree is faster. Of a
block the fastest of several batches counts, since other work on the machine only ever adds time.
On the stand-in for CuPy the time within kernels is left out: what is measured is the host's.
Exits with 1 if the geometric mean of all rows is below 0.97, or a row below 0.94.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
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
    Row("cupy", 1, 100, "step with max_grad_norm"),
    Row("cupy", 300, 100, "step with max_grad_norm"),
)


# In the process of a tree ---------------------------------------------------------------------


class Clock:
    """The time, without what is spent in the stand-in's kernels."""

    def __init__(self) -> None:
        self.elsewhere = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self.elsewhere

    def leave_out(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of which the time does not count."""

        def timed(*arguments: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*arguments, **more)
            finally:
                self.elsewhere += time.perf_counter() - start

        return timed


@contextmanager
def _namespace(backend: str, clock: Clock) -> Iterator[Any]:
    if backend != "cupy":
        import numpy

        yield numpy
        return
    inner = "helpers.cuda" if importlib.util.find_spec("helpers") else "cuda"  # an older tree's
    kernel_on_cpu, fake_device, runs = (
        importlib.import_module(f"{inner}.{name}")
        for name in ("kernel_on_cpu", "fake_device", "runs")
    )
    run = kernel_on_cpu.run
    kernel_on_cpu.run = clock.leave_out(run)
    try:
        with runs.installed(fake_device.FakeDevice()) as module:
            yield module
    finally:
        kernel_on_cpu.run = run


def _work(row: Row, xp: Any) -> Callable[[], object]:
    """Return what is timed."""
    import numpy as np

    import fastopt

    rng = np.random.default_rng(0)
    params = [xp.asarray(rng.standard_normal(row.elements, np.float32)) for _ in range(row.arrays)]
    if row.what == "construct":
        return lambda: fastopt.Adam(params, backend=row.backend)
    grads = [xp.asarray(rng.standard_normal(row.elements, np.float32)) for _ in range(row.arrays)]
    more = {"max_grad_norm": 1.0} if row.what != "step" else {}
    opt = fastopt.Adam(params, backend=row.backend, **more)
    opt.warmup()
    return lambda: opt.step(grads)


def _batch(work: Callable[[], object], count: int, clock: Clock) -> float:
    numbers = range(count)
    start = clock()
    for _ in numbers:
        work()
    return clock() - start


def _block(work: Callable[[], object], count: int, clock: Clock) -> float:
    """Return the seconds that one call takes, in the fastest batch of a block."""
    gc.collect()
    gc.disable()
    try:
        _batch(work, max(1, count // 2), clock)
        end, times = time.perf_counter() + BLOCK, []
        while len(times) < BATCHES or time.perf_counter() < end:
            times.append(_batch(work, count, clock) / count)
        return min(times)
    finally:
        gc.enable()


def _serve() -> None:
    """Answer a row with "ready", and "go" with the seconds of a block, until another row comes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed is no answer
    line = sys.stdin.readline()
    while line:
        row, clock = Row(**json.loads(line)), Clock()
        with _namespace(row.backend, clock) as xp:
            work, count = _work(row, xp), 1
            for _ in range(3):
                work()
            while count < 100_000 and _batch(work, count, clock) < BATCH:
                count *= 2
            print("ready", file=answers, flush=True)
            while (line := sys.stdin.readline()).strip() == "go":
                print(_block(work, count, clock), file=answers, flush=True)
            del work


# In the process that asks ---------------------------------------------------------------------


class Tree:
    """A tree, and a process that works with it."""

    def __init__(self, path: Path) -> None:
        if not (path / "fastopt" / "__init__.py").is_file():
            raise SystemExit(f"{path} is no checkout of fastopt; name the folder that holds it")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path / part) for part in (".", "kernels", "tests")),
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
