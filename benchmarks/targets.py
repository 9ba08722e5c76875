"""What the step has to reach, and whether it does: read from the results, printed at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RATIOS = {  # arrays, elements: torch fused / fastopt on the same, on fresh gradient arrays
    (1, 100): (5.0, 3.0),
    (10, 1_000): (8.0, 5.0),
    (200, 1_000): (8.0, 5.0),
    (1, 100_000): (2.5, 2.5),
    (1, 20_000_000): (1.0, 1.0),
}
CLIPPED_RATIOS = {(200, 1_000): 8.0, (1, 20_000_000): 1.3}
LARGE = (1, 20_000_000)
MODES = ("same", "fresh")
STORAGE = {"bfloat16": (1.3, 2.0), "int8": (1.0, 3.9)}
"""Of state in fewer bits: torch fused / fastopt, float32 state / its bytes."""
COSTLY = ("MADGRAD", "AdamAtan2")
"""The rules with a cube root or an arctangent."""


@dataclass(frozen=True)
class Target:
    """A number to reach: ``at_least`` it, or else at most it; None was not measured.

    ``spread`` is the upper quartile over the lower one, of whichever of the two times varies more.
    """

    text: str
    limit: float
    measured: float | None
    spread: float | None = None
    unit: str = ""
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """``pass``, ``short`` or ``not measured``."""
        if self.measured is None:
            return "not measured"
        fine = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "pass" if fine else "short"


Results = Mapping[str, Any]
Measured = tuple[float | None, float | None]
"""A ratio of medians, and its spread."""


def targets(results: Results) -> list[Target]:
    """Return every target with what was measured."""
    return [
        *_against_torch(results),
        *_against_loop(results),
        *_clipped(results),
        *_storage(results),
        *_rules(results),
        *_new_processes(results),
        *_denormals(results),
    ]


def _against_torch(results: Results) -> Iterator[Target]:
    rows = results["sizes"]
    for size, limits in RATIOS.items():
        for mode, limit in zip(MODES, limits, strict=True):
            text = f"torch fused / fastopt, {at(size)}, {mode} gradient arrays"
            yield Target(text, limit, *find(rows, size, mode, "torch fused", "fastopt"))
    share = find(rows, LARGE, "same", "same traffic", "fastopt")
    yield Target(f"share of the bandwidth, {at(LARGE)}", 0.95, *share)


def _against_loop(results: Results) -> Iterator[Target]:
    measured = {
        f"{at((row['arrays'], row['elements']))}, {mode}": ratio(row[mode], "NumPy loop", "fastopt")
        for row in results["sizes"]
        for mode in MODES
        if {"NumPy loop", "fastopt"} <= row[mode].keys()
    }
    text = "NumPy loop / fastopt, the worst of all sizes"
    if measured:
        worst = min(measured, key=lambda key: measured[key])
        yield Target(f"{text} ({worst})", 1.0, *measured[worst])
    else:
        yield Target(text, 1.0, None)
    for size, limit in (LARGE, 2.5), ((10, 10), 1.0):
        found = find(results["sizes"], size, "same", "NumPy loop", "fastopt (NumPy)")
        yield Target(f"NumPy loop / fastopt's NumPy backend, {at(size)}", limit, *found)


def _clipped(results: Results) -> Iterator[Target]:
    names = "torch clip_grad_norm_, fused", "fastopt max_grad_norm"
    for size, limit in CLIPPED_RATIOS.items():
        for mode in MODES:
            text = f"{names[0]} / {names[1]}, {at(size)}, {mode}"
            yield Target(text, limit, *find(results["clipping"], size, mode, *names))


def _storage(results: Results) -> Iterator[Target]:
    rows = results["storage"]
    for kind, (speed, smaller) in STORAGE.items():
        name = f"fastopt, state {kind}"
        found = find(rows, LARGE, "same", "torch fused", name)
        yield Target(f"torch fused / {name}, {at(LARGE)}", speed, *found)
        sizes = [row["state_bytes"] for row in rows if row["elements"] == LARGE[1]]
        measured = sizes[0]["fastopt"] / sizes[0][name] if sizes else None
        yield Target(f"bytes of state, float32 / {kind}", smaller, measured)


def _rules(results: Results) -> Iterator[Target]:
    from_memory = [row for row in results["rules"] if row["parameters"] >= LARGE[1]]
    kinds = {
        "other elementwise rules": (1.15, lambda row: not (row["sums"] or row["name"] in COSTLY)),
        f"{' and '.join(COSTLY)}": (1.6, lambda row: row["name"] in COSTLY),
        "rules with sums": (1.15, lambda row: row["sums"]),
    }
    for kind, (limit, belongs) in kinds.items():
        rows = [row for row in from_memory if belongs(row)]
        worst = max(rows, key=lambda row: row["ratio"], default=None)
        name = f" ({worst['name']})" if worst else ""
        text = f"{kind}, time / that of their traffic, the worst{name}"
        yield Target(text, limit, worst and worst["ratio"], worst and worst["spread"], "", False)


def _new_processes(results: Results) -> Iterator[Target]:
    found = results["startup"]
    text = "import fastopt beyond numpy"
    yield Target(text, 60.0, 1e3 * found["import"], unit="ms", at_least=False)
    for row in found["first_step"]:
        text = f"first step of a second process, {at((row['arrays'], row['elements']))}"
        yield Target(text, 150.0, 1e3 * row["warm"]["step"], unit="ms", at_least=False)

    script = found["script"]
    for row in script["rows"]:
        text = f"python to the end of step {row['steps']}, {row['caches']} caches, beyond numpy"
        yield Target(text, 80.0, 1e3 * row["beyond_numpy"], unit="ms", at_least=False)
        if row["steps"] > 1:
            text = (
                f"share of such processes that import numba, {row['steps']} steps, {row['caches']}"
            )
            yield Target(text, 0.0, row["numba"], at_least=False)


def _denormals(results: Results) -> Iterator[Target]:
    for backend in ("fastopt", "fastopt (NumPy)"):
        found = results["denormals"].get(backend)
        text = f"step 1100 without gradient / step 50, {backend}"
        yield Target(text, 1.1, found and found["ratio"], found and found["spread"], at_least=False)


def find(
    rows: Sequence[Mapping[str, Any]], size: tuple[int, int], mode: str, slow: str, fast: str
) -> Measured:
    """Return how many times as long one contender takes as another, if both took part."""
    for row in rows:
        times = row[mode]
        if (row["arrays"], row["elements"]) == size and {slow, fast} <= times.keys():
            return ratio(times, slow, fast)
    return None, None


def ratio(times: Mapping[str, Any], slow: str, fast: str) -> tuple[float, float]:
    spread = max(times[name]["high"] / times[name]["low"] for name in (slow, fast))
    return times[slow]["median"] / times[fast]["median"], spread


def at(size: tuple[int, int]) -> str:
    return f"{size[0]} x {spaced(size[1])}"


def spaced(number: int) -> str:
    """Return a number with its digits in threes."""
    return f"{number:,}".replace(",", " ")
