"""Scale-safe steps: every parameter's gradient times a power of two that makes its squares fit.

With an exponent k the gradient g becomes 2^k * g, which is exact, and everything that carries the
gradient's unit in a power p, state and scalars, becomes 2^(p*k) times what it is: the powers are in
``Formula._units``. The step is then the same, but for the range of exponents: squares that would
overflow or underflow do not. An exponent stays as it is while 2^k * |g| is in a wide window around
1, so that ordinary gradients have k = 0 and the bits of a step without exponents. Where it changes
the state is carried over, by powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Span(NamedTuple):
    """The exponents that are allowed in a step, ends included."""

    least: int
    most: int


class Window(NamedTuple):
    """Where 2^k times the norm of a gradient may lie, as powers of two; ``middle`` is aimed at.

    The squares of what is 2^(middle + 63) below the norm underflow in float32; sums of 2^40
    squares at the upper end do not overflow. Scalars that carry the gradient's unit are kept below
    2^``scalars``, what multiplies the gradient below 2^``factor`` and above its inverse.
    """

    low: int
    high: int
    middle: int
    scalars: int
    factor: int


MOST = 2_000
"""No exponent's magnitude is larger."""

_SINGLE = Window(-24, 40, 20, 100, 120)
_DOUBLE = Window(-300, 300, 0, 900, 1000)


def window_of(real: np.dtype[Any]) -> Window:
    """Return the window for arithmetic in this dtype."""
    return _SINGLE if real.itemsize == 4 else _DOUBLE


def chosen(
    exponent: int, norm: float, span: Span, window: Window, state: Callable[[], float]
) -> int:
    """Return the exponent of a coming step.

    ``norm`` is what the gradient and what is added to it come to, ``state()`` the magnitude of the
    state in the gradient's unit, times 2^exponent. Where the state is larger than the gradient it
    counts, since it must not overflow. Zeros and what is not finite change nothing.
    """
    if 0.0 < norm < math.inf:
        size = math.frexp(norm)[1] + exponent
        if size < window.low and exponent < span.most:
            held = state()
            size = max(size, math.frexp(held)[1]) if 0.0 < held < math.inf else size
        if not window.low <= size <= window.high:
            exponent += window.middle - size
    return min(max(exponent, span.least), span.most)


def span_of(scalars: Iterable[tuple[int, float]], factor: float, window: Window) -> Span:
    """Return the exponents under which no scalar leaves the range of the arithmetic.

    ``scalars`` are values with their powers of the gradient's unit. What is added to a denominator
    (a positive power) may underflow against it, and then counts as eps = 0; but it must not
    overflow. Nothing is lost by the limit: it holds where an eps of 2^100 outweighs gradients below
    the window, and their squares with them. The coefficient of an L2 term is limited alike; what
    multiplies a step (a negative power) and ``factor``, which multiplies the gradient, at both
    ends.
    """
    least, most = -MOST, MOST
    for power, value in scalars:
        if not power or not 0.0 < abs(value) < math.inf:
            continue
        size = math.frexp(value)[1]
        if power > 0:
            most = min(most, (window.scalars - size) // power)
        else:
            most = min(most, (window.scalars + size) // -power)
            least = max(least, -((window.scalars - size) // -power))
    if 0.0 < abs(factor) < math.inf:
        size = math.frexp(factor)[1]
        least, most = max(least, -window.factor - size), min(most, window.factor - size)
    return Span(least, most)


def carried(value: float, power: int, exponent: int, real: np.dtype[Any], guard: float) -> float:
    """Return a scalar of a rule in the units of an exponent.

    What would underflow in a denominator is the guard that an eps of 0 has, and under a root the
    smallest normal number: so 0/0 is 0 all the same.
    """
    moved = math.ldexp(value, power * exponent)
    if power == 1:
        return max(moved, guard)
    if power > 1 and value > 0.0:
        return max(moved, float(np.finfo(real).smallest_normal))
    return moved
