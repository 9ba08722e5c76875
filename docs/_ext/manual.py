"""What the manual adds to Sphinx: formulas, tables made from committed files, links that hold."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import code_links
import docstrings
import formulas
import mathjax
import pages
import tables
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx_gallery.directives import imgsgnode

import fastopt
from fastopt.viz import explorer

ROOT = Path(__file__).parents[2]
OUTSIDE = {"numpy", "cupy", "collections", "typing", "scipy", "optax", "pathlib", "types", "os"}
"""Whose names are told as they are, since the manual fetches no inventory of theirs."""

INSIDE = {"core", "engine", "checkpoint", "fits", "backends"}
"""Rooms whose names are not public but through the package."""

# Docstrings ---------------------------------------------------------------------------------------


def docstring(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Mark formulas as such, and make links of public names."""
    for module in (docstrings, formulas):  # a page is read again when these are changed
        app.env.note_dependency(str(module.__file__))
    lines[:] = docstrings.marked("\n".join([*lines, ""]), name).split("\n")
    if what in ("attribute", "property"):  # or what stands before a colon is taken for a type
        lines[:0] = ["..", ""]


def several_names(_app: Sphinx, doctree: nodes.document) -> None:
    """Put spaces between the names that share an entry, which were one word until here."""
    for text in list(doctree.findall(nodes.Text)):
        if docstrings.JOINER in text:
            above = text.parent
            while not isinstance(above, nodes.TextElement) or isinstance(above, nodes.Inline):
                above = above.parent
            first = above.astext().startswith(docstrings.JOINER)  # of an entry of its own
            shown = text.replace(docstrings.JOINER, "" if first else " ")
            text.parent.replace(text, nodes.Text(shown))


def signature(_app: Sphinx, what: str, *args: Any) -> tuple[str, str] | None:
    """Leave out of a signature what every optimizer takes, but for its name."""
    given, returned = args[-2], args[-1]
    if given is None:
        return None
    return re.sub(r"\*\*common: Unpack\[Common\]", "**common", given), returned


def bases(_app: Sphinx, name: str, item: Any, options: Any, found: list[Any]) -> None:
    """Show of the classes that a class is made of the next one that is public."""
    public = [one for one in item.__mro__[1:] if one.__name__ in fastopt.__all__]
    found[:] = public[:1] or [object]


def skipped(_app: Sphinx, _what: str, name: str, *_: Any) -> bool | None:
    """Leave out what scikit-learn adds to estimators for its own routing."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def missing(_app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Resolve names of the inside to the public ones; leave those of other libraries as text."""
    target = str(node.get("reftarget", ""))
    root, _, last = target.rpartition(".")
    if root.partition(".")[0] in OUTSIDE or target in OUTSIDE or " " in target:
        return content
    if node.get("refdomain") != "py" or not root.startswith("fastopt."):
        return None
    if last in fastopt.__all__:
        domain = env.get_domain("py")
        public = f"fastopt.{last}"
        return domain.resolve_xref(
            env, node["refdoc"], env._app.builder, "obj", public, node, content
        )
    return content if root.split(".")[1] in INSIDE else None


LONGEST_WORD = 24
"""Characters of code that fit a line of a phone, in a list within a list."""


def long_names(_app: Sphinx, doctree: nodes.document) -> None:
    """Mark the names in running text that have to break on a narrow screen."""
    for literal in doctree.findall(nodes.literal):
        if any(len(word) > LONGEST_WORD for word in literal.astext().split()):
            literal["classes"].append("long")


POWER = re.compile(r"(\d(?:\.\d+)?e-\d+)")
PERCENT = re.compile(r"(?<=\d) %")


def numbers(_app: Sphinx, doctree: nodes.document) -> None:
    """Keep numbers such as 1e-15 and 7 % in one line: a browser breaks them at sign and space."""
    for text in list(doctree.findall(nodes.Text)):
        if isinstance(text.parent, nodes.paragraph | nodes.reference | nodes.strong):
            parts = POWER.split(PERCENT.sub("\u00a0%", text))
            if len(parts) > 1 or parts[0] != text:
                inlines = [
                    nodes.inline(part, part, classes=["number"]) if k % 2 else nodes.Text(part)
                    for k, part in enumerate(parts)
                ]
                text.parent.replace(text, inlines)


def pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Make every picture a link to itself, so that a small screen can show it in its own size."""
    up = "../" * app.env.current_document.docname.count("/")
    for picture in list(doctree.findall(imgsgnode)):
        shown = nodes.reference(
            "", "", refuri=f"{up}{app.builder.imagedir}/{Path(picture['uri']).name}"
        )
        picture.replace_self(nodes.paragraph("", "", shown))
        shown += picture
    for picture in doctree.findall(nodes.image):
        if not Path(picture["uri"]).match("thumb/*"):
            picture["width"] = "100%"  # Sphinx links those that it scales


ROW = re.compile(r"^\| `\w+`(?:, `\w+`)* \|", re.MULTILINE)
MADE = re.compile(r"^```\{made\} (.*)\n```$", re.MULTILINE)


def tables_made(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what ``tables`` makes of committed files into the text of a page, where it is named."""

    def made(found: re.Match[str]) -> str:
        name, *given = found[1].split()
        text, files = tables.MAKERS[name](*given)
        for file in files:
            app.env.note_dependency(str(file), docname=page)
        return text

    source[0] = ROW.sub(_links_in_row, MADE.sub(made, source[0]))


