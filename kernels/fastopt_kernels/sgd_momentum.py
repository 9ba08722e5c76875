"""Gradient descent with a momentum buffer, plain or Nesterov.

buf <- keep * buf + take * grad
param <- param - (grad_step * grad + buf_step * buf)

Plain momentum: grad_step = 0, buf_step = lr. Nesterov: grad_step = lr, buf_step = lr * momentum.
"""

from __future__ import annotations

from typing import Any

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any, grad: Any, buf: Any, keep: float, take: float, grad_step: float, buf_step: float
) -> None:
    buf *= keep
    buf += take * grad
    param -= grad_step * grad + buf_step * buf


def _numba(
    param: Any, grad: Any, buf: Any, keep: Any, take: Any, grad_step: Any, buf_step: Any
) -> tuple[Any, Any]:
    buf = keep * buf + take * grad
    return param - (grad_step * grad + buf_step * buf), buf


RULE = Rule(
    name="sgd_momentum",
    state=("buf",),
    signed=("buf",),
    scalars=("keep", "take", "grad_step", "buf_step"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        buf = keep * buf + take * grad;
        param = param - (grad_step * grad + buf_step * buf);
    """,
)
