"""The pages of Learn run, their sentences hold, and every number that prose quotes is computed.

The pages that train the digits dozens of times (the square, the bias correction, beta, the learning
rate) are run where the manual is built, which fails on the same assertions.
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastopt

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "learn").glob("plot_*.py"))
EXAMPLES = sorted((DOCS / "examples").glob("plot_*.py"))  # they are run by test_examples.py
LONG = ("plot_05", "plot_07", "plot_09", "plot_10")


@pytest.fixture
def learning() -> Iterator[None]:
    """Make what the pages import importable, and leave no figure open."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with pytest.MonkeyPatch.context() as patch, plt.rc_context():
        patch.syspath_prepend(str(DOCS))
        yield
        plt.close("all")
        sys.modules.pop("learning", None)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.exhaustive] if page.stem.startswith(LONG) else [])
        for page in PAGES
    ],
    ids=lambda page: page.stem,
)
def test_a_page_runs_and_what_it_says_holds(page: Path, learning: None) -> None:
    with fastopt.use_backend("numpy"):
        runpy.run_path(str(page))
    from matplotlib import pyplot as plt

    for number in plt.get_fignums():
        title = plt.figure(number).get_suptitle()
        assert len(title) > 60, "a picture says what it shows to those who do not see it"


def kept() -> set[str]:
    """Return the names of all numbers that the pages keep."""
    found = set()
    for page in (*PAGES, *EXAMPLES):
        for node in ast.walk(ast.parse(page.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "keep":
                topic = ast.literal_eval(node.args[0])
                names = {f"{topic}.{word.arg}" for word in node.keywords}
                assert not names & found, "a topic is kept once"
                found |= names
    return found


def test_every_number_in_prose_is_computed_by_a_page() -> None:
    quoted = set()
    for file in (*PAGES, *EXAMPLES, *DOCS.glob("**/*.md")):
        quoted |= set(re.findall(r"[:{]number[:}]`([^`]+)`", file.read_text(encoding="utf-8")))
    assert quoted
    assert quoted <= kept()
    assert kept() <= quoted, "a number that no sentence quotes need not be kept"


def test_the_eight_questions_have_an_answer_that_leads_to_a_page() -> None:
    text = (DOCS / "learn/questions.md").read_text(encoding="utf-8")
    answers = text.split("\n## ")[1:]
    labels = set()
    for page in PAGES:
        labels |= set(re.findall(r"\.\. _([\w-]+):", page.read_text(encoding="utf-8")))
    for other in (DOCS / "learn").glob("*.md"):
        labels |= set(re.findall(r"^\(([\w-]+)\)=", other.read_text(encoding="utf-8"), re.M))
    assert len(answers) == 8
    for answer in answers:
        leads = re.findall(r"\{ref\}`[^`<]+<([\w-]+)>`", answer)
        assert leads
        assert set(leads) <= labels
