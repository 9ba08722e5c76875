"""Adafactor, after PyTorch."""

import math
from decimal import Decimal
from typing import Any

import numpy as np

from ..oracle_closed_form import ONE, Numbers, State, blend
from ..oracles import Oracle, by_class, by_formula
from ..vector_cases import GROUPS, LATER, MISSING, SHAPES, Case, Hyper
from . import cases_of

FOLDER = "sums"
PACKAGES = ("torch",)
DEFAULTS: dict[str, Hyper] = {
    "Adafactor": {"lr": 1e-2, "beta2_decay": -0.8, "eps1": None, "eps2": 1e-3, "d": 1.0},
}
NOTHING = np.empty(0)
SHAPE_OF = {math.prod(shape): shape for shape in SHAPES}  # flat arrays tell them by their sizes


def mean(numbers: Numbers) -> Numbers:
    return sum(numbers.ravel().tolist(), Decimal(0)) / numbers.size


def rms(numbers: Numbers) -> Decimal:
    return mean(numbers * numbers).sqrt()


def by_row_and_column(state: State, beta: Decimal, squares: Numbers, names: str) -> None:
    """Average what every row and every column of a matrix has as its mean."""
    matrix = squares.reshape(SHAPE_OF[squares.size])
    rows = np.array([[mean(row)] for row in matrix], dtype=object)
    columns = np.array([[mean(column) for column in matrix.T]], dtype=object)
    r, c = (state.get(name) for name in names)
    state[names[0]] = (ONE - beta) * rows + (0 if r is None else beta * r)
    state[names[1]] = (ONE - beta) * columns + (0 if c is None else beta * c)


def adafactor(p: Numbers, g: Numbers, state: State, t: int, hyper: Hyper) -> Numbers:
    lr, eps1 = hyper["lr"], hyper["eps1"]
    eps1 = Decimal(float(np.finfo(float).eps)) if eps1 is None else eps1
    beta = ONE - Decimal(t) ** hyper["beta2_decay"]
    if len(SHAPE_OF[g.size]) > 1:
        by_row_and_column(state, beta, g * g, "rc")
        r, c = state["r"], state["c"]
        s, state["v"] = (r @ c / max(mean(r), eps1)).ravel(), NOTHING
    else:
        s = blend(state, "v", beta, g * g)
        state["r"] = state["c"] = NOTHING
    u = g / np.sqrt(np.maximum(s, eps1 * eps1))
    u = u / max(ONE, rms(u) / hyper["d"])
    step = max(hyper["eps2"], rms(p)) * min(lr, ONE / Decimal(t).sqrt())
    return p - lr * hyper["weight_decay"] * p - step * u


def adafactor_of_torch(groups: Any, **arguments: Any) -> Any:
    import torch

    return torch.optim.Adafactor(groups, **arguments)


def adafactor_arguments(hyper: Hyper) -> Hyper:
    same = ("lr", "beta2_decay", "d", "weight_decay", "maximize")
    return {name: hyper[name] for name in same} | {"eps": (hyper["eps1"], hyper["eps2"])}


def state_of(optimizer: Any, param: Any, name: str) -> Any:
    """Return some state, an empty array where a parameter has none such."""
    found = optimizer.state[param].get(name)
    return NOTHING if found is None else found


ORACLES: dict[str, dict[str, Oracle]] = {
    "Adafactor": {
        "torch": by_class(
            adafactor_of_torch,
            adafactor_arguments,
            {"row_var": "r", "col_var": "c", "variance": "v"},
            read=state_of,
        ),
        "closed": by_formula(adafactor, decoupled=True),
    },
}
TC = ("torch", "closed")
ADAFACTOR: Hyper = {"lr": 0.05, "eps1": 1e-3}
CASES: dict[str, tuple[Case, ...]] = {
    "Adafactor": cases_of(
        "Adafactor",
        DEFAULTS["Adafactor"],
        ("default", TC, {}, {"inputs": "zeros"}),
        ("relative_step", TC, ADAFACTOR | {"lr": 1.0}),
        ("beta2_decay", TC, ADAFACTOR | {"beta2_decay": -0.3}),
        ("no_average", TC, ADAFACTOR | {"beta2_decay": 0.0}, {"inputs": "zeros"}),
        ("eps1", TC, ADAFACTOR | {"eps1": 0.5}),
        ("eps2", TC, ADAFACTOR | {"eps2": 3.0}),
        ("d", TC, ADAFACTOR | {"d": 1.25}),
        ("weight_decay", TC, ADAFACTOR | {"weight_decay": 0.3}),
        ("maximize", TC, ADAFACTOR | {"weight_decay": 0.1, "maximize": True}),
        ("zeros", TC, ADAFACTOR, {"inputs": "zeros"}),
        ("huge", TC, ADAFACTOR, {"inputs": "huge"}),
        ("missing", TC, ADAFACTOR | {"weight_decay": 0.1}, {"missing": MISSING}),
        ("groups", TC, ADAFACTOR, {"groups": GROUPS}),
        ("lr_change", TC, ADAFACTOR, {"lr_changes": LATER}),
    ),
}
