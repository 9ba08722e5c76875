"""The suite notices faults that are planted in the core, one at a time."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from house.planted_faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
TESTS = sorted({test for fault in FAULTS for test in fault.tests})


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its tests, in which faults are planted."""
    place = tmp_path_factory.mktemp("planted")
    for folder in ("fastopt", "kernels", "tests"):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


PATIENCE = 600
"""Seconds after which tests that a fault keeps from ending are given up, which is noticing it."""


def run(copy: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy, up to the first failure.

    Its compiled code is kept beside it. A fault in what generates code is found again only if the
    cache tells apart what was generated, or by what.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0"]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(copy), str(copy / "kernels")]),
        "PYTHONDONTWRITEBYTECODE": "1",  # a fault of the same length in the same second
        "FASTOPT_CACHE_DIR": str(copy / "compiled"),
    }
    return subprocess.run(
        [*command, "--hypothesis-profile=first", *tests],
        cwd=copy,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_every_fault_has_its_place_and_its_tests() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30
    for fault in FAULTS:
        assert (ROOT / fault.file).read_text("utf-8").count(fault.text) == 1, fault.name
        assert fault.replacement != fault.text
        assert fault.tests, fault.name
    for test in TESTS:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text("utf-8")
        assert not name or re.search(rf"^def {name}\(", text, re.MULTILINE), test


@pytest.mark.exhaustive
def test_without_a_fault_the_same_tests_pass(copy: Path) -> None:
    """That the copy is one; with all of their parameters they run beside these."""
    done = run(copy, ["--one-of-each", *TESTS])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


ON_RANKS = [one for one in FAULTS if one.tests[0].startswith("tests/distributed/")]
ALONE = [one for one in FAULTS if one not in ON_RANKS]
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None,
    reason="mpi4py is not installed, and the tests that notice these are skipped without it",
)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ALONE, ids=lambda fault: fault.name)
def test_a_planted_fault_is_noticed(fault: Fault, copy: Path) -> None:
    check(fault, copy)


@needs_mpi
@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ON_RANKS, ids=lambda fault: fault.name)
def test_a_fault_planted_in_ranks_is_noticed(fault: Fault, copy: Path) -> None:
    check(fault, copy)


def check(fault: Fault, copy: Path) -> None:
    file = copy / fault.file
    sound = file.read_text("utf-8")
    file.write_text(sound.replace(fault.text, fault.replacement), "utf-8")
    try:
        done = run(copy, fault.tests)
    except subprocess.TimeoutExpired:
        return  # a suite that does not end is not taken for a sound one
    finally:
        file.write_text(sound, "utf-8")
    # 1: tests failed; others mean that they could not be collected, or that there are none.
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"^FAILED ", done.stdout, re.MULTILINE), done.stdout[-3000:]
