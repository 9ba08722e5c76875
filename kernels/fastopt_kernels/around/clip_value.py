"""No element of the gradient is larger than a number: min(max(grad, -clip_value), clip_value).

NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt_kernels.around.fragment import Fragment


def _numpy(grad: Any, clip_value: Any) -> Any:
    return np.minimum(np.maximum(grad, -clip_value), clip_value)


def _numba(grad: Any, clip_value: Any) -> Any:
    raised = -clip_value if grad < -clip_value else grad
    return clip_value if raised > clip_value else raised


FRAGMENT = Fragment(
    name="clip_value",
    at="gradient",
    numpy=_numpy,
    numba=_numba,
    cupy="""
        const real raised = grad < -clip_value ? -clip_value : grad;
        kept = raised > clip_value ? clip_value : raised;
    """,
    scalars=("clip_value",),
)
