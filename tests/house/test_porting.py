"""docs/porting.md says the truth: a loop by hand and the call beside it end in one place."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastopt
from helpers.variants import CPU_BACKENDS

USE = Path(__file__).parents[2] / "docs" / "use"
PAGE = (Path(__file__).parents[2] / "docs" / "porting.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^```python\n# (both|by hand|fastopt|nearest)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
STEPS = 30


class Row(NamedTuple):
    """A section of the page: its title, and its code by the word that stands above it."""

    title: str
    code: dict[str, str]

    def __str__(self) -> str:
        return self.title


def sections() -> list[Row]:
    """Return the sections that hold code."""
    parts = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)
    found = [
        Row(title, dict(BLOCK.findall(text)))
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return [row for row in found if row.code]


ROWS = sections()
TABLE = re.findall(r"^\| \[(.*)\]\(#(.*)\) \| `(.*)` \|$", PAGE, re.MULTILINE)
BOTH = BLOCK.findall(PAGE.partition("\n## ")[0])
ONE = {
    "Nesterov: p += mu v - lr g",
    "Nesterov: the gradient at the point ahead",
}
"""Two forms of one method, in other variables."""


def namespace() -> dict[str, Any]:
    """Return what the page says is there: parameters, their gradients, a rate."""
    rng = np.random.default_rng(7)
    start, goal = rng.standard_normal((2, 3, 4))
    curvature = rng.uniform(0.2, 1.5, (3, 4))
    noise = 0.3 * rng.standard_normal((2, STEPS, 3, 4))

    def gradient(p: Any, t: int) -> Any:
        return curvature * (p - goal) + noise[0, t]

    def jax_gradient(z: Any, t: int) -> Any:
        return np.conj(curvature * (z - goal) + noise[0, t] + 1j * noise[1, t])

    found: dict[str, Any] = {
        "np": np,
        "fastopt": fastopt,
        "p": start.copy(),
        "z": start + 1j * start[::-1],
        "gradient": gradient,
        "jax_gradient": jax_gradient,
    }
    for _, code in BOTH:
        exec(code, found)
    return found


def run(code: str) -> list[Any]:
    """Return where code leaves the parameters and, where it keeps one, the average."""
    given = namespace()
    arrays = given["p"], given["z"]
    exec(compile(code, "docs/porting.md", "exec"), given)
    assert (given["p"] is arrays[0], given["z"] is arrays[1]) == (True, True), "not in place"
    return [*arrays, *([given["average"]] if "average" in given else [])]


def distance(one: list[Any], two: list[Any]) -> float:
    if len(one) != len(two):
        return np.inf
    return max(
        float((np.abs(a - b) / np.maximum(np.abs(b), 1.0)).max())
        for a, b in zip(one, two, strict=True)
    )


def test_the_page_has_its_forms_and_a_table_of_them() -> None:
    assert len(ROWS) >= 20
    assert [title for title, _, _ in TABLE] == [row.title for row in ROWS]
    assert all({"by hand", "fastopt"} <= row.code.keys() for row in ROWS)
    assert f"{len(ROWS)} forms of update" in (USE / "other_libraries.md").read_text()
    assert len(re.findall("^```python", PAGE, re.MULTILINE)) == len(BLOCK.findall(PAGE))


@pytest.mark.parametrize(("title", "anchor", "call"), TABLE)
def test_the_table_leads_to_the_code_with_its_call(title: str, anchor: str, call: str) -> None:
    assert anchor == re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    (row,) = [row for row in ROWS if row.title == title]
    assert call in row.code["fastopt"]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_call_gives_the_numbers_of_the_loop(row: Row, backend: str) -> None:
    by_hand = run(row.code["by hand"])
    with fastopt.use_backend(backend):
        assert distance(run(row.code["fastopt"]), by_hand) <= 1e-12


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_loop_moves_what_it_is_about(row: Row) -> None:
    start = namespace()
    assert distance(run(row.code["by hand"])[:2], [start["p"], start["z"]]) > 1e-2


@pytest.mark.parametrize("row", [row for row in ROWS if "nearest" in row.code], ids=str)
def test_what_is_called_nearest_is_near_and_not_the_same(row: Row) -> None:
    assert 1e-10 < distance(run(row.code["nearest"]), run(row.code["by hand"])) < 1e-5


def test_no_two_forms_are_one_so_that_no_call_can_stand_for_another() -> None:
    ends = {row.title: run(row.code["by hand"]) for row in ROWS}
    same = {
        (one, two)
        for one, two in combinations(ends, 2)
        if len(ends[one]) == len(ends[two]) and distance(ends[one], ends[two]) < 1e-9
    }
    assert [set(pair) for pair in same] == [ONE]
