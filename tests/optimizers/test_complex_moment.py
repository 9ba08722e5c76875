"""Averages of |g|^2 for complex parameters: optax's numbers, wherever the phase begins."""

from __future__ import annotations

import cmath
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from helpers.variants import CPU_BACKENDS

RECORDED = np.load(
    Path(__file__).parents[1] / "golden" / "complex" / "vectors.npz", allow_pickle=False
)
CASES: dict[str, Any] = json.loads(RECORDED["cases"].item())
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_case = pytest.mark.parametrize("name", sorted(CASES))

SQUARES = [
    (fastopt.Adagrad, {}),
    (fastopt.Adagrad, {"eps_inside_sqrt": True}),
    (fastopt.RMSprop, {}),
    (fastopt.RMSprop, {"momentum": 0.9}),
    (fastopt.RMSprop, {"eps_inside_sqrt": True}),
    (fastopt.Adam, {}),
    (fastopt.Adam, {"amsgrad": True}),
    (fastopt.Adam, {"eps_inside_sqrt": True}),
    (fastopt.Adam, {"eps_hat": True}),
    (fastopt.AdamW, {}),
]
each_squarer = pytest.mark.parametrize(("optimizer", "options"), SQUARES)


def made(name: str, params: Any, **options: Any) -> fastopt.Optimizer:
    case = CASES[name]
    optimizer: fastopt.Optimizer = getattr(fastopt, case["optimizer"])(
        params, **case["kwargs"], **options
    )
    return optimizer


@each_backend
@each_case
def test_the_steps_are_those_of_optax(name: str, backend: str) -> None:
    param = RECORDED["param"].copy()
    opt = made(name, param, backend=backend, complex_moment="modulus")
    for grad, expected in zip(RECORDED["grads"], RECORDED[name], strict=True):
        opt.step(grad)
        np.testing.assert_allclose(param, expected, rtol=1e-11, atol=1e-11)


@each_case
def test_the_vectors_tell_moduli_from_parts(name: str) -> None:
    param = RECORDED["param"].copy()
    opt = made(name, param, complex_moment="parts")
    for grad in RECORDED["grads"]:
        opt.step(grad)
    assert np.abs(param - RECORDED[name][-1]).max() > 1e-3


def drawn(seed: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape), dtype)


def trained(
    optimizer: Any,
    options: dict[str, Any],
    backend: str,
    dtype: Any,
    turn: complex = 1.0,
    move: Any = lambda array: array,
) -> list[Any]:
    """Return parameters of several layouts after some steps; ``move`` brings arrays elsewhere."""
    wide, big = drawn(1, (6, 8), dtype), drawn(2, (2_500,), dtype)
    params = [wide[:, ::2], drawn(3, (5, 3), dtype).T, big, drawn(4, (), dtype), wide[:0]]
    params[2] = big[1:]
    for param in params:
        param *= turn
    params = [move(param) for param in params]
    opt = optimizer(params, 0.1, complex_moment="modulus", backend=backend, **options)
    for step in range(5):
        grads: list[Any] = [
            drawn(10 * step + k, param.shape, dtype) * dtype(turn) for k, param in enumerate(params)
        ]
        if step == 2:
            grads[2] = None
        opt.step([None if grad is None else move(grad) for grad in grads])
    return params


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@each_squarer
def test_the_backends_end_in_the_same_bits(
    optimizer: Any, options: dict[str, Any], dtype: Any
) -> None:
    options = {**options, "weight_decay": 0.1, "max_grad_norm": 3.0}
    runs = [trained(optimizer, options, backend, dtype) for backend in CPU_BACKENDS]
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
@pytest.mark.parametrize(("optimizer", "options"), [SQUARES[0], SQUARES[5], SQUARES[7]])
def test_the_cuda_text_ends_in_the_same_bits(
    cupy: Any, optimizer: Any, options: dict[str, Any], dtype: Any, state_dtype: str | None
) -> None:
    if state_dtype is not None and dtype == np.complex128:
        return  # state in fewer bits is for float32
    options = {**options, "weight_decay": 0.1, "state_dtype": state_dtype}
    expected = trained(optimizer, options, "numpy", dtype)
    gaps = cupy.asarray(np.zeros((6, 8), dtype))

    def move(array: Any) -> Any:
        if array.shape != (6, 4):  # in the same order in memory: random bits follow it
            return cupy.asarray(np.ascontiguousarray(array.T)).T
        there = gaps.copy()[:, ::2]
        there[...] = cupy.asarray(np.ascontiguousarray(array))
        return there

    got = trained(optimizer, options, "cupy", dtype, move=move)
    for one, two in zip(got, expected, strict=True):
        assert cupy.asnumpy(one).tobytes() == two.tobytes()


@each_backend
@each_squarer
@settings(max_examples=20)
@given(angle=st.floats(0.1, 6.2))
def test_it_does_not_matter_where_the_phase_begins(
    optimizer: Any, options: dict[str, Any], backend: str, angle: float
) -> None:
    turn = cmath.exp(1j * angle)
    plain = trained(optimizer, options, backend, np.complex128)
    turned = trained(optimizer, options, backend, np.complex128, turn)
    for one, two in zip(plain, turned, strict=True):
        np.testing.assert_allclose(two, one * turn, rtol=1e-9, atol=1e-12)


@each_backend
@each_squarer
def test_real_parameters_are_not_affected(
    optimizer: Any, options: dict[str, Any], backend: str
) -> None:
    ends = []
    for moment in ("parts", "modulus"):
        param = np.linspace(-1, 1, 50)
        opt = optimizer(param, 0.1, complex_moment=moment, backend=backend, **options)
        for step in range(4):
            opt.step(np.cos(param + step))
        ends.append(param.tobytes())
    assert ends[0] == ends[1]


@each_backend
@each_squarer
def test_state_in_fewer_bits_follows_it(
    optimizer: Any, options: dict[str, Any], backend: str
) -> None:
    for state_dtype in ("bfloat16", "int8"):
        ends = []
        for kind in (None, state_dtype):
            param = drawn(0, (3_000,), np.complex64)
            opt = optimizer(
                param,
                0.01,
                complex_moment="modulus",
                state_dtype=kind,
                backend=backend,
                **options,
            )
            for step in range(10):
                opt.step(drawn(step, (3_000,), np.complex64))
            ends.append(param)
        moved = np.abs(ends[0] - drawn(0, (3_000,), np.complex64)).mean()
        assert np.abs(ends[0] - ends[1]).mean() < 0.2 * moved


@pytest.mark.parametrize(
    ("optimizer", "options"), [(fastopt.Adadelta, {}), (fastopt.RMSprop, {"centered": True})]
)
def test_what_averages_other_squares_too_is_refused(
    optimizer: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"complex_moment='modulus' is for optimizers in which"):
        optimizer(np.ones(2, np.complex64), complex_moment="modulus", **options)


def test_it_is_kept_from_construction_on() -> None:
    param = np.ones(2, np.complex64)
    opt = fastopt.Adam(param, complex_moment="modulus")
    with pytest.raises(ValueError, match="complex_moment is 'modulus' in this optimizer"):
        opt.param_groups[0]["complex_moment"] = "parts"
    with pytest.raises(fastopt.CheckpointError, match="complex_moment"):
        fastopt.Adam(param).load_state_dict(opt.state_dict())
