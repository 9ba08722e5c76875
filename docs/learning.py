"""What the pages of Learn share: the valley, pictures that look alike, numbers that prose quotes.

A page hands what it has computed to ``keep("topic", name="3.2")``; in any page of the manual
``:number:`topic.name``` then stands for 3.2 (MyST: ``{number}`topic.name```). A number that no page
has kept is a warning, and so an error: no number of the prose is typed.

The scripts run without Sphinx too: ``PYTHONPATH=docs python docs/learn/plot_03_momentum.py``.
"""

from __future__ import annotations

import atexit
import contextlib
import html
import importlib.util
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fastopt

Array = np.ndarray[Any, Any]

ROOT = Path(__file__).parents[1]

# The valley of the first pages: 25 times as steep across (y) as along (x).
CURVATURES = np.array([1.0, 25.0])
start = np.array([-10.0, 1.5])
LEVELS = (0.3, 1, 3, 10, 25, 50, 100, 200)

# From the colours of Okabe and Ito, which colour-blind eyes tell apart; line styles differ too.
BLUE: dict[str, Any] = {"color": "#0072B2", "linestyle": "-"}
VERMILION: dict[str, Any] = {"color": "#D55E00", "linestyle": "--"}
GREEN: dict[str, Any] = {"color": "#009E73", "linestyle": "-."}
PURPLE: dict[str, Any] = {"color": "#AA4499", "linestyle": (0, (1, 1.2))}
ORANGE: dict[str, Any] = {"color": "#B07D00", "linestyle": (0, (5, 1, 1, 1, 1, 1))}
BLACK: dict[str, Any] = {"color": "black", "linestyle": ":"}
STYLES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, BLACK)

_LOOK = {
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 200,  # sharp on fine screens
    "lines.linewidth": 1.7,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
}


# The valley and paths over it ---------------------------------------------------------------------


def cost(point: Array) -> Any:
    """Return the height of the valley at points (x, y)."""
    return (CURVATURES * point**2).sum(axis=-1) / 2


def gradient(point: Array) -> Array:
    """Return the slope of the valley in x and in y."""
    return CURVATURES * point


def walk(opt: fastopt.Optimizer, steps: int, slope: Callable[[Array], Array] = gradient) -> Array:
    """Make steps; return the points gone through, the first included, a row for each."""
    point = opt.params
    points = [point.copy()]
    for _ in range(steps):
        opt.step(slope(point))  # moves the point itself
        points.append(point.copy())
    return np.array(points)


def steps_to(points: Array, height: float, of: Callable[[Array], Any] = cost) -> int | None:
    """Return after how many steps the cost is below a height, and stays there."""
    above = np.flatnonzero(~(of(points) < height))
    first = int(above[-1]) + 1 if above.size else 0
    return first if first < len(points) else None


# Handwritten digits and a small network -----------------------------------------------------------

Params = dict[str, Array]


def digits() -> tuple[Array, Array, Array, Array]:
    """Return images and digits to train on (a 1 in the digit's column), and those held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(images))
    x, y = images[order] / 16, np.eye(10)[labels[order]]  # grey levels were 0 to 16
    return x[450:], y[450:], x[:450], y[:450]


def network(seed: int = 0) -> Params:
    """Return the parameters of 64 pixels, 32 hidden values and 10 scores, at random."""
    rng = np.random.default_rng(seed)
    return {
        "W1": rng.standard_normal((64, 32)) / 8,
        "b1": np.zeros(32),
        "W2": rng.standard_normal((32, 10)) / np.sqrt(32),
        "b2": np.zeros(10),
    }


def loss_and_gradients(params: Params, x: Array, y: Array) -> tuple[float, Params]:
    """Return the mean loss over images, and its gradient for each parameter."""
    hidden = np.tanh(x @ params["W1"] + params["b1"])
    scores = hidden @ params["W2"] + params["b2"]
    scores -= scores.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    loss = -(y * log_p).sum() / len(x)

    d_scores = (np.exp(log_p) - y) / len(x)  # backwards, by the chain rule
    d_sums = (d_scores @ params["W2"].T) * (1 - hidden**2)
    return loss, {
        "W1": x.T @ d_sums,
        "b1": d_sums.sum(axis=0),
        "W2": hidden.T @ d_scores,
        "b2": d_scores.sum(axis=0),
    }


def accuracy(params: Params, x: Array, y: Array) -> float:
    """Return the share of images whose digit has the highest score."""
    hidden = np.tanh(x @ params["W1"] + params["b1"])
    scores = hidden @ params["W2"] + params["b2"]
    return float((scores.argmax(axis=1) == y.argmax(axis=1)).mean())


def batches(x: Array, y: Array, epochs: int, seed: int = 0) -> Iterator[tuple[Array, Array]]:
    """Yield 32 images at a time, each image once per epoch, in an order that changes."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for first in range(0, len(x), 32):
            some = order[first : first + 32]
            yield x[some], y[some]


