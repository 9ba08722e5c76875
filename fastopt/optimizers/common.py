"""Small formulas that several optimizers need for their scalars, in float64 on the host.

A value is a float, or an array of one float64 for each member. An element of an array comes to the
same bits as a float does; floats alone never enter NumPy, which would take longer than the rest.
"""

from __future__ import annotations

from functools import lru_cache
from math import expm1, inf, log
from math import sqrt as root_of
from typing import cast

from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import (
    Options,
    Scheduled,
    Value,
    of_each,
    together,
    where_zero,
)


def one_minus_power(beta: Value, t: int) -> Value:
    """Return 1 - beta^t without the cancellation that beta near 1 brings."""
    if type(beta) is not float:
        return of_each(lambda one: cast(float, one_minus_power(one, t)), cast(Array, beta))
    return -expm1(t * log(beta)) if beta > 0.0 else 1.0


def sqrt(value: Value) -> Value:
    """Return the root."""
    return root_of(value) if type(value) is float else of_each(root_of, cast(Array, value))


def power(base: Value, exponent: Value) -> Value:
    """Return base^exponent of a base >= 0, infinity where that is too large; 0^0 is 1."""
    return together(_power, base, exponent)


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return inf


def at_most(value: Value, limit: Value) -> Value:
    """Return the smaller of two numbers."""
    return together(min, value, limit)


def at_least(value: Value, limit: Value) -> Value:
    """Return the larger of two numbers."""
    return together(max, value, limit)


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


def adam_scalars(
    betas: tuple[Value, Value], eps: Value, lr: Value, t: int, guard: float
) -> dict[str, Value]:
    """Return the scalars of Adam's step where neither average is divided by its correction.

    (m / c1) / (sqrt(v / c2) + eps) = (sqrt(c2) / c1) * m / (sqrt(v) + sqrt(c2) * eps).
    """
    beta1, beta2 = betas
    root = sqrt(one_minus_power(beta2, t))
    return {
        "one_minus_beta1": 1.0 - beta1,
        "one_minus_beta2": 1.0 - beta2,
        "eps": root * or_guard(eps, guard),
        "step_size": lr * root / one_minus_power(beta1, t),
    }


def eps_alone(options: Options) -> Value:
    """Return eps, the smallest denominator where it is added to one."""
    eps: Value = options["eps"]
    return eps


def eps_floor(options: Options) -> Value:
    """Return the smallest denominator that an eps inside or outside the root leaves."""
    eps: Value = options["eps"]
    return sqrt(eps) if options["eps_inside_sqrt"] else eps


# -------------------------------------------------------------------------------------------------
# NAdam's momentum, which rises to beta1: beta1 * (1 - q^t / 2), with q = 0.96^rise.

_TERMS = 56
"""Of the series below; each is less than half of the one before it."""

_GONE = -50.0
"""The logarithm of a product that no longer changes 1 in float64."""


def risen(beta1: Value, rise: Value, t: int) -> Value:
    """Return the momentum of the t-th step, beta1 * (1 - 0.5 * 0.96^(t * rise))."""
    return together(lambda beta, psi: beta * (1.0 - 0.5 * pow(0.96, t * psi)), beta1, rise)


def one_minus_risen(beta1: Value, rise: Value, t: int) -> Value:
    """Return 1 minus the product of the momentum of the first t steps."""
    return together(lambda beta, psi: _one_minus_risen(beta, psi, t), beta1, rise)


@lru_cache(maxsize=1024)
def _one_minus_risen(beta1: float, rise: float, t: int) -> float:
    """Return it of numbers: no loop over the steps, so that a far step takes no longer.

    With log(1 - x / 2) = -sum of (x / 2)^k / k over k, what q^k to q^(kt) add up to is a closed
    form: the logarithm of the product is t * log(beta1) - sum of 2^-k / k * (q^k + ... + q^(kt)).
    """
    if beta1 == 0.0:
        return 1.0
    whole = t * log(beta1)
    if whole < _GONE:
        return 1.0
    a = rise * log(0.96)
    parts = []
    for k in range(1, _TERMS + 1):
        each = expm1(k * a)
        # q^k * (1 - q^(kt)) / (1 - q^k); with q = 1 all t of them are 1.
        of_steps = (1.0 + each) * (expm1(k * t * a) / each) if each else float(t)
        parts.append(pow(0.5, k) / k * of_steps)
    return -expm1(whole - sum(reversed(parts)))


# -------------------------------------------------------------------------------------------------
# RAdam's rectification.


def rectification(beta2: Value, t: int) -> Value:
    """Return how much of Adam's step is made in the t-th, and 0 where rho_t is 5 or less."""
    return together(lambda one: _rectification(one, t), beta2)


def _rectification(beta2: float, t: int) -> float:
    if beta2 == 0.0:
        return 0.0
    longest = 2.0 / (1.0 - beta2) - 1.0
    kept = pow(beta2, t)
    length = longest - 2.0 * t * kept / -expm1(t * log(beta2))
    if length <= 5.0:
        return 0.0
    over, under = (length - 4.0) * (length - 2.0) * longest, (longest - 4.0) * (longest - 2.0)
    return root_of(over / (under * length))
