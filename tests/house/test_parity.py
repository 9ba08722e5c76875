"""docs/parity.md has every optimizer, and a reason where it says that a library differs."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastopt

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "parity.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE, re.MULTILINE))
REASONS = dict(re.findall(r"^### (\w+)\n\n((?:\* .+\n)+)", PAGE, re.MULTILINE))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that writes the page; it imports no library before it runs one."""
    spec = importlib.util.spec_from_file_location("make_parity", DOCS / "make_parity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_has_a_row_for_every_optimizer_and_its_call() -> None:
    names = fastopt.optimizers.names()
    assert list(ROWS) == names
    assert re.findall(r"^\* `fastopt\.(\w+)\(", PAGE, re.MULTILINE) == names


def test_what_differs_leads_to_as_many_reasons() -> None:
    linked = {name: re.findall(r"\]\(#(\w+)\)", row) for name, row in ROWS.items()}
    assert {name: {name.lower()} for name in REASONS} == {
        name: set(links) for name, links in linked.items() if links
    }
    for name, reasons in REASONS.items():
        assert reasons.count("\n") == len(linked[name])
    assert "unexplained" not in PAGE
    assert "failed" not in PAGE


def test_the_script_compares_what_there_is(script: ModuleType) -> None:
    compared = {name for library in script.LIBRARIES for name in library.peers}
    assert compared == set(fastopt.optimizers.names())


def test_the_inputs_are_the_same_in_every_run_and_ours_runs_on_them(script: ModuleType) -> None:
    for name in ("Adam", "Muon", "MoMo", "Sophia"):
        first, again = (script.run_fastopt("", script.make_inputs(name), name) for _ in range(2))
        assert script.apart(first, again, script.make_inputs(name)) == (0.0, 0.0, 0.0)
