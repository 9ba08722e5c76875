"""The table of runs that move between libraries: ten steps in one, ten in another.

The parameters are those of ``vector_inputs``, nested as TREE says; a case names our optimizer and
our arguments, and what makes the same one elsewhere stands in the script of that library.
"""

from typing import Any

import numpy as np

from ..vector_cases import Array, Case
from ..vector_inputs import make_inputs

HALF, STEPS = 10, 20
NAMES = ("layers.0", "b", "layers.1.0")  # of the parameters 0, 1, 2 in {"b", "layers": [., (., )]}

# The first parameter has no gradient before the move, the others miss one here and there.
MISSING = {0: [*range(HALF), 15], 1: [2, 3, 12], 2: [11]}
GROUPS: tuple[dict[str, Any], ...] = (
    {"params": [0], "lr": 0.1},
    {"params": [1, 2], "weight_decay": 0.1},
)
T = ("torch",)


def _case(optimizer: str, name: str, kwargs: Any = None, **more: Any) -> Case:
    return Case(optimizer, name, T, kwargs or {}, steps=STEPS, **more)


TORCH = (
    _case("SGD", "plain", {"weight_decay": 0.1, "maximize": True}),
    _case("SGD", "momentum", {"momentum": 0.9, "lr": 0.05}),
    _case("SGD", "dampening", {"momentum": 0.9, "dampening": 0.3}, missing=MISSING),
    _case("SGD", "nesterov", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.03}),
    _case(
        "Adagrad",
        "missing",
        {"lr_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-5},
        missing=MISSING,
    ),
    _case("Adagrad", "default"),
    _case("RMSprop", "default"),
    _case("RMSprop", "centered", {"centered": True, "beta": 0.95, "eps": 1e-3}),
    _case("RMSprop", "momentum", {"momentum": 0.9}, missing=MISSING),
    _case("RMSprop", "both", {"centered": True, "momentum": 0.5, "eps": 1e-3, "maximize": True}),
    _case("Adadelta", "default"),
    _case("Adadelta", "missing", {"rho": 0.5, "lr": 0.5, "weight_decay": 0.1}, missing=MISSING),
    _case("Adam", "default"),
    _case("Adam", "missing", {"betas": [0.8, 0.95], "lr": 0.02}, missing=MISSING),
    _case("Adam", "decay", {"weight_decay": 0.3, "maximize": True, "eps": 1e-4}),
    _case("Adam", "amsgrad", {"amsgrad": True, "betas": [0.8, 0.6]}, missing=MISSING),
    _case("Adam", "groups", groups=GROUPS),
    _case("AdamW", "default"),
    _case("AdamW", "amsgrad", {"amsgrad": True, "betas": [0.9, 0.8], "weight_decay": 0.1}),
    _case("AdamW", "groups", groups=GROUPS, missing=MISSING),
)


def inputs(name: str, complex: bool = False) -> dict[str, list[Array]]:
    """Return the first parameters and the gradients, complex ones with what comes later as well."""
    made: dict[str, list[Any]] = make_inputs()[name]
    if complex:
        made = {k: [x + 1j * np.flip(x) for x in some] for k, some in made.items()}
    return made
