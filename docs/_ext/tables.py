"""Tables of the manual, made of the committed results of benchmarks/ when the manual is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import fastopt

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
CPU = "cpu-amd-epyc-2-threads"

CALLED = {
    "hand": "NumPy loop by hand",
    "fastopt (NumPy)": "fastopt on NumPy alone",
    "fastopt max_grad_norm": "fastopt, `max_grad_norm`",
    "fastopt, lr set": "fastopt, `opt.lr` set before each step",
    "torch fused": "PyTorch fused",
    "torch foreach": "PyTorch foreach",
    "torch single": "PyTorch one by one",
}
"""What the columns of results are called in a table, where their name there is short."""

Made = tuple[str, list[Path]]
"""A text in MyST, and the files that it is made of."""


def _load(name: str) -> tuple[Any, Path]:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")), file


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in MyST, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def duration(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def number(value: int) -> str:
    """Return a whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def machine(name: str) -> Made:
    """Return where and with what some results were measured."""
    found, file = _load(name)
    about = found["machine"]
    versions = about["versions"] | found.get("versions", {})
    said = ", ".join(f"{library} {version}" for library, version in versions.items() if version)
    return f"{about['processor']}, {about['threads']} threads; {said}.", [file]


def in_the_loop() -> Made:
    """Return the times of Adam's step inside of a training loop, medians over the repetitions."""
    found, file = _load("in_the_loop")
    rows = [row for row in found["rows"] if row["group"] == "Adam"]
    names = list(rows[0]["loop"])
    head = ["parameters (4 arrays)", *(CALLED.get(name, name) for name in names)]
    sizes = sorted({row["parameters"] for row in rows})
    cells = []
    for size in sizes:
        same = [row for row in rows if row["parameters"] == size]
        cells.append([number(size), *(_in_loop(same, name) for name in names)])
    return table(head, cells), [file]


