"""``summary`` and the HTML of optimizers: what an optimizer is, in numbers that add up."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.engine import later
from helpers.variants import OF_MATRICES, VARIANTS, Variant


class Cells(HTMLParser):
    """The words of a table's cells, row by row, and all that is open at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def cells(page: str) -> list[list[str]]:
    parser = Cells()
    parser.feed(page)
    assert parser.open == []
    return parser.rows


def test_groups_arrays_bytes_and_steps() -> None:
    params = {"W": np.ones((4, 3), np.float16), "b": np.ones(3), "n": np.arange(2)}
    settings = {"n": {"trainable": False}, "b": {"weight_decay": 0.5, "lr": 0.25}}
    opt = fastopt.Adam(
        fastopt.groups(params, settings), 0.125, max_grad_norm=2.0, on_nonfinite="skip"
    )
    opt.step({"W": np.ones((4, 3), np.float16), "b": np.ones(3), "n": None})
    opt.step({"W": np.full((4, 3), np.nan, np.float16), "b": np.ones(3), "n": None})
    found = opt.summary()
    assert (found.optimizer, found.step_count, found.skipped_steps) == ("Adam", 1, 1)
    assert (found.size, found.parameter_bytes) == (17, 24 + 24 + 16)
    assert found.state_bytes == opt.state_bytes
    assert found.policy["max_grad_norm"] == 2.0
    by_name = {one.name: one for one in found.arrays}
    assert list(by_name) == ["W", "b", "n"]
    weights = by_name["W"]
    assert (weights.shape, weights.dtype, weights.size, weights.nbytes) == (
        (4, 3),
        "float16",
        12,
        24,
    )
    assert (weights.rule, weights.steps) == ("adam", 1)
    assert [(s.name, s.shape, s.dtype, s.nbytes) for s in weights.state] == [
        ("m", (4, 3), "float32", 48),
        ("v", (4, 3), "float32", 48),
        ("master", (4, 3), "float32", 48),
    ]
    assert (by_name["n"].rule, by_name["n"].state) == ("", ())
    groups = {group.number: group for group in found.groups}
    assert sorted(group.size for group in groups.values()) == [2, 3, 12]
    of_b = groups[by_name["b"].group]
    assert (of_b.settings["weight_decay"], of_b.settings["lr"]) == ("0.5", "0.25")
    assert {"lr", "weight_decay"} <= set(of_b.changed)
    text = str(found)
    assert text.startswith("Adam: 1 steps made, 1 skipped\n17 elements in 3 arrays, 64 B; state ")
    assert "max_grad_norm=2.0, on_nonfinite='skip'" in text
    assert "weight_decay=0.5" in text
    json.dumps(found.to_dict())


@pytest.mark.parametrize("variant", [*VARIANTS, *OF_MATRICES], ids=str)
def test_of_every_optimizer_state_is_listed_and_nothing_changes(variant: Variant) -> None:
    params = {"W": np.ones((5, 4), np.float32), "V": np.ones((4, 4))}
    opt = variant(params)
    opt.step({"W": np.full((5, 4), 0.1, np.float32), "V": np.full((4, 4), 0.1)})
    before = opt.state_dict()
    found = opt.summary()
    np.testing.assert_equal(opt.state_dict(), before)
    listed = sum(state.nbytes for one in found.arrays for state in one.state)
    assert sum(s.nbytes for one in found.arrays for s in one.state if s.shape) <= opt.state_bytes
    # Ranges in the arena begin at multiples of 64 numbers, so that there are gaps.
    assert listed or not opt.state_bytes
    for one in found.arrays:
        own = {k for k in before["state"][one.name] if k != "step"}
        assert {state.name for state in one.state} == own
    rows = cells(opt._repr_html_())
    assert [row[0] for row in rows] == ["name", "V", "W"]


def test_why_it_is_this_backend(place: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    xp, backend = place
    named = fastopt.SGD(xp.ones(2), backend=backend).summary()
    assert (named.backend, "by name" in named.why) == (backend, True)
    with fastopt.use_backend("auto"):
        auto = fastopt.SGD(xp.ones(2))
    why = auto.summary().why
    if backend == "cupy":
        assert why == "auto: the parameters are CuPy arrays, on device 0"
        return
    if backend == "numba":
        assert "goes over to Numba" in why
        auto.warmup()
        assert auto.summary().backend == "numba"
        assert "went over" in auto.summary().why
    monkeypatch.setattr(later, "_installed", lambda: False)
    assert "Numba is not installed" in fastopt.SGD(np.ones(2), backend="auto").summary().why


def test_members_and_schedules_are_said() -> None:
    opt = fastopt.SGD(np.ones((3, 2)), np.array([0.1, 0.2, 0.3]), members=3, on_nonfinite="skip")
    opt.step(np.array([[1.0, 1.0], [np.nan, 1.0], [1.0, 1.0]]))
    found = opt.summary()
    assert (found.step_count, found.skipped_steps) == ((1, 0, 1), (0, 1, 0))
    assert "0 to 1 steps made, 0 to 1 skipped" in str(found)
    cosine = fastopt.SGD(np.ones(2), fastopt.schedules.cosine(0.1, 100))
    assert "cosine" in str(cosine.summary())


def test_html_is_escaped_and_takes_the_colours_around_it() -> None:
    name = "<script>alert(1)</script>&"
    opt = fastopt.Adam({name: np.ones(2), "b": np.ones(())})
    for page in (opt._repr_html_(), fastopt.Accumulator(opt, 4)._repr_html_()):
        assert "<script>" not in page
        assert cells(page)[-1][0] == "b" or cells(page)[-1][0] == name
        assert name in {row[0] for row in cells(page)}
        assert "color:inherit" in page
        assert "#" not in page
    assert "Accumulator(0 of 4) of" in fastopt.Accumulator(opt, 4)._repr_html_()


def test_by_rich() -> None:
    console_of = pytest.importorskip("rich.console")
    console = console_of.Console(width=80)
    with console.capture() as shown:
        console.print(fastopt.Adam({"[bold]W": np.ones(2)}).summary())
    assert "[bold]W" in shown.get()
    assert all(len(line) <= 80 for line in shown.get().splitlines())


def test_nothing_that_shows_is_imported_before_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = fastopt.Adam(np.ones(2))
    for name in ("rich", "rich.console", "rich.table", "rich.text", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert str(opt.summary())
    assert opt.summary()._repr_html_()
    assert str(opt.explain(np.ones(2)))
