"""Gradients that backward passes write into: one block, the same bits, nothing lost."""

from __future__ import annotations

import operator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from helpers.cuda.runs import on_host
from helpers.variants import CPU_BACKENDS, VARIANT_OF

DTYPES = [np.float32, np.float64, np.complex64, np.float16, ml_dtypes.bfloat16]


def some_params(xp: Any, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    shapes = {"a": (3, 5), "b": (), "c": (4, 0), "d": (700,), "e": (1, 2, 1)}
    made = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    made["turned"] = np.asfortranarray(rng.standard_normal((6, 7)).astype(dtype))
    return {name: xp.asarray(value) for name, value in made.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["adam", "sgd_momentum", "lamb"])
def test_steps_end_in_the_bits_of_those_with_other_arrays(
    place: tuple[Any, str], dtype: Any, name: str
) -> None:
    xp, backend = place
    ends = []
    for buffered in (False, True):
        params = some_params(xp, dtype)
        opt = VARIANT_OF[name](params, backend=backend, max_grad_norm=3.0)
        buffers = opt.gradient_buffers()
        rng = np.random.default_rng(6)
        for _ in range(9):
            drawn = {k: rng.standard_normal(p.shape).astype(dtype) for k, p in params.items()}
            grads = {k: xp.asarray(value) for k, value in drawn.items()}
            if buffered:
                for k, value in grads.items():
                    buffers[k][...] = value
            opt.step(buffers if buffered else grads)
        ends.append({k: on_host(p).tobytes() for k, p in params.items()})
    assert ends[0] == ends[1]


def test_they_are_like_the_parameters_and_lie_in_one_block(place: tuple[Any, str]) -> None:
    xp, backend = place
    params = [*some_params(xp, np.float32).values(), xp.zeros(3, np.float64)]
    opt = fastopt.Adam(params, backend=backend)
    buffers = opt.gradient_buffers()
    for param, buffer in zip(params, buffers, strict=True):
        assert (buffer.shape, buffer.dtype) == (param.shape, param.dtype)
        assert buffer.flags.c_contiguous == param.flags.c_contiguous
        assert not on_host(buffer).any()
    bases = {id(base_of(buffer)) for buffer in buffers if buffer.size}
    assert len(bases) == 1
    assert all(map(operator.is_, buffers, opt.gradient_buffers()))


def base_of(array: Any) -> Any:
    while array.base is not None:
        array = array.base
    return array


def test_an_array_in_the_place_of_a_buffer_is_refused_by_name(place: tuple[Any, str]) -> None:
    xp, backend = place
    params = {"W": xp.zeros((2, 3), np.float32), "layers": [xp.zeros(4, np.float32)]}
    opt = fastopt.SGD(params, 1.0, backend=backend)
    buffers = opt.gradient_buffers()
    buffers["layers"][0][...] = 1
    opt.step(buffers)
    lost = {"W": buffers["W"], "layers": [xp.ones(4, np.float32)]}
    for wrong in (lost, lost):  # again after the error
        with pytest.raises(ValueError, match=r'grads\["layers"\]\[0\] is not its gradient buffer'):
            opt.step(wrong)
    assert opt.step_count == 1
    assert on_host(params["layers"][0]).tolist() == [-1, -1, -1, -1]


def test_none_and_other_arrays_are_ordinary_gradients(place: tuple[Any, str]) -> None:
    xp, backend = place
    params = {"a": xp.zeros(2, np.float32), "b": xp.zeros(2, np.float32)}
    opt = fastopt.SGD(params, 1.0, backend=backend)
    buffers = opt.gradient_buffers()
    buffers["a"][...] = 1
    buffers["b"][...] = 2
    opt.step({**buffers, "b": None})
    opt.step({k: xp.full(2, 8, np.float32) for k in params})
    opt.step(buffers)
    assert on_host(params["a"]).tolist() == [-10, -10]
    assert on_host(params["b"]).tolist() == [-10, -10]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_groups_and_a_frozen_one(backend: str) -> None:
    params = [{"params": {"w": np.zeros(3)}, "lr": 0.5}, {"params": np.zeros(2), "lr": 1.0}]
    opt = fastopt.SGD(params, 1.0, backend=backend)
    buffers = opt.gradient_buffers()
    buffers[0]["w"][...] = 1
    buffers[1][...] = 1
    opt.step(buffers)
    opt.param_groups[0]["trainable"] = False
    opt.step(buffers)
    opt.param_groups[0]["trainable"] = True
    opt.step(buffers)
    assert params[0]["params"]["w"].tolist() == [-1, -1, -1]
    assert params[1]["params"].tolist() == [-3, -3]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_parameter_that_is_another_array_is_refused(backend: str) -> None:
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    opt = fastopt.SGD(params, 1.0, backend=backend)
    buffers = opt.gradient_buffers()
    opt.step(buffers)
    params["b"] = np.ones(2)
    with pytest.raises(ValueError, match="no longer the array"):
        opt.step(buffers)


def test_a_bare_array_has_a_bare_buffer(place: tuple[Any, str]) -> None:
    xp, backend = place
    param = xp.zeros(3, np.float32)
    opt = fastopt.SGD(param, 1.0, backend=backend)
    buffer = opt.gradient_buffers()
    buffer[...] = 2
    opt.step(buffer)
    assert on_host(param).tolist() == [-2, -2, -2]
