"""What a run in the training loop comes to: ratios beside what they have to be, and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report
from targets import spaced

Results = Mapping[str, Any]


# What is wanted ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A ratio of two contenders' times, and its limit by the number of parameters.

    ``allowance``: seconds that the first one may take more than the second whatever the ratio.
    """

    text: str
    above: str
    below: str
    limits: Mapping[int, float] = field(default_factory=dict)
    at_least: bool = False
    allowance: float = 0.0


def _limits(*values: float) -> dict[int, float]:
    return dict(zip((10, 2_000, 50_000, 200_000, 1_000_000), values, strict=True))


def _against_plain(text: str, name: str, *values: float, allowance: float = 0.0) -> Wanted:
    limits = _limits(*(values if len(values) > 1 else 5 * values))
    return Wanted(f"{text} / plain", f"fastopt{name}", "fastopt", limits, allowance=allowance)


HAND = "hand / fastopt"
OF_HAND = Wanted(HAND, "hand", "fastopt", _limits(3.0, 3.0, 2.7, 3.0, 3.5), at_least=True)
OF_TORCH = Wanted(
    "torch fused / fastopt", "torch fused", "fastopt", _limits(8.0, 8.0, 4.0, 2.3, 1.8), True
)
OF_NUMPY = Wanted(
    "hand / NumPy backend", "hand", "fastopt (NumPy)", _limits(1.7, 1.5, 1.0, 1.0, 1.2), True
)
CLIPPING = (1.4, 1.4, 1.4, 1.5, 1.5)
OF_CLIPPING = _against_plain("max_grad_norm", " max_grad_norm", *CLIPPING)
OF_LR = _against_plain("lr set", ", lr set", 1.3, 1.3, 1.2, 1.1, 1.05, allowance=2.5e-6)
RULE = (OF_HAND, OF_NUMPY, OF_CLIPPING, OF_LR)
CLIP = "clip_grad_norm_"
WANTED: dict[str, tuple[Wanted, ...]] = {
    "Adam": (OF_HAND, OF_TORCH, OF_NUMPY, OF_CLIPPING, OF_LR),
    "Adam in other ways": (
        _against_plain("schedule", ", schedule", 1.2),
        _against_plain("skip", ', on_nonfinite="skip"', *CLIPPING),
        _against_plain("two groups", ", two groups", 1.3),
        _against_plain("LossScaler", ", LossScaler", 1.6),
        _against_plain("auto, settled", ", auto", 1.02),
    ),
    "SGD with momentum": RULE,
    "RMSprop": RULE,
    "AdamW": RULE,
    CLIP: (Wanted(f"{CLIP} / by hand", CLIP, "hand", {10: 2.0, 200_000: 1.0}),),
}
"""By the title of the group of contenders."""
OF_HAND_BESIDE_BLAS = {50_000: 1.3, 200_000: 1.8, 1_000_000: 2.2}
"""For Adam where BLAS has all processors, whose threads spin; nothing else is judged there."""


# What was found ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ratio:
    """The median over the repetitions of a ratio of medians, and its least and most."""

    group: str
    parameters: int
    text: str
    measured: float
    least: float
    most: float
    limit: float | None
    at_least: bool
    verdict: str
    """``pass``, ``short``, or nothing where there is no limit."""

    @property
    def wanted(self) -> str:
        """The limit in words."""
        return "" if self.limit is None else f"{'>=' if self.at_least else '<='} {self.limit:g}"


def ratios(results: Results) -> list[Ratio]:
    """Return all ratios of which both sides were measured."""
    return [
        ratio
        for group, wanted in WANTED.items()
        for size in _sizes(results, group)
        for each in wanted
        for ratio in _ratio(results, group, size, each)
    ]


def _ratio(results: Results, group: str, size: int, wanted: Wanted) -> Iterator[Ratio]:
    above, below = (_medians(results, group, size, name) for name in (wanted.above, wanted.below))
    if not above or not below:
        return
    found = [a / b for a, b in zip(above, below, strict=True)]
    measured = statistics.median(found)
    limits = wanted.limits
    if results["blas_threads_default"]:
        limits = OF_HAND_BESIDE_BLAS if (group, wanted.text) == ("Adam", HAND) else {}
    limit = limits.get(size)
    if limit is None:
        verdict = ""
    elif wanted.at_least:
        verdict = "pass" if measured >= limit else "short"
    else:
        more = statistics.median(a - b for a, b in zip(above, below, strict=True))
        verdict = "pass" if measured <= limit or more <= wanted.allowance else "short"
    yield Ratio(
        group,
        size,
        wanted.text,
        measured,
        min(found),
        max(found),
        limit,
        wanted.at_least,
        verdict,
    )


def _rows(results: Results, group: str) -> list[Mapping[str, Any]]:
    return [row for row in results["rows"] if row["group"] == group]


def _sizes(results: Results, group: str) -> list[int]:
    return list(dict.fromkeys(row["parameters"] for row in _rows(results, group)))


def _medians(results: Results, group: str, size: int, name: str, mode: str = "loop") -> list[float]:
    """Return the seconds of each repetition."""
    return [
        row[mode][name]["median"]
        for row in _rows(results, group)
        if row["parameters"] == size and name in row.get(mode, {})
    ]


def seconds(results: Results, group: str, size: int, name: str, mode: str = "loop") -> float | None:
    """Return the median over the repetitions of the medians; None if it was not measured."""
    found = _medians(results, group, size, name, mode)
    return statistics.median(found) if found else None


