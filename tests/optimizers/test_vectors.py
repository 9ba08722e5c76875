"""Every optimizer equals what PyTorch, optax and the papers' formulas gave, as recorded."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.variants import CPU_BACKENDS
from helpers.vectors import (
    VECTORS,
    Vector,
    deviation,
    run,
    worst,
)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_float64_equals_the_oracle(vector: Vector, backend: str) -> None:
    assert worst(vector, run(vector, np.float64, backend)) <= 1e-11


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_float32_is_a_few_eps_per_step_away(vector: Vector, backend: str) -> None:
    got = run(vector, np.float32, backend)
    for k in range(3):
        expected = vector[f"p{k}"]
        size = np.abs(expected).max(axis=0)
        steps = np.array(vector.info["recorded"]).reshape(-1, *[1] * size.ndim)
        eps = np.finfo(np.float32).eps
        assert deviation(got[f"p{k}"], expected, 4 * eps * steps * size) <= 1.0
