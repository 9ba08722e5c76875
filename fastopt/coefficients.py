"""Coefficients that arithmetic in float32 would make 0 or infinite: refused before a step.

What is proportional to the learning rate, and weight decay, may become 0: a schedule or a decay by
hand brings them down as far as it is followed, and the run goes on.
"""

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
    """Raise ValueError for a coefficient that is infinite in ``real`` and not in float64, or is 0.

    ``where`` names a parameter that is computed in it.
    """
    if real.itemsize != 4:
        return
    numbers = _numbers(options)
    for t in (1, _LATE):
        for name, value, vanishes in _coefficients(formula, numbers, t):
            too_small = 0.0 < abs(value) <= _ZERO and not vanishes
            if abs(value) < _INFINITE and not too_small:
                continue
            raise ValueError(
                f"{formula.__name__}: {name} comes to {value:.3g}, which is "
                f"{'0' if too_small else 'infinite'} in {real}, in which {where} is "
                f"computed; got {_said(options)}. Choose others, or parameters of float64"
            )


def _numbers(options: Options) -> Options:
    if not any(map(callable, options.values())):
        return options
    plain = ((name, value) for name, value in options.items() if name != "params")
    return {name: _UNKNOWN.get(name, 0.5) if callable(value) else value for name, value in plain}


def _coefficients(
    formula: type[Formula], options: Options, t: int
) -> Iterator[tuple[str, float, bool]]:
    """Yield what the t-th step multiplies by and adds, what state begins with, and if it may be 0."""
    lr, weight_decay = options["lr"], options["weight_decay"]
    made = formula._scalars(options, lr, t, 1.0)
    for name in formula._rule(options).scalars:
        yield name, made[name], name in formula._lr_scalars
    if formula._decoupled:
        yield "lr * weight_decay", lr * weight_decay, True
    else:
        yield "weight_decay", weight_decay, True
    for slot, value in formula._fill(options).items():
        yield f"the initial {slot}", value, False


def _said(options: Options) -> str:
    """Return the numbers among the hyperparameters, as they were given."""
    kinds = (float, tuple)
    return ", ".join(f"{k}={v!r}" for k, v in options.items() if isinstance(v, kinds))
