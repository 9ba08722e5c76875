"""Every optimizer equals what PyTorch, optax and the papers' formulas gave, as recorded."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.variants import CPU_BACKENDS
from helpers.vectors import (
    FULL,
    VECTORS,
    Vector,
    deviation,
    run,
    worst,
)

NOT_IN_FLOAT32 = {
    "prodigy.tiny",
    "shampoo.default",
    *(f"cautious.cautious{case}" for case in ("", "_odd")),
    *(f"cautious_decay.cautious_decay{case}" for case in ("_dense", "_long", "_odd")),
}
"""Squares that float32 does not hold, and eigenvalues that it does not see beside others; steps
that vanish beside the parameter, so that they agree with no gradient and count among those that do
not, or are no step against the parameter's decay. In float64 all are as recorded."""


LAST = CPU_BACKENDS[-1]
"""Numba, where it is installed: test_same_bits holds the backends to each other."""

BOTH = [("numpy", vector) for vector in VECTORS]
BOTH += [(LAST, vector) for vector in FULL if LAST != "numpy"]


@pytest.mark.parametrize(("backend", "vector"), BOTH, ids=str)
def test_float64_equals_the_oracle(vector: Vector, backend: str) -> None:
    assert worst(vector, run(vector, np.float64, backend)) <= 1e-11


def chosen(vector: Vector) -> Any:
    """Return what constructs the optimizer of a vector for parameters in float32."""
    make = getattr(fastopt, vector.info["optimizer"])
    wide = str(vector).rsplit(".", 1)[0] in NOT_IN_FLOAT32
    return partial(make, state_dtype="float64") if wide else make


@pytest.mark.parametrize("vector", FULL, ids=str)
def test_float32_is_a_few_eps_per_step_away(vector: Vector) -> None:
    got = run(vector, np.float32, LAST, chosen(vector))
    # Products of matrices: each iteration multiplies small singular values, and rounding with them.
    # So do eigenvectors, of which those of eigenvalues that are close move more.
    of_matrices = vector.path.parent.name == "matrices" or vector.info["optimizer"] == "SOAP"
    few = 16 if of_matrices else 4
    for k in range(3):
        expected = vector[f"p{k}"]
        size = np.abs(expected).max(axis=0)
        steps = np.array(vector.info["recorded"]).reshape(-1, *[1] * size.ndim)
        eps = np.finfo(np.float32).eps
        assert deviation(got[f"p{k}"], expected, few * eps * steps * size) <= 1.0


@pytest.mark.parametrize("vector", [v for v in FULL if v.memory], ids=str)
def test_what_is_remembered_of_float32_is_as_close(vector: Vector) -> None:
    got = run(vector, np.float32, LAST, chosen(vector))
    for name in vector.memory:
        few = 64 if name == "numerator" else 4  # its terms have both signs
        close = few * float(np.finfo(np.float32).eps) * vector.info["steps"]
        want = vector[f"memory/{name}"]
        off = close * np.abs(want).max() if name in ("gamma", "bound") else 0.0  # they come near 0
        np.testing.assert_allclose(got[f"memory/{name}"], want, rtol=close, atol=off)


def test_the_distance_that_is_read_is_the_one_remembered() -> None:
    (vector, *_) = [v for v in VECTORS if v.info["optimizer"] == "Prodigy"]
    params = vector.inputs("p", np.float64)
    opt = fastopt.Prodigy(params, d0=1e-3)
    assert opt.d == 1e-3
    for grads in zip(*vector.inputs("g", np.float64), strict=True):
        opt.step(list(grads))
        assert opt.d == opt.state_dict()["memory"]["d"] >= 1e-3
