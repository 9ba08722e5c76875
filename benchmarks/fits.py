"""What a fit costs besides its function: L-BFGS beside SciPy's, and minimize beside a loop by hand.

PYTHONPATH=tests python benchmarks/fits.py --json fits.json

The contenders take turns, round by round, on the same function (Rosenbrock's, chained); what the
function itself takes is measured in each run and subtracted. Ratios are of two runs of one round,
and their median is told, with the lowest and the highest.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import command_line
import numpy as np
import quiet
import scipy.optimize

import fastopt
from fastopt.cli.main import machine
from helpers.functions import BOUNDED, UNCONSTRAINED, Problem, rosenbrock

SIZES = {10: (70, 15), 1_000: (400, 7), 1_000_000: (25, 3)}
"""Iterations at most in a run, and rounds, by the number of parameters."""

LIMITS = {10: 1.5, 1_000: 1.5, 1_000_000: 1.1}
"""The most that an iteration of L-BFGS should take, in units of SciPy's."""

MOST_EVALUATIONS = {"geometric mean": 1.2, "median": 1.1}
"""Evaluations until a minimum is reached, in units of SciPy's."""

RECORDED = Path(__file__).parents[1] / "tests" / "golden" / "lbfgs.json"
"""The minima of the classic functions."""


class Timed:
    """A function that measures how long it takes, and counts."""

    def __init__(self, function: Callable[[Any], tuple[Any, Any]]) -> None:
        self._function = function
        self.seconds = 0.0
        self.count = 0

    def __call__(self, x: Any) -> tuple[float, Any]:
        begin = perf_counter()
        value, gradient = self._function(x)
        self.seconds += perf_counter() - begin
        self.count += 1
        return float(value), gradient


class Run(NamedTuple):
    """Seconds per iteration besides the function, iterations, evaluations."""

    own: float
    iterations: int
    evaluations: int


class Ratio(NamedTuple):
    """The median of the rounds, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Return the ratio that several rounds give."""
        return cls(statistics.median(ratios), min(ratios), max(ratios))


