"""Makes the golden vectors: runs other libraries on the cases and writes one npz per optimizer.

From the root of the repository: python -m tests.golden.make_vectors
It needs torch, optax, jax and scikit-learn, and never imports fastopt. README.md beside it gives
the format.
"""

import io
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import sklearn
import torch

from . import oracle_closed_form, oracle_optax, oracle_sklearn, oracle_torch
from .vector_cases import CASES, IDENTITIES, SHAPES, Array, Case, Result
from .vector_checks import check_distinct, check_finite, path_gap, state_gap
from .vector_inputs import make_inputs

HERE = Path(__file__).parent
AGREE = 1e-12  # two oracles of one case
SINGLE = 1e-4  # torch in float32 from torch in float64
WANTED = {"torch": "2.13.", "optax": "0.2.8", "numpy": "", "jax": "", "sklearn": "1."}

Inputs = dict[str, dict[str, list[Array]]]
Arrays = dict[str, Any]
ORACLES: dict[str, Callable[[Case, dict[str, list[Array]]], Result]] = {
    "torch": oracle_torch.run,
    "optax": oracle_optax.run,
    "sklearn": oracle_sklearn.run,
    "closed": oracle_closed_form.run,
}


def versions() -> dict[str, str]:
    """Return the versions of what computes, and refuse others than the documented ones."""
    found = {m.__name__: str(m.__version__) for m in (torch, optax, np, jax, sklearn)}
    for name, wanted in WANTED.items():
        if not found[name].startswith(wanted):
            raise SystemExit(f"{name} {wanted} is needed, found {found[name]}")
    return found


def run_case(case: Case, inputs: Inputs) -> dict[str, Result]:
    """Run all oracles of a case and hold them against each other."""
    results = {name: ORACLES[name](case, inputs[case.inputs]) for name in case.oracles}
    first = results[case.oracles[0]]
    for name, result in results.items():
        check_finite(case, name, result)
        gaps = path_gap(first, result), state_gap(first, result)
        if max(gaps) > AGREE:
            raise AssertionError(f"{case.optimizer} {case.name}: {case.oracles} differ by {gaps}")
    return results


def check_identities(inputs: Inputs) -> None:
    """Hold together optimizers that are the same mathematics under two names."""
    for left, right in IDENTITIES:
        for a, b in itertools.product(left.oracles, right.oracles):
            one, two = ORACLES[a](left, inputs["plain"]), ORACLES[b](right, inputs["plain"])
            if path_gap(one, two) > AGREE:
                raise AssertionError(f"{left} by {a} and {right} by {b} differ")


def describe(case: Case, oracle: str, result: Result) -> dict[str, Any]:
    """Return the entry of the JSON list for one case and oracle."""
    handed: dict[str, Any] = {"values": list(case.values)} if case.values else {}
    if case.hessian_every:
        handed["hessian_every"] = case.hessian_every
    return handed | {
        "name": f"{case.name}.{oracle}",
        "oracle": oracle,
        "optimizer": case.optimizer,
        "kwargs": case.kwargs,
        "inputs": case.inputs,
        "steps": case.steps,
        "recorded": case.recorded(oracle),
        "missing": {str(i): steps for i, steps in case.missing.items()},
        "groups": list(case.groups),
        "lr_changes": {str(step): lr for step, lr in case.lr_changes.items()},
        "state": list(result.state),
    }


def case_arrays(case: Case, oracle: str, result: Result, inputs: Inputs) -> Arrays:
    """Return the arrays of one case and oracle by their keys."""
    key = f"{case.name}.{oracle}"
    rows = np.array(case.recorded(oracle)) - 1
    arrays: Arrays = {f"{key}/p{i}": path[rows] for i, path in enumerate(result.path)}
    for letter, slots in result.state.items():
        arrays |= {f"{key}/{letter}{i}": slot for i, slot in enumerate(slots)}
    arrays[f"{key}/t"] = np.array(result.counts, dtype=np.int64)
    if oracle == "torch":
        single = oracle_torch.run(case, inputs[case.inputs], torch.float32)
        check_finite(case, "torch in float32", single)
        if path_gap(result, single) > SINGLE:
            raise AssertionError(f"{case.optimizer} {case.name}: float32 is too far off")
        arrays |= {f"{key}/f32/p{i}": path[-1] for i, path in enumerate(single.path)}
    return arrays


def input_arrays(inputs: Inputs) -> Arrays:
    """Return the content of inputs.npz."""
    sets = {name: {"steps": len(sets["g"][0])} for name, sets in inputs.items()}
    arrays: Arrays = {"sets": np.array(json.dumps(sets))}
    for name, both in inputs.items():
        for letter, index in itertools.product(both, range(len(SHAPES))):
            arrays[f"{name}/{letter}{index}"] = both[letter][index]
    return arrays


def write(name: str, arrays: Arrays) -> int:
    """Write one file, say whether it is new or changed, and return its size in bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    content, path = buffer.getvalue(), HERE / f"{name}.npz"
    old = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    verdict = "unchanged" if old == content else "new" if old is None else "CHANGED"
    print(f"{path.name}: {len(arrays)} arrays, {len(content)} bytes, {verdict}")
    return len(content)


def show(case: Case, results: dict[str, Result]) -> None:
    """Print the line of one case: arguments, oracles and how far they are apart."""
    first, *others = results.values()
    gap = max((path_gap(first, other) for other in others), default=0.0)
    states = max((state_gap(first, other) for other in others), default=0.0)
    extra = [k for k in ("missing", "groups", "lr_changes") if getattr(case, k)]
    print(
        f"{case.optimizer:9}{case.name:26}{'+'.join(results):19}{case.inputs:6}{case.steps:4}"
        f"  {gap:.0e}  {states:.0e}  {json.dumps(case.kwargs)} {' '.join(extra)}"
    )


def make_optimizer(name: str, cases: list[Case], inputs: Inputs) -> int:
    """Make the file of one optimizer and return its size."""
    described, arrays, firsts = [], Arrays(), []
    for case in cases:
        results = run_case(case, inputs)
        show(case, results)
        firsts.append((case, results[case.oracles[0]]))
        for oracle, result in results.items():
            described.append(describe(case, oracle, result))
            arrays |= case_arrays(case, oracle, result, inputs)
    check_distinct(firsts)
    used = {oracle for case in cases for oracle in case.oracles}
    by = {name: found for name, found in versions().items() if name != "sklearn" or name in used}
    head = {"cases": json.dumps(described), "made_with": json.dumps(by)}
    return write(name.lower(), {k: np.array(v) for k, v in head.items()} | arrays)


def main() -> None:
    """Make all files."""
    torch.set_num_threads(1)
    inputs = make_inputs()
    check_identities(inputs)
    total = write("inputs", input_arrays(inputs))
    for name in dict.fromkeys(case.optimizer for case in CASES):
        total += make_optimizer(name, [c for c in CASES if c.optimizer == name], inputs)
    print(f"{len(CASES)} cases, {total} bytes")
    if "fastopt" in sys.modules:
        raise SystemExit("fastopt was imported: these vectors prove nothing")


if __name__ == "__main__":
    main()
