"""Two times of a step on a GPU: how long the host is busy with it, and how long the device.

The host's is measured by its clock around one step, after the device has finished everything: what
it takes to hand the work over, and in addition whatever the step itself waits for. The device's is
measured by CUDA events around many steps that follow each other without waiting, divided by their
number: what a training loop would see, be it held up by the device or by the host.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

from gpu_contenders import cupy, wait

from fastopt.cli.timing import Effort, Step, Times, Turn, take_turns

BLOCK = 0.02
"""Seconds of steps between two events: far above the events' own half microsecond."""

FEWEST, MOST = 3, 2_000
"""Steps in a block."""


def host_times(turns: Mapping[str, Turn], effort: Effort) -> dict[str, Times]:
    """Return how long the host is busy with a step of each contender."""
    return take_turns({name: Turn(t.step, _after(t)) for name, t in turns.items()}, effort)


def _after(turn: Turn) -> Step:
    def prepare() -> None:
        if turn.prepare is not None:
            turn.prepare()
        wait()

    return prepare


def device_times(turns: Mapping[str, Turn], effort: Effort) -> dict[str, Times]:
    """Return how long the device takes for a step of each contender, who take turns in blocks.

    The count is that of the steps; median and quartiles are those of the blocks' averages.
    """
    with _no_collector():
        counts = {name: _fitting(_block(turn, FEWEST)) for name, turn in turns.items()}
        blocks = max(effort.least, effort.rounds, round(effort.seconds / BLOCK))
        measured: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(blocks):
            for name, turn in turns.items():
                measured[name].append(_block(turn, counts[name]))
    return {name: _steps_of(Times.of(found), counts[name]) for name, found in measured.items()}


def _fitting(seconds: float) -> int:
    """Return how many steps a block should have."""
    return max(FEWEST, min(MOST, round(BLOCK / max(seconds, 1e-9))))


def _steps_of(times: Times, count: int) -> Times:
    return Times(times.median, times.low, times.high, times.count * count)


def _block(turn: Turn, count: int) -> float:
    """Return the seconds per step of so many steps; one more before them does not count."""
    cuda: Any = cupy().cuda
    start, end = cuda.Event(), cuda.Event()
    if turn.prepare is not None:
        turn.prepare()
    wait()
    turn.step()
    start.record()
    for _ in range(count):
        turn.step()
    end.record()
    end.synchronize()
    return float(cuda.get_elapsed_time(start, end)) / 1e3 / count


@contextmanager
def _no_collector() -> Any:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
