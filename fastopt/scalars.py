"""Small formulas that several optimizers need for their scalars, in float64 on the host."""

from __future__ import annotations

import math

from fastopt.param_group import Options


def one_minus_power(beta: float, t: int) -> float:
    """Return 1 - beta^t without the cancellation that beta near 1 brings."""
    return -math.expm1(t * math.log(beta)) if beta > 0.0 else 1.0


def eps_places(options: Options, guard: float) -> tuple[float, float]:
    """Return (eps inside the root, eps outside it); ``guard`` is outside if eps is 0."""
    eps: float = options["eps"]
    return (eps, 0.0) if options["eps_inside_sqrt"] and eps else (0.0, eps or guard)


def eps_floor(options: Options) -> float:
    """Return the smallest denominator that an eps inside or outside the root leaves."""
    eps: float = options["eps"]
    return math.sqrt(eps) if options["eps_inside_sqrt"] else eps
