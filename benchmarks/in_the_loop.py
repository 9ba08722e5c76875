"""Optimizer steps where they are used: after a forward and a backward pass, one at a time.

    python benchmarks/in_the_loop.py --out loop.json --picture loop.png

Each contender trains a two-layer network of its own, with gradients written by hand in NumPy. They
take turns step by step: forward pass, backward pass, one timed step, and the next one. So each step
finds caches, branch predictors and threads as in a training loop. The times of steps that follow
each other without anything between stand beside them, called "back to back".
README.md beside this file says more.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import checks
import command_line
import loop_report
import numpy as np
import quiet
import report
from contenders import Array, InPlace
from loop_contenders import GROUPS, Group, loss_scale

import fastopt
from fastopt.cli.main import machine
from fastopt.cli.timing import Effort, Times, Turn, take_turns

SIZES = (10, 2_000, 50_000, 200_000, 1_000_000)
CLIP = "clip"
CLIP_SIZES = (10, 200_000)
EXAMPLES = 32
"""In a batch."""
BATCHES = 8
"""That take turns, so that no network comes to an end of its training."""
UNTIMED = 5
"""Rounds before the timing begins."""
LEAST = 5
"""Timed rounds, however long they take."""
PATIENCE = 5.0
"""Seconds that ``auto`` has for coming to Numba."""
BACK_TO_BACK = Effort(0.03, rounds=1)
MAX_NORM = 1e-3
"""Below every norm here, so that ``clip_grad_norm_`` always has something to do."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    given = _arguments(argv)
    command_line.use_threads(given.threads)
    before = quiet.Usage.now()
    blas_threads = given.threads if given.blas_threads == "default" else given.blas_threads
    with _blas(blas_threads):
        found = _measure(given)
    results = {
        **found,
        "machine": machine(),
        "threads": given.threads,
        "blas_threads": blas_threads,
        "blas_threads_default": given.blas_threads == "default",
        "versions": report.peers_versions(),
        "others": quiet.others_since(before),
    }
    results["ratios"] = [asdict(ratio) for ratio in loop_report.ratios(results)]
    report.say_where(results)
    loop_report.show(results)
    command_line.write_json(given.json, results)
    if given.picture is not None:
        loop_report.draw(results, given.picture)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    command_line.add_threads(parser)
    parser.add_argument(
        "--blas-threads",
        type=_threads_of_blas,
        default=1,
        metavar="N",
        help="of NumPy's matrix products: 1 unless given; 'default' for all processors in use",
    )
    parser.add_argument(
        "--sizes", type=_size, nargs="+", default=SIZES, metavar="N", help="numbers of parameters"
    )
    parser.add_argument(
        "--only", nargs="+", choices=(*GROUPS, CLIP), default=(*GROUPS, CLIP), help="tables"
    )
    parser.add_argument("--repetitions", type=_count, default=3, metavar="N", help="3 unless given")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        type=float,
        default=0.35,
        metavar="S",
        help="for each contender at each size, in each repetition: 0.35 unless given",
    )
    length.add_argument("--rounds", type=_count, metavar="N", help="so many, however long it takes")
    return command_line.parse(parser, argv)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; give at least 1")
    return number


def _size(text: str) -> int:
    number = int(text)
    if number < 4:
        raise argparse.ArgumentTypeError(
            f"{text} is too small; a network has at least 4 parameters"
        )
    return number


def _threads_of_blas(text: str) -> int | str:
    return text if text == "default" else _count(text)


def _blas(threads: int) -> AbstractContextManager[object]:
    """Let NumPy's matrix products run on so many threads."""
    try:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
    except ImportError:
        raise SystemExit("pip install threadpoolctl: it sets BLAS's number of threads") from None
    limits: AbstractContextManager[object] = threadpoolctl.threadpool_limits(threads, "blas")
    return limits


# Measuring --------------------------------------------------------------------------------------


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    absent: dict[str, str] = {}
    groups = []
    for key in (key for key in GROUPS if key in given.only):
        group = GROUPS[key]
        ready, missing = checks.taking_part(group.classes, group.sure)
        for name, reason in missing.items():
            installed = "not installed" not in reason
            absent[f"{name}, {group.title}" if installed else name] = reason
        groups.append(replace(group, classes=tuple(ready)))
    rows: list[dict[str, Any]] = []
    for repetition in range(given.repetitions):
        for size in given.sizes:
            command_line.tell(f"repetition {repetition + 1}: {size} parameters")
            for group in groups:
                row, unsettled = _in_turns(group, size, given.seconds, given.rounds)
                rows.append({"repetition": repetition, **row})
                absent |= {f"{name}, {size}": "still not on Numba" for name in unsettled}
        if CLIP in given.only:
            for size in CLIP_SIZES:
                row = _clip(size, given.seconds, given.rounds)
                rows.append({"repetition": repetition, **row})
    return {"rows": rows, "absent": absent}


@dataclass(frozen=True)
class Loop:
    """A contender, and the network that it trains."""

    contender: InPlace
    params: Sequence[Array]
    loss_scale: float

    @classmethod
    def of(cls, contender: InPlace, arrays: int) -> Loop:
        """Let the network have the contender's own arrays."""
        params = [contender.result(index) for index in range(arrays)]
        return cls(contender, params, loss_scale(contender))

    def round(self, x: Array, y: Array) -> float:
        """Run forward, backward, and a step; return the seconds that the step took."""
        self.contender.use(gradients(self.params, x, y, self.loss_scale))
        step = self.contender.step
        start = time.perf_counter()
        step()
        return time.perf_counter() - start


