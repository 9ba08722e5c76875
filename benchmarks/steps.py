"""Times of a step of all contenders at one size, on the same and on fresh gradient arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import traffic
from checks import away_from_zero, end, wrong_steps
from contenders import LR, Array, Classes, Contender

from fastopt.cli.timing import Effort, Turn, take_turns

TRAFFIC = "same traffic"
TRAFFIC_FROM = 4_000_000
"""Parameters from which the bare traffic takes part: memory is what counts there, not the cache."""


def measure(classes: Classes, arrays: int, elements: int, effort: Effort) -> dict[str, Any]:
    """Return ``{"arrays": ..., "elements": ..., "same": {name: times}, "fresh": {...}}``.

    All contenders make the same first three steps, which are checked, and in the end all must have
    moved on by as many steps as were timed.
    """
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(elements, np.float32) for _ in range(arrays)]
    grads = [away_from_zero(rng.standard_normal(elements, np.float32)) for _ in range(arrays)]
    made = {contender.name: contender(params) for contender in classes}
    for name, contender in made.items():
        if reason := wrong_steps(contender, params, grads):
            raise RuntimeError(f"{name}, {arrays} x {elements}: {reason}")
    found: dict[str, Any] = {"arrays": arrays, "elements": elements}
    for fresh in (False, True):
        turns = {name: _turn(contender, grads, fresh) for name, contender in made.items()}
        if arrays * elements >= TRAFFIC_FROM and (bare := traffic.step(arrays * elements)):
            turns[TRAFFIC] = Turn(bare)
        before = {name: end(contender.result(0)) for name, contender in made.items()}
        times = take_turns(turns, effort)
        for name, contender in made.items():
            check_moved(name, before[name], end(contender.result(0)), times[name].count)
        found["fresh" if fresh else "same"] = {name: asdict(t) for name, t in times.items()}
    return found


def _turn(contender: Contender, grads: Sequence[Array], fresh: bool) -> Turn:
    contender.hand_in(grads)
    if fresh or not contender.keeps_gradients:
        return Turn(contender.step, partial(contender.hand_in, grads))
    return Turn(contender.step)


def check_moved(name: str, before: Array, now: Array, steps: int) -> None:
    """Raise if a contender has not made the steps that were timed: lr each, rounding apart."""
    moved = float(np.median(np.abs(now - before))) / LR
    if not moved > 0.9 * steps:
        raise RuntimeError(f"{name} has moved by {moved:.0f} steps where {steps} were timed")


def fitting(classes: Classes, parameters: int) -> tuple[list[type[Contender]], list[str]]:
    """Return the first of the contenders that fit in memory together, and the others' names."""
    memory = _available_memory()
    each = 5 * 4 * parameters  # parameter, gradient, m, v, and a new gradient or a temporary
    shared = 10 * 4 * parameters  # what they are made from, the bare traffic, other temporaries
    count = len(classes) if memory is None else max(1, (memory * 9 // 10 - shared) // each)
    return list(classes[:count]), [left_out.name for left_out in classes[count:]]


def _available_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable")]
    return int(kilobytes[0]) * 1024 if kilobytes else None
