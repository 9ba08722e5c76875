"""What CONTRIBUTING.md and the docstrings name is there, and named alike everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATH, CHANGES = (
    TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    for title in ("The path of a gradient", "Where do I change ...")
)


def test_the_path_of_a_gradient_is_as_long_as_it_says() -> None:
    for backend, count in re.findall(r"^On (\w+)[^\n]*?, (\d+) files", PATH, re.M):
        listed = PATH.split(f"On {backend}", 1)[1].split("\nOn ")[0]
        numbers = [int(number) for number in re.findall(r"^(\d+)\. ", listed, re.M)]
        assert numbers[-1] == int(count)
        assert numbers == [*range(numbers[0], numbers[-1] + 1)]
        assert numbers[0] in (1, 6)


@pytest.mark.parametrize("line", re.findall(r"^\d+\. (.*)", PATH, re.M))
def test_each_file_on_the_path_has_what_is_named(line: str) -> None:
    file, *names = re.findall(r"`([^`]+)`", line)
    text = (ROOT / file).read_text(encoding="utf-8")
    missing = [name for name in names if not re.search(rf"\b{name.split('.')[-1]}\b", text)]
    assert not missing


def test_the_files_to_change_are_there() -> None:
    files = {name for name in re.findall(r"`([\w/.]+)`", CHANGES) if re.search(r"/.*\.\w+$", name)}
    roots = [ROOT, ROOT / "fastopt"]
    assert files
    assert not [file for file in files if not any((root / file).exists() for root in roots)]
