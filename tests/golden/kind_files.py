"""Makes the files of optimizers whose rules are more than elementwise, in the format of the others.

Their oracles run all parameters together, since sums go over all of them. Beside what README.md
names, a file holds ``<name>/memory/<number>``, one value per recorded step, and a case lists these
numbers under ``memory``.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from types import ModuleType

import numpy as np

from .make_vectors import Arrays, describe, show, write
from .vector_cases import Array, Case, Result
from .vector_checks import check_distinct, check_finite, path_gap, state_gap

Inputs = dict[str, list[Array]]
AGREE = 1e-12


@dataclass(frozen=True)
class WithMemory(Result):
    """A result with the numbers that a rule remembers beside its state, after every step."""

    memory: dict[str, list[float]] = field(default_factory=dict)


Oracles = dict[str, Callable[[Case, Inputs], Result]]


def memory_of(result: Result) -> dict[str, list[float]]:
    return result.memory if isinstance(result, WithMemory) else {}


def memory_gap(a: Result, b: Result) -> float:
    """Return the largest relative difference of remembered numbers."""
    gaps = [0.0]
    for name, values in memory_of(a).items():
        one, two = np.array(values), np.array(memory_of(b)[name])
        scale = np.maximum(np.abs(one), np.finfo(np.float64).tiny)
        gaps.append(float((np.abs(one - two) / scale).max()))
    return max(gaps)


def run_case(case: Case, inputs: Inputs, oracles: Oracles) -> dict[str, Result]:
    """Run all oracles of a case and hold them against each other."""
    results = {name: oracles[name](case, inputs) for name in case.oracles}
    first = results[case.oracles[0]]
    for name, result in results.items():
        check_finite(case, name, result)
        gaps = path_gap(first, result), state_gap(first, result), memory_gap(first, result)
        # Sums of both signs cancel in state and memory.
        if gaps[0] > AGREE or max(gaps[1:]) > 5 * AGREE:
            raise AssertionError(f"{case.optimizer} {case.name}: {case.oracles} differ by {gaps}")
    return results


def case_arrays(case: Case, oracle: str, result: Result) -> Arrays:
    """Return the arrays of one case and oracle by their keys."""
    key = f"{case.name}.{oracle}"
    rows = np.array(case.recorded(oracle)) - 1
    arrays: Arrays = {f"{key}/p{i}": path[rows] for i, path in enumerate(result.path)}
    for letter, slots in result.state.items():
        arrays |= {f"{key}/{letter}{i}": slot for i, slot in enumerate(slots)}
    for name, values in memory_of(result).items():
        arrays[f"{key}/memory/{name}"] = np.array(values)[rows]
    return arrays | {f"{key}/t": np.array(result.counts, dtype=np.int64)}


def make_inputs_file(folder: str, inputs: dict[str, Inputs]) -> None:
    sets = {name: {"steps": len(both["g"][0])} for name, both in inputs.items()}
    arrays: Arrays = {"sets": np.array(json.dumps(sets))}
    for name, both in inputs.items():
        for letter, values in both.items():
            arrays |= {f"{name}/{letter}{i}": value for i, value in enumerate(values)}
    write(f"{folder}/inputs", arrays)


def make_file(
    path: str,
    cases: Sequence[Case],
    inputs: dict[str, Inputs],
    oracles: Oracles,
    made_with: Iterable[ModuleType],
) -> None:
    """Run the cases of one optimizer, hold the oracles against each other, write the file."""
    versions = {module.__name__: version_of(module) for module in made_with}
    make_file_of(path, cases, inputs, oracles, versions)


def make_file_of(
    path: str,
    cases: Sequence[Case],
    inputs: dict[str, Inputs],
    oracles: Oracles,
    versions: dict[str, str],
) -> None:
    """Do so, with the versions of the packages that compute by their names."""
    described, arrays, firsts = [], Arrays(), []
    for case in cases:
        results = run_case(case, inputs[case.inputs], oracles)
        show(case, results)
        firsts.append((case, results[case.oracles[0]]))
        for oracle, result in results.items():
            memory = {"memory": list(memory_of(result))}
            described.append(describe(case, oracle, result) | memory)
            arrays |= case_arrays(case, oracle, result)
    check_distinct(firsts)
    head = {"cases": json.dumps(described), "made_with": json.dumps(versions)}
    write(path, {k: np.array(v) for k, v in head.items()} | arrays)
    if "fastopt" in sys.modules:
        raise SystemExit("fastopt was imported: these vectors prove nothing")


def version_of(module: ModuleType) -> str:
    return version(module.__name__)
