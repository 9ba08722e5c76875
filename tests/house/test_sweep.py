"""The sweep over all optimizers is fair and complete, and shows what fails; in a few steps each."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.variants import CPU_BACKENDS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FOLDERS = (BENCHMARKS, BENCHMARKS.parent / "examples")
MODULES = [path.stem for folder in FOLDERS for path in folder.glob("*.py")]


@pytest.fixture(scope="module")
def sweep() -> Iterator[ModuleType]:
    """``benchmarks/sweep.py`` as a module, and what the processes that it starts need."""
    with pytest.MonkeyPatch.context() as patch, fastopt.use_backend(CPU_BACKENDS[0]):
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("sweep")
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def written(sweep: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what a sweep of two optimizers in a few steps has written."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "FACTORS", (1.0, 10.0, 1e40))
        words = ["--optimizers", "Adam", "SGD", "--steps", "12"]
        paths = ["--json", str(folder / "sweep.json"), "--picture", str(folder / "sweep.png")]
        sweep.main([*words, *paths])
    return folder


def test_the_sweep_chooses_shows_and_draws(
    sweep: ModuleType, written: Path, capsys: Any, tmp_path: Path
) -> None:
    results = json.loads((written / "sweep.json").read_text())
    assert results["problems"].keys() == {"digits", "characters"}
    for problem in results["problems"].values():
        assert problem["optimizers"].keys() == {"Adam", "SGD"}
        for found in problem["optimizers"].values():
            assert found["best"]["factor"] == 10.0  # so few steps cannot be too long
            assert found["within_10_percent"][1] == 10.0
            for loss in (found["best"]["loss"], found["best"]["training_loss"]):
                assert 0 < loss["low"] <= loss["median"] <= loss["high"] < 5
            assert found["best"]["loss"]["median"] < found["at_default"]["loss"]["median"]
        # Numbers that float32 does not hold end a run, and JSON has no infinity.
        assert problem["optimizers"]["SGD"]["choosing_loss"][2] is None
    assert (written / "sweep.png").read_bytes().startswith(b"\x89PNG")

    capsys.readouterr()
    again = tmp_path / "again.png"
    sweep.main(["--redraw", str(written / "sweep.json"), "--picture", str(again)])
    told = capsys.readouterr().out
    assert again.read_bytes() == (written / "sweep.png").read_bytes()
    for problem in results["problems"].values():
        median = problem["optimizers"]["Adam"]["best"]["loss"]["median"]
        assert f"{median:.4g}" in told


def test_what_fails_is_last_and_drawn(sweep: ModuleType, written: Path, tmp_path: Path) -> None:
    results = json.loads((written / "sweep.json").read_text())
    for problem in results["problems"].values():
        failed = problem["optimizers"]["Adam"]["best"]
        failed["loss"] = dict.fromkeys(("median", "low", "high"))
    report = sweep.sweep_report
    assert report.order(results) == ["SGD", "Adam"]
    report.draw(results, tmp_path / "failed.png")
    assert (tmp_path / "failed.png").read_bytes() != (written / "sweep.png").read_bytes()
    assert ": failed (failed to failed)" in report.line(
        "Adam", results["problems"]["digits"]["optimizers"]["Adam"]
    )


def test_every_optimizer_takes_part_with_what_it_asks_for(sweep: ModuleType) -> None:
    names = fastopt.optimizers.names()
    assert sweep.USES.keys() <= set(names)
    problem = sweep.PROBLEMS["characters"](steps=4, judged=4)
    begun = sweep.train("SGD", 0.0, problem, 0).shown
    for name in names:
        result = sweep.train(name, 1.0, problem, 0)
        assert math.isfinite(result.shown), name
        assert result.shown != begun, name


def test_all_begin_at_the_same_place_and_see_the_same_batches(sweep: ModuleType) -> None:
    problem = sweep.PROBLEMS["digits"](steps=4)
    for name in ("SGD", "Sophia", "Muon"):  # Sophia draws random numbers of its own
        still = sweep.train(name, 0.0, problem, 0)
        assert still == sweep.train("Adam", 0.0, problem, 0)
        assert still != sweep.train(name, 0.0, problem, 1)


def test_muon_beside_adamw_is_what_the_class_of_both_does(sweep: ModuleType) -> None:
    for title in sweep.PROBLEMS:
        problem = sweep.PROBLEMS[title](steps=4)
        one, both = (sweep.train(n, 3.0, problem, 0) for n in ("Muon", "MuonWithAdamW"))
        assert one == both


class Quadratic:
    """Half of x . H x, of one array."""

    hessian = np.array([[3.0, 0.5, -1.0], [0.5, 2.0, 0.25], [-1.0, 0.25, -4.0]])

    def loss_and_gradients(self, params: Mapping[str, Any], batch: Any) -> Any:
        slope = self.hessian @ params["x"]
        return params["x"] @ slope / 2, {"x": slope}


def test_the_estimate_of_the_hessian_is_its_diagonal_in_the_mean(sweep: ModuleType) -> None:
    """Its noise in one element has the variance of the sum of the squares beside the diagonal."""
    rng, params = np.random.default_rng(0), {"x": np.ones(3, np.float32)}
    found = np.array(
        [sweep.hessian_diagonal(Quadratic(), params, None, rng)["x"] for _ in range(2000)]
    )
    aside = Quadratic.hessian - np.diag(np.diag(Quadratic.hessian))
    deviation = np.sqrt((aside**2).sum(axis=1))
    assert np.abs(found.mean(axis=0) - np.diag(Quadratic.hessian)).max() < 0.1
    np.testing.assert_allclose(found.std(axis=0), deviation, rtol=0.05)
    assert found.dtype == np.float32


def test_an_optimizer_that_there_is_not_is_named(sweep: ModuleType, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        sweep.main(["--optimizers", "Adam", "Eve"])
    assert "Eve" in capsys.readouterr().err
