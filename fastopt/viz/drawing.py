"""How a race is drawn with matplotlib: the surface with its paths, and the cost against steps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import as_float, whole

if TYPE_CHECKING:
    from fastopt.viz.race import Race

INSTALL = "pip install matplotlib pillow"


def check_installed() -> None:
    """Raise ImportError, with what to install, where matplotlib is not there."""
    try:
        import matplotlib  # noqa: F401  # whether it is there
    except ImportError as error:
        raise ImportError(f"pictures are drawn by matplotlib, which is missing: {INSTALL}") from (
            error
        )


# How it looks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theme:
    """The colours of a picture: ground, words, contours, and lines in their order."""

    ground: str
    words: str
    low: str
    high: str
    contour: str
    lines: tuple[str, ...]


# From the colours of Okabe and Ito, which colour-blind eyes tell apart. On a dark ground the light
# ones come first; the darkest two are as much lighter as they need to be seen.
_LIGHT = Theme(
    ground="#ffffff",
    words="#1f2328",
    low="#ffffff",
    high="#ccd5df",
    contour="#a3afbc",
    lines=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9"),
)
_DARK = Theme(
    ground="#14181d",
    words="#e4e8ec",
    low="#14181d",
    high="#39444f",
    contour="#5b6976",
    lines=("#56B4E9", "#F0803C", "#2CC295", "#E3A1C8", "#F0E442", "#E69F00", "#FFFFFF"),
)
_DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")


def theme(dark: bool) -> Theme:
    """Return the colours for a light or a dark ground."""
    return _DARK if dark else _LIGHT


def styles(look: Theme, count: int) -> list[dict[str, Any]]:
    """Return how lines are drawn: no two alike in colour, dashes and marker before 280 of them."""
    colours, dashes, markers = cycle(look.lines), cycle(_DASHES), cycle(_MARKERS)
    return [
        {"color": colour, "linestyle": dash, "marker": marker}
        for colour, dash, marker in islice(zip(colours, dashes, markers, strict=False), count)
    ]


@contextmanager
def _colours(look: Theme) -> Iterator[None]:
    import matplotlib

    words = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    chosen: Any = {
        **dict.fromkeys(words, look.words),
        **dict.fromkeys(grounds, look.ground),
        "svg.hashsalt": "fastopt",  # the same race is the same file
        "font.size": 9.0,
    }
    with matplotlib.rc_context(chosen):
        yield


def new_window(**size: Any) -> Any:
    """Return a figure of pyplot, which ``plt.show()`` and notebooks show."""
    check_installed()
    from matplotlib import pyplot

    return pyplot.figure(**size)


def new_figure(**size: Any) -> Any:
    """Return a figure that is drawn into files alone."""
    check_installed()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**size)
    FigureCanvasAgg(figure)
    return figure


# What is shown ----------------------------------------------------------------------------------


class Window(NamedTuple):
    """The part of the surface that is shown."""

    left: float
    right: float
    bottom: float
    top: float

    @property
    def aspect(self) -> float:
        """Width by height."""
        return (self.right - self.left) / (self.top - self.bottom)

    def holds(self, points: Array) -> Array:
        """Return for each point whether it lies inside."""
        x, y = points[..., 0], points[..., 1]
        return (x >= self.left) & (x <= self.right) & (y >= self.bottom) & (y <= self.top)

    def grown(self, share: float) -> Window:
        """Return the window with so much more on each side, as a share of its width and height."""
        x = share * (self.right - self.left)
        y = share * (self.top - self.bottom)
        return Window(self.left - x, self.right + x, self.bottom - y, self.top + y)

    def with_points(self, points: Array, margin: float) -> Window:
        """Return the window so large that it holds the points, with a margin around them."""
        if not len(points):
            return self
        least, most = points.min(0), points.max(0)
        x = margin * max(self.right - self.left, most[0] - least[0])
        y = margin * max(self.top - self.bottom, most[1] - least[1])
        return Window(
            min(self.left, float(least[0] - x)),
            max(self.right, float(most[0] + x)),
            min(self.bottom, float(least[1] - y)),
            max(self.top, float(most[1] + y)),
        )


_MARGIN = 0.06


def window(race: Race) -> Window:
    """Return what a picture of a race shows: the surface's own ranges, and the paths nearby."""
    surface, points = race.surface, race.points.reshape(-1, 2)
    if surface.x_range is not None and surface.y_range is not None:
        found = Window(*surface.x_range, *surface.y_range)
        found = found.with_points(np.array([race.start]), _MARGIN)
    else:
        # Where it is no higher than at the start, but for what runs off into the distance.
        costs = race.costs.ravel()
        low = costs <= race.costs[0, 0] + 1e-9 * abs(race.costs[0, 0])
        far = 10.0 * max(1.0, *map(abs, race.start))
        inside = low & (np.abs(points).max(1) <= far)
        shown = np.concatenate([points[inside], [race.start], np.reshape(surface.minima, (-1, 2))])
        middle, half = (shown.max(0) + shown.min(0)) / 2, (shown.max(0) - shown.min(0)) / 2
        half = np.maximum(half, max(0.35 * half.max(), 0.5))  # not too narrow
        half = np.maximum(half * 1.25, 1e-6 * np.abs(middle))  # to be told apart in float64
        found = Window(
            float(middle[0] - half[0]),
            float(middle[0] + half[0]),
            float(middle[1] - half[1]),
            float(middle[1] + half[1]),
        )
    return found.with_points(points[found.grown(0.35).holds(points)], _MARGIN)


