"""Adam that divides by the largest averaged squared gradient seen so far (AMSGrad).

m and v as in Adam; vmax <- max(vmax, v), of the raw v, before its bias correction
param <- param - step_size * m / (sqrt(vmax + eps_inside) + eps_outside)
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    vmax: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    eps_inside: float,
    eps_outside: float,
    step_size: float,
) -> None:
    # All in the memory of the square: a new temporary for every operation takes 1.2 times as long.
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.maximum(vmax, v, out=vmax)
    np.add(vmax, eps_inside, out=work)
    np.sqrt(work, out=work)
    work += eps_outside
    np.divide(m, work, out=work)
    work *= step_size
    param -= work


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    vmax: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps_inside: Any,
    eps_outside: Any,
    step_size: Any,
) -> tuple[Any, Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    # NaN wins, as in np.maximum: a comparison with NaN is false, so v is taken unless it is less.
    vmax = vmax if vmax >= v or vmax != vmax else v
    param = param - step_size * (m / (sqrt(vmax + eps_inside) + eps_outside))
    return param, m, v, vmax


RULE = Rule(
    name="adam_amsgrad",
    state=("m", "v", "vmax"),
    signed=("m",),
    takes_square=True,
    scalars=(
        "one_minus_beta1",
        "one_minus_beta2",
        "eps_inside",
        "eps_outside",
        "step_size",
    ),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        vmax = vmax >= v || vmax != vmax ? vmax : v;
        param = param - step_size * (m / (sqrt(vmax + eps_inside) + eps_outside));
    """,
)
