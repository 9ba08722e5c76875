"""The bandwidth that all shares refer to: Adam's reads and writes in a loop of its own.

It shares nothing with fastopt: a plain parallel loop, compiled by Numba, that reads the gradient,
the parameter, m and v, and writes the last three: 28 bytes per parameter in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

BYTES_PER_PARAMETER = 28


def step(parameters: int) -> Callable[[], object] | None:
    """Return what moves the bytes of so many parameters; None without Numba."""
    if find_spec("numba") is None:
        return None
    numba: Any = importlib.import_module("numba")

    @numba.njit(parallel=True)  # type: ignore[untyped-decorator]
    def move(param: Any, grad: Any, m: Any, v: Any) -> None:
        for i in numba.prange(param.size):
            g = grad[i]
            m[i] += g
            v[i] += g
            param[i] -= g

    # m and v in one piece, as fastopt has them
    param, grad, state = (
        np.ones(shape, np.float32) for shape in (parameters, parameters, (2, parameters))
    )
    return lambda: move(param, grad, state[0], state[1])
