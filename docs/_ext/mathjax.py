"""MathJax as files of the manual: found in the package that brings it, copied as far as needed."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "sphinx-mathjax-offline"
NEEDED = ("tex-chtml.js", "output/chtml/fonts/woff-v2")
"""The component that turns TeX into HTML, and its fonts; all else (menus, speech) stays away."""


def source() -> Path:
    """Return the folder with MathJax; RuntimeError says what to install."""
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise RuntimeError(
            f"{DISTRIBUTION} brings the MathJax of the manual and is not installed: "
            "pip install -e '.[docs]'"
        ) from None
    for file in files:
        if file.name == NEEDED[0]:
            return Path(str(file.locate())).parent
    raise RuntimeError(f"{DISTRIBUTION} has no {NEEDED[0]}; another version of it is needed")


def copy(to: Path) -> None:
    """Copy what the pages load into a folder."""
    origin = source()
    for name in NEEDED:
        place = to / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (origin / name).is_dir():
            shutil.copytree(origin / name, place, dirs_exist_ok=True)
        else:
            shutil.copyfile(origin / name, place)
