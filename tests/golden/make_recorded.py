"""Picks what ``fastopt verify`` holds NumPy to: of each rule one recorded run, its first ten steps.

From the root of the repository: PYTHONPATH=tests python -m golden.make_recorded
It writes fastopt/cli/recorded.json, of the vectors in this folder alone. fastopt is imported to
find out which rule a vector's options choose, and computes nothing.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.cli.rules import Case, cases
from fastopt.core.options import FRAGMENTS
from helpers.vectors import FULL, Vector, options_of

STEPS = 10
SETS = ("plain", "dense", "mild", "pull", "usual", "zeros", "small")
"""Those of usual sizes, which float32 holds too."""

PATH = Path(__file__).parents[2] / "fastopt" / "cli" / "recorded.json"


def key(rule: Any) -> tuple[str, Any]:
    """Return what a rule is known by."""
    return rule.name, getattr(rule, "settings", None)


def fits(vector: Vector, case: Case) -> bool:
    """Return whether a vector is a plain run of a case: its rule, and what acts around it."""
    info = vector.info
    special = info["missing"] or info["groups"]
    if info["optimizer"] != case.optimizer.__name__ or special or info["inputs"] not in SETS:
        return False
    options = options_of(info["kwargs"])
    around = {name for name, _ in case.given if name in FRAGMENTS}
    if around != options.keys() & {*FRAGMENTS, "adaptive_clip", "centralize", "decoupled_lr"}:
        return False
    return key_of(case.optimizer.__name__, json.dumps(info["kwargs"])) == key(case.rule)


@cache
def key_of(optimizer: str, kwargs: str) -> tuple[str, Any]:
    """Return what the rule is known by that options choose."""
    make = getattr(fastopt, optimizer)
    made = make(np.ones((2, 2)), **options_of(json.loads(kwargs)))
    return key(make._rule(made.param_groups[0]))


def chosen(case: Case) -> Vector | None:
    """Return the vector of a case in which most options are not the defaults."""
    found = [vector for vector in FULL if fits(vector, case)]
    steady = [vector for vector in found if not vector.info["lr_changes"]]
    return max(steady or found, key=lambda vector: len(vector.info["kwargs"]), default=None)


def short(array: Any) -> list[float]:
    """Return numbers that float32 holds in the digits that it takes to read them as float32."""
    narrow = array.astype(np.float32)
    assert (narrow == array).all()
    return [float(str(number)) for number in narrow.flat]


def run_of(vector: Vector) -> dict[str, Any]:
    """Return one run: what it is made with, and where its parameters are after the last step."""
    info = vector.info
    at = info["recorded"].index(STEPS)
    run = {
        "vector": str(vector),
        "options": info["kwargs"],
        "inputs": inputs_of(vector),
        "ends": [vector[f"p{k}"][at].ravel().tolist() for k in range(3)],
    }
    if info["lr_changes"]:
        run["lr_changes"] = {k: lr for k, lr in info["lr_changes"].items() if int(k) < STEPS}
    if "values" in info:
        run["values"] = list(info["values"][:STEPS])
    if "hessian_every" in info:
        grads = vector.inputs("g", np.float64)
        last = info["steps"] - 1
        run["hessians"] = {
            str(step): [short(g[last - step]) for g in grads]
            for step in range(0, STEPS, info["hessian_every"])
        }
    return run


def inputs_of(vector: Vector) -> str:
    """Return the name of a vector's inputs: those of matrices are others under the same names."""
    return f"{vector.path.parent.name}/{vector.info['inputs']}".removeprefix("golden/")


def made() -> str:
    """Return the text of the file."""
    inputs, runs = {}, {}
    for case in cases():
        vector = chosen(case)
        if vector is None:
            continue
        name = inputs_of(vector)
        params, grads = vector.inputs("p", np.float64), vector.inputs("g", np.float64)
        inputs[name] = {
            "shapes": [list(p.shape) for p in params],
            "params": [short(p) for p in params],
            "grads": [[short(g[step]) for g in grads] for step in range(STEPS)],
        }
        runs[str(case)] = run_of(vector)
    text = json.dumps({"inputs": inputs, "runs": runs}, separators=(",", ":"))
    return text.replace('},"', '},\n"') + "\n"


def main() -> None:
    """Write the file."""
    text = made()
    PATH.write_text(text, "utf-8")
    found = json.loads(text)
    for case in cases():
        if str(case) not in found["runs"]:
            print(f"{case}: no vector")
    print(f"{len(found['runs'])} runs, {len(found['inputs'])} sets of inputs, {len(text)} bytes")


if __name__ == "__main__":
    main()
