"""What builds the manual, without Sphinx: formulas as TeX, tables of results, checks of pages."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fastopt

PARSER = doctest.DocTestParser()
EXTENSIONS = Path(__file__).parents[2] / "docs" / "_ext"
NAMES = ("code_links", "docstrings", "formulas", "pages", "tables")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXTENSIONS))
        yield {name: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("m <- beta1 * m + (1 - beta1) * g", r"m \leftarrow \beta_{1} \cdot m + "
         r"\left(1 - \beta_{1}\right) \cdot g"),
        ("a - (b - c)", r"a - \left(b - c\right)"),
        ("a - (b + c)", r"a - \left(b + c\right)"),
        ("a * (b / c)", r"a \cdot \frac{b}{c}"),
        ("(a / b) / c", r"\frac{a / b}{c}"),
        ("a / (b / c)", r"\frac{a}{b / c}"),
        ("x / (a / (b * c))", r"\frac{x}{a / \left(b \cdot c\right)}"),
        ("-p", "-p"),
        ("c1 <- 1 - beta1^t", r"c_{1} \leftarrow 1 - \beta_{1}^{t}"),
        ("(a + b)^2", r"\left(a + b\right)^{2}"),
        ("sqrt(v / c2) + eps", r"\sqrt{\frac{v}{c_{2}}} + \varepsilon"),
        ("|p| / |u|", r"\frac{\left|p\right|}{\left|u\right|}"),
        ("1e-6", r"10^{-6}"),
        ("mu_(t+1)", r"\mu_{t + 1}"),
        ("u' - u", "u' - u"),
        ("x @ x.T", r"x \, x^{\top}"),
        ("dhat", r"\hat d"),
        ("weight_decay", r"\mathrm{weight\_decay}"),
        ("mu_1 * ... * mu_t", r"\mu_{1} \cdot \cdots \cdot \mu_{t}"),
        ("if better: x", None),
        ("the optimizer's step", None),
    ],
)  # fmt: skip
def test_an_expression_is_the_same_as_tex(
    modules: dict[str, ModuleType], text: str, tex: str | None
) -> None:
    assert modules["formulas"].tex(text) == tex


def test_a_line_is_taken_apart(modules: dict[str, ModuleType]) -> None:
    lines = [
        "c1 <- 1 - beta1^t,  c2 <- 1        both 1 without bias_correction",
        "                                                 or / sqrt(v + eps)",
        "u =  m / max(h, eps), from -1 to 1",
    ]
    first, second, third = modules["formulas"].rows(lines)
    assert [part.text for part in first.parts] == ["c1 <- 1 - beta1^t", "c2 <- 1"]
    assert first.remark == "both 1 without bias_correction"
    assert (second.parts, second.remark) == ((), "or / sqrt(v + eps)")
    assert third.parts[0].tex == r"u = \frac{m}{\max\left(h, \varepsilon\right)}"
    assert third.remark == "from -1 to 1"


def formula_of(name: str) -> str:
    text = inspect.getdoc(getattr(fastopt, name)) or ""
    found = re.search(r"^::\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert found is not None, name
    return textwrap.dedent(found[1])


def test_the_formula_of_every_optimizer_is_shown_as_one(modules: dict[str, ModuleType]) -> None:
    formulas, parts = modules["formulas"], []
    for name in fastopt.optimizers.names():
        text = formula_of(name)
        assert not formulas.is_code(text)
        assert formulas.is_formula(text) or name == "MuonWithAdamW", name
        parts += [part for row in formulas.rows(text.splitlines()) for part in row.parts]
    assert sum(part.tex is not None for part in parts) > 0.95 * len(parts)


FUNCTIONS = {"sqrt", "cbrt", "sign", "norm", "rms", "mean", "clip", "atan2", "exp"}


def symbols(modules: dict[str, ModuleType], text: str) -> set[str]:
    """Return the names in the formulas of a docstring, but for functions and whole sentences."""
    docstrings, formulas = modules["docstrings"], modules["formulas"]
    found: set[str] = set()
    for block in docstrings.BLOCK.finditer(text):
        body = textwrap.dedent(block[3]).strip("\n")
        if formulas.is_code(body) or not formulas.is_formula(body):
            continue
        for part in (part for row in formulas.rows(body.splitlines()) for part in row.parts):
            if part.tex is not None:
                prose = r"\text{" in part.tex  # on the right of the sign
                said = re.split("<-|=", part.text)[0] if prose else part.text
                said = re.sub(r"_\([^()]*\)", "_t", said)  # mu_(t+1) is mu_t of another step
                found |= set(re.findall(r"(?<![\w.])[A-Za-z]\w*'?", said))
    return found - FUNCTIONS - set(formulas.FUNCTIONS)


def test_every_symbol_of_an_optimizers_formula_is_said_beside_it(
    modules: dict[str, ModuleType],
) -> None:
    """In its sentences: what a letter is on one page is something else on the next."""
    seen = 0
    for name in fastopt.optimizers.names():
        text = inspect.getdoc(getattr(fastopt, name)) or ""
        prose = modules["docstrings"].BLOCK.sub("", text)
        for symbol in symbols(modules, text):
            assert re.search(rf"(?<!\w){symbol}(?!\w)", prose), f"{name}: what is {symbol}?"
            seen += 1
        if name != "MuonWithAdamW":  # its formula is words
            assert re.search(r"^Here (p|grad) is the ", prose, re.MULTILINE), name
    assert seen > 400


def test_examples_are_shown_as_they_are_written(modules: dict[str, ModuleType]) -> None:
    docstrings, found = modules["docstrings"], 0
    for name, item in docstrings.documented():
        text = inspect.getdoc(item) or ""
        written = [example.source + example.want for example in PARSER.get_examples(text)]
        shown = PARSER.get_examples(docstrings.marked(f"{text}\n", name))
        assert [example.source + example.want for example in shown] == written, name
        found += len(written)
    assert found > 100
    # What is compared with the built pages is all of it: a prompt begins every example.
    prompts = sum(code.count(">>> ") for code in docstrings.doctests())
    assert prompts == found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("is a **view** of", "is a **view** of"),
        ("**Evaluate\nat x**: so", "**Evaluate\nat x**: so"),
        ("a**b, c**d", r"a\*\*b, c\*\*d"),
        ("``**/b`` and name_ *args", r"``**/b`` and name\_ \*args"),
        (">>> y = 2 * x_ * t\n... # *\n\na_ *b", ">>> y = 2 * x_ * t\n... # *\n\n" + r"a\_ \*b"),
    ],
)
def test_marks_mean_themselves_but_for_literals_and_strong_words(
    modules: dict[str, ModuleType], text: str, shown: str
) -> None:
    assert modules["docstrings"].prose(text, "") == shown


def test_examples_that_a_page_changes_or_leaves_out_are_found(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    wanted = {">>> a * b\n6": "fastopt.one", ">>> 1\n1": "fastopt.two"}
    (tmp_path / "a.html").write_text(
        "<pre><span></span><span>&gt;&gt;&gt; </span>a \\* b\n6\n</pre><pre>x</pre>"
    )
    assert modules["pages"].changed_doctests(tmp_path, wanted) == [
        "a.html shows what no docstring has:\n>>> a \\* b\n6",
        "no page shows of fastopt.one:\n>>> a * b\n6",
        "no page shows of fastopt.two:\n>>> 1\n1",
    ]
    (tmp_path / "a.html").write_text(
        "<pre>&gt;&gt;&gt; a * b\n6\n</pre><pre>&gt;&gt;&gt; 1\n1</pre>"
    )
    assert modules["pages"].changed_doctests(tmp_path, wanted) == []


def test_pages_in_which_names_stayed_joined_are_found(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    joiner = modules["docstrings"].JOINER
    text = modules["docstrings"].prose("    a, b_two: of one entry.\n", "")
    assert text.startswith(f"    a,{joiner}b_two: of")
    (tmp_path / "a.html").write_text("<p>a, b_two</p>", encoding="utf-8")
    assert modules["pages"].joined_names(tmp_path, joiner) == []
    (tmp_path / "a.html").write_text(text, encoding="utf-8")
    assert modules["pages"].joined_names(tmp_path, joiner) == [r"a.html has '\u200b' in it"]


@pytest.mark.parametrize(
    "made",
    [
        ("in_the_loop",), ("machine", "in_the_loop"), ("members",), ("quality",),
        ("sizes", "fresh"), ("sizes", "same"), ("targets",), ("torch",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_tables_are_made_of_the_committed_results(
    modules: dict[str, ModuleType], made: tuple[str, ...]
) -> None:
    text, files = modules["tables"].MAKERS[made[0]](*made[1:])
    assert files
    assert all(file.exists() for file in files)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert made[0] == "machine" or len(table) > 4
    assert len({re.sub(r"`[^`]*`", "", line).count("|") for line in table}) <= 1
    assert "nan" not in text


def test_the_table_of_precision_has_the_bytes_of_each_way(modules: dict[str, ModuleType]) -> None:
    text, _ = modules["tables"].MAKERS["quality"]()
    held = dict(re.findall(r"^\| (.*?) \| ([\d.]+) \|", text, re.MULTILINE))
    assert list(held.values()) == ["12", "8", "6.03", "14", "10", "4.03", "10"]
    assert held["bfloat16, master weights"] == "14"
    assert held["bfloat16, stochastic rounding, state int8"] == "4.03"


def test_tables_have_the_units_of_what_was_measured(modules: dict[str, ModuleType]) -> None:
    tables = modules["tables"]
    assert [tables.duration(s) for s in (2.0, 4.37e-3, 6.6e-6, 2e-10)] == [
        "2 s", "4.37 ms", "6.6 µs", "0.2 ns",
    ]  # fmt: skip
    assert tables.number(1_000_000) == "1\u202f000\u202f000"


def test_pages_that_load_from_elsewhere_are_found(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    good = """<html><head><link rel="canonical" href="https://x.org/"><script src="a.js"></script>
        </head><body style="background: url(b.png)"><a href="https://x.org/">x</a></body></html>"""
    bad = """<html><head><script src="https://x.org/a.js"></script>
        <link rel="stylesheet" href="//x.org/a.css"><style>@import "https://x.org/b.css";</style>
        </head><body><img src="http://x.org/a.png"></body></html>"""
    (tmp_path / "good.html").write_text(good)
    assert modules["pages"].loaded_from_outside(tmp_path) == []
    (tmp_path / "bad.html").write_text(bad)
    (tmp_path / "bad.css").write_text("@font-face { src: url('https://x.org/f.woff2') }")
    assert modules["pages"].loaded_from_outside(tmp_path) == [
        "bad.html loads https://x.org/a.js",
        "bad.html loads //x.org/a.css",
        "bad.html loads http://x.org/a.png",
        "bad.html loads https://x.org/b.css",
        "bad.css loads https://x.org/f.woff2",
    ]
    assert list(modules["pages"].links_to_outside(tmp_path)) == ["https://x.org/"]


def test_links_that_lead_nowhere_are_found(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<h1 id="here">x</h1><a href="../a.html">a</a>')
    (tmp_path / "a.html").write_text(
        '<a href="folder/">1</a><a href="folder/index.html#here">2</a><a href="#">3</a>'
        '<a href="folder/index.html#there">4</a><a href="b.html">5</a><a href="#place">6</a>'
    )
    assert modules["pages"].broken_links(tmp_path) == [
        "a.html links to folder/index.html#there: no such place",
        "a.html links to b.html, which is not there",
        "a.html links to #place: no such place",
    ]


def test_code_links_to_a_class_only_where_a_name_can_mean_no_other(
    modules: dict[str, ModuleType],
) -> None:
    code = """
one = fastopt.SGD(p)
one = fastopt.SGD(q)
two = fastopt.SGD(p)
two = fastopt.Adam(p)
a, b = fastopt.SGD(p), fastopt.Adam(p)
for make in (fastopt.SGD, fastopt.Adam):
    looped = make(p)
def inner(given):
    with given as opened:
        return [each for each in opened]
"""
    names = ("fastopt.SGD", "one", "two", "a", "b", "make", "looped", "given", "opened", "each")
    found = {name: [{"name": "SGD"}] for name in names}
    found |= {"looped.step": [{"name": "Adam.step"}, {"name": "Optimizer.step"}]}
    kept = modules["code_links"].sure(code, found)
    assert [name for name in kept if "." not in name] == ["one", "a", "b"]
    assert kept["fastopt.SGD"] == found["fastopt.SGD"]
    assert kept["looped.step"] == [{"name": "Optimizer.step"}]
