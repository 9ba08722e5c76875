"""How the manual is built: ``pip install -e '.[docs]' && make -C docs html``, with no network."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from fastopt.version import __version__  # noqa: E402

project = "fastopt"
author = "The fastopt developers"
copyright = f"2026, {author}"
release = version = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "learning",  # the pages of Learn: numbers that prose quotes
]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "substitution"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "learn/GALLERY_HEADER.rst", "learn/*.py", "examples", "make_*.py"]
nitpicky = True

html_theme = "pydata_sphinx_theme"
html_title = "fastopt"
html_static_path = ["_static"]

sphinx_gallery_conf = {
    "examples_dirs": ["learn", "examples"],
    "gallery_dirs": ["learn_pages", "example_pages"],
    "filename_pattern": "/",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "abort_on_example_error": True,
    "show_memory": False,
    "capture_repr": ("_repr_html_",),
    "notebook_extensions": [],  # they would lack docs/learning.py
}
