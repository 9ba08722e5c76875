"""fastopt's step on the CPU against its peers, its own traffic, and what it has to reach.

    python benchmarks/cpu.py --json results.json --picture results.png

README.md beside this file says what each number means.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import checks
import command_line
import contenders
import denormals
import quiet
import report
import rules
import startup
import steps
import storage
from targets import targets
from traffic import BYTES_PER_PARAMETER

from fastopt.cli.bench import SIZES
from fastopt.cli.main import machine
from fastopt.cli.timing import FULL, QUICK, Effort

QUICK_SIZES = ((1, 10), (10, 10), (1, 100), (10, 1_000), (200, 1_000), (1, 100_000))
LARGE_SIZE = (1, 100_000_000)
CLIPPED_SIZES = ((200, 1_000), (1, 20_000_000))
SLOW_FROM = 5_000_000
"""Parameters from which a step takes so long that more time is needed for enough of them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    given = _arguments(argv)
    command_line.use_threads(given.threads)
    results = _measure(given.quick, given.large, given.threads)
    verdicts = targets(results)
    results["targets"] = [{**asdict(target), "verdict": target.verdict} for target in verdicts]
    report.say_where(results)
    report.show(results, verdicts)
    command_line.write_json(given.json, results)
    if given.picture is not None:
        report.draw(results, given.picture)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, less time for each")
    parser.add_argument("--large", action="store_true", help="100 M parameters too")
    command_line.add_threads(parser)
    return command_line.parse(parser, argv)


def _measure(quick: bool, large: bool, threads: int) -> dict[str, Any]:
    before = quiet.Usage.now()
    effort = QUICK if quick else FULL
    sizes = [*(QUICK_SIZES if quick else SIZES), *([LARGE_SIZE] if large else [])]
    started = startup.measure(
        3 if quick else 7, command_line.tell
    )  # before other threads are in the way
    ready, absent = checks.taking_part(contenders.ADAM)
    clipped, absent_clipped = checks.taking_part(contenders.CLIPPED)
    measured = [_steps(ready, *size, effort) for size in sizes]
    return {
        "startup": started,
        "sizes": measured,
        "bandwidth": _bandwidth(measured),
        "clipping": [_steps(clipped, *size, effort) for size in CLIPPED_SIZES if size in sizes],
        "storage": _storage(quick, large, effort, ready),
        "rules": _rules(1_000_000 if quick else 20_000_000, effort, ready),
        "denormals": denormals.measure(
            [contender for contender in contenders.WITHOUT_GRADIENTS if contender in ready],
            command_line.tell,
        ),
        "machine": machine(),
        "threads": threads,
        "versions": report.peers_versions(),
        "absent": {**absent, **absent_clipped},
        "others": quiet.others_since(before),
    }


def _storage(
    quick: bool, large: bool, effort: Effort, ready: contenders.Classes
) -> list[dict[str, Any]]:
    if contenders.FastoptNumba not in ready:
        return []
    sizes = [*storage.SIZES[: 1 if quick else None], *([LARGE_SIZE[1]] if large else [])]
    return [storage.measure(size, effort, ready, command_line.tell) for size in sizes]


def _rules(parameters: int, effort: Effort, ready: contenders.Classes) -> list[dict[str, Any]]:
    backend = "numba" if contenders.FastoptNumba in ready else "numpy"
    return rules.measure(parameters, replace(effort, rounds=3), backend, command_line.tell)


def _steps(
    classes: contenders.Classes, arrays: int, elements: int, effort: Effort
) -> dict[str, Any]:
    fitting, left_out = steps.fitting(classes, arrays * elements)
    command_line.tell(
        f"{arrays} x {elements}: {', '.join(contender.name for contender in fitting)}"
    )
    if left_out:
        command_line.tell(f"  no memory for {', '.join(left_out)}")
    if arrays * elements >= SLOW_FROM:
        effort = replace(effort, seconds=2 * effort.seconds)
    return steps.measure(fitting, arrays, elements, effort)


def _bandwidth(measured: Sequence[dict[str, Any]]) -> float | None:
    """Return the bytes per second of Adam's bare traffic at the largest size of one array."""
    rates = [
        BYTES_PER_PARAMETER * row["elements"] / row["same"][steps.TRAFFIC]["median"]
        for row in measured
        if row["arrays"] == 1 and steps.TRAFFIC in row["same"]
    ]
    return rates[-1] if rates else None


if __name__ == "__main__":
    main()
