"""Races: the paths that optimizers take over a surface, and their pictures and animations."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from fastopt import optimizers as by_name
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import as_float, whole
from fastopt.optimizers.base import Optimizer
from fastopt.viz import surfaces
from fastopt.viz.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Make: TypeAlias = Callable[[Array], Any]
"""Makes an optimizer, or what stands around one, of an array of two numbers: the point."""

Contenders: TypeAlias = str | Make | Sequence[str | Make] | Mapping[str, str | Make]
"""Who races: texts such as "adam lr=0.1" and functions, one, some, or by label."""

# -------------------------------------------------------------------------------------------------
# Who races: an optimizer in one line of text, or a function that makes one.

SYNTAX = """\
An optimizer is its name and its hyperparameters, name=value, with blanks between them and none
around = and commas: "adam lr=0.1 betas=0.9,0.99". A value is a number, true, false, none, a word,
or several of these with commas. What is not named is as the optimizer's class has it.
label='any text' is what pictures call it."""


class Contender(NamedTuple):
    """An optimizer in a race: what it is called, how it is made, and its settings in words.

    The settings are ``{"name": "Adam", "options": {"lr": 0.1}}``; None for one that a function
    makes.
    """

    label: str
    make: Make
    settings: dict[str, Any] | None = None

    @classmethod
    def of(cls, text: str) -> Contender:
        """Read an optimizer from text, see ``SYNTAX``.

        Raises:
            TypeError: for what is no text.
            ValueError: for an optimizer that is not there (the message has the closest), and for
                words that are no name=value.
        """
        if not isinstance(text, str):
            raise TypeError(
                "an optimizer in a race is text such as 'adam lr=0.1', or a function that takes an "
                f"array and returns an optimizer; got {text!r:.200}"
            )
        try:
            name, *words = shlex.split(text)
        except ValueError as error:
            reason = "it is empty" if not text.strip() else str(error).lower()
            raise ValueError(f"cannot read the optimizer {text!r:.200}: {reason}") from None
        made = by_name.named(name)
        options, label = _options(text, words)
        words = [word for word in words if not word.startswith("label=")]
        # Two numbers need no compiled code. The bits are the same, so it is no setting.
        backend = options.pop("backend", "numpy")
        settings = {"name": made.__name__, "options": options}
        shape = (2,) if _takes_vectors(made) else (1, 2)

        def make(point: Array) -> Optimizer:
            return made(point.reshape(shape), backend=backend, **options)

        if "lr" not in options:
            words.append(f"lr={signature(made).parameters['lr'].default:g}")
        return cls(label or " ".join([made.__name__, *words]), make, settings)


def _options(text: str, words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Return the hyperparameters that words name, and the label if there is one."""
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise ValueError(
                f"in the optimizer {text!r:.200}: {word!r} is no name=value, such as lr=0.1 or "
                "betas=0.9,0.99 (no blanks around = and commas)"
            )
        if name in options:
            raise ValueError(f"in the optimizer {text!r:.200}: {name} is there twice")
        options[name] = value if name == "label" else _value(value)
    label = options.pop("label", None)
    return options, label


def _value(text: str) -> Any:
    """Return what a value stands for: a number, a truth value, None, a word, or a tuple of them."""
    if "," in text:
        return tuple(_value(one) for one in text.split(",") if one)
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _takes_vectors(made: type[Optimizer]) -> bool:
    """Return whether an optimizer updates vectors; those of matrices get the point as a row."""
    try:
        made._check_array("point", (2,), "float64")
    except ValueError:
        return False
    return True


def _contenders(given: Any) -> list[Contender]:
    if isinstance(given, str) or callable(given):
        given = [given]
    if isinstance(given, Mapping):
        pairs = [(str(label), one) for label, one in given.items()]
    elif isinstance(given, Sequence):
        pairs = [("", one) for one in given]
    else:
        raise TypeError(
            "optimizers must be a list of texts such as 'adam lr=0.1' and of functions, or a dict "
            f"of them by label; got {given!r:.200}"
        )
    if not pairs:
        raise ValueError("a race needs an optimizer; got none")
    found = []
    for number, (label, one) in enumerate(pairs, 1):
        if callable(one):
            name = getattr(one, "__name__", "<lambda>")
            nameless = f"optimizer {number}" if name == "<lambda>" else name
            found.append(Contender(label or nameless, one))
        else:
            read = Contender.of(one)
            found.append(read._replace(label=label) if label else read)
    return found