def _links_in_row(found: re.Match[str]) -> str:
    names = set(fastopt.optimizers.names())
    return re.sub(
        r"`(\w+)`",
        lambda one: f"{{py:class}}`~fastopt.{one[1]}`" if one[1] in names else one[0],
        found[0],
    )


class Formula(SphinxDirective):
    """The lines of a formula, each as TeX with its remark beside it."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a container of rows."""
        whole = nodes.container(classes=["formula"])
        for row in formulas.rows(list(self.content)):
            line = nodes.container(classes=["formula-row"])
            left = nodes.inline(classes=["formula-left"])
            for part in row.parts:
                one: nodes.Node
                if part.tex is None:
                    one = nodes.literal(part.text, part.text)
                else:
                    shown = f"\\displaystyle {part.tex}"
                    one = nodes.math(shown, shown)
                left += nodes.inline("", "", one, classes=["formula-part"])
            paragraph = nodes.paragraph("", "", left)
            if row.remark:
                said = row.remark.replace("<-", "←")
                paragraph += nodes.inline(said, said, classes=["formula-remark"])
            line += paragraph
            whole += line
        return [whole]


# Directives ---------------------------------------------------------------------------------------


class CommonOptions(SphinxDirective):
    """The options that all optimizers take, from the table that they are checked by."""

    def run(self) -> list[nodes.Node]:
        """Return a definition list with a target for each option."""
        from fastopt.core.options import OPTIONS

        lines: list[str] = []
        for name, option in OPTIONS.items():
            lines += [f".. _option-{name}:", "", f"``{name}={option.default!r}``"]
            lines += [f"    {docstrings.prose(option.text, '')}", ""]
        return self._parsed(lines)

    def _parsed(self, lines: list[str]) -> list[nodes.Node]:
        text = "\n".join(lines)
        node = nodes.Element()
        self.state.nested_parse(StringList(text.splitlines(), "options.py"), 0, node)
        return node.children


class CommandLine(SphinxDirective):
    """The help of the command line and of each of its commands, as it is printed."""

    def run(self) -> list[nodes.Node]:
        """Return a section with a literal block for each command."""
        found: list[nodes.Node] = []
        for name, text in helps():
            section = nodes.section(ids=[f"command-{name}"], names=[f"command-{name}"])
            section += nodes.title(name, f"fastopt {name}")
            block = nodes.literal_block(text, text)
            block["language"] = "text"
            section += block
            found.append(section)
        return found


def helps() -> Iterator[tuple[str, str]]:
    """Yield each command's name and help."""
    from fastopt.cli import main

    parser = argparse.ArgumentParser(prog="fastopt")
    choice = parser.add_subparsers(metavar="command")
    for command in main.COMMANDS:
        added = choice.add_parser(command.name, description=command.help)
        command.add_arguments(added)
        yield command.name, added.format_help()


# The build ----------------------------------------------------------------------------------------


def static_files(app: Sphinx) -> None:
    """Put MathJax among the static files, before anything is read."""
    if app.builder.format != "html":
        return
    place = Path(app.srcdir) / "_build" / "mathjax"
    try:
        mathjax.copy(place / "mathjax")
    except RuntimeError as error:
        raise ExtensionError(str(error)) from None
    if str(place) not in app.config.html_static_path:
        app.config.html_static_path.append("_build/mathjax")


def code_linked(app: Sphinx) -> None:
    """Leave out links from code of the gallery that may lead to another class than is meant."""
    for folder in app.config.sphinx_gallery_conf["gallery_dirs"]:
        code_links.keep_sure(Path(app.srcdir) / folder)


def write_explorer(app: Sphinx, error: Exception | None) -> None:
    """Write the explorer beside the pages, as ``fastopt race --html`` does."""
    if error is not None or app.builder.name != "html":
        return
    folder = Path(app.outdir) / "explorer"
    folder.mkdir(exist_ok=True)
    explorer.write(folder / "index.html", manual="../learn_pages/index.html")


def check(app: Sphinx, error: Exception | None) -> None:
    """Check the pages that were written: what they load, and where their links lead."""
    if error is not None or app.builder.name != "html":
        return
    folder = Path(app.outdir)
    wrong = pages.loaded_from_outside(folder) + pages.broken_links(folder)
    wrong += pages.changed_doctests(folder / "reference", docstrings.doctests())
    wrong += pages.joined_names(folder / "reference", docstrings.JOINER)
    outside = pages.links_to_outside(folder)
    text = "".join(f"{link}  {page}\n" for link, page in sorted(outside.items()))
    (folder / "external_links.txt").write_text(text, encoding="utf-8")
    print(f"{len(outside)} links lead outside: {folder / 'external_links.txt'}", file=sys.stderr)
    if wrong:
        raise ExtensionError("\n".join(["the pages are not as they must be:", *wrong]))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it."""
    app.add_directive("formula", Formula)
    app.add_directive("common-options", CommonOptions)
    app.add_directive("command-line", CommandLine)
    app.connect("builder-inited", static_files)
    app.connect("builder-inited", code_linked, priority=600)  # the gallery is made at 500
    app.connect("source-read", tables_made)
    app.connect("autodoc-process-docstring", docstring, priority=400)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skipped)
    app.connect("autodoc-process-bases", bases)
    app.connect("doctree-read", several_names)
    app.connect("doctree-read", pictures)
    app.connect("doctree-read", long_names)
    app.connect("doctree-read", numbers)
    app.connect("missing-reference", missing)
    app.tags.add("explorer")  # Learn links to it where a build has it
    app.connect("build-finished", write_explorer)
    app.connect("build-finished", check)
    return {"env_version": 6, "parallel_read_safe": True, "parallel_write_safe": True}
