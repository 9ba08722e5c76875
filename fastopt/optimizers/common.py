"""Small formulas that several optimizers need for their scalars, in float64 on the host."""

from __future__ import annotations

from math import expm1, log, sqrt

from fastopt.core.hyperparameters import Options


def one_minus_power(beta: float, t: int) -> float:
    """Return 1 - beta^t without the cancellation that beta near 1 brings."""
    return -expm1(t * log(beta)) if beta > 0.0 else 1.0


def eps_scalars(options: Options, guard: float, c: float) -> dict[str, float]:
    """Return what eps comes to when the average of squares v is not divided by its correction c.

    sqrt(v / c + inside) + outside = (sqrt(v + c * inside) + sqrt(c) * outside) / sqrt(c), which
    saves a pass over v; the caller multiplies the step by sqrt(c). ``guard`` stands in for 0.
    """
    eps: float = options["eps"]
    if options["eps_inside_sqrt"] and eps:
        inside, outside = c * eps, guard  # should c * eps underflow
    else:
        inside, outside = 0.0, sqrt(c) * (eps or guard)
    return {"eps_inside": inside, "eps_outside": outside, "eps": outside}


def eps_floor(options: Options) -> float:
    """Return the smallest denominator that an eps inside or outside the root leaves."""
    eps: float = options["eps"]
    return sqrt(eps) if options["eps_inside_sqrt"] else eps
