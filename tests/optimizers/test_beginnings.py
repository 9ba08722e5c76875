"""What an optimizer remembers of a parameter's beginning is there for every element of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.variants import CPU_BACKENDS

FROM_P0 = ("COCOB", "DAdaptSGD", "MADGRAD", "DoG", "DoWG", "Prodigy")
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


@each_backend
@pytest.mark.parametrize("name", [*FROM_P0, "Rprop"])
def test_an_element_whose_first_gradient_is_masked_begins_where_it_is(
    name: str, backend: str
) -> None:
    masked, plain = np.array([100.0, 100.0]), np.array([100.0])
    opt = fastopt.optimizer(name, masked, mask_zero=True, backend=backend)
    alone = fastopt.optimizer(name, plain, backend=backend)
    for step in range(4):
        opt.step(np.array([1e-3, 0.0 if step == 0 else 1e-3]))
        alone.step(np.array([1e-3]))
    assert abs(masked[1] - 100.0) <= 1.5 * abs(plain[0] - 100.0)
    assert masked[1] < 100.0


@each_backend
@pytest.mark.parametrize("name", FROM_P0)
@pytest.mark.parametrize("state_dtype", [None, "float64"])
def test_new_rows_begin_where_they_are(name: str, state_dtype: Any, backend: str) -> None:
    params = {"W": np.full((2, 2), 100.0, np.float32)}
    opt = fastopt.optimizer(name, params, backend=backend, state_dtype=state_dtype)
    for _ in range(10):
        opt.step({"W": np.full((2, 2), 1e-3, np.float32)})
    more = np.concatenate([params["W"], np.full((1, 2), 50.0, np.float32)])
    opt.resize("W", more)
    opt.step({"W": np.zeros((3, 2), np.float32)})
    np.testing.assert_allclose(more[2], 50.0, rtol=1e-6)
    state = opt.state_dict()["state"]["W"]
    np.testing.assert_array_equal(state["p0"][2], 50.0)
    assert (state["p0"][:2] == 100.0).all()


@each_backend
def test_the_mean_of_new_rows_begins_where_they_are(backend: str) -> None:
    params = {"W": np.full((2, 2), 3.0)}
    opt = fastopt.ASGD(params, t0=2.0, backend=backend)
    for _ in range(5):
        opt.step({"W": np.ones((2, 2))})
    more = np.concatenate([params["W"], np.full((1, 2), 3.0)])
    opt.resize("W", more)
    opt.step({"W": np.zeros((3, 2))})
    np.testing.assert_allclose(opt.state_dict()["state"]["W"]["mean"][2], 3.0, rtol=1e-3)


@each_backend
def test_rows_whose_step_begins_with_the_parameter_are_refused(backend: str) -> None:
    params = {"W": np.ones((2, 2))}
    opt = fastopt.Rprop(params, backend=backend)
    opt.step({"W": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"state length of a row begins in .* construct a new"):
        opt.resize("W", np.ones((3, 2)))
    opt.step({"W": np.ones((2, 2))})
    assert (params["W"] < 1.0).all()


@pytest.mark.parametrize("name", ["AdaHessian", "Sophia"])
def test_estimates_are_not_added_up(name: str) -> None:
    with pytest.raises(TypeError, match="takes estimates of the Hessian, and gradients alone"):
        fastopt.Accumulator(fastopt.optimizer(name, np.ones(2)), 2)


def test_a_rate_of_0_says_what_the_bounds_need() -> None:
    with pytest.raises(ValueError, match="base_lr must be given if lr is 0"):
        fastopt.AdaBound(np.ones(2), 0.0)
    fastopt.AdaBound(np.ones(2), 0.0, base_lr=1e-3).step(np.ones(2))
