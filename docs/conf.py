"""How the manual is built: ``make -C docs html`` after ``pip install -e '.[docs]'``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "_ext"), str(HERE.parent)]

import fastopt  # noqa: E402

project = "fastopt"
author = "The fastopt developers"
copyright = f"2026, {author}"
release = version = fastopt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "manual",
    "learning",  # the pages of Learn: numbers that prose quotes
]
exclude_patterns = [
    *("_build", "_ext", "explorer", "examples"),
    *("learn/*.rst", "learn/*.py", "make_*.py"),
]
templates_path = ["_templates"]
nitpicky = True
needs_sphinx = "8.1"

# Pages in MyST ------------------------------------------------------------------------------------

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

# The reference ------------------------------------------------------------------------------------

autosummary_generate = True
autosummary_context = {"optimizers": fastopt.optimizers.names()}
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

# Mathematics, from files beside the pages ---------------------------------------------------------

mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {
    "options": {"enableMenu": False},
    "chtml": {"scale": 0.95, "matchFontHeight": False},
}

# Pictures and numbers that are made when these pages are built ------------------------------------

sphinx_gallery_conf = {
    "examples_dirs": ["learn", "examples"],
    "gallery_dirs": ["learn_pages", "example_pages"],
    "filename_pattern": "/",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,  # their page loads scripts from elsewhere
    "capture_repr": ("_repr_html_",),
    "default_thumb_file": str(HERE / "_static" / "icon.svg"),
    "notebook_extensions": [],  # they would lack docs/learning.py
}

# How it looks -------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = "fastopt"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}  # without it the theme complains on the first visit
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "fastopt"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": []}
