"""The gradient of each array on its own is scaled down to a 2-norm.

norm <- sqrt(sum(grad^2)) over the array, in float64
kept <- grad * min(1, clip_each / (norm + 1e-6))

A norm that is infinite gives the factor 0 (and NaN where the gradient is infinite), one that is NaN
gives NaN; a limit of infinity leaves all as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, sqrt
from typing import Any

from fastopt_kernels.around.fragment import Fragment
from fastopt_kernels.rule import Memory, Sums


def _sums(grad: Any) -> tuple[Any]:
    return (grad,)


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    limit = scalars["clip_each"]
    factor = limit / (sqrt(sums["squares"]) + 1e-6)
    return {}, {"factor": 1.0 if factor > 1.0 or limit == inf else factor}


def _form(grad: Any, factor: Any) -> Any:
    return grad * factor


FRAGMENT = Fragment(
    name="clip_each",
    at="gradient",
    numpy=_form,
    numba=_form,
    cupy="kept = grad * factor;",
    sums=Sums(
        names=("squares",),
        squared=("squares",),
        numpy=_sums,
        numba=_sums,
        cupy="squares = grad;",
    ),
    memory=Memory(
        over="array",
        inputs=("clip_each",),
        scalars=("factor",),
        host=_host,
        cupy="""
            const double ratio = clip_each / (sqrt(squares) + 1e-6);
            factor = ratio > 1.0 || clip_each > 1.7976931348623157e308 ? 1.0 : ratio;
        """,
    ),
)
