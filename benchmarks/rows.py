"""Steps of some rows of a large table (RowGrad) against steps of all of it, in turns.

python -m benchmarks.rows [--rows 1000000] [--width 64] [--moved 1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter

import numpy as np

import fastopt
from fastopt.core.arrays import Array

STEPS, SETTLED = 60, 30
"""Steps of rows in each turn, and how many are left out first: while these follow a step of all
rows the processor still writes back what that has left in its caches, which in a run of steps of
rows is not there."""


def timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def measure(
    backend: str, rows: int, width: int, moved: int, rounds: int = 9
) -> tuple[float, float]:
    """Return the median seconds of a step of all rows, and of one of some of them."""
    rng = np.random.default_rng(0)
    dense: Array = rng.standard_normal((rows, width), np.float32)
    values: Array = rng.standard_normal((moved, width), np.float32)
    opt = fastopt.Adam(np.zeros_like(dense), backend=backend)
    opt.warmup()
    opt.step(dense)
    whole, some = [], []
    for _ in range(rounds):
        whole.append(timed(lambda: opt.step(dense)))
        for k in range(STEPS):
            grad = fastopt.RowGrad(rng.integers(0, rows, moved), values)
            took = timed(lambda: opt.step(grad))  # noqa: B023 - called at once
            if k >= SETTLED:
                some.append(took)
    return float(np.median(whole)), float(np.median(some))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, number in (("rows", 1_000_000), ("width", 64), ("moved", 1_000)):
        parser.add_argument(f"--{name}", type=int, default=number)
    given = parser.parse_args(arguments)
    for backend in fastopt.available_backends():
        if backend != "cupy":
            whole, some = measure(backend, given.rows, given.width, given.moved)
            print(
                f"{backend}: all of {given.rows} x {given.width} {1e3 * whole:.1f} ms, "
                f"{given.moved} rows {1e3 * some:.2f} ms, {whole / some:.0f} times less"
            )


if __name__ == "__main__":
    main()
