"""``fastopt race``: what it writes and prints, and one line for each mistake of a user."""

from __future__ import annotations

import json
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastopt import viz
from fastopt.cli.main import main


def test_it_writes_what_the_suffixes_say_and_prints_how_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / f"race.{kind}") for kind in ("png", "svg", "gif", "csv")]
    asked = ["race", "--surface", "rosenbrock", "--start", "-1.5", "2", "--steps", "6"]
    asked += ["--optimizer", "adam lr=0.1 betas=0.9,0.99", "--optimizer", "sgd lr=1"]
    asked += [word for name in files for word in ("--out", name)]
    asked += ["--json", str(tmp_path / "race.json"), "--dark"]
    assert main(asked) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for name in files:
        assert f"written: {name}" in said.out
    found = json.loads((tmp_path / "race.json").read_text())
    expected = viz.race(
        ["adam lr=0.1 betas=0.9,0.99", "sgd lr=1"], "rosenbrock", start=(-1.5, 2), steps=6
    )
    assert found["paths"] == expected.records()
    assert f"{expected.costs[0, -1]:.6g}" in said.out
    assert "diverged at step" in said.out
    with Image.open(files[2]) as film:
        assert film.n_frames == 7  # type: ignore[attr-defined]  # of the plugin for GIF
    assert Path(files[0]).read_bytes().startswith(b"\x89PNG")
    assert Path(files[1]).read_text().startswith("<?xml")


def test_every_number_goes_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "race.json"
    words = "race --surface noisy --condition 3 --noise 2 --batch 16 --seed 7 --steps 9 --json"
    assert main([*words.split(), str(path)]) == 0
    found = json.loads(path.read_text())
    expected = viz.race(
        surface=viz.surface("noisy", condition=3), noise=2, batch=16, seed=7, steps=9
    )
    assert found == json.loads(expected.to_json())
    assert found["surface"]["formula"] == "(x**2 + 3*y**2) / 2"
    assert np.shape([path["x"] for path in found["paths"]]) == (4, 10)


def test_without_a_file_it_is_a_picture_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["race", "--surface=-x + x**2 + y^2"]) == 0
    assert "written: race.png" in capsys.readouterr().out
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


WRONG = {
    "--optimizer 'adm lr=1'": "did you mean 'Adam'",
    "--optimizer 'adam lr'": "is no name=value",
    "--optimizer 'adam lr=-1'": "lr must be a number in [0, inf); got -1",
    "--optimizer 'adam lrr=1'": "did you mean 'lr'?",
    "--optimizer 'adam backend=fast'": "backend",
    "--optimizer 'adam state_dtype=int8'": "state_dtype='int8' is for",
    "--surface rosenbrok": "did you mean 'rosenbrock'?",
    "--surface 'x.y'": "cannot have 'x.y'",
    "--surface beale --condition 3": "condition is that of 'bowl' and 'noisy'",
    "--condition 0": "condition must be a number above 0",
    "--start 1": "expected 2 arguments",
    "--start 1 nan": "two finite numbers",
    "--start 1 up": "invalid float value",
    "--surface 'log(x)' --start -1 1": "not finite at the start",
    "--steps 0": "steps must be a whole number from 1",
    "--noise -1": "noise must be a number",
    "--batch 0": "batch must be a whole number from 1 to 64",
    "--fps 0": "fps must be a number",
    "--frames 1": "frames must be a whole number from 2",
    "--out race.bmp": "must end in one of .png",
    "--json race.txt": "must end in one of .png",
    "--json race.png": "--json is for a name that ends in .json",
    "--out nowhere/race.png": "nowhere/race.png cannot be written",
    "--out folder.png": "folder.png cannot be written",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_command_line_is_said_and_exits_with_2(
    words: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["race", *shlex.split(words)])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert WRONG[words] in said.err
    assert "usage: fastopt race" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_file_that_cannot_be_written_is_a_line_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("long" * 100 + ".json")
    assert main(["race", "--json", str(path)]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"fastopt race: cannot write {path}: ")
    assert said.err.count("\n") == 1
    assert "SGD" in said.out  # how the race ended is not lost


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["race", "--json", str(tmp_path / "race.json")]) == 0
    assert main(["race", "--out", str(tmp_path / "race.png")]) == 1
    assert "pip install matplotlib pillow" in capsys.readouterr().err


def test_html_is_the_page_of_the_explorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = types.ModuleType("fastopt.viz.explorer")
    page.write = lambda path, state: Path(path).write_text(json.dumps(state))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastopt.viz.explorer", page)
    path = tmp_path / "race.html"
    assert main(["race", "--html", str(path), "--optimizer", "rmsprop lr=0.1"]) == 0
    found = json.loads(path.read_text())
    assert found["optimizers"] == [{"name": "RMSprop", "options": {"lr": 0.1}}]
    assert f"written: {path}" in capsys.readouterr().out

    def refuse(path: Any, state: Any) -> None:
        raise ValueError("the page has no such optimizer")

    page.write = refuse  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as ended:
        main(["race", "--html", str(path)])
    assert ended.value.code == 2
    assert f"{path}: the page has no such optimizer" in capsys.readouterr().err


def test_help_tells_the_syntax_and_every_surface(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["race", "--help"])
    said = capsys.readouterr().out
    assert '"adam lr=0.1 betas=0.9,0.99"' in said
    for name in viz.SURFACES:
        assert f"\n  {name} " in said
