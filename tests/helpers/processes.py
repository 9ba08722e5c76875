"""Programs that train in a process of their own, and the cache of their compiled code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LARGE = 200_000  # above the size from which a step uses threads


WORK = f"""
import os, sys, threading, warnings
# As in pyproject.toml: what other packages warn each other of stops nothing.
warnings.filterwarnings("error", module=r"__main__$|.*fastopt")
import numpy as np
import fastopt

def work(steps=4, size={LARGE}, backend="numba"):
    rng = np.random.default_rng(0)
    param = rng.standard_normal(size).astype(np.float32)
    opt = fastopt.Adam(param, backend=backend, max_grad_norm=1.0)
    for _ in range(steps):
        opt.step(rng.standard_normal(size).astype(np.float32))
    return param.tobytes()
"""


def python(code: str, cache: Path | str, **environment: str) -> str:
    """Run a program that begins with WORK in a fresh process; return what it printed."""
    places = [place for place in sys.path if place]
    given = {"PYTHONPATH": os.pathsep.join(places), "FASTOPT_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", WORK + code],
        env={**os.environ, **given, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the programs of a test file share, filled."""
    path = tmp_path_factory.mktemp("cache")
    python("work()", path)
    return path


def drained(pipe: int) -> int:
    """Take out what is in a pipe, at most a thousand bytes; return how many these were."""
    os.set_blocking(pipe, False)
    try:
        return len(os.read(pipe, 1000))
    except BlockingIOError:
        return 0
    finally:
        os.set_blocking(pipe, True)