# Pictures -----------------------------------------------------------------------------------------


def picture(
    said: str, rows: int = 1, columns: int = 1, *, height: float = 3.6, **more: Any
) -> tuple[Figure, Any]:
    """Return a figure and its axes; ``said`` is what a reader who does not see it is told."""
    plt.rcParams.update(_LOOK)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.4, 0.86 * height), layout="constrained", **more
    )
    title = figure.suptitle(said)  # the gallery takes it for the alternative text
    title.set_visible(False)
    title.set_in_layout(False)
    return figure, axes


def contours(axes: Axes, x: Sequence[float] = (-11, 2), y: Sequence[float] = (-2.2, 2.2)) -> None:
    """Draw the valley's lines of equal cost, the start and the minimum, at one scale."""
    grid = np.stack(np.meshgrid(np.linspace(*x, 200), np.linspace(*y, 120)), axis=-1)
    axes.contour(grid[..., 0], grid[..., 1], cost(grid), LEVELS, colors="0.75", linewidths=0.8)
    axes.plot(*start, "D", color="black", markersize=6, zorder=5)
    axes.plot(0, 0, "*", color="black", markersize=11, zorder=5)
    axes.annotate(
        "start", tuple(start), (0, 7), textcoords="offset points", ha="center", fontsize=9
    )
    axes.annotate("minimum", (0, 0), (6, 7), textcoords="offset points", fontsize=9)
    axes.set(xlim=x, ylim=y, xlabel="x, along the valley", ylabel="y, across", aspect="equal")
    axes.grid(visible=False)


def path(axes: Axes, points: Array, style: Mapping[str, Any], label: str) -> None:
    """Draw a path with a dot for each step."""
    axes.plot(*points.T, marker="o", markersize=3, label=label, zorder=3, **style)


class Table:
    """Rows that the gallery shows as a table, and Python as text."""

    def __init__(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.head, self.rows = head, rows

    def __repr__(self) -> str:
        return "\n".join("  ".join(row) for row in (self.head, *self.rows))

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            texts = (re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(cell)) for cell in cells)
            left = ' style="text-align: left"'
            return "".join(f"<{tag}{left}>{text}</{tag}>" for text in texts)

        body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in self.rows)
        head = f"<thead><tr>{line(self.head, 'th')}</tr></thead>"
        return (
            '<div class="pst-scrollable-table-container">'
            f'<table class="table">{head}<tbody>{body}</tbody></table></div>'
        )


# The programs in examples/ ------------------------------------------------------------------------


def run_example(name: str, *arguments: str) -> Path:
    """Run a program of ``examples/`` as from the command line; return the folder it wrote into."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):  # progress bars
            module.main(list(arguments))
    finally:
        del sys.modules[name]
    return folder


def printed_by_example(name: str, *arguments: str) -> str:
    """Run a program of ``examples/`` as from the command line; return what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_example(name, *arguments)
    return printed.getvalue()


def show(path: Path, said: str) -> Figure:
    """Show a picture that a program has saved, as the other pictures are."""
    plt.rcParams.update(_LOOK)
    pixels = plt.imread(path)
    height, width = pixels.shape[:2]
    figure = plt.figure(figsize=(width / 200, height / 200))  # pixel by pixel
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(pixels)
    axes.set_axis_off()
    figure.suptitle(said).set_visible(False)
    return figure


# Numbers that prose quotes ------------------------------------------------------------------------

_folder: Path | None = None  # None: not built by Sphinx


def keep(topic: str, **numbers: str) -> None:
    """Write down numbers, each as it is to be read, for ``:number:`topic.name```."""
    for name, text in numbers.items():
        if not isinstance(text, str):
            raise TypeError(f"{topic}.{name} must be text, as it is to be read; got {text!r}")
    if _folder is not None:
        _folder.mkdir(parents=True, exist_ok=True)
        (_folder / f"{topic}.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Add the role ``number`` to Sphinx."""
    from docutils import nodes

    def number(
        name: str, rawtext: str, text: str, lineno: int, inliner: Any, *_: Any, **__: Any
    ) -> tuple[list[Any], list[Any]]:
        topic, _dot, key = text.partition(".")
        assert _folder is not None
        file = _folder / f"{topic}.json"
        inliner.document.settings.env.note_dependency(str(file))
        try:
            found = json.loads(file.read_text(encoding="utf-8"))[key]
        except (OSError, KeyError):
            problem = inliner.reporter.warning(f"no page has kept the number {text}", line=lineno)
            return [nodes.problematic(rawtext, rawtext)], [problem]
        return [nodes.inline(rawtext, found, classes=["computed"])], []

    def place(app: Any, _config: Any) -> None:
        global _folder
        _folder = Path(app.srcdir) / "learn_pages" / "numbers"

    app.add_role("number", number)
    app.add_css_file("learn.css")
    app.connect("config-inited", place, priority=1)  # before the gallery runs the scripts
    return {"parallel_read_safe": True, "parallel_write_safe": True}
