"""The CUDA C++ in ``.cuh`` files, and all else that is no Python, is in what is built."""

from __future__ import annotations

import re
import tarfile
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = "fastopt/backends/cupy"
DATA = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "fastopt").rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
}
"""Every file of the package that is no Python."""
IN_CHECKOUT = {path.name for path in (ROOT / FOLDER).glob("*.cuh")}


def test_the_installed_package_has_every_file_as_it_is_here() -> None:
    installed = files("fastopt.backends.cupy")
    assert len(IN_CHECKOUT) > 10
    for name in IN_CHECKOUT:
        text = installed.joinpath(name).read_text(encoding="utf-8")
        assert text == (ROOT / FOLDER / name).read_text(encoding="utf-8")


def test_every_file_is_used_and_every_one_that_is_used_is_there() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / FOLDER).glob("*source.py")]
    used = {name for text in texts for name in re.findall(r'fixed\("(\w+)"\)', text)}
    used |= {"update", "int8_update"}  # one of the two, by the state
    assert {f"{name}.cuh" for name in used} == IN_CHECKOUT


def test_the_wheel_and_the_sdist_have_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("hatchling.build", reason="needs hatchling, which builds both")
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / build.build_wheel(str(tmp_path))
    sdist = tmp_path / build.build_sdist(str(tmp_path))
    assert {"fastopt/py.typed", "fastopt/viz/rules.js", "fastopt/cli/recorded.json"} <= DATA
    assert {f"{FOLDER}/{name}" for name in IN_CHECKOUT} <= DATA
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) >= DATA
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= DATA
