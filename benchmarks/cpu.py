"""fastopt's step on the CPU against its peers, its own traffic, and what it has to reach.

    python benchmarks/cpu.py --json results.json --picture results.png

README.md beside this file says what each number means.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
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
QUIET = 0.02
"""Share of the processors that others may take. One busy process makes the parallel steps of most
libraries wait for it, for milliseconds at a time."""
SLOW_FROM = 5_000_000
"""Parameters from which a step takes so long that more time is needed for enough of them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    given = _arguments(argv)
    _use_threads(given.threads)
    results = _measure(given.quick, given.large, given.threads)
    verdicts = targets(results)
    results["targets"] = [{**asdict(target), "verdict": target.verdict} for target in verdicts]
    _say_where(results)
    report.show(results, verdicts)
    command_line.write_json(given.json, results)
    if given.picture is not None:
        report.draw(results, given.picture)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, less time for each")
    parser.add_argument("--large", action="store_true", help="100 M parameters too")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="2 unless given")
    given = command_line.parse(parser, argv)
    if given.threads < 1:
        parser.error("--threads must be at least 1")
    return given


def _use_threads(number: int) -> None:
    """Give every library that many threads, before any of them is imported."""
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < number:
            raise SystemExit(f"give --threads {len(usable)}: there are no {number} processors here")
        os.sched_setaffinity(0, usable[:number])  # JAX goes by this
    os.environ["NUMBA_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(number)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("FASTOPT_BACKEND", None)


def _measure(quick: bool, large: bool, threads: int) -> dict[str, Any]:
    before = quiet.Usage.now()
    effort = QUICK if quick else FULL
    sizes = [*(QUICK_SIZES if quick else SIZES), *([LARGE_SIZE] if large else [])]
    started = startup.measure(3 if quick else 7, _tell)  # before other threads are in the way
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
            [contender for contender in contenders.WITHOUT_GRADIENTS if contender in ready], _tell
        ),
        "machine": machine(),
        "threads": threads,
        "versions": _versions(),
        "absent": {**absent, **absent_clipped},
        "others": quiet.others_since(before),
    }


def _storage(
    quick: bool, large: bool, effort: Effort, ready: contenders.Classes
) -> list[dict[str, Any]]:
    if contenders.FastoptNumba not in ready:
        return []
    sizes = [*storage.SIZES[: 1 if quick else None], *([LARGE_SIZE[1]] if large else [])]
    return [storage.measure(size, effort, ready, _tell) for size in sizes]


def _rules(parameters: int, effort: Effort, ready: contenders.Classes) -> list[dict[str, Any]]:
    backend = "numba" if contenders.FastoptNumba in ready else "numpy"
    return rules.measure(parameters, replace(effort, rounds=3), backend, _tell)


def _steps(
    classes: contenders.Classes, arrays: int, elements: int, effort: Effort
) -> dict[str, Any]:
    fitting, left_out = steps.fitting(classes, arrays * elements)
    _tell(f"{arrays} x {elements}: {', '.join(contender.name for contender in fitting)}")
    if left_out:
        _tell(f"  no memory for {', '.join(left_out)}")
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


def _versions() -> dict[str, str]:
    names = ("torch", "jax", "optax", "deepspeed", "thinc")
    return {name: sys.modules[name].__version__ for name in names if name in sys.modules}


def _say_where(results: dict[str, Any]) -> None:
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


def _tell(text: str) -> None:
    print(f"{time.monotonic() - _BEGIN:4.0f} s  {text}", file=sys.stderr, flush=True)


_BEGIN = time.monotonic()


if __name__ == "__main__":
    main()
