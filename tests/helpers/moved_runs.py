"""Recorded runs of other libraries with their state in the middle, and how to go on with them."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers.base import Optimizer

FOLDER = Path(__file__).parents[1] / "golden"
HALF, STEPS = 10, 20


@cache
def _content(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def decoded(node: Any, arrays: dict[str, Array]) -> Any:
    """Return a stored tree, with named tuples of the recorded names."""
    ((kind, value),) = [(k, v) for k, v in node.items() if k != "fields"]
    if kind == "named":
        fields = {name: decoded(one, arrays) for name, one in node["fields"]}
        return namedtuple(value, fields)(**fields)
    if kind == "dict":
        return {key: decoded(one, arrays) for key, one in value}
    if kind == "array":
        return arrays[str(value)].copy()
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](decoded(one, arrays) for one in value)
    return value


@dataclass(frozen=True)
class Run:
    """Ten steps of another library, its state, and where ten more steps of it end."""

    origin: str
    number: int
    name: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.origin}.{self.name}.{self.dtype}"

    @property
    def info(self) -> dict[str, Any]:
        """Return all that was recorded, in arrays and trees of its own."""
        arrays = _content(FOLDER / "interop" / f"{self.origin}.npz")
        found = decoded(_cases(self.origin)[self.number], arrays)
        assert isinstance(found, dict)
        return found


@cache
def _cases(library: str) -> Any:
    return json.loads(str(_content(FOLDER / "interop" / f"{library}.npz")["cases"]))


def runs(library: str) -> list[Run]:
    found = []
    for number, case in enumerate(_cases(library)):
        head = {key: node["value"] for key, node in case["dict"] if key in ("name", "dtype")}
        found.append(Run(library, number, head["name"], head["dtype"]))
    return found


def inverse(t: int) -> float:
    return 0.1 / (1 + t)


def options_of(kwargs: dict[str, Any]) -> dict[str, Any]:
    made = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
    return made | ({"lr": inverse} if isinstance(made.get("lr"), str) else {})


def nested(values: Any) -> dict[str, Any]:
    """Nest the values of the parameters 0, 1, 2."""
    return {"b": values[1], "layers": [values[0], (values[2],)]}


def flat(tree: dict[str, Any]) -> list[Any]:
    return [tree["layers"][0], tree["b"], tree["layers"][1][0]]


def dtype_of(info: dict[str, Any]) -> Any:
    if info.get("complex"):
        return {"float64": np.complex128, "float32": np.complex64}[info["dtype"]]
    return info["dtype"]


def nest(info: dict[str, Any], values: list[Any]) -> Any:
    """Nest the values of the parameters 0, 1, 2 as they are in a run: by name, or as a list."""
    return values if info.get("positions") else nested(values)


def gradients(info: dict[str, Any], step: int) -> list[Any]:
    """Return a step's gradients, None for those that are missing."""
    given = _content(FOLDER / "inputs.npz")
    found: list[Any] = []
    for k in range(3):
        grads = given[f"{info['inputs']}/g{k}"]
        if info.get("complex"):
            grads = grads + 1j * np.flip(grads)
        missing = step in info.get("missing", {}).get(str(k), ())
        found.append(None if missing else np.asarray(grads[step], dtype_of(info)))
    return found


def first_params(info: dict[str, Any]) -> list[Array]:
    given = _content(FOLDER / "inputs.npz")
    found = [given[f"{info['inputs'] or 'plain'}/p{k}"] for k in range(3)]
    if info.get("complex"):
        found = [p + 1j * np.flip(p) for p in found]
    return [np.array(p, dtype_of(info)) for p in found]


def built(info: dict[str, Any], params: list[Array], backend: str, **other: Any) -> Optimizer:
    """Return our optimizer with the recorded arguments, or with others."""
    options = options_of(info["kwargs"]) | other
    tree: Any = nest(info, params)
    if pattern := options.pop("by_pattern", None):
        tree = fastopt.groups(tree, {k: options_of(v) for k, v in pattern.items()})
    if info.get("groups"):
        tree = [
            {**options_of(group), "params": [params[k] for k in group["params"]]}
            for group in info["groups"]
        ]
    made: Optimizer = getattr(fastopt, info["optimizer"])(tree, backend=backend, **options)
    return made


def go(opt: Optimizer, info: dict[str, Any], start: int, stop: int) -> None:
    """Make the recorded steps from one on to another."""
    for step in range(start, stop):
        grads = gradients(info, step)
        groups = info.get("groups")
        opt.step([[grads[k] for k in g["params"]] for g in groups] if groups else nest(info, grads))


def deviation(got: list[Array], info: dict[str, Any]) -> float:
    """Return how far from the recorded end it is: relative; in float32 in units of 4 eps a step."""
    most = 0.0
    for k, (one, expected) in enumerate(zip(got, info["p20"], strict=True)):
        assert one.dtype == expected.dtype
        assert np.isfinite(one).all()
        size = np.maximum(np.abs(expected), np.abs(info["p10"][k]))
        single = one.real.dtype == np.float32
        unit = size * (4 * np.finfo(np.float32).eps * HALF if single else 1e-11)
        off = np.abs(one - expected)
        with np.errstate(invalid="ignore", divide="ignore"):
            most = max(most, float(np.nanmax(np.where(off == 0, 0.0, off / unit), initial=0.0)))
    return most


def refuses(opt: Optimizer, call: Callable[[], Any], *parts: str, kind: Any = None) -> None:
    """Hold that a call raises CheckpointError, says this, and has changed nothing."""
    before = opt.state_dict()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its class is looked at below
        call()
    np.testing.assert_equal(opt.state_dict(), before)
    assert type(caught.value) is (kind or fastopt.CheckpointError), repr(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
