"""Draw the paths that optimizers take down a long, narrow valley.

    python examples/paths.py --out docs/images

The cost is f(x, y) = (x² + 25 y²) / 2, a valley 25 times as steep across (y) as along (x). One
learning rate has to do for both: gradient descent is stable across the valley only below 2/25, and
there it creeps along. Four pictures show what goes wrong and what the optimizers do about it.

* paths_learning_rate.png: gradient descent with a learning rate too small, and one too large.
* paths_momentum.png: just below 2/25 it swings from side to side; Momentum damps the swinging.
* paths_rmsprop.png: RMSprop and Adam divide by the size of past gradients, so the steep direction
  gets no longer steps than the flat one. Adam also averages as Momentum does, and sways a little.
* paths_rmsprop_lr.png: its steps stay about as long as the learning rate says. Too small, they do
  not get there; too large, they do not settle.

The numbers on the contours are the cost. Both axes have the same scale, so every step of gradient
descent is seen to leave its contour at a right angle. Needs ``pip install fastopt[examples]``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

import fastopt

matplotlib.use("Agg")  # draws into files, needs no window
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[np.float64]]

CURVATURES = np.array([1.0, 25.0])  # of the cost, along the valley and across it
START = (-10.0, 1.5)
LEVELS = np.array([1, 3, 10, 25, 50, 100])
X_RANGE, Y_SPAN = (-11.0, 2.2), (2.2, 3.2)  # of y: at least, and at most, up and down

# From the colours of Okabe and Ito, which colour-blind eyes tell apart. Line style and marker
# differ too, for a print in grey.
BLUE: dict[str, Any] = {"color": "#0072B2", "linestyle": "-", "marker": "o"}
VERMILION: dict[str, Any] = {"color": "#D55E00", "linestyle": "--", "marker": "s"}
GREEN: dict[str, Any] = {"color": "#009E73", "linestyle": "-.", "marker": "^"}


@dataclass(frozen=True)
class Line:
    """One optimizer's path: how it is made, its name in the legend, how it is drawn."""

    make: Callable[[Array], fastopt.Optimizer]
    label: str
    style: dict[str, Any]


# The paths --------------------------------------------------------------------------------------


def cost(x: Array, y: Array) -> Array:
    """Return the height of the valley."""
    return (CURVATURES[0] * x**2 + CURVATURES[1] * y**2) / 2


def gradient(point: Array) -> Array:
    """Return the slope of the cost at a point (x, y)."""
    return CURVATURES * point


def walk(make: Callable[[Array], fastopt.Optimizer], steps: int) -> Array:
    """Return the points that an optimizer goes through, a row for each."""
    point = np.array(START)
    opt = make(point)
    points = [point.copy()]  # a copy, because the optimizer moves the point itself
    for _ in range(steps):
        opt.step(gradient(point))
        points.append(point.copy())
    return np.array(points)


# Two numbers need no compiled code, so these ask for NumPy; the bits are the same on all backends.


def sgd(lr: float, style: dict[str, Any]) -> Line:
    """Return plain gradient descent."""
    label = f"gradient descent, lr = {lr:g}"
    return Line(lambda point: fastopt.SGD(point, lr, backend="numpy"), label, style)


def momentum(lr: float, beta: float, style: dict[str, Any]) -> Line:
    """Return descent along the averaged gradient."""
    label = f"Momentum, lr = {lr:g}, beta = {beta:g}"
    return Line(lambda point: fastopt.Momentum(point, lr, beta=beta, backend="numpy"), label, style)


def rmsprop(lr: float, style: dict[str, Any]) -> Line:
    """Return RMSprop; its first step is 1 / sqrt(1 - beta), about 3, times lr."""
    label = f"RMSprop, lr = {lr:g}"
    return Line(lambda point: fastopt.RMSprop(point, lr, backend="numpy"), label, style)


def adam(lr: float, style: dict[str, Any]) -> Line:
    """Return Adam."""
    label = f"Adam, lr = {lr:g}"
    return Line(lambda point: fastopt.Adam(point, lr, backend="numpy"), label, style)