class Shown(NamedTuple):
    """A path as it is drawn, the last point perhaps outside, and what became of it."""

    points: Array
    note: str


def _path(race: Race, number: int, shown: Window) -> Shown:
    """Return a path up to where it leaves the picture for good, or the finite numbers."""
    end = race.diverged[number]
    points = race.points[number, :end]
    outside = np.flatnonzero(~shown.grown(0.02).holds(points))
    if outside.size and outside[-1] == len(points) - 1:
        inside = np.flatnonzero(shown.grown(0.02).holds(points))
        leaves = int(inside[-1]) + 1
        risen = end is not None or race.costs[number, -1] > 10.0 * abs(race.costs[number, 0])
        note = f"{'diverges' if risen else 'leaves'} at step {leaves}"
        return Shown(_near(points[: leaves + 1], shown), note)
    return Shown(_near(points, shown), "" if end is None else f"diverges at step {end}")


def _near(points: Array, shown: Window) -> Array:
    """Return points of which those far outside are moved nearer, in the direction of the middle.

    Coordinates of 1e200 are beyond what can be drawn; what is seen of the lines stays much alike.
    """
    middle = np.array([shown.left + shown.right, shown.bottom + shown.top]) / 2.0
    most = 50.0 * max(shown.right - shown.left, shown.top - shown.bottom)
    away = np.abs(points / most - middle / most).max(1, keepdims=True)
    share = np.maximum(away, 1.0)
    return np.where(away > 1.0, middle + (points / share - middle / share), points)


def _label(race: Race, number: int, note: str) -> str:
    text = race.labels[number] + (f", {note}" if note else "")
    lines = textwrap.wrap(text, 60, subsequent_indent="  ") or [text]
    # matplotlib takes $ for mathematics, and leaves what begins with _ out of legends.
    shown = "\n".join(lines).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


# The surface and the paths ----------------------------------------------------------------------


def _levels(costs: Array) -> Array:
    """Return the costs of contours: where so many hundredths of the picture lie below them.

    Thus they are as dense on a steep surface as on a flat one. Of a bowl they would be ellipses at
    equal distances.
    """
    finite = costs[np.isfinite(costs)]
    if not finite.size:
        return np.empty(0)
    found = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, 14)[1:] ** 2))
    tiny = 1e-12 * float(np.abs(finite).max())
    distinct: Array = found[np.append(np.diff(found) > tiny, True)]
    return distinct


