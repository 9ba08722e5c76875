"""The parameter comes closer to 0 by lr * l1, and those that are as close as that become 0.

kept <- after - l1 where after > l1, after + l1 where after < -l1, else 0, of an l1 that the
learning rate has been multiplied into

The 0 is written ``after - after``, so that NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.around.fragment import Fragment


def _numpy(after: Any, l1: Any) -> Any:
    shrunk = np.where(after < -l1, after + l1, after - after)
    return np.where(after > l1, after - l1, shrunk)


def _numba(after: Any, l1: Any) -> Any:
    shrunk = after + l1 if after < -l1 else after - after
    return after - l1 if after > l1 else shrunk


FRAGMENT = Fragment(
    name="l1",
    at="after",
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real shrunk = after < -l1 ? after + l1 : after - after;
        kept = after > l1 ? after - l1 : shrunk;
    """,
    scalars=("l1",),
    lr_scalars=("l1",),
)
