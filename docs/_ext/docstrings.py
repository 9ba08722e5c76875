"""Docstrings as reStructuredText: formulas marked, public names linked, examples left alone."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import formulas

import fastopt

JOINER = "\u200b"
"""Stands for the space between the names of one entry, which must be one word while fields are
read: else the first is taken for the type of the second. It is in no page."""
DOORS = ("fastopt", *(f"fastopt.{name}" for name in ("interop", "optimizers", "schedules", "viz")))

BLOCK = re.compile(r"^( *)(.*?)::\n\n((?:\1 {4,}.*(?:\n|\Z)|[ ]*\n)+)", re.MULTILINE)
DOCTEST = re.compile(r"^ *>>> .*(?:\n *\S.*)*", re.MULTILINE)
LITERAL = re.compile(r"(``.*?``|(?<![\w*])\*\*\w[^*]*\w\*\*(?![\w*]))")
"""What has marks of its own: literals, and what is strong."""
SPECIAL = re.compile(r"[|\\]|_(?=\W|$)|(?<!\n)\*(?! )|(?<=\S )\* ")
"""What means itself in a docstring, which has no marks but lists, literals and strong words."""
SEVERAL = re.compile(r"^( +[a-z]\w*(?:, [a-z]\w*)+):", re.MULTILINE)
NAME = re.compile(r"(?<![`\w])``(fastopt\.)?([A-Za-z_]\w*)``(?!`)")


def marked(text: str, name: str) -> str:
    """Return the docstring of ``name`` with its formulas marked as such, and links of names."""
    parts, at = [], 0
    for block in BLOCK.finditer(text):
        parts += [prose(text[at : block.start()], name), _block(block, name)]
        at = block.end()
    return "".join([*parts, prose(text[at:], name)])


def prose(text: str, inside: str) -> str:
    """Return sentences whose stars and bars mean themselves, with links; doctests as they are."""
    parts, at = [], 0
    for code in DOCTEST.finditer(text):
        parts += [_sentences(text[at : code.start()], inside), code[0]]
        at = code.end()
    return "".join([*parts, _sentences(text[at:], inside)])


def _sentences(text: str, inside: str) -> str:
    text = escaped(SEVERAL.sub(lambda found: found[0].replace(", ", f",{JOINER}"), text))
    return NAME.sub(lambda found: _linked(found, inside), text)


def escaped(text: str) -> str:
    """Return text whose stars and bars mean themselves, outside of literals."""
    parts = LITERAL.split(text)
    return "".join(part if k % 2 else SPECIAL.sub(r"\\\g<0>", part) for k, part in enumerate(parts))


def _block(found: re.Match[str], inside: str) -> str:
    indent, body = found[1], textwrap.dedent(found[3]).strip("\n")
    before = prose(found[2], inside)
    # As in reStructuredText: "text::" ends with a colon, "text ::" does not.
    said = before.rstrip() if before.endswith(" ") else f"{before}:"
    lines = [said, ""] if before.strip() else []
    for part in [body] if formulas.is_code(body) else body.split("\n\n"):
        lines += [*_directive(part), ""]
    return textwrap.indent("\n".join([*lines, ""]), indent)


def _directive(body: str) -> list[str]:
    kind = "text"
    if formulas.is_code(body):
        kind = "python"
    elif formulas.is_formula(body):
        kind = ""
    head = f".. code-block:: {kind}" if kind else ".. formula::"
    return [head, "", *textwrap.indent(body, "    ").splitlines(), ""]


def _linked(found: re.Match[str], inside: str) -> str:
    name = found[2]
    # Small letters alone may be an argument, as ``optimizer`` is.
    public = name in fastopt.__all__ and (found[1] or name[0].isupper())
    if public and name != inside.rpartition(".")[2] and not name.startswith("_"):
        if name in ("optimizers", "schedules", "interop"):
            return f":py:mod:`~fastopt.{name}`"
        return f":py:obj:`~fastopt.{name}`"
    parts = inside.split(".")
    owner = getattr(fastopt, parts[1], None) if len(parts) > 1 and parts[1] != name else None
    if inspect.isclass(owner) and inspect.isfunction(getattr(owner, name, None)):
        where = next(one for one in owner.__mro__ if name in vars(one))
        if where.__name__ in fastopt.__all__ and parts[2:] != [name]:
            return f":py:meth:`{name} <fastopt.{where.__name__}.{name}>`"
    if inside.startswith("fastopt.schedules.") and name in fastopt.schedules.__all__:
        return f":py:obj:`~fastopt.schedules.{name}`" if parts[2] != name else found[0]
    if name == "Common":
        return ":ref:`Common <common-options>`"
    return found[0]


# Examples -----------------------------------------------------------------------------------------


def documented() -> Iterator[tuple[str, Any]]:
    """Yield every public name that has a docstring of its own, methods and properties too."""
    seen = set()
    for door in DOORS:
        module = importlib.import_module(door)
        for name in module.__all__:
            item = getattr(module, name)
            known = inspect.ismodule(item) or id(item) in seen
            if known or not getattr(item, "__doc__", None):
                continue
            seen.add(id(item))
            yield f"{door}.{name}", item
            for part, value in vars(item).items() if inspect.isclass(item) else ():
                value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                shown = inspect.isroutine(value) or isinstance(value, property)
                if shown and not part.startswith("_") and inspect.getdoc(value):
                    yield f"{door}.{name}.{part}", value


def doctests() -> dict[str, str]:
    """Return the doctests of all public docstrings, each with the name of what it belongs to."""
    return {
        textwrap.dedent(code[0]): name
        for name, item in documented()
        for code in DOCTEST.finditer(inspect.getdoc(item) or "")
    }
