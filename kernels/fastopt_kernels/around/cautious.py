"""Only what moves against the gradient moves, and that the further the fewer there are.

agrees <- (decayed - after) * grad > 0
scale <- 1 / max(mean(agrees), 1e-3), the mean over the parameter's array
kept <- decayed + scale * (after - decayed) where agrees, else decayed

Written by comparisons: the product could underflow to 0. A step that is too small to change the
parameter agrees with no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt_kernels.around.fragment import Fragment
from fastopt_kernels.rule import Memory, Sums


def _sums_numpy(grad: Any, decayed: Any, after: Any) -> tuple[Any]:
    return (((decayed > after) & (grad > 0)) | ((decayed < after) & (grad < 0)),)


def _sums_numba(grad: Any, decayed: Any, after: Any) -> tuple[Any]:
    return ((decayed > after and grad > 0) or (decayed < after and grad < 0),)


def _host(
    scalars: Mapping[str, float], memory: Mapping[str, float], sums: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    share = sums["agreeing"] / sums["size"] if sums["size"] > 0.0 else 0.0
    return {}, {"scale": 1.0 / (share if share > 1e-3 else 1e-3)}


def _numpy(grad: Any, decayed: Any, after: Any, scale: float) -> Any:
    agrees = ((decayed > after) & (grad > 0)) | ((decayed < after) & (grad < 0))
    return np.where(agrees, decayed + scale * (after - decayed), decayed)


def _numba(grad: Any, decayed: Any, after: Any, scale: Any) -> Any:
    agrees = (decayed > after and grad > 0) or (decayed < after and grad < 0)
    return decayed + scale * (after - decayed) if agrees else decayed


FRAGMENT = Fragment(
    name="cautious",
    at="after",
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const bool agrees = (decayed > after && grad > 0) || (decayed < after && grad < 0);
        kept = agrees ? decayed + scale * (after - decayed) : decayed;
    """,
    sums=Sums(
        names=("agreeing",),
        numpy=_sums_numpy,
        numba=_sums_numba,
        cupy="""
            const bool agrees = (decayed > after && grad > 0) || (decayed < after && grad < 0);
            agreeing = agrees ? 1 : 0;
        """,
    ),
    memory=Memory(
        over="array",
        scalars=("scale",),
        host=_host,
        cupy="""
            const double share = size > 0.0 ? agreeing / size : 0.0;
            scale = 1.0 / (share > 1e-3 ? share : 1e-3);
        """,
    ),
)
