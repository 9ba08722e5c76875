"""The manual and the README say the truth: their code runs and prints what stands below it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fastopt
from fastopt.core.options import OPTIONS
from helpers.ranks.starting import launcher

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for part in ("start", "use") for path in (DOCS / part).glob("*.md"))
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
LIBRARIES = ("autograd", "cupy", "dask_mpi", "jax", "mpi4py", "ray", "sklearn", "thinc", "torch")
ON_A_DEVICE = "cupy"
ON_A_CLUSTER = {ON_A_DEVICE, "dask_mpi", "ray"}
"""What the page of several machines needs for the parts that it says were not run."""


class Block(NamedTuple):
    """Code of a page, the line it begins in, and what it prints (None: the page does not say)."""

    code: str
    line: int
    printed: str | None


def blocks(text: str) -> list[Block]:
    """Return the code of a page."""
    fences = list(FENCE.finditer(text))
    found = []
    for k, fence in enumerate(fences):
        if fence[2] == "python":
            below = fences[k + 1 : k + 2]
            printed = below[0][3] if below and below[0][2] == "text" else None
            found.append(Block(fence[3], text.count("\n", 0, fence.start()) + 2, printed))
    return found


def needs(code: str) -> str | None:
    """Return the library that code needs and that may be missing."""
    for library in LIBRARIES:
        if re.search(rf"^(?:import|from) {library}\b", code, re.MULTILINE):
            return library
    return ON_A_DEVICE if f"{ON_A_DEVICE}." in code else None


def run(path: Path, without: set[str]) -> set[str]:
    """Run a page's code from top to bottom; return the libraries that parts were left out for."""
    names: dict[str, Any] = {"__name__": "__main__"}
    left_out = set()
    for block in blocks(path.read_text(encoding="utf-8")):
        library = needs(block.code)
        if library in without:
            left_out.add(library)
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if block.printed is not None:
            assert printed.getvalue() == block.printed, f"{path}, line {block.line}"
    return left_out


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    fastopt.set_backend(None)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=name_of)
def test_the_code_of_a_page_runs_and_prints_what_it_says(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem == "machines":
        pytest.importorskip("mpi4py")
    monkeypatch.setenv("FASTOPT_BACKEND", "numpy")  # or on the emulated CUDA, where that is built
    missing = {name for name in LIBRARIES if importlib.util.find_spec(name) is None}
    elsewhere = {"gpus": {ON_A_DEVICE}, "machines": ON_A_CLUSTER}.get(path.stem, set())
    left_out = run(path, missing | {ON_A_DEVICE} | elsewhere)
    if left_out - elsewhere:
        pytest.skip(f"ran without the parts that need {', '.join(sorted(filter(None, left_out)))}")


def test_the_page_of_gpus_runs_on_cupy(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTOPT_BACKEND", raising=False)
    assert not run(DOCS / "use" / "gpus.md", set())


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_page_of_several_machines_prints_the_same_on_any_number_of_ranks(
    tmp_path: Path, ranks: int
) -> None:
    pytest.importorskip("mpi4py")
    mpiexec = launcher()
    if mpiexec is None:
        pytest.skip("needs mpiexec")
    shown = blocks((DOCS / "use" / "machines.md").read_text(encoding="utf-8"))
    run_here = [block for block in shown if needs(block.code) not in ON_A_CLUSTER]
    assert len(run_here) >= 6
    (tmp_path / "train.py").write_text("".join(b.code for b in run_here), encoding="utf-8")
    done = subprocess.run(
        [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", "train.py"],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "FASTOPT_BACKEND": "numpy",
            "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "kernels", *sys.path])),
        },
    )
    printed = "".join(block.printed or "" for block in run_here)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


def test_code_is_shown_in_no_other_way() -> None:
    """Or it would not be run."""
    for path in PAGES:
        kinds = {fence[2] for fence in FENCE.finditer(path.read_text(encoding="utf-8"))}
        assert not {kind for kind in kinds if "py" in kind.lower()} - {"python"}, path


def reference() -> set[str]:
    """Return the names that the reference has a page for, from its tables."""
    found = set()
    for path in (DOCS / "reference").glob("*.rst"):
        module = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if place := re.match(r"\.\. (?:currentmodule|automodule):: ([\w.]+)", line):
                module = place[1]
            elif name := re.fullmatch(r"(?:   |\.\. py:data:: )(\w+)", line):
                found.add(f"{module}.{name[1]}")
    return found


def test_every_public_name_is_in_the_reference() -> None:
    modules = {"distributed", "interop", "optimizers", "schedules", "viz"}
    public = {
        f"fastopt.{name}" for name in fastopt.__all__ if name not in {*modules, "__version__"}
    }
    for module in modules:
        inside = importlib.import_module(f"fastopt.{module}")
        public |= {f"fastopt.{module}.{name}" for name in inside.__all__}
    missing = public - reference()
    assert missing <= {"fastopt.optimizers.optimizer"}, "the same as fastopt.optimizer"


def test_every_optimizer_is_in_the_table_of_updates() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "reference" / "updates.md").read_text(), re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(fastopt.optimizers.names())


def test_links_between_pages_lead_to_pages_and_options() -> None:
    for path in [ROOT / "README.md", *DOCS.glob("*/*.md"), *DOCS.glob("*.md")]:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            if not re.match(r"https?:", link):
                assert (path.parent / link).exists(), f"{path}: {link}"
        for option in re.findall(r"\{ref\}`option-(\w+)`", text):
            assert option in OPTIONS, f"{path}: {option}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
