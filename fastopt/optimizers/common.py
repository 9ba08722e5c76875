"""Small formulas that several optimizers need for their scalars, in float64 on the host.

A value is a float, or an array of one float64 for each member. An element of an array comes to the
same bits as a float does; floats alone never enter NumPy, which would take longer than the rest.
"""

from __future__ import annotations

from math import expm1, log
from math import sqrt as root_of
from typing import cast

from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Options, Scheduled, Value, of_each, where_zero


def one_minus_power(beta: Value, t: int) -> Value:
    """Return 1 - beta^t without the cancellation that beta near 1 brings."""
    if type(beta) is not float:
        return of_each(lambda one: cast(float, one_minus_power(one, t)), cast(Array, beta))
    return -expm1(t * log(beta)) if beta > 0.0 else 1.0


def sqrt(value: Value) -> Value:
    """Return the root."""
    return root_of(value) if type(value) is float else of_each(root_of, cast(Array, value))


def acts(value: Scheduled | Array) -> bool:
    """Return whether a value, or that of any member, is not 0; a function is taken not to be."""
    if type(value) is float or callable(value):
        return bool(value)
    return bool(cast(Array, value).any())


def or_guard(eps: Value, guard: float) -> Value:
    """Return eps, and the guard where it is 0."""
    if type(eps) is float:
        return eps or guard
    return where_zero(cast(Array, eps), guard, eps)


def eps_scalars(options: Options, guard: float, c: Value, root: Value) -> tuple[Value, Value]:
    """Return what eps comes to when the average of squares v is not divided by its correction c.

    sqrt(v / c + inside) + outside = (sqrt(v + c * inside) + sqrt(c) * outside) / sqrt(c), which
    saves a pass over v; the caller multiplies the step by sqrt(c), the ``root``. Returned are
    c * inside and sqrt(c) * outside. ``guard`` stands in for an eps of 0.
    """
    eps: Value = options["eps"]
    if type(eps) is not float:
        outside = root * or_guard(eps, guard)
        if not options["eps_inside_sqrt"]:
            return 0.0, outside
        return c * eps, where_zero(cast(Array, eps), outside, guard)
    if options["eps_inside_sqrt"] and eps:
        return c * eps, guard  # should c * eps underflow
    return 0.0, root * (eps or guard)


def eps_floor(options: Options) -> Value:
    """Return the smallest denominator that an eps inside or outside the root leaves."""
    eps: Value = options["eps"]
    return sqrt(eps) if options["eps_inside_sqrt"] else eps
