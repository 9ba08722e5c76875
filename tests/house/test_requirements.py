"""The versions that pyproject.toml allows from are those that the gate runs the tests with."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOWEST = {
    **{"numpy": "1.26", "numba": "0.60", "optree": "0.14", "safetensors": "0.4.3"},
    **{
        "ml_dtypes": "0.4",
        "scipy": "1.11.1",
        "scikit-learn": "1.4",
        "matplotlib": "3.8",
        "tqdm": "4.66",
        "autograd": "1.7",
    },
    **{"pytest": "8", "pytest-xdist": "3.6.1", "hypothesis": "6.100", "threadpoolctl": "3"},
}


def test_every_requirement_of_the_suite_has_a_lowest_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = {*project["dependencies"], *extras["examples"], *extras["test"]} - {"fastopt[examples]"}
    from_on = {one.split(",")[0] for one in named}  # without what is too new
    assert from_on == {f"{name}>={version}" for name, version in LOWEST.items()}
    assert project["requires-python"] == ">=3.11"


def test_the_gate_installs_exactly_these() -> None:
    gate = (ROOT / ".ci" / "run").read_text("utf-8")
    stage = gate.split("\nfresh lowest python3.11\n")[1].split("\nsay ")[0]
    code = re.search(r"<<'EOF'\n(.*?)EOF\n", stage, re.DOTALL)
    assert code
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {f"{name}=={one}" for name, one in LOWEST.items()}
    assert "pip install $lowest -e '.[test]'\n" in stage
    tests = re.findall(r"tests/[\w/.]+", stage)
    assert tests
    assert all((ROOT / test).exists() for test in tests)
