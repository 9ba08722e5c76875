"""The parameter keeps its decay only where the step goes towards 0 too, or does not go anywhere.

kept <- after where (decayed - after) * before >= 0, else before + (after - decayed)

Written by comparisons: the product could underflow to 0. NaN stays NaN. Where nothing has decayed
there is nothing to take back, and no rounding either.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.around.fragment import Fragment


def _numpy(before: Any, decayed: Any, after: Any) -> Any:
    shrinks = ((after <= decayed) & (before >= 0)) | ((after >= decayed) & (before <= 0))
    return np.where(shrinks | (decayed == before), after, before + (after - decayed))


def _numba(before: Any, decayed: Any, after: Any) -> Any:
    shrinks = (after <= decayed and before >= 0) or (after >= decayed and before <= 0)
    return after if shrinks or decayed == before else before + (after - decayed)


FRAGMENT = Fragment(
    name="cautious_decay",
    at="after",
    of_decay=True,
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const bool shrinks = (after <= decayed && before >= 0) || (after >= decayed && before <= 0);
        kept = shrinks || decayed == before ? after : before + (after - decayed);
    """,
)
