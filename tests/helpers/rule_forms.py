"""Runs the forms of rules and fragments on recorded vectors, without an engine.

Everything is float64 and as plain as can be, so that a rule's file is known to be right before
an engine runs it: the NumPy form on whole arrays, the Numba form, uncompiled, element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt_kernels import Memory, Rule, Sums
from fastopt_kernels.around import Fragment
from helpers.vectors import VECTORS, Vector
from helpers.vectors import worst as worst_of

FORMS = ("numpy", "numba")
Scalars = Callable[[dict[str, Any], float, int], dict[str, float]]
"""Of a parameter's options, lr and step number from 1; those of the rule and of its memory."""


def vectors_of(file: str) -> list[Vector]:
    return [vector for vector in VECTORS if vector.path.stem == file]


def given(vector: Vector, letter: str) -> list[Any]:
    return [array.copy() for array in vector.inputs(letter, np.float64)]


def flat(vector: Vector) -> tuple[list[Any], list[Any]]:
    """Return first parameters and gradients, flat as the forms of an elementwise rule get them."""
    params, grads = given(vector, "p"), given(vector, "g")
    return [p.reshape(-1) for p in params], [g.reshape(len(g), -1) for g in grads]


def is_missing(vector: Vector, k: int, step: int) -> bool:
    return step in vector.info["missing"].get(str(k), ())


def options_of(vector: Vector, k: int, defaults: dict[str, Any]) -> dict[str, Any]:
    mine = [group for group in vector.info["groups"] if k in group["params"]]
    return defaults | vector.info["kwargs"] | (mine[0] if mine else {})


def lr_at(vector: Vector, step: int, lr: float) -> float:
    return float(vector.info["lr_changes"].get(str(step), lr))


def elements(form: Any, arrays: Sequence[Any], numbers: Sequence[float]) -> list[Any]:
    """Return what a function of one element makes of arrays, one array per number it returns."""
    flat = [np.ravel(array).tolist() for array in arrays]
    made = [form(*values, *numbers) for values in zip(*flat, strict=True)]
    rows = [row if isinstance(row, tuple) else (row,) for row in made]
    return [np.array(column).reshape(np.shape(arrays[0])) for column in zip(*rows, strict=True)]


def sums_of(
    sums: Sums, form: str, arrays: Sequence[Any], numbers: Sequence[float]
) -> dict[str, float]:
    """Return the sums over one parameter; whatever is read must not be changed."""
    before = [np.array(array) for array in arrays]
    if form == "numpy":
        terms = sums.numpy(*arrays, *numbers)
    else:
        terms = elements(sums.numba, arrays, numbers)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)
    wide = [np.asarray(term, np.float64) for term in terms]
    wide = [t * t if name in sums.squared else t for name, t in zip(sums.names, wide, strict=True)]
    made = {name: float(np.sum(t)) for name, t in zip(sums.names, wide, strict=True)}
    return made | {"size": float(np.size(arrays[0]))}


def update(rule: Rule, form: str, arrays: list[Any], numbers: Sequence[float]) -> None:
    """Update parameter and state in place; ``arrays`` are those that the forms take."""
    if form == "numpy":
        rule.numpy(*arrays, *numbers)
        return
    targets = [arrays[0], *arrays[3 if rule.takes_square else 2 :]]
    made = elements(rule.numba, arrays, numbers)
    for target, values in zip(targets, made, strict=True):
        target[...] = values


@dataclass
class One:
    """A parameter on its way."""

    p: Any
    state: dict[str, Any]
    t: int = 0

    def arrays(self, rule: Rule, grad: Any) -> list[Any]:
        squares = [grad * grad] if rule.takes_square else []
        return [self.p, grad, *squares, *self.state.values()]


def picked(names: Sequence[str], numbers: dict[str, float]) -> list[float]:
    return [numbers[name] for name in names]