# Tables -----------------------------------------------------------------------------------------


def show(results: Results) -> None:
    """Print everything."""
    found = ratios(results)
    for group in WANTED:
        for mode, title in ("loop", "in the loop"), ("back_to_back", "back to back"):
            report.table(f"{group}: microseconds {title}", *_times(results, group, mode))
        report.table(f"{group}: ratios in the loop, and what is wanted", *_ratios(found, group))
    judged = [ratio for ratio in found if ratio.verdict]
    short = [ratio for ratio in judged if ratio.verdict == "short"]
    print(f"\n{len(judged) - len(short)} of {len(judged)} ratios are as wanted")
    report.table(
        "Short, with the least and the most of the repetitions",
        ["", "parameters", "ratio", "wanted", "measured", "least", "most"],
        [
            [
                ratio.group,
                spaced(ratio.parameters),
                ratio.text,
                ratio.wanted,
                *(f"{value:.3g}" for value in (ratio.measured, ratio.least, ratio.most)),
            ]
            for ratio in short
        ],
    )


def _names(results: Results, group: str, mode: str) -> list[str]:
    rows = _rows(results, group)
    return list(dict.fromkeys(name for row in rows for name in row.get(mode, {})))


def _times(results: Results, group: str, mode: str) -> report.Matrix:
    names = _names(results, group, mode)
    lines = [
        [spaced(size), *(_microseconds(results, group, size, name, mode) for name in names)]
        for size in _sizes(results, group)
    ]
    return ["parameters", *names], lines if names else []


def _microseconds(results: Results, group: str, size: int, name: str, mode: str) -> str:
    value = seconds(results, group, size, name, mode)
    return "" if value is None else f"{1e6 * value:.4g}"


def _ratios(found: Sequence[Ratio], group: str) -> report.Matrix:
    mine = [ratio for ratio in found if ratio.group == group]
    texts = list(dict.fromkeys(ratio.text for ratio in mine))
    cells = {
        (ratio.parameters, ratio.text): f"{ratio.measured:.2f} {ratio.wanted} {ratio.verdict}"
        for ratio in mine
    }
    sizes = list(dict.fromkeys(ratio.parameters for ratio in mine))
    lines = [[spaced(size), *(cells.get((size, text), "") for text in texts)] for size in sizes]
    return ["parameters", *texts], lines


# Picture ----------------------------------------------------------------------------------------

STYLES: dict[str, dict[str, str]] = {
    "fastopt": report.STYLES["fastopt"],
    "hand": report.STYLES["NumPy loop"],
    "torch fused": report.STYLES["torch fused"],
    "fastopt (NumPy)": report.STYLES["fastopt (NumPy)"],
    "fastopt max_grad_norm": {"color": "#009E73", "marker": "D"},
    "fastopt, lr set": {"color": "#CC79A7", "marker": "P"},
}
"""Of a contender, and of the ratio in which it stands against another."""


MODES = (("loop", "-", 1.0, "{}"), ("back_to_back", ":", 0.6, "{}, back to back"))
BOTH = ("fastopt", "hand", "torch fused")
"""Those whose times back to back are drawn too."""


def draw(results: Results, path: Path) -> None:
    """Draw Adam's times in the loop and back to back, and the ratios with what is wanted."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no window
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    _draw_times(left, results)
    _draw_ratios(right, results)
    for axis in left, right:
        axis.set(xscale="log", yscale="log", xlabel="number of parameters (4 arrays)")
        axis.grid(which="major", alpha=0.3)
    right.yaxis.set_major_formatter("{x:g}")
    left.set(title="a step of Adam", ylabel="microseconds")
    left.legend(fontsize="small")
    right.set(title="ratios in the loop; short bars: what is wanted")
    right.legend(fontsize="small")
    figure.suptitle(
        f"After a forward and a backward pass; {results['machine']['processor']}, "
        f"{results['threads']} threads, BLAS on {results['blas_threads']}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_times(axis: Any, results: Results) -> None:
    for name, style in STYLES.items():
        for mode, line, alpha, label in MODES[: 2 if name in BOTH else 1]:
            points = [
                (size, 1e6 * value)
                for size in _sizes(results, "Adam")
                if (value := seconds(results, "Adam", size, name, mode)) is not None
            ]
            if points:
                styled = {**style, "linestyle": line}
                axis.plot(
                    *zip(*points, strict=True),
                    label=label.format(name),
                    alpha=alpha,
                    markersize=5,
                    **styled,
                )


def _draw_ratios(axis: Any, results: Results) -> None:
    found = ratios(results)
    keys = ("hand", "torch fused", "fastopt (NumPy)", "fastopt max_grad_norm", "fastopt, lr set")
    for wanted, key in zip(WANTED["Adam"], keys, strict=True):
        mine = [r for r in found if (r.group, r.text) == ("Adam", wanted.text)]
        style = STYLES[key]
        if mine:
            sizes = [ratio.parameters for ratio in mine]
            axis.plot(sizes, [r.measured for r in mine], label=wanted.text, markersize=5, **style)
        limits = [(r.parameters, r.limit) for r in mine if r.limit is not None]
        if limits:
            color = style["color"]
            axis.scatter(*zip(*limits, strict=True), marker="_", s=300, color=color, linewidths=2.5)
    axis.axhline(1.0, color="grey", linewidth=0.8)
