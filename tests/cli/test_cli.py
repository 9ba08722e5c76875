"""The command line: help, exit codes, and what info tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastopt
from fastopt.backends import ARRAY_KIND
from fastopt.cli import main as cli
from helpers.variants import HAS_NUMBA

COMMANDS = {command.name: command for command in cli.COMMANDS}


@pytest.fixture(autouse=True)
def other_processes_find_the_package(monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def lines(text: str) -> dict[str, str]:
    """Return the lines of info by their names."""
    return dict(line.split("  ", 1) for line in text.splitlines())


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastopt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"fastopt {fastopt.__version__}\n"


def test_help_names_every_command(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert {"info", "bench"} <= COMMANDS.keys()
    for name, command in COMMANDS.items():
        assert f"{name} {command.help}" in " ".join(told.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"fastopt {name}" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["fly"], ["info", "--fly"], ["bench", "extra"]])
def test_a_wrong_command_line_exits_with_2(argv: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "usage: fastopt" in capsys.readouterr().err


def test_numbers_are_not_measured_if_they_cannot_be_written(tmp_path: Path, capsys: Any) -> None:
    for path in (tmp_path / "missing" / "numbers.json", tmp_path):
        with pytest.raises(SystemExit) as ended:
            cli.main(["bench", "--quick", "--json", str(path)])
        assert ended.value.code == 2
        assert str(path) in capsys.readouterr().err


def test_info_names_every_backend_and_says_why_one_cannot_run(capsys: Any) -> None:
    assert cli.main(["info"]) == 0
    told = lines(capsys.readouterr().out)
    for name, reason in fastopt.available_backends().items():
        found = told[f"backend {name}"].strip()
        assert found == ("can run" if reason is None else " ".join(reason.split()))
    assert {f"backend {name}" for name in ARRAY_KIND} <= told.keys()


def test_info_tells_versions_threads_and_gpu(capsys: Any) -> None:
    cli.main(["info"])
    told = {name: value.strip() for name, value in lines(capsys.readouterr().out).items()}
    assert told["fastopt"] == fastopt.__version__
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (told["numba"] == "not installed") is not HAS_NUMBA
    assert int(told["threads"].split()[0]) >= 1
    assert told["GPU"]
    assert told["processor"]


def test_info_tells_which_backend_is_asked_for_and_survives_a_wrong_one(
    capsys: Any, monkeypatch: Any
) -> None:
    for asked, expected in (("NumPy ", "numpy"), ("nump", "must be one of")):
        monkeypatch.setenv("FASTOPT_BACKEND", asked)
        assert cli.main(["info"]) == 0
        assert expected in lines(capsys.readouterr().out)["FASTOPT_BACKEND"]


def test_importing_the_package_loads_none_of_this() -> None:
    program = (
        "import sys, fastopt; "
        "print(sorted(sys.modules.keys() & {'fastopt.cli.main', "
        "'numba', 'cupy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
