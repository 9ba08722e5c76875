"""Where the gradient is exactly 0, the parameter and all its state stay as they were.

kept <- after where given != 0, else before

The gradient before L2, the parameter before its decay: where nothing was given, nothing moves.
NaN is not 0. A block of 8-bit state has one scale, which would move what is to stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.around.fragment import Fragment


def _numpy(given: Any, before: Any, after: Any) -> Any:
    return np.where(given != 0, after, before)


def _numba(given: Any, before: Any, after: Any) -> Any:
    return after if given != 0 else before


FRAGMENT = Fragment(
    name="mask_zero",
    at="after",
    on="all",
    numpy=_numpy,
    numba=_numba,
    cupy="""
        kept = given != 0 ? after : before;
    """,
    refuses=("int8",),
)
