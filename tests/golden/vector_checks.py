"""How far results of oracles are apart, and whether two cases can be told apart at all."""

import itertools

import numpy as np

from .vector_cases import Case, Result

DIFFER = 1e-9  # two cases of one optimizer: a vector that shows nothing is not worth keeping
TINY = np.finfo(np.float64).tiny


def check_finite(case: Case, oracle: str, result: Result) -> None:
    """Refuse a result with NaN or inf in it."""
    arrays = itertools.chain(result.path, *result.state.values())
    if not all(np.isfinite(x).all() for x in arrays):
        raise AssertionError(f"{case.optimizer} {case.name}: {oracle} is not finite")


def path_gap(a: Result, b: Result) -> float:
    """Return the largest difference of parameters, relative to each element's largest value."""
    gaps = []
    for x, y in zip(a.path, b.path, strict=True):
        scale = np.maximum(np.abs(x).max(axis=0), TINY)
        gaps.append(float((np.abs(x - y) / scale).max()))
    return max(gaps)


def state_gap(a: Result, b: Result) -> float:
    """Return the largest relative difference of the final states."""
    if a.state.keys() != b.state.keys() or a.counts != b.counts:
        raise AssertionError(f"states {list(a.state)} and {list(b.state)}, {a.counts}, {b.counts}")
    gaps = [0.0]
    for letter in a.state:
        for x, y in zip(a.state[letter], b.state[letter], strict=True):
            scale = np.maximum(np.maximum(np.abs(x), np.abs(y)), TINY)
            gaps.append(float((np.abs(x - y) / scale).max(initial=0.0)))
    return max(gaps)


def check_distinct(results: list[tuple[Case, Result]]) -> None:
    """Refuse two cases of one optimizer that a wrong implementation could not tell apart."""
    for (a, x), (b, y) in itertools.combinations(results, 2):
        same_start = a.optimizer == b.optimizer and a.inputs == b.inputs
        if same_start and path_gap(x, y) < DIFFER:
            raise AssertionError(f"{a.optimizer}: {a.name} and {b.name} give the same result")
