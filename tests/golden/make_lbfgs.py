"""Makes lbfgs.json, SciPy's runs on the classic functions: python -m tests.golden.make_lbfgs

For each problem of ``helpers.functions`` it holds how many evaluations L-BFGS-B takes until the
value is within 1e-6 (1 + |f*|) of the minimum, the lowest value that it finds, and f*: without
bounds the published minima, with bounds the lowest value that L-BFGS-B, SLSQP and TNC find. It
needs scipy (1.17), and never imports fastopt.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import scipy
import scipy.optimize

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from helpers.functions import BOUNDED, UNCONSTRAINED, Problem

OPTIONS = {"maxcor": 10, "ftol": 0.0, "gtol": 1e-12, "maxiter": 20_000, "maxfun": 20_000}
PLACE = pathlib.Path(__file__).with_name("lbfgs.json")


def run(problem: Problem) -> dict[str, float | int | None]:
    """Return the evaluations of L-BFGS-B until the minimum is reached, and its lowest value."""
    values: list[float] = []

    def function(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = problem.function(x)
        values.append(float(value))
        return value, gradient

    box = list(zip(problem.lower, problem.upper, strict=True)) if problem.lower else None
    start = np.array(problem.start)
    scipy.optimize.minimize(
        function, start, jac=True, method="L-BFGS-B", bounds=box, options=OPTIONS
    )
    found = (count for count, value in enumerate(values, 1) if problem.reached(value))
    return {"evaluations": next(found, None), "value": min(values)}


def with_minimum(problem: Problem) -> Problem:
    """Return a problem with bounds with its minimum, the lowest value that is found."""
    box = list(zip(problem.lower, problem.upper, strict=True))
    start = np.clip(np.array(problem.start), problem.lower, problem.upper)
    methods = {"L-BFGS-B": OPTIONS, "SLSQP": {"ftol": 1e-15, "maxiter": 2000}, "TNC": {}}
    if len(start) > 100:
        methods = {"L-BFGS-B": OPTIONS}  # SLSQP takes minutes
    values = [
        scipy.optimize.minimize(
            problem.function, start, jac=True, method=method, bounds=box, options=options
        ).fun
        for method, options in methods.items()
    ]
    return dataclasses.replace(problem, minima=(float(min(values)),))


def main() -> None:
    """Write the file."""
    np.seterr(all="ignore")
    problems = [*UNCONSTRAINED, *map(with_minimum, BOUNDED)]
    runs = {problem.name: {**run(problem), "minima": list(problem.minima)} for problem in problems}
    content = {"made_with": {"scipy": scipy.__version__}, "runs": runs}
    text = json.dumps(content, indent=1) + "\n"
    said = "new" if not PLACE.exists() else "unchanged" if PLACE.read_text() == text else "CHANGED"
    PLACE.write_text(text)
    print(f"{PLACE.name}: {said}")


if __name__ == "__main__":
    main()
