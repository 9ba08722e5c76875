"""Small formulas that several optimizers need for their scalars, in float64 on the host.

A value is a float, or an array of one float64 for each member. An element of an array comes to the
same bits as a float does; floats alone never enter NumPy, which would take longer than the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy import ndarray

from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Options, Scheduled, Value


def one_minus_power(beta: Value, t: int) -> Value:
    """Return 1 - beta^t without the cancellation that beta near 1 brings."""
    if type(beta) is ndarray:
        return _each(lambda one: one_minus_power(one, t), beta)
    return -math.expm1(t * math.log(beta)) if beta > 0.0 else 1.0


def sqrt(value: Value) -> Value:
    """Return the root, rounded to nearest, which NumPy's is too."""
    return np.sqrt(value) if type(value) is ndarray else math.sqrt(value)


def acts(value: Scheduled | Array) -> bool:
    """Return whether a value, or that of any member, is not 0; a function is taken not to be."""
    return bool(value.any()) if isinstance(value, ndarray) else bool(value)


def or_guard(eps: Value, guard: float) -> Value:
    """Return eps, and the guard where it is 0."""
    return np.where(eps == 0.0, guard, eps) if type(eps) is ndarray else eps or guard


def eps_scalars(options: Options, guard: float, c: Value, root: Value) -> tuple[Value, Value]:
    """Return what eps comes to when the average of squares v is not divided by its correction c.

    sqrt(v / c + inside) + outside = (sqrt(v + c * inside) + sqrt(c) * outside) / sqrt(c), which
    saves a pass over v; the caller multiplies the step by sqrt(c), the ``root``. Returned are
    c * inside and sqrt(c) * outside. ``guard`` stands in for an eps of 0.
    """
    eps: Value = options["eps"]
    if type(eps) is ndarray:
        outside = root * or_guard(eps, guard)
        if not options["eps_inside_sqrt"]:
            return 0.0, outside
        return c * eps, np.where(eps == 0.0, outside, guard)
    if options["eps_inside_sqrt"] and eps:
        return c * eps, guard  # should c * eps underflow
    return 0.0, root * (eps or guard)


def eps_floor(options: Options) -> Value:
    """Return the smallest denominator that an eps inside or outside the root leaves."""
    eps: Value = options["eps"]
    return sqrt(eps) if options["eps_inside_sqrt"] else eps


def _each(function: Callable[[float], Value], values: Array) -> Array:
    """Return what a function makes of each number; it is asked once for equal ones.

    NumPy's own expm1 and log differ from those of ``math`` in the last bit of some values.
    """
    distinct, places = np.unique(values, return_inverse=True)
    return np.array([function(one) for one in distinct.tolist()])[places]
