"""Timing by turns: contenders in one process, each at work for a moment, again and again."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PAUSE = 0.02
"""Seconds before a turn, in which the threads of the turn before stop spinning and go to sleep."""

Step = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a contender does in its turn: ``step`` is timed, ``prepare`` comes before, untimed."""

    step: Step
    prepare: Step | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """The seconds that one contender's steps took: the median, the quartiles, and of how many."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Sum up what was measured."""
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, len(seconds))


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: seconds for each contender, in so many turns; at least so many steps."""

    seconds: float
    rounds: int
    least: int = 5


QUICK, FULL = Effort(0.1, rounds=3), Effort(0.4, rounds=8)


def take_turns(turns: Mapping[str, Turn], effort: Effort) -> dict[str, Times]:
    """Time contenders that take turns, so that whatever slows the machine down slows all of them.

    In each of the rounds each contender has a pause, a step that does not count, and then steps
    until its share of the seconds is over; whoever has too few steps by then gets more rounds.
    """
    measured: dict[str, list[float]] = {name: [] for name in turns}
    done = 0
    while done < effort.rounds or any(len(times) < effort.least for times in measured.values()):
        for name, turn in turns.items():
            if done < effort.rounds or len(measured[name]) < effort.least:
                time.sleep(PAUSE)
                measured[name] += _block(turn, effort.seconds / effort.rounds)
        done += 1
    return {name: Times.of(times) for name, times in measured.items()}


def _block(turn: Turn, seconds: float) -> list[float]:
    """Return the times of the steps of one turn."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        _once(turn)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            times.append(_once(turn))
    finally:
        if collecting:
            gc.enable()
    return times


def _once(turn: Turn) -> float:
    if turn.prepare is not None:
        turn.prepare()
    step = turn.step
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
