"""Which names in the code of the gallery's pages are links.

sphinx-gallery asks what a name stands for when the page has run to its end. In a loop
``for make in (A, B): opt = make(...)`` that is the last class, for every place where the name
stands: what it says of ``A`` would lead to ``B``. A page runs from top to bottom, and one name has
one link; so a name is a link to a class where the page binds it to that class alone.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Found = dict[str, list[dict[str, Any]]]
"""What sphinx-gallery has found: for each name as it is written, what it may stand for."""

BASE = "Optimizer."
"""Begins the names of what all optimizers have, which are the same whichever of them it is."""


def sure(code: str, found: Found) -> Found:
    """Return of what was found in a page what holds wherever a name stands in it."""
    made: dict[str, set[str | None]] = {}
    for name, what in _bound(ast.parse(code)):
        made.setdefault(name, set()).add(what)
    kept = {}
    for name, candidates in found.items():
        what = made.get(name.partition(".")[0], {""})
        if None in what or len(what) > 1:
            candidates = [one for one in candidates if one["name"].startswith(BASE)]
        if candidates:
            kept[name] = candidates
    return kept


def _bound(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Yield each name that is bound, with what is called to make it; None for anything else."""
    said = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for one, value in _pairs(target, node.value):
                    said.add(one)
                    yield one.id, _called(value)
        elif isinstance(node, ast.arg):
            yield node.arg, None
    for node in ast.walk(tree):  # loops, with, unpacking, :=
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in said:
            yield node.id, None


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.Name, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts, strict=False):  # a star matches nothing here
            yield from _pairs(one, its)


def _called(value: ast.expr) -> str | None:
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        return ast.unparse(value.func)
    return None


def keep_sure(folder: Path) -> None:
    """Leave in what sphinx-gallery has written of the pages of a folder what is sure."""
    for file in sorted(folder.glob("*.codeobj.json")):
        code = file.with_name(file.name.replace(".codeobj.json", ".py")).read_text(encoding="utf-8")
        before = json.loads(file.read_text(encoding="utf-8"))
        after = sure(code, before)
        if after != before:
            file.write_text(json.dumps(after, indent=1), encoding="utf-8")
