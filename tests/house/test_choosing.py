"""The tables of which optimizer to use when are complete, and have the measured figures."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastopt

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUAL = (ROOT / "docs" / "use" / "choosing.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of tables after the name, by the name."""
    found = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    assert len({name for name, _ in found}) == len(found)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """``benchmarks/choosing.py`` and ``benchmarks/rules.py`` as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in ("choosing", "rules")}
        for path in BENCHMARKS.glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """The rows of all optimizers, as the manual has them."""
    return rows(MANUAL)


def results(name: str) -> Any:
    return json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())


def test_the_pages_are_what_the_script_writes(modules: dict[str, ModuleType]) -> None:
    choosing = modules["choosing"]
    assert choosing.replaced(README, choosing.short()) == README
    assert choosing.replaced(MANUAL, choosing.everything()) == MANUAL


def test_every_optimizer_has_one_row_and_a_sentence(table: dict[str, list[str]]) -> None:
    assert sorted(table) == sorted(fastopt.optimizers.names())
    for name, cells in table.items():
        assert len(cells) == 6, name
        assert len(cells[-1]) > 20, name


def test_the_readme_has_the_first_ones_with_the_same_figures(
    modules: dict[str, ModuleType], table: dict[str, list[str]]
) -> None:
    short = rows(README)
    assert list(short) == list(modules["choosing"].FIRST)
    assert short == {name: [*table[name][:2], table[name][-1]] for name in short}


def test_figures_are_those_that_were_measured(table: dict[str, list[str]]) -> None:
    rules, problems = results("rules"), results("sweep")["problems"]
    for name, (_, large, small, digits, characters, _) in table.items():
        wanted = [
            row["times_adam"]
            for part in ("bytes", "matrices", "small")
            for row in sorted(rules[part], key=lambda row: -row["parameters"])
            if row["name"] == name
        ]
        assert [float(large.rstrip("†")), float(small)] == pytest.approx(
            wanted if name != "Adam" else [1.0, 1.0], rel=0.05
        ), name
        for cell, problem in ((digits, "digits"), (characters, "characters")):
            loss = problems[problem]["optimizers"][name]["best"]["loss"]["median"]
            assert float(cell) == pytest.approx(loss, rel=0.01), name


def test_state_is_what_an_optimizer_holds_now(
    modules: dict[str, ModuleType], table: dict[str, list[str]]
) -> None:
    for name, cells in table.items():
        held = modules["rules"].state_bytes(name, {})
        assert float(cells[0]) == pytest.approx(held, abs=0.01), name


def test_the_readme_counts_all_of_them() -> None:
    assert f"Ten of the {len(fastopt.optimizers.names())};" in README


def test_what_is_said_of_default_rates_is_what_was_measured() -> None:
    problems = results("sweep")["problems"]
    digits, characters = (problems[name]["optimizers"] for name in ("digits", "characters"))
    factors = [p[name]["best"]["factor"] for name in ("Adam", "SGD") for p in (digits, characters)]
    said = [*re.findall(r"was (\d+) times the default for `Adam`", MANUAL) * 2]
    said += re.findall(r"for `SGD` ([\d ]+) times on digits \((\d+) on characters\)", MANUAL)[0]
    assert [int(number.replace(" ", "")) for number in said] == [round(one) for one in factors]
    losses = digits["SGD"]["at_default"]["loss"]["median"], problems["digits"]["no_knowledge"]
    assert "a loss of {:.2f}, with {:.2f} for one".format(*losses) in MANUAL
    assert digits["SGD"]["default"] == 0.001


def test_what_is_said_of_all_of_them_is_what_was_measured() -> None:
    """``docs/learn/plot_11_which_optimizer.py`` counts the second in the same way."""
    problems = results("sweep")["problems"]
    best = {
        name: [row["best"] for row in problem["optimizers"].values()]
        for name, problem in problems.items()
    }
    adam = problems["characters"]["optimizers"]["Adam"]["best"]["loss"]["median"]
    losses = [row["loss"]["median"] for row in best["characters"]]
    near = sum(loss is not None and loss < 1.05 * adam for loss in losses)
    read = sum(row["accuracy"]["median"] >= 0.97 for row in best["digits"])
    page = (ROOT / "docs" / "measured" / "gained.md").read_text(encoding="utf-8")
    said = re.search(r"(\d+) of the (\d+) read 97 %.*?(\d+) end\s+within 5 %", page, re.DOTALL)
    assert said is not None
    assert [int(number) for number in said.groups()] == [read, len(losses), near]


def test_a_page_is_brought_up_to_date_and_one_without_a_place_is_refused(
    modules: dict[str, ModuleType], tmp_path: Path, capsys: Any
) -> None:
    choosing = modules["choosing"]
    readme, manual = (tmp_path / f"{name}.md" for name in ("readme", "manual"))
    for page in (readme, manual):
        page.write_text(f"before\n{choosing.BEGIN}\nold\n{choosing.END}\nafter\n")
    pages = ["--readme", str(readme), "--manual", str(manual)]
    choosing.main(pages)
    for page, tables in ((readme, choosing.short()), (manual, choosing.everything())):
        head, rest = page.read_text(encoding="utf-8").split(choosing.BEGIN)
        assert head == "before\n"
        assert rest == f"\n\n{tables}\n\n{choosing.END}\nafter\n"
    readme.write_text("no place for it\n")
    with pytest.raises(SystemExit):
        choosing.main(pages)
    assert choosing.BEGIN in capsys.readouterr().err
    assert readme.read_text() == "no place for it\n"
