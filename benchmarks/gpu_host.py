"""The host's part of a step on CuPy: how long a step takes until it is handed over to the device.

    python benchmarks/gpu_host.py [--against TREE] [--json PATH]

The real CuPy runs on the CUDA that the tests emulate (tests/helpers/cuda/emulation), with launches
that do nothing; on a GPU each launch takes some 2 µs more. With ``--against`` another checkout is
measured in turns, block by block. Exits with 1 where a row misses what it has to reach.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from against import CLIPPED, FRESH, RUNS, Row, Tree, measure

HERE = Path(__file__).resolve().parent.parent
MORE_WITH_NORM = 20.0
"""Microseconds that a limit of the norm may add."""

LIMITS = {
    Row("cupy", 1, 100): 40.0,
    Row("cupy", 300, 100): 100.0,
    Row("cupy", 300, 100, FRESH): 150.0,
    Row("cupy", 1_000, 100): 250.0,
    Row("cupy", 1_000, 100, FRESH): 400.0,
}
"""Microseconds that a step may take."""


def rows() -> list[tuple[Row, float]]:
    """Return all rows, and what each may take."""
    found = []
    for row, limit in LIMITS.items():
        found.append((row, limit))
        clipped = CLIPPED if row.what == "step" else f"{CLIPPED}, {row.what}"
        found.append((Row("cupy", row.arrays, row.elements, clipped), limit + MORE_WITH_NORM))
    return found


def alone(tree: Tree, row: Row) -> dict[str, Any]:
    """Return the time of a row in this checkout."""
    tree.prepare(row)
    return {"row": row.name, "new": statistics.median(tree.seconds(row) for _ in range(RUNS))}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, metavar="TREE", help="another checkout")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there")
    given = parser.parse_args(argv)
    ours = Tree(HERE)
    other = Tree(given.against.resolve()) if given.against else None
    found, missed = [], 0
    for row, limit in rows():
        it = alone(ours, row) if other is None else measure(other, ours, row)
        micros = 1e6 * it["new"]
        missed += micros > limit
        said = "" if other is None else f"   {1e6 * it['old']:>9.1f} µs there, {it['ratio']:.2f}"
        mark = "ok" if micros <= limit else "MISSED"
        print(f"{it['row']:<72}{micros:>9.1f} µs (at most {limit:.0f}) {mark}{said}", flush=True)
        found.append({**it, "limit": limit / 1e6})
    for tree in (ours, other):
        if tree is not None:
            tree.close()
    if given.json:
        given.json.write_text(json.dumps({"rows": found}, indent=1) + "\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