# -------------------------------------------------------------------------------------------------
# The race


@dataclass(frozen=True, eq=False, repr=False)
class Race:
    """What optimizers did on a surface; ``race`` makes it.

    Attributes:
        surface: where they ran.
        labels: what the optimizers are called.
        settings: for each ``{"name": "Adam", "options": {"lr": 0.1}}``, or None where a function
            made it.
        points: where they were, float64 of shape (optimizers, steps + 1, 2): x and y at the start
            and after every step. NaN from the step on that took x, y, the cost or its slope out of
            the finite numbers.
        costs: the cost there, without the noise of mini-batches, shape (optimizers, steps + 1);
            NaN where the points are.
        noise, batch, seed: of the mini-batches that all optimizers saw; exact gradients if noise is
            0, see ``fastopt.viz.minibatches``.
    """

    surface: Surface
    labels: tuple[str, ...]
    settings: tuple[dict[str, Any] | None, ...]
    points: Array
    costs: Array
    noise: float = 0.0
    batch: int = 8
    seed: int = 0

    def __repr__(self) -> str:
        who = ", ".join(self.labels)
        return f"<Race over {self.surface.name}, {self.steps} steps: {who}>"

    @property
    def steps(self) -> int:
        """How many steps each optimizer was asked for."""
        return int(self.points.shape[1]) - 1

    @property
    def start(self) -> tuple[float, float]:
        """Where all of them began."""
        x, y = self.points[0, 0]
        return float(x), float(y)

    @cached_property
    def diverged(self) -> tuple[int | None, ...]:
        """The first step of each optimizer that left the finite numbers, or None."""
        lost = np.isnan(self.costs)
        return tuple(int(row.argmax()) if row.any() else None for row in lost)

    def records(self) -> list[dict[str, Any]]:
        """Return each path as a dict of plain values: optimizer, x, y, cost, diverged_at_step.

        The lists of x, y and cost have a value for the start and for every step; where a path
        diverged they end before that step.
        """
        found = []
        for label, points, costs, end in zip(
            self.labels, self.points, self.costs, self.diverged, strict=True
        ):
            x, y = points[:end].T.tolist()
            found.append(
                {
                    "optimizer": label,
                    "diverged_at_step": end,
                    "x": x,
                    "y": y,
                    "cost": costs[:end].tolist(),
                }
            )
        return found

    def to_json(self) -> str:
        """Return the race as text in JSON: the surface and the paths."""
        about = {
            "name": self.surface.name,
            "formula": self.surface.formula,
            "minima": [list(point) for point in self.surface.minima],
            "noise": self.noise,
            "batch": self.batch,
            "seed": self.seed,
        }
        whole_race = {
            "surface": about,
            "start": list(self.start),
            "steps": self.steps,
            "paths": self.records(),
        }
        return json.dumps(whole_race, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Return the paths as text in CSV: optimizer, step, x, y, cost; the start is step 0."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["optimizer", "step", "x", "y", "cost"])
        for path in self.records():
            rows = zip(path["x"], path["y"], path["cost"], strict=True)
            writer.writerows([path["optimizer"], k, *row] for k, row in enumerate(rows))
        return text.getvalue()

    def state(self) -> dict[str, Any]:
        """Return what the explorer's page begins with: the surface, the noise, the optimizers.

        Raises ValueError where a function made an optimizer: a page has them by name.
        """
        nameless = [k for k, one in enumerate(self.settings) if one is None]
        if nameless:
            raise ValueError(
                f"{self.labels[nameless[0]]} was made by a function, and a page has optimizers by "
                "name: give them as text such as 'adam lr=0.1'"
            )
        surface = self.surface
        known = surface.name in _OF_THE_PAGE
        return {
            "surface": surface.name if known else "formula",
            "condition": surface.condition,
            "formula": None if known else surface.formula,
            "noise": self.noise,
            "batch": self.batch,
            "seed": self.seed,
            "start": list(self.start),
            "steps": self.steps,
            "optimizers": [{**one} for one in self.settings if one is not None],
        }

    def plot(self, ax: Axes | None = None, *, dark: bool = False) -> Figure:
        """Draw the paths over the surface with matplotlib; return the figure.

        Args:
            ax: matplotlib's axes to draw the surface with its paths into; None: a new figure, with
                the cost against the steps beside them.
            dark: light lines on a dark ground.

        Raises ImportError where matplotlib is not installed.
        """
        from fastopt.viz import drawing

        figure: Any
        if ax is None:
            figure = drawing.whole_picture(self, drawing.new_window, dark)
        else:
            drawing.draw_map(self, ax, drawing.theme(dark))
            figure = ax.figure
        found: Figure = figure
        return found

    def animate(self, *, dark: bool = False, frames: int = 120, fps: float = 12.0) -> FuncAnimation:
        """Return matplotlib's ``FuncAnimation`` of the race, which notebooks show and files hold.

        Args:
            dark: light lines on a dark ground.
            frames: at most so many pictures; where there are more steps, a picture shows several.
            fps: pictures per second, > 0.

        Raises ImportError where matplotlib is not installed.
        """
        from fastopt.viz import drawing

        film: FuncAnimation = drawing.animation(self, dark, frames, fps)
        return film

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        dark: bool = False,
        frames: int = 120,
        fps: float = 12.0,
    ) -> None:
        """Write the race to a file; its suffix says as what.

        ``.png``, ``.svg`` and ``.pdf`` are pictures, ``.gif`` is an animation, ``.html`` the page
        with the explorer, at this surface, start and with these optimizers, ``.json`` and ``.csv``
        are numbers. dark, frames and fps are those of ``plot`` and ``animate``.

        Raises ValueError for another suffix, and for what a page does not have (it shows up to four
        optimizers, and has the elementwise ones); OSError where the file cannot be written;
        ImportError where matplotlib is not installed and a picture is asked for.
        """
        kind = suffix(path)
        if kind in (".json", ".csv"):
            text = self.to_json() if kind == ".json" else self.to_csv()
            Path(path).write_text(text, encoding="utf-8")
            return
        if kind == ".html":
            colours = {"theme": "dark"} if dark else {}
            page = importlib.import_module("fastopt.viz.explorer")
            page.write(path, state={**self.state(), **colours})
            return
        from fastopt.viz import drawing

        if kind == ".gif":
            drawing.save_animation(self, path, dark, frames, fps)
        else:
            drawing.save_picture(self, path, dark)


