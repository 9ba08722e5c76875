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

Both axes have the same scale, so every step of gradient descent is seen to leave its contour at a
right angle. ``python -m fastopt race`` draws such pictures of any optimizers and costs. Needs
``pip install -e '.[viz]'``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastopt import viz

# Of each file: panels, of each panel: optimizers. Momentum gets beta = 0.7 because the valley is
# short: the usual 0.9 remembers ten steps, and on a way of forty it would be swaying at the end.
# RMSprop's first step is 1 / sqrt(1 - beta), about 3, times lr.
PICTURES: dict[str, list[list[str]]] = {
    "paths_learning_rate.png": [["sgd lr=0.005"], ["sgd lr=0.0805"]],
    "paths_momentum.png": [["sgd lr=0.078"], ["momentum lr=0.078 beta=0.7"]],
    "paths_rmsprop.png": [["sgd lr=0.078"], ["rmsprop lr=0.3", "adam lr=0.3"]],
    "paths_rmsprop_lr.png": [["rmsprop lr=0.05"], ["rmsprop lr=0.3"], ["rmsprop lr=1"]],
}


def draw(panels: Sequence[Sequence[str]], steps: int, path: Path) -> None:
    """Save a picture with panels one below the other."""
    races = [viz.race(optimizers, "bowl", steps=steps) for optimizers in panels]
    figure = Figure(layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, race in zip(grid, races, strict=True):
        race.plot(axes)
    # Both axes of a panel have one scale, and all panels one width.
    heights = [7 * np.ptp(axes.get_ylim()) / np.ptp(axes.get_xlim()) for axes in grid]
    grid[0].get_gridspec().set_height_ratios(heights)
    figure.set_size_inches(7.5, sum(heights) + 0.85 * len(panels))
    figure.savefig(path, dpi=130, pil_kwargs={"optimize": True})


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