def _in_loop(rows: Sequence[Any], name: str) -> str:
    def middle(where: str) -> str:
        times = sorted(row[where][name]["median"] for row in rows if name in row.get(where, {}))
        return duration(times[len(times) // 2]) if times else ""

    inside, outside = middle("loop"), middle("back_to_back")
    return f"{inside} ({outside})" if outside else inside


def sizes(which: str) -> Made:
    """Return the times of Adam's step back to back; "same" or "fresh" gradient arrays."""
    found, file = _load(CPU)
    names = list(dict.fromkeys(name for row in found["sizes"] for name in row[which]))
    cells = [
        [
            f"{number(row['arrays'])} \N{MULTIPLICATION SIGN} {number(row['elements'])}",
            *(duration(row[which][n]["median"]) if n in row[which] else "" for n in names),
        ]
        for row in found["sizes"]
    ]
    head = ["arrays \N{MULTIPLICATION SIGN} elements", *(CALLED.get(name, name) for name in names)]
    return table(head, cells), [file]


def targets() -> Made:
    """Return what is wanted of the step, with what was measured."""
    found, file = _load(CPU)
    cells = [
        [
            one["text"],
            f"{'at least' if one['at_least'] else 'at most'} {one['limit']:g} {one['unit']}",
            f"{one['measured']:.3g} {one['unit']}",
            one["verdict"],
        ]
        for one in found["targets"]
    ]
    return table(["what", "wanted", "measured", "verdict"], cells), [file]


def torch() -> Made:
    """Return how many times faster than PyTorch's fastest form each optimizer of both is."""
    found, file = _load("rules")
    rows = found["torch"]
    sizes = list(dict.fromkeys((row["arrays"], row["elements"]) for row in rows))
    ratios = {(row["name"], row["arrays"], row["elements"]): row["ratio"] for row in rows}
    names = sorted({row["name"] for row in rows}, key=str.lower)
    head = [
        "class",
        *(
            f"{number(arrays)} \N{MULTIPLICATION SIGN} {number(elements)}"
            for arrays, elements in sizes
        ),
    ]
    cells = [
        [f"`{name}`", *(f"{ratios[name, *s]:.2f}" if (name, *s) in ratios else "" for s in sizes)]
        for name in names
    ]
    return table(head, cells), [file]


def quality() -> Made:
    """Return what fewer bits cost in training."""
    found, file = _load("quality")
    loss: dict[str, dict[str, list[float]]] = {"digits": {}, "characters": {}}
    for problem, ways in loss.items():
        for row in found[problem]:
            ways.setdefault(row["way"], []).append(row["training"])
    cells = []
    for way in loss["digits"]:
        row = [way, f"{_bytes_held(way):.3g}"]
        for ways in loss.values():
            mean, first = (sum(ways[w]) / len(ways[w]) for w in (way, "float32"))
            row += [f"{mean:.4f}", f"{mean / first - 1:+.2%}"]
        cells.append(row)
    head = ["parameters and state", "bytes", "digits", "", "characters", ""]
    return table(head, cells), [file]


def _bytes_held(way: str) -> float:
    """Return the bytes per parameter that a way of ``benchmarks/quality.py`` takes with Adam."""
    kept, _, rest = way.partition(", ")
    options: dict[str, Any] = {}
    if kept == "bfloat16":
        options["master_weights"] = "master weights" in rest
        options["stochastic_rounding"] = "stochastic rounding" in rest
    if "state " in rest:
        options["state_dtype"] = rest.rpartition("state ")[2]
    params = np.zeros(1_000_000, {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[kept])
    opt = fastopt.Adam(params, backend="numpy", **options)
    return (params.nbytes + opt.state_bytes) / params.size


def members() -> Made:
    """Return the time of a step of many fits at once beside a loop over as many optimizers."""
    found, file = _load("members")
    called = {"plain": "", "skip": '`on_nonfinite="skip"`'}
    cells = [
        [
            f"{number(row['fits'])} \N{MULTIPLICATION SIGN} {number(row['parameters'])}",
            called.get(row["policy"], f"`{row['policy']}`"),
            *(duration(row[name]) if name in row else "" for name in ("members", "loop", "jax")),
        ]
        for row in found
    ]
    head = [
        "fits \N{MULTIPLICATION SIGN} parameters",
        "with",
        "`members=`",
        "a loop over optimizers",
        "optax, jitted",
    ]
    return table(head, cells), [file]


def ranks() -> Made:
    """Return the times of a step over ranks beside torch.distributed's."""
    found, file = _load("distributed")
    names = list(dict.fromkeys(name for row in found["rows"] for name in row["seconds"]))
    called = {"by hand": "`Allreduce` by hand", "DataParallel, fast": "`DataParallel(fast=True)`"}
    head = ["ranks, parameters", *(called.get(name, name) for name in names), "times as fast"]
    cells = []
    for row in found["rows"]:
        times = [
            duration(row["seconds"][name]["median"]) if name in row["seconds"] else ""
            for name in names
        ]
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"].values())
        cells.append([f"{row['ranks']}, {number(row['parameters'])}", *times, ratios])
    return table(head, cells), [file]


def overlap() -> Made:
    """Return how much of sending gradients a backward pass hides."""
    found, file = _load("distributed")
    cells = [
        [
            f"{name}, the pass {kind}",
            *(duration(seconds) for seconds in (times["sending"], *_passes(times[kind]))),
            f"{times[kind]['hidden']:.0%}",
        ]
        for row in found["overlap"]
        for name, times in row.get("found", {}).items()
        for kind in ("computes", "sleeps")
    ]
    head = ["", "sending", "pass alone", "pass, then `step`", "`backward()`, `step`", "hidden"]
    return table(head, cells), [file]


def _passes(times: Any) -> list[float]:
    return [times[name] for name in ("alone", "after", "within")]


MAKERS: dict[str, Callable[..., Made]] = {
    made.__name__: made
    for made in (in_the_loop, machine, members, overlap, quality, ranks, sizes, targets, torch)
}
"""What a page can name, as "{made} name arguments" in a fence of its own."""
