"""The results as tables (by rich, if it is installed) and as a picture (by matplotlib)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from targets import Target
from traffic import BYTES_PER_PARAMETER

from fastopt.cli.table import aligned

# From the colours of Okabe and Ito, which colour-blind eyes tell apart, with markers of their own.
STYLES: dict[str, dict[str, str]] = {
    "fastopt": {"color": "#0072B2", "marker": "o", "linewidth": "2.5"},
    "fastopt (NumPy)": {"color": "#56B4E9", "marker": "o"},
    "NumPy loop": {"color": "#000000", "marker": "s"},
    "torch fused": {"color": "#D55E00", "marker": "^"},
    "torch foreach": {"color": "#D55E00", "marker": "v", "linestyle": "--"},
    "torch single": {"color": "#D55E00", "marker": ">", "linestyle": ":"},
    "optax jitted": {"color": "#009E73", "marker": "D"},
    "DeepSpeed CPUAdam": {"color": "#CC79A7", "marker": "P"},
    "thinc": {"color": "#E69F00", "marker": "X"},
}


QUIET = 0.02
"""Share of the processors that others may take. One busy process makes the parallel steps of most
libraries wait for it, for milliseconds at a time."""


def peers_versions() -> dict[str, str]:
    """Return the versions of the peers that have been loaded."""
    names = ("torch", "jax", "optax", "deepspeed", "thinc")
    return {name: sys.modules[name].__version__ for name in names if name in sys.modules}


def say_where(results: Mapping[str, Any]) -> None:
    """Print on what was measured, who did not take part, and whether the machine was quiet."""
    found = results["machine"]
    versions = {**found["versions"], **results["versions"]}
    print(f"{found['processor']}, {found['cores']} cores, {found['system']}")
    print(f"{results['threads']} threads; " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    for name, reason in results["absent"].items():
        print(f"without {name}: {reason}")
    others = results["others"]
    if others is not None:
        warning = ": NOT QUIET, measure again" if others > QUIET else ""
        print(f"other processes took {others:.1%} of the processors meanwhile{warning}")


def show(results: Mapping[str, Any], verdicts: Sequence[Target]) -> None:
    """Print everything."""
    sizes = results["sizes"]
    for mode in ("same", "fresh"):
        table(f"Time per step, {mode} gradient arrays", *matrix(sizes, mode, median))
    for mode in ("same", "fresh"):
        title = f"How many times as long as fastopt, {mode} gradient arrays"
        table(title, *matrix(sizes, mode, _times_as_long))
    if rate := results["bandwidth"]:
        title = f"Share of the bandwidth of {rate / 1e9:.1f} GB/s (small sizes are in the cache)"
        table(
            title, *matrix(sizes, "same", lambda row, times, name: _share(row, times, name, rate))
        )
    for mode in ("same", "fresh"):
        title = f"Clipping and step together, {mode} gradient arrays"
        table(title, *matrix(results["clipping"], mode, median))
    table("State in fewer bits, same gradient arrays", *matrix(results["storage"], "same", median))
    table(*_state_bytes(results["storage"]))
    table(*_rules(results["rules"]))
    table(*_denormals(results["denormals"]))
    if results["startup"]:
        table(*_startup(results["startup"]))
        table(*script(results["startup"]["script"]))
    table(*targets_table(verdicts))


Matrix = tuple[list[str], list[list[str]]]


def matrix(rows: Sequence[Mapping[str, Any]], mode: str, cell: Any) -> Matrix:
    """Return a column per size, and a line per contender."""
    names = list(dict.fromkeys(name for row in rows for name in row[mode]))
    header = ["", *(f"{row['arrays']} x {short(row['elements'])}" for row in rows)]
    lines = [
        [name, *(cell(row, row[mode], name) if name in row[mode] else "" for row in rows)]
        for name in names
    ]
    return header, lines


def short(number: int) -> str:
    for unit, size in ("M", 1_000_000), ("k", 1_000):
        if number >= size:
            return f"{number / size:g}{unit}"
    return str(number)


def median(row: Mapping[str, Any], times: Mapping[str, Any], name: str) -> str:
    return seconds(times[name]["median"])


def seconds(value: float) -> str:
    unit, size = next((pair for pair in _UNITS if value >= pair[1]), _UNITS[-1])
    return f"{value / size:#.3g}".rstrip(".") + f" {unit}"


_UNITS = ("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)


def _times_as_long(row: Mapping[str, Any], times: Mapping[str, Any], name: str) -> str:
    ours = times.get("fastopt") or times["fastopt (NumPy)"]  # without Numba
    return f"{times[name]['median'] / ours['median']:.2f}"


def _share(row: Mapping[str, Any], times: Mapping[str, Any], name: str, rate: float) -> str:
    parameters = row["arrays"] * row["elements"]
    return f"{BYTES_PER_PARAMETER * parameters / times[name]['median'] / rate:.1%}"


def _state_bytes(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in rows for name in row["state_bytes"]))
    header = ["", *(f"1 x {short(row['elements'])}" for row in rows)]
    lines = [
        [name, *(f"{row['state_bytes'][name] / 1e6:.1f} MB" for row in rows)] for name in names
    ]
    return "Bytes of state", header, lines


def _rules(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    header = ["", "bytes/parameter", "time", "Adam's time", "time / traffic's time"]
    lines = [
        [
            row["name"],
            f"{row['bytes_per_parameter']:g}",
            seconds(row["seconds"]),
            seconds(row["adam_seconds"]),
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    return "Other rules against their own traffic at Adam's bandwidth", header, lines


def _denormals(found: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    lines = [
        [name, seconds(row["early"]), seconds(row["late"]), f"{row['ratio']:.2f}"]
        for name, row in found.items()
    ]
    return "Without gradients", ["", "step 50", "step 1100", "ratio"], lines


def _startup(found: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    lines = [["import fastopt beyond numpy", seconds(found["import"])]]
    for row in found["first_step"]:
        size = f"{row['arrays']} x {short(row['elements'])}"
        for process, what in ("cold", "first"), ("warm", "second"):
            for part, text in ("make", "construct"), ("step", "first step"):
                lines.append([f"{what} process, {size}: {text}", seconds(row[process][part])])
    return "New processes", ["", "time"], lines


def script(found: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    lines = [
        [
            f"to the end of step {row['steps']}, {row['caches']} caches",
            seconds(row["last_step"]),
            seconds(row["beyond_numpy"]),
            seconds(row["exit"]),
            f"{row['numba']:.0%}",
        ]
        for row in found["rows"]
    ]
    bare = found["numpy"]
    numpy = ["import numpy", seconds(bare["last_step"]), "", seconds(bare["exit"]), ""]
    header = ["", "from python on", "beyond numpy", "until it has ended", "import numba"]
    return "A script that trains a small model", header, [numpy, *lines]


def targets_table(verdicts: Sequence[Target]) -> tuple[str, list[str], list[list[str]]]:
    lines = [
        [
            target.text,
            f"{'>=' if target.at_least else '<='} {target.limit:g} {target.unit}".strip(),
            "" if target.measured is None else f"{target.measured:#.4g}",
            "" if target.spread is None else f"{target.spread:.2f}",
            target.verdict,
        ]
        for target in verdicts
    ]
    return "Targets", ["", "needed", "measured", "spread", ""], lines


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    print(f"\n{title}")
    if find_spec("rich") is None:
        print(*aligned(header, rows), sep="\n")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD)
    for index, name in enumerate(header):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    width = None if Console().is_terminal else 160  # a file has room for the whole table
    Console(width=width, highlight=False).print(drawn)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw time per parameter against the number of parameters, with the bandwidth as a line."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no window
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), sharey=True, layout="constrained")
    for axis, title, several in zip(axes, ("one array", "many arrays"), (False, True), strict=True):
        rows = [row for row in results["sizes"] if (row["arrays"] > 1) == several]
        _draw_lines(axis, sorted(rows, key=lambda row: row["arrays"] * row["elements"]))
        if rate := results["bandwidth"]:
            axis.axhline(
                BYTES_PER_PARAMETER / rate * 1e9,
                color="grey",
                linestyle="-.",
                label=f"memory bandwidth, {rate / 1e9:.0f} GB/s",
            )
        axis.set(xscale="log", yscale="log", title=title, xlabel="number of parameters")
        axis.grid(which="major", alpha=0.3)
        if several:
            axis.set_xticks(*_ticks(rows))
    axes[0].set_ylabel("time per parameter in a step of Adam, ns")
    axes[0].legend(fontsize="small")
    found = results["machine"]
    figure.suptitle(
        f"Adam, float32, fresh gradient arrays; {found['processor']}, {results['threads']} threads",
        fontsize="medium",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_lines(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for name, style in STYLES.items():
        points = [
            (n := row["arrays"] * row["elements"], row["fresh"][name]["median"] / n * 1e9)
            for row in rows
            if name in row["fresh"]
        ]
        if points:
            axis.plot(*zip(*points, strict=True), label=name, markersize=5, **style)


def _ticks(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[str]]:
    places = [row["arrays"] * row["elements"] for row in rows]
    return places, [f"{row['arrays']} x {short(row['elements'])}" for row in rows]
