"""Rprop: each element has a step of its own, which grows while the gradient's sign stays.

length <- length + first * (lr - length), where first is 1 in the parameter's first step and 0 later
length <- length * grow where grad has the sign of prev, length * shrink where it has the other one
length <- min(max(length, smallest), largest)
prev <- grad, and 0 where the sign has turned
param <- param - length * sign(prev)                       sign(0) = 0

Signs are compared and not multiplied gradients, whose product would vanish where they are small.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.rule import Rule


def _numpy(
    param: Any,
    grad: Any,
    prev: Any,
    length: Any,
    first: float,
    shrink: float,
    grow: float,
    smallest: float,
    largest: float,
    lr: float,
) -> None:
    length += first * (lr - length)
    turn = np.sign(grad) * np.sign(prev)
    np.multiply(length, grow, out=length, where=turn > 0)
    np.multiply(length, shrink, out=length, where=turn < 0)
    np.maximum(length, smallest, out=length)
    np.minimum(length, largest, out=length)
    np.copyto(prev, grad)
    np.copyto(prev, 0, where=turn < 0)
    param -= length * np.sign(prev)


def _numba(
    param: Any,
    grad: Any,
    prev: Any,
    length: Any,
    first: Any,
    shrink: Any,
    grow: Any,
    smallest: Any,
    largest: Any,
    lr: Any,
) -> tuple[Any, Any, Any]:
    length = length + first * (lr - length)
    turned = (grad > 0 and prev < 0) or (grad < 0 and prev > 0)
    kept = (grad > 0 and prev > 0) or (grad < 0 and prev < 0)
    length = length * shrink if turned else length * grow if kept else length
    length = smallest if length < smallest else length
    length = largest if length > largest else length
    prev = first - first if turned else grad
    return param - (length if prev > 0 else -length if prev < 0 else prev - prev), prev, length


RULE = Rule(
    name="rprop",
    state=("prev", "length"),
    signed=("prev",),
    begun=("length",),
    scalars=("first", "shrink", "grow", "smallest", "largest", "lr"),
    numpy=_numpy,
    numba=_numba,
    cupy="""
        length = length + first * (lr - length);
        const bool turned = (grad > 0 && prev < 0) || (grad < 0 && prev > 0);
        const bool same = (grad > 0 && prev > 0) || (grad < 0 && prev < 0);
        length = turned ? length * shrink : same ? length * grow : length;
        length = length < smallest ? smallest : length;
        length = length > largest ? largest : length;
        prev = turned ? first - first : grad;
        param = param - (prev > 0 ? length : prev < 0 ? -length : prev - prev);
    """,
)
