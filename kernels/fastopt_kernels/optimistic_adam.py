"""OptimisticAdam: the steps of Adam, each led on by how much it differs from the one before.

m <- m + (1 - beta1) * (grad - m)
v <- v + (1 - beta2) * (grad^2 - v)
now <- correct * m / (sqrt(v) + eps)
param <- param - lr * (now + lead * (now - u))           lead = 0 in the first step
u <- now

As in Adam the bias corrections are in eps and ``correct``.
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
    u: Any,
    one_minus_beta1: float,
    one_minus_beta2: float,
    eps: float,
    correct: float,
    lead: float,
    lr: float,
) -> None:
    # All in the memory of the square and of u.
    square -= v
    square *= one_minus_beta2
    v += square
    work = np.subtract(grad, m, out=square)
    work *= one_minus_beta1
    m += work
    np.sqrt(v, out=work)
    work += eps
    np.divide(m, work, out=work)
    work *= correct
    np.subtract(work, u, out=u)
    u *= lead
    u += work
    u *= lr
    param -= u
    np.copyto(u, work)


def _numba(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    u: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    correct: Any,
    lead: Any,
    lr: Any,
) -> tuple[Any, Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    now = correct * (m / (sqrt(v) + eps))
    return param - lr * (now + lead * (now - u)), m, v, now


RULE = Rule(
    name="optimistic_adam",
    state=("m", "v", "u"),
    signed=("m", "u"),
    takes_square=True,
    heavy=True,
    scalars=("one_minus_beta1", "one_minus_beta2", "eps", "correct", "lead", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + one_minus_beta1 * (grad - m);
        v = v + one_minus_beta2 * (square - v);
        const real now = correct * (m / (sqrt(v) + eps));
        param = param - lr * (now + lead * (now - u));
        u = now;
    """,
)