def _in_turns(
    group: Group, size: int, seconds: float, rounds: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the times of all contenders at one size, and who never came to what it is to show."""
    params, batches = _task(size)
    loops = [Loop.of(each(params), len(params)) for each in group.classes]
    unsettled = _prepare(loops, batches)
    loops = [loop for loop in loops if loop.contender.name not in unsettled]
    times: dict[str, list[float]] = {loop.contender.name: [] for loop in loops}
    order = random.Random(0)
    with _without_collector():
        for _ in _rounds(seconds * len(loops), rounds):
            x, y = next(batches)
            for loop in order.sample(loops, len(loops)) if group.shuffled else loops:
                times[loop.contender.name].append(loop.round(x, y))
    _check_trained(loops, params)
    turns = {loop.contender.name: Turn(loop.contender.step) for loop in loops}
    row = {
        "parameters": size,
        "group": group.title,
        "loop": _summed_up(times),
        "back_to_back": {
            name: asdict(each) for name, each in take_turns(turns, BACK_TO_BACK).items()
        },
    }
    return row, unsettled


def _rounds(seconds: float, number: int | None) -> Iterator[int]:
    """Count so many rounds, or without a number as many as begin in these seconds."""
    end = time.perf_counter() + seconds
    for done in itertools.count():
        enough = done >= LEAST and time.perf_counter() > end if number is None else done >= number
        if enough:
            return
        yield done


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the collector of garbage from running in somebody's step."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _prepare(loops: Sequence[Loop], batches: Iterator[tuple[Array, Array]]) -> list[str]:
    """Make the rounds that do not count; return who has not settled in the time there is."""
    end = time.perf_counter() + PATIENCE
    for done in itertools.count(1):
        x, y = next(batches)
        for loop in loops:
            loop.round(x, y)
        waiting = [it.contender.name for it in loops if not getattr(it.contender, "settled", True)]
        if done >= UNTIMED and (not waiting or time.perf_counter() > end):
            break
    return waiting


def _check_trained(loops: Sequence[Loop], before: Sequence[Array]) -> None:
    """Raise if the arrays of a network have not been trained, or have been lost."""
    for loop in loops:
        for now, then in zip(loop.params, before, strict=True):
            if np.array_equal(now, then) or not np.isfinite(now).all():
                raise RuntimeError(f"{loop.contender.name} does not train its network")


def _summed_up(times: dict[str, list[float]]) -> dict[str, Any]:
    return {
        name: asdict(Times.of(each if len(each) > 1 else 2 * each)) for name, each in times.items()
    }


# The network ------------------------------------------------------------------------------------


def _task(size: int) -> tuple[list[Array], Iterator[tuple[Array, Array]]]:
    """Return the parameters that a network begins with, and its batches, again and again."""
    rng = np.random.default_rng(0)
    inputs, hidden, outputs = widths(size)
    w1, b1, w2, b2 = (
        rng.standard_normal((inputs, hidden)) / inputs**0.5,
        np.zeros(hidden),
        rng.standard_normal((hidden, outputs)) / hidden**0.5,
        np.zeros(outputs),
    )
    batches = [
        (
            rng.standard_normal((EXAMPLES, inputs), np.float32),
            rng.standard_normal((EXAMPLES, outputs), np.float32),
        )
        for _ in range(BATCHES)
    ]
    return [each.astype(np.float32) for each in (w1, b1, w2, b2)], itertools.cycle(batches)


@cache
def widths(parameters: int) -> tuple[int, int, int]:
    """Return inputs, hidden units and outputs of a network with exactly so many parameters.

    Of those with at most ten outputs the one whose first matrix is closest to a square; at least 4
    parameters.
    """
    found = []
    for outputs in range(1, 11):
        rest = parameters - outputs  # hidden * (inputs + 1 + outputs)
        for hidden in range(1, rest // (outputs + 2) + 1):
            if rest % hidden == 0:
                inputs = rest // hidden - 1 - outputs
                found.append((max(inputs / hidden, hidden / inputs), inputs, hidden, outputs))
    return min(found)[1:]


def gradients(params: Sequence[Array], x: Array, y: Array, loss_scale: float) -> list[Array]:
    """Return the gradients of a mean squared error: two layers, tanh between them."""
    w1, b1, w2, b2 = params
    hidden = np.tanh(x @ w1 + b1)
    error = (hidden @ w2 + b2 - y) * (2.0 * loss_scale / len(x))
    below = (error @ w2.T) * (1.0 - hidden * hidden)
    return [x.T @ below, below.sum(axis=0), hidden.T @ error, error.sum(axis=0)]


# clip_grad_norm_ --------------------------------------------------------------------------------


def _clip(size: int, seconds: float, rounds: int | None) -> dict[str, Any]:
    """Time fastopt's clipping of one array and what is written by hand, in turns call by call."""
    original = np.random.default_rng(0).standard_normal(size, np.float32)
    grad = original.copy()

    def by_hand() -> None:
        nonlocal grad
        norm = float((grad * grad).sum()) ** 0.5
        grad *= min(1.0, MAX_NORM / (norm + 1e-6))

    calls = {
        loop_report.CLIP: lambda: fastopt.clip_grad_norm_(grad, MAX_NORM),
        "hand": by_hand,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    with _without_collector():
        for _ in _rounds(seconds * len(calls), rounds):
            for name, call in calls.items():
                np.copyto(grad, original)  # as a backward pass writes them
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {"parameters": size, "group": loop_report.CLIP, "loop": _summed_up(times)}


if __name__ == "__main__":
    main()
