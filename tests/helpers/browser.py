"""A browser without a window: it runs a page's scripts and hands back what they wrote.

With FASTOPT_TEST_BROWSER set one must be found, so that a run that was meant to test in one cannot
pass by skipping.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REQUIRED = bool(os.environ.get("FASTOPT_TEST_BROWSER"))
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser() -> str:
    """Return the path of a Chromium; skip the test where there is none, or fail."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is not None:
        return found
    missing = f"no Chromium is found: none of {', '.join(NAMES)} is on the PATH"
    if REQUIRED:
        pytest.fail(f"FASTOPT_TEST_BROWSER is set, and {missing}")
    pytest.skip(missing)


def written_by(script: str, folder: Path) -> str:
    """Return what a script hands to its function ``write``, on a page of its own."""
    inside = script.replace("</script", "<\\/script")
    page = folder / "page.html"
    page.write_text(
        '<!doctype html><meta charset="utf-8"><title>page</title><pre id="written"></pre>\n'
        "<script>\n"
        'function write(text) { document.getElementById("written").textContent = text; }\n'
        'window.onerror = (message) => write("error: " + message);\n'
        f"</script>\n<script>\n{inside}\n</script>\n",
        encoding="utf-8",
    )
    made = subprocess.run(
        [
            browser(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    found = re.search(r'<pre id="written">(.*?)</pre>', made.stdout, re.DOTALL)
    assert found, f"the browser wrote no page (exit {made.returncode}): {made.stderr[-2000:]}"
    text = html.unescape(found[1])
    assert not text.startswith("error: "), text
    return text