def run(
    vector: Vector,
    rule: Rule,
    form: str,
    defaults: dict[str, Any],
    scalars: Scalars,
    begin: Callable[[dict[str, Any]], dict[str, float]] = lambda options: {},
    coupled: Callable[[dict[str, Any]], float] = lambda options: 0.0,
) -> tuple[list[Any], list[One], dict[str, list[float]]]:
    """Run a rule with sums; returns the paths, the parameters at the end, memory on the way."""
    assert rule.sums
    assert rule.memory
    starts, grads = flat(vector)
    ones = [One(p, {slot: np.zeros_like(p) for slot in rule.state}) for p in starts]
    options = [options_of(vector, k, defaults) for k in range(3)]
    lrs = [float(o["lr"]) for o in options]
    memory = begin(options[0])
    paths: list[list[Any]] = [[] for _ in ones]
    past: dict[str, list[float]] = {name: [] for name in rule.memory.names}
    for step in range(vector.info["steps"]):
        lrs = [lr_at(vector, step, lr) for lr in lrs]
        there = [k for k in range(3) if not is_missing(vector, k, step)]
        now, read, made = {}, {}, {}
        for k in there:
            grad = grads[k][step] * (-1.0 if options[k]["maximize"] else 1.0)
            grad = grad + coupled(options[k]) * ones[k].p
            now[k] = (grad, scalars(options[k], lrs[k], ones[k].t + 1) | memory)
            numbers = picked((*rule.scalars, *rule.memory.handed), now[k][1])
            read[k] = sums_of(rule.sums, form, ones[k].arrays(rule, grad), numbers)
        if rule.memory.over == "array":
            made = {k: remembered(rule.memory, now[k][1], {}, read[k])[1] for k in there}
        elif there:
            total = {name: sum(read[k][name] for k in there) for name in read[there[0]]}
            memory, more = remembered(rule.memory, now[there[0]][1], memory, total)
            made = dict.fromkeys(there, more)
        for k in there:
            grad, known = now[k]
            numbers = picked(rule.arguments[-len(rule.scalars) - added(rule) :], known | made[k])
            update(rule, form, ones[k].arrays(rule, grad), numbers)
            ones[k].t += 1
        for path, one in zip(paths, ones, strict=True):
            path.append(one.p.copy())
        for name, values in past.items():
            values.append(memory[name])
    return [np.stack(path) for path in paths], ones, past


def added(rule: Rule) -> int:
    assert rule.memory
    return len(rule.memory.handed) + len(rule.memory.scalars)


def remembered(
    memory: Memory, known: dict[str, float], old: dict[str, float], sums: dict[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Call the host function with the names that it may see, and hold it to those it must give."""
    made = memory.host({name: known[name] for name in memory.inputs}, old, sums)
    assert (set(made[0]), set(made[1])) == (set(memory.names), set(memory.scalars))
    return made


def kept(
    fragment: Fragment, form: str, values: dict[str, Any], scalars: dict[str, float]
) -> tuple[Any, dict[str, float]]:
    """Return what a fragment keeps of a parameter, and its scalars with those of its memory."""
    arrays = [values[name] for name in fragment.values]
    if fragment.sums and fragment.memory:
        read = sums_of(fragment.sums, form, arrays, picked(fragment.scalars, scalars))
        scalars = scalars | remembered(fragment.memory, scalars, {}, read)[1]
    return fragment_of(fragment, form, values, scalars), scalars


def fragment_of(
    fragment: Fragment, form: str, values: dict[str, Any], scalars: dict[str, float]
) -> Any:
    arrays = [values[name] for name in fragment.values]
    numbers = picked(fragment.arguments[len(arrays) :], scalars)
    if form == "numpy":
        return fragment.numpy(*arrays, *numbers)
    return elements(fragment.numba, arrays, numbers)[0]


def worst(
    vector: Vector,
    paths: list[Any],
    ones: Sequence[One],
    past: dict[str, list[float]] | None = None,
) -> float:
    """Return the largest relative deviation: of the paths, of the last state, of memory."""
    rows = np.array(vector.info["recorded"]) - 1
    got: dict[str, Any] = {}
    for k, (path, one) in enumerate(zip(paths, ones, strict=True)):
        got[f"p{k}"] = path[rows].reshape(vector[f"p{k}"].shape)
        got[f"t{k}"] = one.t
        for slot in vector.state:
            got[f"{slot}{k}"] = one.state[slot].reshape(vector[f"{slot}{k}"].shape)
    for name in vector.memory:
        assert past is not None
        got[f"memory/{name}"] = np.array(past[name])[rows]
    return worst_of(vector, got)
