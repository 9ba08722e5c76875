"""Warnings stop the suite where this project's own code is at fault, and nowhere else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CATEGORIES = [
    "DeprecationWarning",
    "FutureWarning",
    "PendingDeprecationWarning",
    "ResourceWarning",
    "RuntimeWarning",
    "SyntaxWarning",
    "UserWarning",
]
OURS = [
    *("fastopt", "fastopt.core.norms", "fastopt_kernels.adam", "benchmarks.against", "__main__"),
    *("examples.paths", "helpers.bits", "house.planted_faults", "conftest", "golden.vector_cases"),
]
ELSEWHERE = '''
import warnings

class Odd:
    def __del__(self):
        raise ValueError("in a destructor")

def warn(category, level=1):
    warnings.warn("it is old", category, stacklevel=level)

def among_others(category):
    warn(category, 2)

def divide(values):
    return values / 0.0

def within(name):
    """Divide by zero in a module of this name."""
    exec("import numpy; numpy.ones(1) / 0", {"__name__": name})

def compiling(file):
    warnings.warn_explicit("it is slow", UserWarning, file, 1)
'''
PASS = {
    **{f"{name} of others": f"elsewhere.warn({name})" for name in CATEGORIES},
    **{f"{name} among others": f"elsewhere.among_others({name})" for name in CATEGORIES},
    "arithmetic of others": "elsewhere.divide(np.ones(1))",
    "a name that is longer": "elsewhere.within('fastoptical')",
    "a module of others": "elsewhere.within('pyparsing.core')",
    "packages within a checkout": (
        "elsewhere.compiling('/fastopt/.venv/lib/python3.11/site-packages/pyparsing/core.py')"
    ),
    "pytest's own plans": (
        "warnings.warn_explicit('it goes', pytest.PytestDeprecationWarning, 'plugin.py', 1)"
    ),
}
FAIL = {
    **{f"{name} of a test": f"elsewhere.warn({name}, 2)" for name in CATEGORIES},
    # NumPy's ufuncs name the module that calls them, as a stacklevel of 1 does.
    **{f"arithmetic of {name}": f"elsewhere.within({name!r})" for name in OURS},
    "a mean that NumPy divides": "np.mean([])",
    "a variance that NumPy divides": "np.var([1.0], ddof=1)",
    "a warning of the package": "fastopt.schedules.ReduceLROnPlateau(0.5).report(float('nan'))",
    "a file that Numba compiles": "elsewhere.compiling('/x/fastopt/backends/numba/compiled.py')",
    "a rule that Numba compiles": "elsewhere.compiling('/x/kernels/fastopt_kernels/adam.py')",
    "a destructor": "elsewhere.Odd(); gc.collect()",
    "a file that is not closed": "open(__file__); gc.collect()",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of small tests that run with the suite's settings."""
    folder = tmp_path_factory.mktemp("warnings")
    cases = [*PASS.values(), *FAIL.values()]
    lines = ["import gc, warnings", "import elsewhere, fastopt, numpy as np, pytest"]
    lines += [f"def test_{k}():\n    {call}" for k, call in enumerate(cases)]
    (folder / "elsewhere.py").write_text(ELSEWHERE, "utf-8")
    (folder / "test_small.py").write_text("\n".join(lines), "utf-8")
    given = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-n", "0", "-v"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *given, "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def outcome(report: str, number: int) -> str:
    found = re.search(rf"^test_small\.py::test_{number} (\w+)", report, re.MULTILINE)
    assert found, report
    return found[1]


@pytest.mark.parametrize("name", PASS)
def test_what_others_warn_of_stops_nothing(name: str, report: str) -> None:
    assert outcome(report, [*PASS].index(name)) == "PASSED"


@pytest.mark.parametrize("name", FAIL)
def test_what_our_own_code_causes_stops_the_suite(name: str, report: str) -> None:
    assert outcome(report, len(PASS) + [*FAIL].index(name)) == "FAILED"
