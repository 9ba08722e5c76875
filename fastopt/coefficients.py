"""Coefficients that arithmetic in float32 would make 0 or infinite: refused before a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastopt.formula import Formula
from fastopt.param_group import Options

_UNKNOWN = {"lr": 1.0, "weight_decay": 0.0}
"""What stands for schedules where their values are not known yet; 0.5 for any other."""

_LATE = 1_000_000
"""A step in which bias corrections are 1."""

_ZERO, _INFINITE = 2.0**-150, 2.0**128 - 2.0**103
"""Up to the first a number is rounded to 0 in float32, from the second on to infinity."""


def check(formula: type[Formula], options: Options, real: np.dtype[Any], where: str) -> None:
    """Raise ValueError for a coefficient that is 0 or infinite in ``real`` and not in float64.

    ``where`` names a parameter that is computed in it.
    """
    if real.itemsize != 4:
        return
    numbers = _numbers(options)
    for t in (1, _LATE):
        for name, value in _coefficients(formula, numbers, t):
            if _ZERO < abs(value) < _INFINITE or value == 0.0:
                continue
            raise ValueError(
                f"{formula.__name__}: {name} comes to {value:.3g}, which is "
                f"{'0' if abs(value) <= _ZERO else 'infinite'} in {real}, in which {where} is "
                f"computed; got {_said(options)}. Choose others, or parameters of float64"
            )


def _numbers(options: Options) -> Options:
    if not any(map(callable, options.values())):
        return options
    plain = ((name, value) for name, value in options.items() if name != "params")
    return {name: _UNKNOWN.get(name, 0.5) if callable(value) else value for name, value in plain}


def _coefficients(formula: type[Formula], options: Options, t: int) -> Iterator[tuple[str, float]]:
    """Yield what the t-th step multiplies by and adds, and what state begins with."""
    lr, weight_decay = options["lr"], options["weight_decay"]
    made = formula._scalars(options, lr, t, 1.0)
    for name in formula._rule(options).scalars:
        yield name, made[name]
    if formula._decoupled:
        yield "lr * weight_decay", lr * weight_decay
    else:
        yield "weight_decay", weight_decay
    for slot, value in formula._fill(options).items():
        yield f"the initial {slot}", value


def _said(options: Options) -> str:
    """Return the numbers among the hyperparameters, as they were given."""
    kinds = (float, tuple)
    return ", ".join(f"{k}={v!r}" for k, v in options.items() if isinstance(v, kinds))
