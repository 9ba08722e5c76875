"""What a new process waits for: the import, its first step, and a short script from end to end.

python benchmarks/startup.py --out startup.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import command_line
import report

_IMPORT = """
import time
import numpy
start = time.perf_counter()
import fastopt
print(time.perf_counter() - start)
"""

_FIRST_STEP = """
import json, sys, time
import numpy as np
import fastopt
arrays, elements = map(int, sys.argv[1:])
params = [np.ones(elements, np.float32) for _ in range(arrays)]
grads = [np.ones(elements, np.float32) for _ in range(arrays)]
start = time.perf_counter()
opt = fastopt.Adam(params)
made = time.perf_counter()
opt.step(grads)
print(json.dumps({"make": made - start, "step": time.perf_counter() - made}))
"""

_NUMPY = """
import numpy
import time
print(time.time(), False)
"""

_SCRIPT = """
import sys
import numpy as np
import fastopt
shapes = (8, 16), (16,), (16, 4), (4,)
params = [np.ones(shape, np.float32) for shape in shapes]
opt = fastopt.Adam(params)
for _ in range(int(sys.argv[1])):
    opt.step([np.ones(shape, np.float32) for shape in shapes])
import time
print(time.time(), "numba" in sys.modules)
"""
"""A small model, for so many steps; tells when the last one was done, and what it has imported."""

SIZES = ((1, 100), (1, 100_000))
"""One that a single thread steps, and one that several do: other code, and threads to start."""
STEPS = (1, 50)
"""Of the script that trains a small model."""
CACHES = ("warm", "cold")
"""Whether Numba's compiled code is on disk already."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the script alone, print, write."""
    parser = command_line.parser(__doc__, picture=False)
    parser.add_argument(
        "--repeats", type=int, default=11, metavar="N", help="processes of each kind: 11"
    )
    given = command_line.parse(parser, argv)
    found = measure_script(given.repeats, command_line.tell)
    report.table(*report.script(found))
    command_line.write_json(given.json, found)


def measure(repeats: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return seconds of ``import fastopt`` after numpy's, and of the compiled first steps.

    All of them in new processes; where Numba is not installed, the first steps are NumPy's.

    Of first steps: ``cold`` in the very first process, which compiles, and the medians over
    processes after it, which find the code on disk. ``make`` is the optimizer's construction.
    The folder of compiled code is a temporary one. ``script``: see ``measure_script``.
    """
    tell("import in new processes")
    _run(_IMPORT, {})  # writes the bytecode
    imports = [float(_run(_IMPORT, {})) for _ in range(repeats)]
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        for arrays, elements in SIZES:
            tell(f"first steps in new processes, {arrays} x {elements}")
            runs = [_first_step(folder, arrays, elements) for _ in range(1 + repeats)]
            cold, *warm = runs
            steps.append(
                {
                    "arrays": arrays,
                    "elements": elements,
                    "cold": cold,
                    "warm": {k: statistics.median(run[k] for run in warm) for k in cold},
                }
            )
    return {
        "import": statistics.median(imports),
        "first_step": steps,
        "script": measure_script(repeats, tell),
    }


def measure_script(repeats: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return how long a script that trains a small model takes, in new processes that take turns.

    Medians, in seconds: ``last_step`` from the start of ``python`` to the end of the last step,
    ``beyond_numpy`` the same less what ``import numpy`` alone takes in the same round, ``exit``
    until the process has ended. ``numba``: the share of the processes that imported it. With cold
    caches each process has a folder for compiled code of its own; Python's bytecode is there.
    """
    tell("a script of a small model in new processes")
    kinds = [(steps, caches) for steps in STEPS for caches in CACHES]
    bare: list[dict[str, float]] = []
    runs: dict[tuple[int, str], list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as warm:
        if _has_numba():
            _timed(_SCRIPT, {"FASTOPT_CACHE_DIR": warm, "FASTOPT_BACKEND": "numba"}, "1")
        for _ in range(repeats):
            bare.append(_timed(_NUMPY, {}))
            for steps, caches in kinds:
                with tempfile.TemporaryDirectory() as cold:
                    folder = warm if caches == "warm" else cold
                    more = {"FASTOPT_CACHE_DIR": folder, "FASTOPT_BACKEND": "auto"}
                    runs[steps, caches].append(_timed(_SCRIPT, more, str(steps)))
    rows = [
        {
            "steps": steps,
            "caches": caches,
            **_medians(found),
            "beyond_numpy": statistics.median(
                run["last_step"] - numpy["last_step"]
                for run, numpy in zip(found, bare, strict=True)
            ),
            "numba": statistics.fmean(run["numba"] for run in found),
        }
        for (steps, caches), found in runs.items()
    ]
    return {"numpy": _medians(bare), "rows": rows}


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in ("last_step", "exit")}


def _timed(program: str, more: dict[str, str], *arguments: str) -> dict[str, float]:
    """Run a program that tells when it was done with its work, and whether numba was imported."""
    start = time.time()  # a clock that processes share
    done, numba = _run(program, more, *arguments).split()
    return {
        "last_step": float(done) - start,
        "exit": time.time() - start,
        "numba": float(numba == "True"),
    }


def _first_step(folder: str, arrays: int, elements: int) -> dict[str, float]:
    compiled = "numba" if _has_numba() else "numpy"
    more = {"FASTOPT_CACHE_DIR": folder, "FASTOPT_BACKEND": compiled}
    told = _run(_FIRST_STEP, more, str(arrays), str(elements))
    found: dict[str, float] = json.loads(told)
    return found


def _has_numba() -> bool:
    return find_spec("numba") is not None


def _run(program: str, more: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **more},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


if __name__ == "__main__":
    main()
