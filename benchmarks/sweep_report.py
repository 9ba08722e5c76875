"""What the sweep comes to: a table, and a picture."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastopt.cli.table import aligned

Found = Mapping[str, Any]
"""How an optimizer did on a problem."""
Results = Mapping[str, Any]

# From the colours of Okabe and Ito, which colour-blind eyes tell apart; the markers differ too.
COLORS = ("#0072B2", "#D55E00")  # of the problems
GREY = "#777777"


def read(path: Path) -> Results:
    """Return the results that ``sweep.py --json`` wrote."""
    results: Results = json.loads(path.read_text())
    return results


def _loss(found: Found, which: str = "best", value: str = "median") -> float:
    """Return a loss, infinite where the run has failed."""
    loss = found[which]["loss"][value]
    return math.inf if loss is None else float(loss)


def line(name: str, found: Found) -> str:
    """Say how an optimizer did."""
    low, high = found["within_10_percent"]
    return (
        f"{name}: {_text(_loss(found))} ({_text(_loss(found, value='low'))} to "
        f"{_text(_loss(found, value='high'))}) at {found['best']['factor']:g} times the default"
        f"{', the last one tried' if found['best_is_at_the_edge'] else ''}; as good from {low:g} "
        f"to {high:g}; {_text(_loss(found, 'at_default'))} at the default"
    )


def _text(loss: float) -> str:
    return f"{loss:.4g}" if math.isfinite(loss) else "failed"


def order(results: Results) -> list[str]:
    """Return the optimizers by the mean of their ranks in the problems, the best first."""
    ranks: dict[str, list[int]] = {}
    for problem in results["problems"].values():
        found = problem["optimizers"]
        for rank, name in enumerate(sorted(found, key=lambda n: _loss(found[n]))):
            ranks.setdefault(name, []).append(rank)
    return sorted(ranks, key=lambda name: (statistics.mean(ranks[name]), name.lower()))


def show(results: Results) -> None:
    """Print a table of each problem, the best first."""
    for problem in results["problems"].values():
        found = problem["optimizers"]
        print(
            f"\n{problem['title']}: loss after {problem['steps']} steps of {problem['parameters']} "
            f"parameters; {problem['no_knowledge']:.4g} without looking at the input"
        )
        head = ("optimizer", "loss", "least", "most", "right", "x default", "as good", "at default")
        rows = [
            (
                name,
                *(_text(_loss(one, value=value)) for value in ("median", "low", "high")),
                f"{one['best']['accuracy']['median']:.1%}",
                f"{one['best']['factor']:.3g}{'!' if one['best_is_at_the_edge'] else ''}",
                "{:.3g} - {:.3g}".format(*one["within_10_percent"]),
                _text(_loss(one, "at_default")),
            )
            for name, one in sorted(found.items(), key=lambda item: _loss(item[1]))
        ]
        print("\n".join(aligned(head, rows)))


# The picture ------------------------------------------------------------------------------------

RESULT: dict[str, Any] = {"marker": "o", "markersize": 4.5}
DEFAULT: dict[str, Any] = {
    "marker": "d",
    "markersize": 5,
    "color": GREY,
    "markerfacecolor": "white",
    "linestyle": "",
}
USELESS: dict[str, Any] = {**DEFAULT, "marker": ">"}
FAILED: dict[str, Any] = {
    "marker": "x",
    "markersize": 7,
    "color": "black",
    "markeredgewidth": 2,
    "linestyle": "",
}


def draw(results: Results, path: Path) -> None:
    """Save a picture: a row for each optimizer, the losses, and the rates that are as good."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no window
    from matplotlib import pyplot as plt

    names, problems = order(results), list(results["problems"].values())
    rows = len(names)
    figure, axes = plt.subplots(
        1,
        len(problems) + 1,
        figsize=(11.5, 2.3 + 0.19 * rows),
        sharey=True,
        layout="constrained",
        width_ratios=[*(3 for _ in problems), 2.2],
    )
    for panel in axes:
        for row in range(0, rows, 2):
            panel.axhspan(row - 0.5, row + 0.5, color="#F2F2F2", zorder=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(left=False)
    for panel, problem, color in zip(axes, problems, COLORS, strict=False):
        _draw_losses(panel, problem, names, color)
    _draw_rates(axes[-1], problems, names)
    own = {name for p in problems for name, one in p["optimizers"].items() if one["own_rate"]}
    axes[0].set_yticks(range(rows), [f"{n} °" if n in own else n for n in names])
    axes[0].set_ylim(rows - 0.5, -0.5)
    figure.suptitle(
        f"{len(names)} optimizers, {len(results['factors'])} learning rates each, "
        f"{len(results['seeds'])} seeds; the same steps from the same weights on the same batches",
        fontsize=11,
    )
    _add_legend(figure)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _add_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    texts: list[tuple[dict[str, Any], str]] = [
        ({**RESULT, "color": COLORS[0]}, "with the best learning rate: median and all seeds"),
        (DEFAULT, "with the default one: median"),
        (USELESS, "with the default one no better than a guess without input (dotted line)"),
        (FAILED, "no better even with the best one: a seed, or most if there is no dot"),
        ({"color": GREY, "linewidth": 0.8}, "Adam with its best one; on the right, the default"),
        ({"linestyle": ""}, "°  sets the length of its steps by itself; see benchmarks/README.md"),
    ]
    figure.legend(
        handles=[Line2D([], [], label=text, **style) for style, text in texts],
        loc="outside lower center",
        ncols=2,
        fontsize=9,
        frameon=False,
    )


def _draw_losses(panel: Any, problem: Mapping[str, Any], names: Sequence[str], color: str) -> None:
    """Draw the losses of a problem; what is no better than a blind guess stands at the right."""
    found, limit = problem["optimizers"], problem["no_knowledge"]
    least = min(_loss(one, value="low") for one in found.values())
    end = limit * (limit / least) ** 0.05
    panel.axvline(limit, color=GREY, linewidth=1, linestyle=":")
    if "Adam" in found:
        panel.axvline(_loss(found["Adam"]), color=GREY, linewidth=0.8)
    for row, name in enumerate(names):
        one = found[name]
        low, median, high = (_loss(one, value=value) for value in ("low", "median", "high"))
        at_default = _loss(one, "at_default")
        if at_default < limit:
            panel.plot(at_default, row, **DEFAULT)
        else:
            panel.plot(end, row, **USELESS)
        if high >= limit:
            panel.plot(end, row, **FAILED)
        if median < limit:
            panel.plot((low, min(high, end)), (row, row), color=color, linewidth=2.2)
            panel.plot(median, row, color=color, **RESULT)
    panel.set_xscale("log")
    _mark_losses(panel, least, limit)
    panel.set_xlim(least * (least / limit) ** 0.03, end * (limit / least) ** 0.03)
    panel.set_title(
        f"{problem['title']}\n{problem['parameters']:,} parameters, {problem['steps']} steps",
        fontsize=10,
        color=color,
    )
    panel.set_xlabel("loss on unseen data (less is better)")


def _mark_losses(panel: Any, least: float, most: float) -> None:
    """Put round numbers on the logarithmic axis: few where it is long, more where it is short."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

    leading = (1.0, 2.0, 3.0, 5.0) if most / least > 4 else [1 + k / 10 for k in range(90)]
    marks = [first * 10.0**k for k in range(-4, 2) for first in leading]
    panel.xaxis.set_major_locator(FixedLocator([m for m in marks if least <= m <= most]))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())


def _draw_rates(panel: Any, problems: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Draw for each problem which rates are as good as the best one."""
    half = 10**0.25  # a rate stands for all that are nearer to it than to the next ones
    for problem, color, offset in zip(problems, COLORS, (-0.18, 0.18), strict=False):
        for row, name in enumerate(names):
            one = problem["optimizers"][name]
            low, high = one["within_10_percent"]
            panel.plot((low / half, high * half), [row + offset] * 2, color=color, linewidth=2.2)
            panel.plot(one["best"]["factor"], row + offset, marker="o", color=color, markersize=3)
    panel.axvline(1, color=GREY, linewidth=0.8)
    panel.set_xscale("log")
    panel.set_title("rates within 10 % of the best loss\n(dot: the best one)", fontsize=10)
    panel.set_xlabel("times the default learning rate")
