"""The explorer: one page, without a network, on which one sees what an optimizer's averages do.

``write`` puts it into a file. The page runs the package's own rules (``fastopt.viz.javascript``),
so its numbers are those of the package. What it is made of lies beside this file: ``page.html``
with ``style.css``, and the scripts of ``SCRIPTS``, each of which defines one name.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastopt.viz import javascript

SCRIPTS = (
    "numbers",
    "formula",
    "surfaces",
    "runs",
    "questions",
    "state",
    "notation",
    "lines",
    "meanings",
    "drawing",
    "controls",
    "strips",
    "panel",
    "settings",
    "asked",
    "page",
)
"""In the order in which they run: each uses those before it."""

SURFACES = ("bowl", "rosenbrock", "beale", "saddle", "noisy", "formula")
"""The names of the surfaces that the page has."""

MOST_OPTIMIZERS = 4
MOST_STEPS = 2000

NUMBERS = ("condition", "steps", "t", "noise", "batch", "seed", "focus", "zoom")
TEXTS = ("surface", "formula", "theme", "ask")


_LINK = '<a id="manual" href="{}">Learn: the same, explained</a>'


def write(
    path: str | Path, state: Mapping[str, Any] | None = None, *, manual: str | None = None
) -> None:
    """Write the explorer to one HTML file, which needs nothing else.

    Args:
        path: the file, which is replaced if there is one.
        state: what the page shows at first, where it is to differ from its own beginning (a link
            that carries a state of its own still goes before it): ``optimizers``, up to four of
            ``{"name": "Adam", "options": {"lr": 0.1}}``; ``surface``, one of ``SURFACES``, with
            ``condition`` for the bowls and ``formula`` for "formula"; ``start``, two numbers;
            ``steps``, and ``t``, the step that is looked at; ``noise``, ``batch``, ``seed`` of
            mini-batches; ``focus``, which optimizer's numbers are shown, from 0 on; ``zoom``, a
            power of 2 from 1/8 to 32, above 1 nearer to the lowest point; ``theme``, "auto",
            "light" or "dark"; ``ask``, the question that is open. What is None is left as it is.
            The page itself checks the options, and says what is wrong with them.
        manual: where the pages lie that explain what is shown, as an address or from where the file
            lies; the page then has a link to it.

    Raises:
        ValueError: for a state with a name or a value that the page does not have.
        OSError: if the file cannot be written.
    """
    Path(path).write_text(page(state, manual=manual), encoding="utf-8", newline="\n")


def page(state: Mapping[str, Any] | None = None, *, manual: str | None = None) -> str:
    """Return the text of the page; the arguments and errors of ``write``."""
    beginning = _checked(state or {})
    scripts = [javascript.source(), *(_text(f"{name}.js") for name in SCRIPTS)]
    for script in scripts:
        if re.search(r"</script|<!--", script, re.IGNORECASE):
            raise ValueError("a script of the explorer has a tag of HTML in it; write it otherwise")
    parts = {
        "style": _text("style.css").strip(),
        "manual": "" if manual is None else _LINK.format(html.escape(manual)),
        # "<" of a text would be read as a tag of the page
        "initial": json.dumps(beginning, ensure_ascii=False).replace("<", "\\u003c"),
        "scripts": "\n".join(f"<script>\n{script.strip()}\n</script>" for script in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _text("page.html"))


def _text(name: str) -> str:
    return files("fastopt.viz.explorer").joinpath(name).read_text(encoding="utf-8")


def _checked(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state as it is written into the page."""
    known = (*NUMBERS, *TEXTS, "start", "optimizers")
    given = {name: value for name, value in state.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"state has {name!r}; give some of {', '.join(known)}")
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"state[{name!r}] must be a number; got {value!r}")
        if name in TEXTS and not isinstance(value, str):
            raise ValueError(f"state[{name!r}] must be a string; got {value!r}")
    checked = dict(given)
    if not 1 <= checked.get("steps", 1) <= MOST_STEPS or checked.get("steps", 1) % 1:
        raise ValueError(
            f"state['steps'] must be a whole number from 1 to {MOST_STEPS}, which the page keeps "
            f"all of; got {checked['steps']!r}"
        )
    if "surface" in checked and checked["surface"] not in SURFACES:
        raise ValueError(
            f"state['surface'] must be one of {', '.join(SURFACES)}; got {checked['surface']!r}"
        )
    if "start" in checked:
        start = [float(one) for one in checked["start"]]
        if len(start) != 2:
            raise ValueError(f"state['start'] must be two numbers, x and y; got {start}")
        checked["start"] = start
    if "optimizers" in checked:
        checked["optimizers"] = [_optimizer(one) for one in checked["optimizers"]]
        if not 1 <= len(checked["optimizers"]) <= MOST_OPTIMIZERS:
            raise ValueError(
                f"state['optimizers'] must be one to {MOST_OPTIMIZERS} optimizers, for the page "
                f"shows so many; got {len(checked['optimizers'])}"
            )
    try:
        json.dumps(checked, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"state must hold finite numbers, strings, flags and lists of them: {error}"
        ) from error
    return checked


def _optimizer(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping) or "name" not in given or set(given) - {"name", "options"}:
        raise ValueError(
            'an optimizer of state must be a dict such as {"name": "Adam", "options": {"lr": 0.1}},'
            f" and not {given!r}"
        )
    name, options = given["name"], dict(given.get("options") or {})
    if name not in javascript.OFFERED:
        raise ValueError(
            f"the page has the optimizers {', '.join(javascript.OFFERED)}; got {name!r}. Give one "
            "of them"
        )
    return {"name": name, "options": options}
