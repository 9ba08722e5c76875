"""What a new process waits for: the import, and its first step, with and without compiled code."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

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

SIZES = ((1, 100), (1, 100_000))
"""One that a single thread steps, and one that several do: other code, and threads to start."""


def measure(repeats: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return seconds of ``import fastopt`` after numpy's, and of first steps, in new processes.

    Of first steps: ``cold`` in the very first process, which compiles, and the medians over
    processes after it, which find the code on disk. ``make`` is the optimizer's construction; it
    imports Numba. The folder of compiled code is a temporary one.
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
    return {"import": statistics.median(imports), "first_step": steps}


def _first_step(folder: str, arrays: int, elements: int) -> dict[str, float]:
    told = _run(_FIRST_STEP, {"FASTOPT_CACHE_DIR": folder}, str(arrays), str(elements))
    found: dict[str, float] = json.loads(told)
    return found


def _run(program: str, more: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **more},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout
