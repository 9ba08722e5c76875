"""Checks of the built pages: nothing from outside, links that lead somewhere, whole examples."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

OUTSIDE = re.compile(r"^(?:https?:)?//", re.IGNORECASE)
LOADS = {
    **dict.fromkeys(("script", "img", "iframe", "audio", "video", "source", "embed"), "src"),
    "link": "href",
    "object": "data",
}
"""Elements that make a browser load something, each with the attribute that says what."""
NO_LOADS = {"canonical", "search", "next", "prev", "index", "genindex", "author", "copyright"}
"""What a ``link`` says of the page, and loads nothing for."""


class _Page(HTMLParser):
    """The links, identifiers, loaded files and code of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.styles: list[str] = []
        self.code: list[str] = []
        self._in_style = False
        self._in_code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element links to, loads and is called."""
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        loads = LOADS.get(tag)
        if loads in given and not set(given.get("rel", "").split()) & NO_LOADS:
            self.loads.append(given[loads])
        self.loads += [one.split()[0] for one in given.get("srcset", "").split(",") if one.strip()]
        self.styles.append(given.get("style", ""))
        self._in_style = tag == "style"
        if tag == "pre":
            self.code.append("")
            self._in_code = True

    def handle_data(self, data: str) -> None:
        """Note the text of styles and of code."""
        if self._in_style:
            self.styles.append(data)
        if self._in_code:
            self.code[-1] += data

    def handle_endtag(self, tag: str) -> None:
        """Leave a style, or code."""
        self._in_style = False
        self._in_code = self._in_code and tag != "pre"


@cache
def _read(file: Path) -> _Page:
    page = _Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def _pages(folder: Path) -> list[Path]:
    _read.cache_clear()
    return sorted(folder.rglob("*.html"))


def _style_loads(text: str) -> list[str]:
    found = re.findall(r"""url\(\s*["']?([^"')]+)""", text)
    return found + re.findall(r"""@import\s+["']([^"']+)""", text)


def loaded_from_outside(folder: Path) -> list[str]:
    """Return what the pages and their styles load from another host, as "file: address"."""
    found = []
    for file in _pages(folder):
        page = _read(file)
        loads = page.loads + [one for style in page.styles for one in _style_loads(style)]
        found += [f"{file.relative_to(folder)} loads {one}" for one in loads if OUTSIDE.match(one)]
    for file in sorted(folder.rglob("*.css")):
        loads = _style_loads(file.read_text(encoding="utf-8"))
        found += [f"{file.relative_to(folder)} loads {one}" for one in loads if OUTSIDE.match(one)]
    return found


def broken_links(folder: Path) -> list[str]:
    """Return the links to pages, files and places that are not there, as "file: link"."""
    found = []
    for file in _pages(folder):
        for link in _read(file).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link in ("", "#"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                found.append(f"{file.relative_to(folder)} links to {link}, which is not there")
            elif parts.fragment and target.suffix == ".html":
                place = unquote(parts.fragment)
                if place not in _read(target).ids:
                    found.append(f"{file.relative_to(folder)} links to {link}: no such place")
    return found


def links_to_outside(folder: Path) -> dict[str, str]:
    """Return the addresses that pages link to, each with a page that does."""
    return {
        link: str(file.relative_to(folder))
        for file in _pages(folder)
        for link in _read(file).links
        if OUTSIDE.match(link)
    }


def changed_doctests(folder: Path, wanted: dict[str, str]) -> list[str]:
    """Return the doctests that pages show and nobody wrote, and those that are shown nowhere.

    ``wanted`` are those of the docstrings, each with the name of what it belongs to.
    """
    shown = {
        code.strip("\n"): str(file.relative_to(folder))
        for file in _pages(folder)
        for code in _read(file).code
        if code.startswith(">>> ")
    }
    changed = [f"{shown[one]} shows what no docstring has:\n{one}" for one in shown.keys() - wanted]
    absent = [f"no page shows of {wanted[one]}:\n{one}" for one in wanted.keys() - shown]
    return sorted(changed) + sorted(absent)


def joined_names(folder: Path, joiner: str) -> list[str]:
    """Return the pages that still have what joins names while docstrings are read."""
    found = [file for file in _pages(folder) if joiner in file.read_text(encoding="utf-8")]
    return [f"{file.relative_to(folder)} has {joiner!a} in it" for file in found]
