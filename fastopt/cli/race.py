"""``fastopt race``: the paths of optimizers over a surface, as pictures, pages and numbers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from fastopt.viz import Race

HELP = "draw the paths that optimizers take over a cost surface"

_EPILOG = """\
{syntax}
  --optimizer "adam lr=0.1 betas=0.9,0.99" --optimizer "sgd lr=0.02 momentum=0.9"
All of fastopt's can race (python -c "import fastopt; print(fastopt.optimizers.names())"). Those
that need the loss or the curvature are given it; Muon and NorMuon, which update matrices, get the
point as a matrix of one row.

surfaces:
{surfaces}
  or a formula in x and y, such as --surface "x**2 + 3*y**2 + sin(3*x)", or --surface="-x + ..." if
  it begins with a minus; with + - * / ** ( ) pi e {functions}

The page of --html shows up to four optimizers, and says which it does not have.
A path that diverges is drawn up to where it leaves the picture, and the legend says so.
Exit code: 0; 1 if a file cannot be written or matplotlib is missing; 2 for a wrong command line.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``race`` takes."""
    from fastopt.viz import surfaces
    from fastopt.viz.race import SYNTAX

    named = "\n".join(f"  {name:<11} {about}" for name, about in surfaces.SURFACES.items())
    functions = " ".join(surfaces.FUNCTIONS)
    parser.epilog = _EPILOG.format(syntax=SYNTAX, surfaces=named, functions=functions)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(refuse=parser.error)
    add = parser.add_argument
    add(
        "--optimizer",
        action="append",
        metavar="TEXT",
        help='who races, once for each: "adam lr=0.1"; default: four that suit the surface',
    )
    add("--surface", default="bowl", help="a name or a formula, see below; default: bowl")
    add("--condition", type=float, metavar="C", help="how oblong bowl and noisy are, above 0")
    add(
        "--start",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="where they begin; default: the surface's own",
    )
    add("--steps", type=int, metavar="N", help="default: the surface's own, from 40 to 200")
    add("--noise", type=float, metavar="A", help="of mini-batches; default: 0, and 15 for noisy")
    add(
        "--batch",
        type=int,
        default=8,
        metavar="N",
        help="how many of 64 examples: 1, 2, 4, ..., 64; default: 8",
    )
    add("--seed", type=int, default=0, metavar="N", help="of mini-batches; default: 0")
    add(
        "--out",
        action="append",
        default=[],
        metavar="FILE",
        help="what to write, once for each file; its suffix says how: .png .svg .pdf a picture, "
        ".gif an animation, .html a page to explore, .json .csv the paths in numbers; default: "
        "race.png",
    )
    add("--html", metavar="FILE", help="the same for a name that must end in .html")
    add("--json", metavar="FILE", help="the same for a name that must end in .json")
    add("--dark", action="store_true", help="light lines on a dark ground")
    add("--fps", type=float, default=12.0, metavar="N", help="of a GIF, per second; default: 12")
    add("--frames", type=int, default=120, metavar="N", help="of a GIF, at most; default: 120")


def run(given: argparse.Namespace) -> int:
    """Make the race, write its files, print how it ended; return the exit code."""
    from fastopt import viz
    from fastopt.errors import FastoptError
    from fastopt.viz import drawing

    refuse: Callable[[str], NoReturn] = given.refuse
    try:
        files = _files(given)
        drawing.check_frames(given.frames, given.fps)
        race = viz.race(
            given.optimizer,
            viz.surface(given.surface, condition=given.condition),
            start=given.start,
            steps=given.steps,
            noise=given.noise,
            batch=given.batch,
            seed=given.seed,
        )
    except (ValueError, TypeError, FloatingPointError, FastoptError) as error:
        refuse(str(error))
    print(report(race))
    for path in files:
        try:
            race.save(path, dark=given.dark, frames=given.frames, fps=given.fps)
        except ValueError as error:  # of a page, which does not have all that races
            refuse(f"{path}: {error}")
        except (OSError, ImportError) as error:
            print(f"fastopt race: cannot write {path}: {error}", file=sys.stderr)
            return 1
        print(f"written: {path}")
    return 0


def _files(given: argparse.Namespace) -> list[Path]:
    """Return what is to be written, after a look at suffixes and folders."""
    from fastopt.viz.race import suffix

    named = [("--out", one) for one in given.out]
    named += [("--html", given.html)] if given.html is not None else []
    named += [("--json", given.json)] if given.json is not None else []
    for option, text in named:
        kind = suffix(text)
        if option != "--out" and kind != f".{option[2:]}":
            raise ValueError(f"{option} is for a name that ends in .{option[2:]}; got {text!r}")
        if not os.path.isdir(os.path.dirname(text) or ".") or os.path.isdir(text):
            raise ValueError(f"{text} cannot be written; name a file in a folder that is there")
    return [Path(text) for _, text in named] or [Path("race.png")]


def report(race: Race) -> str:
    """Return how a race ended as a table."""
    from fastopt.cli.table import aligned

    rows = []
    for path in race.records():
        end = path["diverged_at_step"]
        rows.append(
            (
                path["optimizer"],
                f"{path['cost'][-1]:.6g}",
                f"{path['x'][-1]:.6g}",
                f"{path['y'][-1]:.6g}",
                f"{min(path['cost']):.6g}",
                "" if end is None else f"diverged at step {end}; the numbers are those before",
            )
        )
    header = ("optimizer", "cost at the end", "x", "y", "lowest cost", "")
    x, y = race.start
    first = (
        f"{race.surface.name}, {race.steps} steps from ({x:g}, {y:g}), where the cost is "
        f"{race.costs[0, 0]:.6g}"
    )
    if race.surface.lowest is not None:
        first += f"; the minimum is {race.surface.lowest:g}"
    return "\n".join([first, "", *aligned(header, rows)])