def start_and_bounds(size: int, bounded: bool) -> tuple[Any, scipy.optimize.Bounds | None]:
    """Return where a run begins; every other upper bound is below the minimum at 1."""
    start = np.tile([-1.2, 1.0], size // 2)
    if not bounded:
        return start, None
    return start, scipy.optimize.Bounds(np.full(size, -2.0), np.tile([0.5, 2.0], size // 2))


def run_of(minimize: Callable[[Timed], Any]) -> Run:
    """Measure one run."""
    function = Timed(rosenbrock)
    begin = perf_counter()
    result = minimize(function)
    seconds = perf_counter() - begin - function.seconds
    return Run(seconds / max(result.nit, 1), int(result.nit), function.count)


def lbfgs(size: int, bounded: bool, iterations: int, rounds: int) -> dict[str, Any]:
    """Return what an iteration takes, here and in SciPy, in turns."""
    start, bounds = start_and_bounds(size, bounded)
    options = {"maxcor": 10, "ftol": 0.0, "gtol": 1e-10, "maxiter": iterations, "maxfun": 10**7}

    def here(function: Timed) -> Any:
        return fastopt.minimize(
            function, start, method="lbfgs", bounds=bounds, gtol=1e-10, maxiter=iterations
        )

    def there(function: Timed) -> Any:
        return scipy.optimize.minimize(
            function, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )

    ours, theirs = [], []
    for turn in range(rounds + 1):  # the first one warms up
        for minimize, runs in ((here, ours), (there, theirs))[:: 1 if turn % 2 else -1]:
            runs.append(run_of(minimize))
    ours, theirs = ours[1:], theirs[1:]
    ratios = [one.own / other.own for one, other in zip(ours, theirs, strict=True)]
    return {
        "parameters": size,
        "bounded": bounded,
        "seconds": statistics.median(one.own for one in ours),
        "scipy_seconds": statistics.median(one.own for one in theirs),
        "ratio": Ratio.of(ratios)._asdict(),
        "limit": LIMITS[size],
        "iterations": ours[0].iterations,
        "evaluations": ours[0].evaluations,
        "scipy_iterations": theirs[0].iterations,
        "scipy_evaluations": theirs[0].evaluations,
    }


class _Reached(Exception):
    """A minimum has been reached."""


def evaluations(problem: Problem, minimize: Callable[[Any, Any, Any], Any]) -> int | None:
    """Return how many evaluations it takes until a minimum is reached; None where it is not."""
    count = 0

    def function(x: Any) -> tuple[float, Any]:
        nonlocal count
        count += 1
        value, gradient = problem.function(x)
        if problem.reached(value):
            raise _Reached
        return float(value), gradient

    bounds = None
    if problem.lower is not None:
        bounds = scipy.optimize.Bounds(problem.lower, problem.upper)
    try:
        with np.errstate(all="ignore"):
            minimize(function, np.array(problem.start), bounds)
    except _Reached:
        return count
    return None


def counts() -> dict[str, Any]:
    """Compare evaluations on the classic functions, with bounds and without."""
    minima = {k: tuple(v["minima"]) for k, v in json.loads(RECORDED.read_text())["runs"].items()}
    options = {"maxcor": 10, "ftol": 0.0, "gtol": 0.0, "maxiter": 20_000, "maxfun": 20_000}

    def here(function: Any, start: Any, bounds: Any) -> Any:
        return fastopt.minimize(
            function, start, method="lbfgs", bounds=bounds, tol=None, maxiter=20_000
        )

    def there(function: Any, start: Any, bounds: Any) -> Any:
        return scipy.optimize.minimize(
            function, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )

    found, missed = {}, {}
    for problem in (*UNCONSTRAINED, *BOUNDED):
        known = Problem(
            problem.name,
            problem.function,
            problem.start,
            minima[problem.name],
            problem.lower,
            problem.upper,
        )
        pair = evaluations(known, here), evaluations(known, there)
        if None in pair:
            missed[problem.name] = {"fastopt": pair[0], "scipy": pair[1]}
        else:
            found[problem.name] = pair
    ratios = [ours / theirs for ours, theirs in found.values() if ours and theirs]
    return {
        "functions": {k: {"fastopt": a, "scipy": b} for k, (a, b) in found.items()},
        "missed": missed,
        "geometric mean": math.exp(statistics.fmean(map(math.log, ratios))),
        "median": statistics.median(ratios),
        "limits": MOST_EVALUATIONS,
    }


def overhead(size: int, iterations: int, rounds: int) -> dict[str, Any]:
    """Return what minimize takes beyond a loop by hand with the same steps of Adam."""
    start = np.ones(size)
    aim = np.arange(size) / size

    def bowl(x: Any) -> tuple[float, Any]:
        way = x - aim
        return float(way @ way), 2.0 * way

    def by_hand() -> None:
        x = start.copy()
        opt = fastopt.Adam(x, lr=1e-3, backend=backend)
        for _ in range(iterations):
            _, gradient = bowl(x)
            opt.step(gradient)

    def by_minimize() -> None:
        fastopt.minimize(
            bowl, start, lr=1e-3, maxiter=iterations, tol=None, options={"backend": backend}
        )

    backend = "numba" if fastopt.available_backends()["numba"] is None else "numpy"
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        pair = []
        for run in (by_hand, by_minimize):
            begin = perf_counter()
            run()
            pair.append((perf_counter() - begin) / iterations)
        times.append((pair[0], pair[1]))
    del times[0]  # which compiled
    return {
        "parameters": size,
        "backend": backend,
        "hand_seconds": statistics.median(hand for hand, _ in times),
        "own_seconds": statistics.median(whole - hand for hand, whole in times),
        "ratio": Ratio.of([whole / hand for hand, whole in times])._asdict(),
    }


def show(results: dict[str, Any]) -> None:
    """Print everything."""
    print("L-BFGS: own time of an iteration, without the function")
    for row in results["lbfgs"]:
        ratio, kind = row["ratio"], "bounded" if row["bounded"] else "free"
        verdict = "pass" if ratio["median"] <= row["limit"] else "short"
        print(
            f"  {row['parameters']:>9,} {kind:8} {row['seconds'] * 1e6:9.1f} us, SciPy "
            f"{row['scipy_seconds'] * 1e6:9.1f} us, ratio {ratio['median']:.2f} "
            f"({ratio['low']:.2f} to {ratio['high']:.2f}), at most {row['limit']}: {verdict}"
        )
    if (found := results.get("evaluations")) is not None:
        print(f"Evaluations until a minimum of {len(found['functions'])} functions, SciPy's = 1")
        for name, limit in found["limits"].items():
            verdict = "pass" if found[name] <= limit else "short"
            print(f"  {name} {found[name]:.3f}, at most {limit}: {verdict}")
        for name, pair in found["missed"].items():
            print(f"  not reached by both: {name}, {pair}")
    print("minimize with Adam, beyond a loop by hand")
    for row in results["overhead"]:
        print(
            f"  {row['parameters']:>9,} {row['own_seconds'] * 1e6:9.2f} us more than "
            f"{row['hand_seconds'] * 1e6:.2f} us an iteration, ratio {row['ratio']['median']:.2f} "
            f"({row['backend']})"
        )
    if results["others"] is not None:
        print(f"other processes took {results['others']:.1%} of the processors meanwhile")


def measure(sizes: Sequence[int], with_counts: bool = True) -> dict[str, Any]:
    """Measure everything at some sizes."""
    before = quiet.Usage.now()
    rows = []
    for size in sizes:
        for bounded in (False, True):
            command_line.tell(f"L-BFGS, {size:,} parameters{', bounded' * bounded}")
            rows.append(lbfgs(size, bounded, *SIZES[size]))
    results: dict[str, Any] = {"machine": machine(), "lbfgs": rows}
    if with_counts:
        command_line.tell("evaluations")
        results["evaluations"] = counts()
    results["overhead"] = []
    for size in sizes:
        command_line.tell(f"minimize with Adam, {size:,} parameters")
        results["overhead"].append(overhead(size, 2_000 if size < 10**5 else 50, SIZES[size][1]))
    results["others"] = quiet.others_since(before)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = command_line.parser(__doc__, picture=False)
    parser.add_argument(
        "--sizes", type=int, nargs="+", choices=sorted(SIZES), default=[*SIZES], metavar="N"
    )
    given = command_line.parse(parser, argv)
    results = measure(given.sizes)
    show(results)
    command_line.write_json(given.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
