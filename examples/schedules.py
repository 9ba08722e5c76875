"""Draw every schedule over a thousand steps, each under the words that make it.

    python examples/schedules.py --out docs/images

schedules.png holds one small picture for each schedule; all have the same axes, so that the shapes
can be compared. Above each stands the code to write behind ``lr=``. The last is a function of the
reader's own, which does as well.

``ReduceLROnPlateau`` is not a function of the step: it is told a loss every ten steps, here one
that falls in three stages (the thin line, on a scale of its own), and reduces the learning rate
where the loss stays flat. Needs ``pip install -e '.[examples]'``.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np

from fastopt.schedules import (
    ReduceLROnPlateau,
    chebyshev,
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    inverse_sqrt,
    inverse_time,
    join,
    linear,
    multistep,
    one_cycle,
    polynomial,
    product,
    rex,
    step_decay,
    warmup,
    wsd,
)

matplotlib.use("Agg")  # draws into files, needs no window
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# The keys are what stands above the pictures; a test holds them to the values.
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant(0.1)": constant(0.1),
    "step_decay(0.1, 250, gamma=0.5)": step_decay(0.1, 250, gamma=0.5),
    "multistep(0.1, [500, 750, 900], 0.3)": multistep(0.1, [500, 750, 900], 0.3),
    "exponential(0.1, 0.996)": exponential(0.1, 0.996),
    "linear(0.1, 1.0, 0.1, 800)": linear(0.1, 1.0, 0.1, 800),
    "polynomial(0.1, 1000, power=2.0)": polynomial(0.1, 1000, power=2.0),
    "cosine(0.1, 1000, lr_min=0.01)": cosine(0.1, 1000, lr_min=0.01),
    "cosine_restarts(0.1, 140, multiplier=2)": cosine_restarts(0.1, 140, multiplier=2),
    "one_cycle(0.1, 1000)": one_cycle(0.1, 1000),
    "cyclic(0.02, 0.1, 125)": cyclic(0.02, 0.1, 125),
    'cyclic(0.02, 0.1, 125, 60, mode="triangular2")': cyclic(
        0.02, 0.1, 125, 60, mode="triangular2"
    ),
    "inverse_sqrt(0.1, 100)": inverse_sqrt(0.1, 100),
    "inverse_time(0.1, 0.01)": inverse_time(0.1, 0.01),
    "rex(0.1, 1000)": rex(0.1, 1000),
    "wsd(0.1, 1000, 100, 200)": wsd(0.1, 1000, 100, 200),
    "chebyshev(0.1, 32, 0.01)": chebyshev(0.1, 32, 0.01),
    "product(cosine(1.0, 1000), cyclic(0.05, 0.1, 50))": product(
        cosine(1.0, 1000), cyclic(0.05, 0.1, 50)
    ),
    "warmup(cosine(0.1, 900), 100)": warmup(cosine(0.1, 900), 100),
    "join([0.1, cosine(0.1, 500, 0.01)], [400])": join([0.1, cosine(0.1, 500, 0.01)], [400]),
    "ReduceLROnPlateau(0.1, 0.5, patience=8)": ReduceLROnPlateau(0.1, 0.5, patience=8),
    "lambda step: 0.1 / (1 + step / 100)": lambda step: 0.1 / (1 + step / 100),
}

STEPS, REPORT_EVERY, COLUMNS = 1000, 10, 3
BLUE, GREY = "#0072B2", "0.6"  # the blue of Okabe and Ito, which colour-blind eyes tell apart


def loss(step: int) -> float:
    """Return a loss that falls in three stages and is flat between them."""
    return sum(0.3 / (1 + np.exp((step - middle) / 8)) for middle in (80, 400, 720)) + 0.1


def values(schedule: Callable[[int], float], steps: int) -> list[float]:
    """Return what an optimizer would be given at each step."""
    schedule, given = copy.deepcopy(schedule), []  # reports are to one of our own
    for step in range(steps):
        given.append(schedule(step))
        if isinstance(schedule, ReduceLROnPlateau) and step % REPORT_EVERY == 0:
            schedule.report(loss(step))
    return given


def draw(axes: Axes, words: str, schedule: Callable[[int], float], steps: int) -> None:
    """Draw one schedule under the words that make it."""
    if isinstance(schedule, ReduceLROnPlateau):
        line = [0.1 * loss(step) for step in range(steps)]
        axes.plot(line, color=GREY, linewidth=0.8)
        axes.annotate("loss", (0.14, 0.68), xycoords="axes fraction", color="0.4", fontsize=8)
    axes.plot(values(schedule, steps), color=BLUE, linewidth=1.6)
    axes.set_title(words, fontsize=8, family="monospace", loc="left")
    axes.set(xlim=(0, steps), ylim=(-0.004, 0.112))
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def picture(path: Path, steps: int) -> None:
    """Save the picture of all schedules."""
    rows = -(-len(SCHEDULES) // COLUMNS)
    figure, grid = plt.subplots(
        rows, COLUMNS, figsize=(10.5, 1.9 * rows), sharex=True, sharey=True, layout="constrained"
    )
    for axes, (words, schedule) in zip(grid.flat, SCHEDULES.items(), strict=True):
        draw(axes, words, schedule, steps)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("learning rate", fontsize=9)
    figure.savefig(path, dpi=130, pil_kwargs={"optimize": True})
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Save the picture, and say where."""
    parser = argparse.ArgumentParser(description="Draw every schedule over a thousand steps.")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images"), help="folder; default: docs/images"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"to draw; default: {STEPS}")
    given = parser.parse_args(arguments)
    if given.steps < 1:
        parser.error(f"--steps must be at least 1; got {given.steps}")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
        picture(given.out / "schedules.png", given.steps)
    except OSError as error:
        sys.exit(f"schedules.py: cannot save the picture: {error}")
    print(given.out / "schedules.png")


if __name__ == "__main__":
    main()