def _draw_surface(race: Race, axes: Any, look: Theme, shown: Window) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    x = np.linspace(shown.left, shown.right, 361)
    y = np.linspace(shown.bottom, shown.top, 361)
    costs = race.surface.cost(*np.meshgrid(x, y))
    masked = np.ma.masked_invalid(costs)
    levels = _levels(costs)
    if len(levels) > 2:
        edges = np.unique([float(masked.min()), *levels])
        shades = LinearSegmentedColormap.from_list("ground", [look.low, look.high])
        colours = [shades(k / (len(edges) - 2)) for k in range(len(edges) - 1)]
        axes.contourf(x, y, masked, edges, colors=colours, zorder=0)
        axes.contour(
            x,
            y,
            masked,
            levels[:-1],
            colors=look.contour,
            linewidths=0.6,
            zorder=1,
            negative_linestyles="solid",
        )
    axes.set(xlim=(shown.left, shown.right), ylim=(shown.bottom, shown.top))
    axes.set(xlabel="x", ylabel="y")
    axes.xaxis.set_major_locator(MaxNLocator(7))
    if 1 / 8 <= shown.aspect <= 8:
        axes.set_aspect("equal")


def _draw_points(race: Race, axes: Any, look: Theme) -> None:
    """Draw the start and the minima."""
    edge = {"markeredgecolor": look.ground, "markeredgewidth": 0.8, "linestyle": "none"}
    axes.plot(*race.start, "D", color=look.words, markersize=7, zorder=5, label="start", **edge)
    if race.surface.minima:
        x, y = np.array(race.surface.minima).T
        name = "minimum" if len(x) == 1 else "minima"
        axes.plot(x, y, "*", color=look.words, markersize=12, zorder=5, label=name, **edge)


def _markevery(steps: int, most: int) -> int:
    return max(1, math.ceil(steps / most))


def _draw_paths(race: Race, axes: Any, look: Theme, shown: Window) -> list[Any]:
    """Draw the paths; return their lines."""
    lines = []
    for number, style in enumerate(styles(look, len(race.labels))):
        path = _path(race, number, shown)
        lines += axes.plot(
            *path.points.T,
            label=_label(race, number, path.note),
            linewidth=1.4,
            markersize=4.0,
            markeredgecolor=look.ground,
            markeredgewidth=0.4,
            markevery=_markevery(race.steps, 40),
            zorder=3,
            **style,
        )
    return lines


def draw_map(race: Race, axes: Any, look: Theme, legend: bool = True) -> list[Any]:
    """Draw the surface with its paths into axes; return the lines of the paths."""
    shown = window(race)
    _draw_surface(race, axes, look, shown)
    lines = _draw_paths(race, axes, look, shown)
    _draw_points(race, axes, look)
    if legend:
        labels = axes.get_legend_handles_labels()[1]
        one_row = sum(len(label) + 7 for label in labels) < 80
        columns = len(labels) if one_row else 2 if max(map(len, labels)) < 34 else 1
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, frameon=False)
    return lines


def draw_costs(race: Race, axes: Any, look: Theme) -> list[Any]:
    """Draw the cost against the steps into axes; return the lines."""
    from matplotlib.ticker import MaxNLocator

    lowest = race.surface.lowest
    costs = race.costs - (lowest or 0.0)
    begin, finite = float(costs[0, 0]), costs[np.isfinite(costs)]
    positive = finite[finite > 0.0]
    logarithmic = positive.size > 0 and (
        lowest is not None or 0.0 < 30.0 * float(finite.min()) < float(finite.max())
    )
    # What lies far beyond the limits is brought nearer, so that all can be drawn: the point itself
    # is not seen. That is a minimum that is hit exactly, too, which has no logarithm.
    if logarithmic:
        least, most = float(positive.min()), float(positive.max())
        low = max(least, 1e-8 * max(begin, least)) / 2.0
        high = min(most, 1e2 * max(begin, least)) * 2.0
        costs = np.clip(costs, 1e-6 * low, 1e6 * high)
    else:
        least = float(finite.min())
        most = min(float(finite.max()), begin + 2.0 * (begin - least))
        room = max(0.05 * (most - least), 1e-6 * abs(most)) or 1.0
        low, high = least - room, most + room
        costs = np.minimum(costs, high + 100.0 * (high - low))
    axes.set(yscale="log" if logarithmic else "linear", xlim=(0, race.steps), ylim=(low, high))
    lines = []
    for row, style in zip(costs, styles(look, len(costs)), strict=True):
        lines += axes.plot(
            row,
            linewidth=1.3,
            markersize=3.5,
            markeredgecolor=look.ground,
            markeredgewidth=0.4,
            markevery=_markevery(race.steps, 10),
            **style,
        )
    axes.set(xlabel="step", ylabel="cost" if not lowest else "cost above the minimum")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=look.high, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return lines


