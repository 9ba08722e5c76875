"""The recorded runs of other libraries' optimizers, and how far from them ours end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.core.arrays import Array

FOLDER = Path(__file__).parents[1] / "golden"


KINDS = ("", "fragments", "matrices", "sums")
FILES = [p for kind in KINDS for p in sorted((FOLDER / kind).glob("*.npz")) if p.stem != "inputs"]


@cache
def arrays_in(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@dataclass(frozen=True)
class Vector:
    """One recorded run."""

    path: Path
    info: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path.stem}.{self.info['name']}"

    def __getitem__(self, key: str) -> Array:
        return arrays_in(self.path)[f"{self.info['name']}/{key}"]

    @property
    def case(self) -> str:
        """Return the name of the case, without that of the oracle."""
        return str(self.info["name"]).rsplit(".", 1)[0]

    @property
    def state(self) -> list[str]:
        return list(self.info["state"])

    @property
    def memory(self) -> list[str]:
        """Return the names of the numbers that are remembered of all parameters together."""
        return list(self.info.get("memory", ()))

    def inputs(self, letter: str, dtype: Any) -> list[Array]:
        own = self.path.with_name("inputs.npz")
        given = arrays_in(own if own.exists() else FOLDER / "inputs.npz")
        return [given[f"{self.info['inputs']}/{letter}{k}"].astype(dtype) for k in range(3)]


VECTORS = [Vector(p, info) for p in FILES for info in json.loads(str(arrays_in(p)["cases"]))]

FULL = [
    v
    for k, v in enumerate(VECTORS)
    if not k or (VECTORS[k - 1].path, VECTORS[k - 1].case) != (v.path, v.case)
]
"""Those of the first oracle of each case: they have every step, and the others the same numbers."""

ELEMENTWISE = [
    v
    for v in FULL
    if v.path.parent == FOLDER or v.path.stem in ("mask_zero", "clip_value", "cautious_decay", "l1")
]
"""Those in which each element goes its own way, so that what is off stays where it is."""


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def run(vector: Vector, dtype: Any, backend: str, optimizer: Any = None) -> dict[str, Array]:
    """Run a vector's steps; returns what was recorded of it, by the same names."""
    info = vector.info
    params, grads = vector.inputs("p", dtype), vector.inputs("g", dtype)
    options = options_of(info["kwargs"])
    members = [group["params"] for group in info["groups"]] or [[0, 1, 2]]
    groups = [
        {**options_of(group), "params": [params[k] for k in group["params"]]}
        for group in info["groups"]
    ]
    make = optimizer or getattr(fastopt, info["optimizer"])
    opt = make(groups or params, backend=backend, **options)
    missing = {int(k): set(steps) for k, steps in info["missing"].items()}
    kept: dict[str, list[Any]] = {f"p{k}": [] for k in range(3)}
    kept |= {f"memory/{name}": [] for name in vector.memory}
    for step in range(info["steps"]):
        if (lr := info["lr_changes"].get(str(step))) is not None:
            opt.lr = lr
        now = [None if step in missing.get(k, ()) else grads[k][step] for k in range(3)]
        nested = [[now[k] for k in some] for some in members] if groups else now
        handed = {"value": info["values"][step]} if "values" in info else {}
        if "hessian_every" in info and step % info["hessian_every"] == 0:
            last = info["steps"] - 1 - step
            own = [None if now[k] is None else grads[k][last] for k in range(3)]
            handed["hessian"] = [[own[k] for k in some] for some in members] if groups else own
        opt.step(nested, **handed)
        if step + 1 in info["recorded"]:
            for k in range(3):
                kept[f"p{k}"].append(params[k].copy())
            for name in vector.memory:
                kept[f"memory/{name}"].append(opt.state_dict()["memory"][name])
    out = {name: np.array(values) for name, values in kept.items()}
    order = [k for some in members for k in some]
    entries = opt.state_dict()["state"]
    for k, leaf in zip(order, opt._state.tree.leaves, strict=True):
        entry = entries[leaf.name]
        # What a parameter of its shape does not have is recorded as an empty array.
        out |= {f"{slot}{k}": entry.get(slot, np.empty(0)) for slot in vector.state}
        out[f"t{k}"] = np.asarray(entry["step"])
    return out


def deviation(got: Array, expected: Array, scale: Array) -> float:
    """Return the largest difference, each in units of what is usual in its place."""
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.abs(got - expected) / scale
    return float(np.nanmax(np.where(got == expected, 0.0, off), initial=0.0))


def worst(vector: Vector, got: dict[str, Array]) -> float:
    """Return the largest relative deviation of a run: parameters on the way, state at the end."""
    most = 0.0
    for k in range(3):
        expected = vector[f"p{k}"]
        most = max(most, deviation(got[f"p{k}"], expected, np.abs(expected).max(axis=0)))
        for slot in vector.state:
            want = vector[f"{slot}{k}"]
            assert got[f"{slot}{k}"].shape == want.shape, f"shape of {slot} of parameter {k}"
            most = max(most, deviation(got[f"{slot}{k}"], want, np.abs(want)))
        assert got[f"t{k}"] == vector["t"][k], f"step count of parameter {k}"
    for name in vector.memory:
        want = vector[f"memory/{name}"]
        most = max(most, deviation(got[f"memory/{name}"], want, np.abs(want)))
    return most if all(np.isfinite(a).all() for a in got.values()) else np.inf
