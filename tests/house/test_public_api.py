"""The program that shows type checkers every public name: it has them all, and runs."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

import fastopt
from fastopt import distributed, interop, schedules
from house import public_api, type_completeness


def used() -> set[str]:
    """Return the names and attributes that the program reads."""
    tree = ast.parse(Path(public_api.__file__).read_text("utf-8"))
    nodes = list(ast.walk(tree))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_every_public_name_is_met() -> None:
    public = {*fastopt.__all__, *fastopt.optimizers.__all__}
    for module in (distributed, interop, schedules):
        public |= {*module.__all__}
    assert public - used() == set()


def test_the_program_runs(tmp_path: Path) -> None:
    made = public_api.every_optimizer()
    assert made.keys() == {*fastopt.optimizers.names()}
    assert all(made.values())
    assert public_api.training(tmp_path).step_count == 1
    public_api.around_a_step()
    assert all(value >= 0.0 for value in public_api.every_schedule())
    assert public_api.fits() >= 0.0
    assert "numpy" in public_api.settings()
    assert len(public_api.errors()) == 1
    assert public_api.seen()["steps"] == 3
    if importlib.util.find_spec("torch") is not None:
        assert public_api.on_tensors(importlib.import_module("torch")) == 3
    assert len(public_api.from_other_libraries()) == len(interop.__all__)


def test_the_program_steps_over_ranks() -> None:
    mpi4py = pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
    assert public_api.over_ranks(mpi4py.COMM_SELF) == 4


def test_what_is_left_to_be_inferred_is_named() -> None:
    def symbol(name: str, known: bool = True, ambiguous: bool = False) -> dict[str, object]:
        said = [{"message": "is unknown"}]
        return {
            "name": name,
            "isTypeKnown": known,
            "isTypeAmbiguous": ambiguous,
            "diagnostics": said,
        }

    symbols = [symbol("right"), symbol("a", known=False), symbol("b", ambiguous=True)]
    found = {"typeCompleteness": {"symbols": symbols}}
    assert type_completeness.incomplete(found) == ["a: is unknown", "b: is unknown"]