# The whole picture ------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """A figure, its lines on the surface, and those of the cost."""

    figure: Any
    paths: list[Any]
    costs: list[Any]


def _title(race: Race) -> str:
    surface = race.surface
    text = surface.name if surface.name == surface.formula else f"{surface.name}: {surface.formula}"
    if race.noise:
        text += f"; batches of {race.batch}, noise {race.noise:g}, seed {race.seed}"
    return "\n".join(textwrap.wrap(text, 100))


def _drawn(race: Race, new: Callable[..., Any], look: Theme) -> Drawn:
    """Draw all of a race: the surface, beside or above it the costs, on top who is who."""
    aspect = window(race).aspect
    below = aspect > 1.7
    shape = min(max(aspect, 1 / 3), 8.0)
    if below:
        width, height = 8.6, 7.9 / shape + 2.9
    else:
        wide = min(max(4.3 * shape, 2.6), 6.0)
        width, height = wide + 4.6, wide / shape + 0.3
    names = [_label(race, k, _path(race, k, window(race)).note) for k in range(len(race.labels))]
    longest = max(len(line) for name in names for line in name.split("\n"))
    columns = max(1, min(6, int(width / (0.075 * longest + 0.75))))
    rows = math.ceil((len(names) + 2) / columns)
    tall = max(name.count("\n") + 1 for name in names)
    height += 0.17 * rows * tall + 0.35
    figure = new(figsize=(width, height), layout="constrained")
    if below:
        share = [7.9 / shape + 0.5, 2.4]
        surface_axes, cost_axes = figure.subplots(2, height_ratios=share)
    else:
        surface_axes, cost_axes = figure.subplots(1, 2, width_ratios=[wide, 3.6])
        cost_axes.set_box_aspect(wide / shape / 3.6)  # as high as the surface
    paths = draw_map(race, surface_axes, look, legend=False)
    costs = draw_costs(race, cost_axes, look)
    surface_axes.set_title(_title(race), fontsize=9, loc="left", family="monospace")
    handles, labels = surface_axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, frameon=False
    )
    # Axes of equal scales are less high than there is room for, which only their layout tells.
    figure.canvas.draw()
    top = max(axes.get_tightbbox().y1 for axes in figure.axes)
    gap = (legend.get_window_extent().y0 - top) / figure.dpi - 0.08
    if 0.0 < gap < height / 2:
        figure.set_figheight(height - gap)
    return Drawn(figure, paths, costs)


def whole_picture(race: Race, new: Callable[..., Any], dark: bool) -> Any:
    """Return the figure of a race."""
    check_installed()
    look = theme(dark)
    with _colours(look):
        return _drawn(race, new, look).figure


def save_picture(race: Race, path: Any, dark: bool) -> None:
    """Write the figure of a race into a file, as its suffix says."""
    check_installed()
    look = theme(dark)
    with _colours(look):
        figure = _drawn(race, new_figure, look).figure
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(path, dpi=130, metadata=dated.get(Path(path).suffix.lower()))


def check_frames(frames: Any, fps: Any) -> None:
    """Raise TypeError or ValueError for numbers that no animation can have."""
    whole("frames", frames, 2)
    _checked_fps(fps)


