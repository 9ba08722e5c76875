"""A browser without a window: it runs a page's scripts and hands back what they wrote.

With FASTOPT_TEST_BROWSER set one must be found, so that a run that was meant to test in one cannot
pass by skipping.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Self

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


class Node(NamedTuple):
    """What a screen reader is handed of a part of a page."""

    role: str
    name: str
    value: Any
    properties: dict[str, Any]
    text: str  # all that stands in it


MOVED = """import os, sys
reads, writes, *command = sys.argv[1:]
os.dup2(int(reads), 3)
os.dup2(int(writes), 4)
os.execv(command[0], command)"""
"""Starts a browser that reads its orders from 3 and writes its answers to 4, as it wants them."""

LOADED = """document.readyState === "complete" ||
  new Promise((done) => addEventListener("load", () => done(true)))"""


class Reader:
    """A page as a screen reader has it: the accessibility tree, by the DevTools protocol."""

    def __init__(self, page: Path, folder: Path) -> None:
        if os.name != "posix":
            pytest.skip("speaks to the browser over pipes, as POSIX has them")
        import fcntl

        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        theirs = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (to_browser, from_browser)]
        options = (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"),
            *(f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe"),
            "--force-renderer-accessibility",
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", MOVED, *map(str, theirs), browser(), *options, "about:blank"],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for one in (to_browser, from_browser, *theirs):
            os.close(one)
        self._rest, self._count, self._session = b"", 0, ""
        made = self._say("Target.createTarget", url="about:blank")
        attached = self._say("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self._say("Page.navigate", url=page.as_uri())  # answered when it is on its way
        self.run(LOADED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def _say(self, method: str, **given: Any) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                read = os.read(self._from, 1 << 16)
                assert read, "the browser has ended"
                self._rest += read
            one, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def run(self, script: str) -> Any:
        """Return what an expression comes to in the page, or its promise."""
        done = self._say(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def nodes(self) -> list[Node]:
        """Return what is there to be read, from top to bottom."""
        given = self._say("Accessibility.getFullAXTree")["nodes"]
        by_id = {one["nodeId"]: one for one in given}
        found: list[Node] = []

        def said(one: Any, what: str) -> Any:
            return one.get(what, {}).get("value", "")

        def add(one: Any) -> str:
            at, role = len(found), said(one, "role")
            below = (add(by_id[child]) for child in one.get("childIds", ()) if child in by_id)
            text = "".join(list(below))
            if one["ignored"] or role in ("none", "InlineTextBox"):
                return text
            if role == "StaticText":
                return str(said(one, "name"))
            more = {each["name"]: said(each, "value") for each in one.get("properties", ())}
            found.insert(at, Node(role, said(one, "name"), said(one, "value"), more, text))
            return text

        add(next(one for one in given if "parentId" not in one))
        return found
