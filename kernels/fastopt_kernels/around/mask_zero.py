"""Where the gradient is exactly 0, the parameter and all its state stay as they were.

kept <- after where plain_grad != 0, else before

The gradient before L2, the parameter before its decay: where there was none, nothing moves.
NaN is not 0. A block of 8-bit state has one scale, which would move what is to stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.around.fragment import Fragment


def _numpy(plain_grad: Any, before: Any, after: Any) -> Any:
    return np.where(plain_grad != 0, after, before)


def _numba(plain_grad: Any, before: Any, after: Any) -> Any:
    return after if plain_grad != 0 else before


FRAGMENT = Fragment(
    name="mask_zero",
    at="after",
    on="all",
    numpy=_numpy,
    numba=_numba,
    cupy="""
        kept = plain_grad != 0 ? after : before;
    """,
    refuses=("int8",),
)