_OF_THE_PAGE = ("bowl", "rosenbrock", "beale", "saddle", "noisy")
"""The surfaces that the explorer knows by these names; others are formulas there."""

SUFFIXES = (".png", ".svg", ".pdf", ".gif", ".html", ".json", ".csv")
"""What a race is written as."""


def suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a file that a race can be written to, or raise ValueError."""
    found = Path(path).suffix.lower()
    if found not in SUFFIXES:
        raise ValueError(
            f"{str(path)!r} must end in one of {', '.join(SUFFIXES)}, which says what to write"
        )
    return found


def race(
    optimizers: Contenders | None = None,
    surface: str | Surface = "bowl",
    *,
    start: Sequence[float] | Array | None = None,
    steps: int | None = None,
    noise: float | None = None,
    batch: int = 8,
    seed: int = 0,
) -> Race:
    """Let optimizers run over a surface from one point; return their paths.

    ::

        paths = fastopt.viz.race(["sgd lr=0.07", "adam lr=0.3 betas=0.9,0.99"], "rosenbrock")
        paths.points                      # (optimizers, steps + 1, 2)
        paths.save("race.png")            # or .svg, .gif, .html, .json, .csv
        fastopt.viz.race(
            {"with a schedule": lambda p: fastopt.Adam(p, lr=fastopt.schedules.cosine(0.3, 60))},
            "x**2 + 10*y**2 + sin(3*x)",
            start=(3, 1),
        ).plot()

    The optimizers are the package's own, in float64: a path has the bits of a loop that steps by
    the surface's gradients. Those that take the loss of a step (MoMo) get it, those that take the
    Hessian's diagonal (Sophia, AdaHessian) get the exact one at each step, and ``SAM`` gets its
    second gradient. Optimizers of matrices (Muon, NorMuon) get the point as a matrix of one row,
    for which an orthogonal update is the direction of the average, one long. Paths of optimizers
    that take gradients elsewhere than at their result (Schedule-Free) are where gradients are
    taken.

    Args:
        optimizers: a list of texts such as ``"adam lr=0.1 betas=0.9,0.99"`` (a name of
            ``fastopt.optimizers.names()`` and its hyperparameters; ``label='...'`` names it in
            pictures) and of functions that are handed an array of two numbers and return an
            optimizer of it; or a dict of them by label. None: some that suit the surface.
        surface: a name ("bowl", "rosenbrock", "beale", "himmelblau", "saddle", "noisy"), a formula
            in x and y, or a ``Surface``.
        start: the point (x, y) where they begin; None: the surface's own.
        steps: how many, at least 1; None: the surface's own.
        noise: of mini-batches, see ``fastopt.viz.minibatches``; None: the surface's own, 0 but for
            "noisy". The costs that are drawn are those without it.
        batch: how many of the 64 examples a step sees: 1, 2, 4, 8, 16, 32 or 64.
        seed: of the mini-batches, a whole number from 0 on. Each optimizer sees the same ones.

    Raises:
        TypeError, ValueError: for an optimizer or surface that is not there, hyperparameters that
            the optimizer refuses, other arguments out of range, and a start where the cost or its
            slope is not finite.
    """
    ground = surfaces.surface(surface)
    contenders = _contenders(ground.contenders if optimizers is None else optimizers)
    begin = _point(ground.start if start is None else start)
    count = whole("race: steps", ground.steps if steps is None else steps, 1)
    spread = as_float(ground.noise if noise is None else noise)
    if spread is None or not 0.0 <= spread < math.inf:
        raise ValueError(f"race: noise must be a number in [0, inf); got {noise!r:.200}")
    size = whole("race: batch", batch, 1, surfaces.EXAMPLES)
    if surfaces.EXAMPLES % size:
        raise ValueError(f"race: batch must be 1, 2, 4, 8, 16, 32 or 64, parts of 64; got {size}")
    chosen = whole("race: seed", seed, 0)
    off = surfaces.minibatches(spread, size, chosen, count) if spread else np.zeros((count, 2))
    _check_start(ground, begin)
    paths = [_walked(one, ground, begin, off) for one in contenders]
    points = np.array(paths)
    costs = ground.cost(points[..., 0], points[..., 1])
    lost = np.cumsum(~np.isfinite(costs), axis=1) > 0
    points[lost], costs[lost] = np.nan, np.nan
    labels = tuple(one.label for one in contenders)
    settings = tuple(one.settings for one in contenders)
    return Race(ground, labels, settings, points, costs, spread, size, chosen)


def _point(given: Any) -> Array:
    try:
        found = np.array(given, np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (2,) or not np.isfinite(found).all():
        raise ValueError(f"race: start must be two finite numbers, x and y; got {given!r:.200}")
    return found


def _check_start(surface: Surface, start: Array) -> None:
    slope = surface.gradient(start)
    if not (np.isfinite(surface.cost(*start)) and np.isfinite(slope).all()):
        raise ValueError(
            f"race: the cost {surface.formula} or its slope is not finite at the start "
            f"({start[0]:g}, {start[1]:g}); begin elsewhere"
        )


def _walked(contender: Contender, surface: Surface, start: Array, off: Array) -> Array:
    """Return the points that an optimizer goes through, NaN from where it is lost."""
    points = np.full((len(off) + 1, 2), np.nan)
    points[0] = start
    point = start.copy()
    try:
        opt = contender.make(point)
        _check_optimizer(opt, point)
        for k, noise in enumerate(off, 1):
            if not _stepped(opt, surface, point, noise):
                break
            points[k] = point
    except (TypeError, ValueError, FloatingPointError) as error:
        raise type(error)(f"{contender.label}: {error}") from error
    return points


def _check_optimizer(opt: Any, point: Array) -> None:
    """Raise TypeError for what is no optimizer of the point."""
    params = getattr(getattr(opt, "_innermost", opt), "params", None)
    if not isinstance(params, np.ndarray) or not np.may_share_memory(params, point):
        raise TypeError(
            "a function in a race is handed an array and must return an optimizer of it, such as "
            f"lambda p: fastopt.Adam(p, lr=0.1); got {opt!r:.200}"
        )


def _stepped(opt: Any, surface: Surface, point: Array, noise: Array) -> bool:
    """Make a step by the gradient of a mini-batch; return whether all is finite."""
    grad = surface.gradient(point) + noise
    if not np.isfinite(grad).all():
        return False
    inner = getattr(opt, "_innermost", opt)
    shape = inner.params.shape
    extra: dict[str, Any] = {}
    if inner._takes_value:
        extra["value"] = float(surface.cost(*point) + noise @ point)
    if inner._estimate is not None:
        extra["hessian"] = surface.curvature(point).reshape(shape)
    with np.errstate(all="ignore"):  # of those that diverge
        if hasattr(opt, "ascent"):
            with opt.ascent(grad.reshape(shape)):
                grad = surface.gradient(point) + noise
        opt.step(grad.reshape(shape), **extra)
    return bool(np.isfinite(point).all())
