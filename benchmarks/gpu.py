"""fastopt's step on a GPU against its peers, the device's bandwidth, and what it has to reach.

    python benchmarks/gpu.py --json results.json --picture results.png
    python benchmarks/gpu.py --tune

README.md beside this file says what each number means.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import checks
import command_line
import gpu_bandwidth
import gpu_contenders
import gpu_graphs
import gpu_report
import gpu_steps
import gpu_tuning
import quiet
from contenders import Classes
from gpu_targets import targets

import fastopt
from fastopt.cli.main import machine
from fastopt.cli.timing import FULL, QUICK, Effort

LARGE, QUICK_LARGE = 256_000_000, 16_000_000
MANY = ((10, 10_000), (300, 10_000), (1_000, 10_000))
ONE = (10_000, 1_000_000, 16_000_000)
SLOW_FROM = 5_000_000
"""Parameters from which a step takes so long that more time is needed for enough of them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write and draw."""
    given = _arguments(argv)
    os.environ.pop("FASTOPT_BACKEND", None)
    if reason := fastopt.available_backends()["cupy"]:
        raise SystemExit(f"benchmarks/gpu.py needs a GPU: {' '.join(reason.split())}")
    results = {"tuning": _tune(given.quick)} if given.tune else _measure(given.quick)
    results |= _about()
    verdicts = [] if given.tune else targets(results)
    results["targets"] = [{**asdict(target), "verdict": target.verdict} for target in verdicts]
    command_line.write_json(given.json, results)
    _say_where(results)
    if given.tune:
        gpu_report.show_tuning(results["tuning"])
        return
    gpu_report.show(results, verdicts)
    if given.picture is not None:
        gpu_report.draw(results, given.picture)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="16 M parameters at most, less time")
    parser.add_argument("--tune", action="store_true", help="only try other shapes of the kernels")
    given = command_line.parse(parser, argv)
    if given.tune and given.picture:
        parser.error("--tune draws no picture")
    return given


def _measure(quick: bool) -> dict[str, Any]:
    before = quiet.Usage.now()
    effort = QUICK if quick else FULL
    adam, absent = checks.taking_part(gpu_contenders.ADAM)
    clipped, absent_clipped = checks.taking_part(gpu_contenders.CLIPPED)
    graphs, absent_graphs = checks.taking_part(gpu_graphs.GRAPHS)
    largest = gpu_steps.largest_fitting(adam, QUICK_LARGE if quick else LARGE)
    ones = sorted({*(size for size in ONE if size < largest), largest})
    # The largest comes last: what its arrays leave in the libraries' pools is in nobody's way.
    sizes = [*MANY, *((1, size) for size in ones)]
    rows = [_steps(adam, size, effort, bandwidth=size == sizes[-1]) for size in sizes]
    some = [*MANY[1:], (1, largest)]
    return {
        "sizes": rows,
        "bandwidth": _bandwidth(rows[-1]),
        "clipping": [_steps(clipped, size, effort) for size in some],
        "graphs": [_steps(graphs, size, effort) for size in [(1, ones[0]), *MANY]],
        "absent": {**absent, **absent_clipped, **absent_graphs},
        "others": quiet.others_since(before),
    }


def _steps(
    classes: Classes, size: tuple[int, int], effort: Effort, bandwidth: bool = False
) -> dict[str, Any]:
    arrays, elements = size
    _tell(f"{arrays} x {elements}: {', '.join(contender.name for contender in classes)}")
    if arrays * elements >= SLOW_FROM:
        effort = replace(effort, seconds=2 * effort.seconds)
    try:
        return gpu_steps.measure(classes, size, effort, bandwidth)
    finally:
        gpu_steps.give_memory_back()


def _bandwidth(row: dict[str, Any]) -> dict[str, float]:
    """Return bytes per second of a copy and of Adam's bare traffic at the largest size."""
    return {
        name: each * row["elements"] / row["device"][name]["median"]
        for name, each in gpu_bandwidth.BYTES_PER_ELEMENT.items()
        if name in row["device"]
    }


def _tune(quick: bool) -> list[dict[str, Any]]:
    tried = sum(len(shapes) for _, shapes in gpu_tuning.TRIED.values())
    largest = gpu_steps.largest_fitting(
        [gpu_contenders.Fastopt] * tried, QUICK_LARGE if quick else LARGE
    )
    return gpu_tuning.measure([*MANY[1:], (1, largest)], QUICK if quick else FULL)


def _about() -> dict[str, Any]:
    """Return on what this runs."""
    cupy = gpu_contenders.cupy()
    runtime = cupy.cuda.runtime
    found = runtime.getDeviceProperties(cupy.cuda.Device().id)
    own = machine()
    versions = own["versions"] | {"CUDA": _cuda(runtime.runtimeGetVersion())}
    versions["driver"] = _driver() or f"for CUDA {_cuda(runtime.driverGetVersion())}"
    if torch := sys.modules.get("torch"):
        versions["torch"] = torch.__version__
    gpu = {
        "name": found["name"].decode(),
        "compute_capability": f"{found['major']}.{found['minor']}",
        "multiprocessors": found["multiProcessorCount"],
        "memory": found["totalGlobalMem"],
        "peak": _peak(runtime, cupy.cuda.Device().id),
    }
    return {"gpu": gpu, "machine": own, "versions": versions}


def _peak(runtime: Any, device: int) -> float | None:
    """Return the bytes a second that the memory can move; None if the device does not say."""
    kilohertz, bits = (runtime.deviceGetAttribute(which, device) for which in (36, 37))
    peak = 2.0 * 1e3 * kilohertz * bits / 8  # both edges of the clock
    return peak if peak > 1e9 else None


def _say_where(results: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    print(f"{results['gpu']['name']}; {results['machine']['processor']}; {versions}")
    for name, reason in results.get("absent", {}).items():
        print(f"without {name}: {reason}")
    if (others := results.get("others")) is not None:
        print(f"other processes took {others:.1%} of the processors meanwhile")


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver() -> str | None:
    """Return the driver's version, which CUDA itself does not tell."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def _tell(text: str) -> None:
    print(f"{time.monotonic() - _BEGIN:4.0f} s  {text}", file=sys.stderr, flush=True)


_BEGIN = time.monotonic()


if __name__ == "__main__":
    main()
