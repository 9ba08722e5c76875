"""Adam's memory traffic without its arithmetic: what a step would take if computing were free."""

from __future__ import annotations

from typing import Any

from fastopt.optimizers.adam import Adam
from fastopt.param_group import Options
from fastopt_kernels import Rule

ADAM_ARRAYS_MOVED = 7
"""Adam reads the gradient, the parameter, m and v, and writes the last three."""


def _numpy(param: Any, grad: Any, m: Any, v: Any, step_size: float) -> None:
    m += grad
    v += grad
    param -= step_size * grad


def _numba(param: Any, grad: Any, m: Any, v: Any, step_size: Any) -> tuple[Any, Any, Any]:
    return param - step_size * grad, m + grad, v + grad


RULE = Rule(
    name="traffic",
    state=("m", "v"),
    signed=("m", "v"),
    scalars=("step_size",),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        m = m + grad;
        v = v + grad;
        param = param - step_size * grad;
    """,
)


class Traffic(Adam):
    """No optimizer: it moves the bytes that Adam moves, with the same driver and the same threads.

    ::

        m <- m + g,  v <- v + g,  p <- p - lr * g
    """

    @staticmethod
    def _rule(options: Options) -> Rule:
        return RULE

    @staticmethod
    def _scalars(options: Options, lr: float, t: int, guard: float) -> dict[str, float]:
        return {"step_size": lr}