def frame_steps(steps: int, frames: int) -> list[int]:
    """Return the steps that an animation shows, the start and the last among them."""
    most = whole("frames", frames, 2)
    stride = max(1, math.ceil(steps / (most - 1)))
    return sorted({*range(0, steps, stride), steps})


def _checked_fps(fps: Any) -> float:
    found = as_float(fps)
    if found is None or not 0.0 < found <= 100.0:
        raise ValueError(f"fps must be a number above 0, at most 100; got {fps!r:.200}")
    return found


class _Film(NamedTuple):
    """What moves in an animation, and how it is brought to a step."""

    figure: Any
    show: Callable[[int], list[Any]]


def _film(race: Race, new: Callable[..., Any], look: Theme) -> _Film:
    with _colours(look):
        figure, paths, costs = _drawn(race, new, look)
        figure.canvas.draw()
        figure.set_layout_engine("none")  # it is laid out once, with all that will be in it
    axes = paths[0].axes
    ways = [np.array(line.get_data()) for line in paths]
    heights = [np.array(line.get_data()) for line in costs]
    heads = [
        axes.plot(
            [],
            [],
            marker=line.get_marker(),
            color=line.get_color(),
            markersize=8,
            markeredgecolor=look.ground,
            markeredgewidth=0.8,
            linestyle="none",
            zorder=6,
        )[0]
        for line in paths
    ]
    counter = axes.text(
        0.99,
        0.02,
        "",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        color=look.words,
        family="monospace",
        bbox={"facecolor": look.ground, "edgecolor": "none", "alpha": 0.8, "pad": 2},
        zorder=7,
    )
    points = [line for line in axes.lines if line not in paths and line not in heads]
    digits = len(str(race.steps))

    def show(step: int) -> list[Any]:
        for line, head, way in zip(paths, heads, ways, strict=True):
            line.set_data(way[:, : step + 1])
            head.set_data(way[:, : step + 1][:, -1:])
        for line, height in zip(costs, heights, strict=True):
            line.set_data(height[:, : step + 1])
        counter.set_text(f"step {step:{digits}d}")
        return [*paths, *points, *heads, *costs, counter]

    return _Film(figure, show)


def animation(race: Race, dark: bool, frames: int, fps: float) -> Any:
    """Return matplotlib's animation of a race."""
    check_installed()
    check_frames(frames, fps)
    from matplotlib.animation import FuncAnimation

    film = _film(race, new_window, theme(dark))
    return FuncAnimation(
        film.figure,
        film.show,
        frames=frame_steps(race.steps, frames),
        interval=1000.0 / fps,
        repeat_delay=1500,
        blit=True,
    )


_LAST = 1500
"""Milliseconds for which the last picture of a GIF stands."""


def save_animation(race: Race, path: Any, dark: bool, frames: int, fps: float) -> None:
    """Write the animation of a race as a GIF, with Pillow."""
    check_installed()
    check_frames(frames, fps)
    from PIL import Image

    film = _film(race, new_figure, theme(dark))
    film.figure.set_dpi(90)
    canvas, shown = film.figure.canvas, frame_steps(race.steps, frames)
    moving = film.show(race.steps)
    for artist in moving:
        artist.set_animated(True)  # left out when the ground is drawn, once
    canvas.draw()
    ground = canvas.copy_from_bbox(film.figure.bbox)
    pictures = []
    for step in shown:
        canvas.restore_region(ground)
        for artist in film.show(step):
            artist.axes.draw_artist(artist)
        pictures.append(Image.fromarray(np.array(canvas.buffer_rgba())[..., :3]))
    # The last picture has all colours. One palette, and no dithering, so that what does not move
    # is the same in all pictures and is stored once.
    palette = pictures[-1].quantize(255)
    coded = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures]
    pause = max(20, 10 * round(100.0 / fps))  # browsers slow down what is faster
    coded[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=coded[1:],
        duration=[pause] * (len(coded) - 1) + [max(_LAST, pause)],
        loop=0,
    )
