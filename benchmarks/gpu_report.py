"""The GPU's results as tables and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_bandwidth import BYTES_PER_ELEMENT, COPY, TRAFFIC
from report import matrix, median, short, table, targets_table
from targets import Target

STYLES: dict[str, dict[str, str]] = {
    "fastopt": {"color": "#0072B2", "marker": "o", "linewidth": "2.5"},
    "torch fused": {"color": "#D55E00", "marker": "^"},
    "torch foreach": {"color": "#D55E00", "marker": "v", "linestyle": "--"},
    "torch capturable": {"color": "#D55E00", "marker": ">", "linestyle": ":"},
    "CuPy loop": {"color": "#000000", "marker": "s"},
    "CuPy kernel per array": {"color": "#009E73", "marker": "D"},
}
"""From the colours of Okabe and Ito, as in report.py."""

PARTS = {"sizes": "", "clipping": "Clipping and step together: ", "graphs": "CUDA graphs: "}


def show(results: Mapping[str, Any], verdicts: Sequence[Target]) -> None:
    """Print everything."""
    for part, title in PARTS.items():
        rows = results[part]
        for mode in ("device", "host"):
            text = f"time per step on the {mode}"
            table(_title(title + text), *matrix(rows, mode, median))
        text = "how many times as long as fastopt on the device"
        table(_title(title + text), *matrix(rows, "device", _times_as_long))
    if peak := results["gpu"].get("peak"):
        name = f"Share of the memory's peak of {peak / 1e9:.0f} GB/s"
        table(name, *matrix(results["sizes"], "device", lambda *about: _share(*about, peak)))
    if rate := results["bandwidth"].get(COPY):
        name = f"Share of the copy's bandwidth of {rate / 1e9:.0f} GB/s"
        table(name, *matrix(results["sizes"], "device", lambda *about: _share(*about, rate)))
    table(*targets_table(verdicts))
    for part in PARTS:
        for row in results[part]:
            for name, reason in row["left_out"].items():
                print(f"{row['arrays']} x {short(row['elements'])} without {name}: {reason}")


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _times_as_long(row: Mapping[str, Any], times: Mapping[str, Any], name: str) -> str:
    ours = next((times[key] for key in times if key.startswith("fastopt")), None)
    return f"{times[name]['median'] / ours['median']:.2f}" if ours else ""


def _share(row: Mapping[str, Any], times: Mapping[str, Any], name: str, rate: float) -> str:
    each = BYTES_PER_ELEMENT.get(name, BYTES_PER_ELEMENT[TRAFFIC])
    return f"{each * row['arrays'] * row['elements'] / times[name]['median'] / rate:.1%}"


def show_tuning(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what each shape of the kernel takes."""
    table("Time per step on the device", *matrix(rows, "device", median))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw time per parameter against their number, and the host's time against the arrays'."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files, needs no window
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    one = [row for row in results["sizes"] if row["arrays"] == 1]
    _lines(left, one, "device", lambda row: row["elements"], per_parameter=True)
    if rate := results["bandwidth"].get(COPY):
        least = BYTES_PER_ELEMENT[TRAFFIC] / rate * 1e9
        label = f"bandwidth of a copy, {rate / 1e9:.0f} GB/s"
        left.axhline(least, color="grey", linestyle="-.", label=label)
    left.set(title="one array, on the device", xlabel="number of parameters")
    left.set_ylabel("time per parameter in a step of Adam, ns")
    each = results["sizes"][0]["elements"]
    several = [row for row in results["sizes"] if row["elements"] == each]
    _lines(right, several, "host", lambda row: row["arrays"], per_parameter=False)
    right.set(title=f"arrays of {short(each)}, on the host", xlabel="number of arrays")
    right.set_ylabel("time until a step has been handed to the device, us")
    for axis in (left, right):
        axis.set(xscale="log", yscale="log")
        axis.grid(which="major", alpha=0.3)
    left.legend(fontsize="small")
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    figure.suptitle(f"Adam, float32; {results['gpu']['name']}; {versions}", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _lines(
    axis: Any, rows: Sequence[Mapping[str, Any]], mode: str, along: Any, per_parameter: bool
) -> None:
    for name, style in STYLES.items():
        points = [
            (along(row), row[mode][name]["median"] * _unit(row, per_parameter))
            for row in rows
            if name in row[mode]
        ]
        if points:
            axis.plot(*zip(*points, strict=True), label=name, markersize=5, **style)


def _unit(row: Mapping[str, Any], per_parameter: bool) -> float:
    return 1e9 / (row["arrays"] * row["elements"]) if per_parameter else 1e6
