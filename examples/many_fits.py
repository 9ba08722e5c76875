"""Fit a step to thousands of terrain profiles at once, each from several starts.

    FASTOPT_BACKEND=numba python examples/many_fits.py --picture many_fits.png

The data are the elevations around the Jacksboro fault in Tennessee that come with matplotlib, 344 x
403 of them. Where rock has slipped along a fault a profile across it shows a step that erosion has
rounded. Each row is cut into profiles of 31 points, and to each of them

    z(x) = level + slope * x + height / 2 * tanh((x - place) / width),     x from -1 to 1

is fitted by least squares: five numbers, of which ``place`` and ``width`` keep within bounds. The
sum of squares has several minima in ``place``, so each profile is fitted from three starts, and the
lowest is kept: 13 416 fits of five parameters, which ``fastopt.minimize(..., starts=)`` makes side
by side. Every fit ends by itself, and the function is asked for all of them at once.

The program is written once, against ``xp = fastopt.array_namespace()``: with FASTOPT_BACKEND=cupy
data, fits and gradients stay on the GPU. Needs ``pip install -e '.[examples]'``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np

import fastopt

matplotlib.use("Agg")  # draws into files, needs no window
from matplotlib import cbook
from matplotlib import pyplot as plt

Array = Any  # numpy.ndarray or cupy.ndarray
Params = dict[str, Array]

POINTS = 31
PLACES = (-0.5, 0.0, 0.5)
"""Where the step is looked for at first."""

BOUNDS = {
    "level": (None, None),
    "slope": (None, None),
    "height": (None, None),
    "place": (-0.9, 0.9),
    "width": (0.05, 1.0),
}
BLUE, VERMILION = "#0072B2", "#D55E00"  # from Okabe and Ito: told apart by colour-blind eyes too


def profiles(xp: ModuleType, rows: int | None = None) -> tuple[Array, Array]:
    """Return the profiles as rows, each with mean 0 and deviation 1, and their deviations in m."""
    elevation = np.asarray(
        cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"], np.float32
    )[:rows]
    count = elevation.shape[1] // POINTS
    cut = elevation[:, : count * POINTS].reshape(-1, POINTS)
    deviation = np.maximum(cut.std(axis=1, keepdims=True), 1.0)
    return xp.asarray((cut - cut.mean(axis=1, keepdims=True)) / deviation), deviation[:, 0]


class Steps:
    """The sum of squares of all fits, and its gradient; one fit for each row of ``z``."""

    def __init__(self, xp: ModuleType, z: Array) -> None:
        self.xp, self.z = xp, z
        self.x = xp.linspace(-1.0, 1.0, z.shape[1], dtype=z.dtype)

    def model(self, p: Params) -> tuple[Array, Array]:
        """Return the profiles of the model, and the tanh in them."""
        level, slope, height, place, width = (p[name][:, None] for name in BOUNDS)
        bend = self.xp.tanh((self.x - place) / width)
        return level + slope * self.x + height / 2 * bend, bend

    def __call__(self, p: Params) -> tuple[Array, Params]:
        """Return the value of every fit, and the gradients, nested as p."""
        found, bend = self.model(p)
        error = found - self.z
        height, place, width = (p[name][:, None] for name in ("height", "place", "width"))
        steep = -height / 2 * (1 - bend * bend) / width  # by place
        by = {
            "level": error,
            "slope": error * self.x,
            "height": error * bend / 2,
            "place": error * steep,
            "width": error * steep * (self.x - place) / width,
        }
        gradient = {name: 2 * one.sum(axis=1) for name, one in by.items()}
        return (error * error).sum(axis=1), gradient


def fit(
    xp: ModuleType, z: Array, maxiter: int = 400, progress: bool = True
) -> tuple[Params, Array, Any]:
    """Return the best fit of every profile, its sum of squares, and the result of all starts."""
    several = xp.concatenate([z] * len(PLACES))
    count, dtype = len(several), z.dtype
    begin = {"level": 0.0, "slope": 0.0, "height": 0.5, "width": 0.3}
    start = {name: xp.full(count, value, dtype) for name, value in begin.items()}
    start["place"] = xp.repeat(xp.asarray(PLACES, dtype), len(z))
    result = fastopt.minimize(
        Steps(xp, several),
        start,
        method="adam",
        lr=0.05,
        bounds=BOUNDS,
        starts=count,
        maxiter=maxiter,
        gtol=1e-3,
        ftol=1e-5,
        progress=progress,
    )
    values = xp.asarray(result.members.fun).reshape(len(PLACES), len(z))
    best, each = values.argmin(axis=0), xp.arange(len(z))
    params = {
        name: xp.asarray(found).reshape(len(PLACES), len(z))[best, each]
        for name, found in result.members.x.items()
    }
    return params, values[best, each], result


def on_host(array: Array) -> Any:
    """Return an array as a NumPy array."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def draw(path: Path, z: Any, model: Any, height: Any, deviation: Any, values: Any) -> None:
    """Draw a map of the steps, and four profiles with their fits and what is left."""
    rows = len(z) // (403 // POINTS)
    figure = plt.figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(3, 4, height_ratios=[3, 2, 1])
    whole = figure.add_subplot(grid[0, :])
    steps = (height * deviation).reshape(rows, -1)
    limit = float(np.quantile(abs(steps), 0.98))
    shown = whole.imshow(
        steps, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    figure.colorbar(shown, ax=whole, label="height of the step in m")
    whole.set(title=f"{len(z)} profiles", xlabel="profile along the row", ylabel="row")
    x = np.linspace(-1, 1, POINTS)
    explained = 1 - values / np.maximum((z * z).sum(axis=1), 1e-9)
    chosen = np.argsort(explained)[[-20, len(z) * 3 // 4, len(z) // 2, len(z) // 10]]
    for column, k in enumerate(chosen):
        profile = figure.add_subplot(grid[1, column])
        profile.plot(x, z[k] * deviation[k], ".", color="0.3", label="elevation")
        profile.plot(x, model[k] * deviation[k], color=BLUE, label="fit")
        profile.set_title(f"{100 * explained[k]:.1f} % explained", fontsize=10)
        left = figure.add_subplot(grid[2, column], sharex=profile)
        left.axhline(0, color="0.7", lw=1)
        left.plot(x, (z - model)[k] * deviation[k], color=VERMILION, label="left")
        left.set_xlabel("x")
        if not column:
            profile.set_ylabel("m")
            left.set_ylabel("residual, m")
            profile.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Fit, print what came of it, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--picture", type=Path, help="where to draw, for instance many_fits.png")
    parser.add_argument("--rows", type=int, help="take these first rows alone")
    parser.add_argument("--maxiter", type=int, default=400)
    given = parser.parse_args(argv)
    xp = fastopt.array_namespace()
    z, deviation = profiles(xp, given.rows)
    began = time.perf_counter()
    params, values, result = fit(xp, z, given.maxiter)
    seconds = time.perf_counter() - began
    everything = on_host((z * z).sum(axis=1))
    values, height = on_host(values), on_host(params["height"])
    explained = 1 - values / np.maximum(everything, 1e-9)
    members = result.members
    print(
        f"{len(members.fun)} fits in {seconds:.1f} s, {int(members.nit.sum())} iterations in all; "
        f"{int(members.success.sum())} came to a minimum, the others to the limit"
    )
    print(
        f"the median fit explains {100 * np.median(explained):.2f} % of a profile's variance; "
        f"{int((explained > 0.99).sum())} of {len(z)} explain 99 %"
    )
    if given.picture is not None:
        model = on_host(Steps(xp, z).model(params)[0])
        draw(given.picture, on_host(z), model, height, deviation, values)


if __name__ == "__main__":
    main()