# Of each file: panels, of each panel: lines. Momentum gets beta = 0.7 because the valley is short:
# the usual 0.9 remembers ten steps, and on a way of forty it would still be swaying at the end.
PICTURES: dict[str, list[list[Line]]] = {
    "paths_learning_rate.png": [[sgd(0.005, BLUE)], [sgd(0.0805, VERMILION)]],
    "paths_momentum.png": [[sgd(0.078, BLUE)], [momentum(0.078, 0.7, VERMILION)]],
    "paths_rmsprop.png": [[sgd(0.078, BLUE)], [rmsprop(0.3, VERMILION), adam(0.3, GREEN)]],
    "paths_rmsprop_lr.png": [
        [rmsprop(0.05, BLUE)],
        [rmsprop(0.3, VERMILION)],
        [rmsprop(1.0, GREEN)],
    ],
}


# The pictures -----------------------------------------------------------------------------------


def draw_valley(axes: Axes, y_span: float) -> None:
    """Draw the contours of the cost, the start and the minimum."""
    x, y = np.meshgrid(np.linspace(*X_RANGE, 400), np.linspace(-y_span, y_span, 200))
    half_lengths, half_widths = np.sqrt(2 * LEVELS / CURVATURES[:, None])
    shown = half_widths < 0.95 * y_span  # of the others only corners would be seen
    contours = axes.contour(x, y, cost(x, y), LEVELS[shown], colors="0.7", linewidths=0.8)
    label_x = np.minimum(0.5 * half_lengths, 1.6)  # below right: no path comes there
    label_y = -half_widths * np.sqrt(1 - (label_x / half_lengths) ** 2)
    places = list(zip(label_x[shown], label_y[shown], strict=True))
    axes.clabel(contours, fmt="%g", fontsize=7.5, colors="0.3", manual=places)
    axes.plot(*START, "D", color="black", markersize=6, zorder=4, label="start")
    axes.plot(0, 0, "*", color="black", markersize=10, zorder=4, label="minimum")
    axes.set(xlim=X_RANGE, ylim=(-y_span, y_span), ylabel="y", aspect="equal")


def draw_line(axes: Axes, line: Line, points: Array) -> None:
    """Draw a path up to the point where it leaves the picture, if it does."""
    outside = np.flatnonzero(np.abs(points[:, 1]) > Y_SPAN[1])
    label = line.label
    if outside.size:
        points = points[: outside[0] + 1]
        label += f", leaves at step {outside[0]}"
    axes.plot(*points.T, label=label, linewidth=1.2, markersize=3.5, zorder=3, **line.style)


def draw(panels: Sequence[Sequence[Line]], steps: int, path: Path) -> None:
    """Save a picture with panels one below the other."""
    walks = [[walk(line.make, steps) for line in lines] for lines in panels]
    highest = [max(float(np.abs(points[:, 1]).max()) for points in some) for some in walks]
    spans = [min(max(Y_SPAN[0], 1.1 * y), Y_SPAN[1]) for y in highest]
    figure, grid = plt.subplots(
        len(panels),
        figsize=(7, 0.5 + sum(0.55 + span * 2 * 6.4 / (X_RANGE[1] - X_RANGE[0]) for span in spans)),
        height_ratios=spans,
        sharex=True,
        layout="constrained",
    )
    for axes, lines, some, span in zip(grid, panels, walks, spans, strict=True):
        for line, points in zip(lines, some, strict=True):
            draw_line(axes, line, points)
        draw_valley(axes, span)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
    grid[-1].set_xlabel("x")
    figure.savefig(path, dpi=130, pil_kwargs={"optimize": True})
    plt.close(figure)


# The command line -------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Save all pictures, and say where."""
    parser = argparse.ArgumentParser(description="Draw the paths of optimizers down a valley.")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images"), help="folder; default: docs/images"
    )
    parser.add_argument("--steps", type=int, default=40, help="of every path; default: 40")
    given = parser.parse_args(arguments)
    if given.steps < 1:
        parser.error(f"--steps must be at least 1; got {given.steps}")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        for name, panels in PICTURES.items():
            draw(panels, given.steps, given.out / name)
            print(given.out / name)
    except OSError as error:
        sys.exit(f"paths.py: cannot save the pictures: {error}")


if __name__ == "__main__":
    main()
