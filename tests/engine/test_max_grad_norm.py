"""Clipping by the norm of all gradients together: its value, its order of summation, its effect."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.norms import array_norms
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

SIZES = [(1,), (63,), (64, 1), (65,), (4095,), (4096,), (4097, 3), (7, 70_000, 0, 5), (300_000,)]


def make(sizes: tuple[int, ...], dtype: Any, scale: float = 1.0) -> tuple[list[Array], list[Array]]:
    rng = np.random.default_rng(len(sizes))
    params = [rng.standard_normal(n).astype(dtype) for n in sizes]
    return params, [(scale * rng.standard_normal(n)).astype(dtype) for n in sizes]


def exact(grads: list[Array]) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for grad in grads for x in grad.ravel()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_norm_is_exact_to_float64_and_the_same_bits_on_every_backend(
    sizes: tuple[int, ...], dtype: str
) -> None:
    norms, ends = set(), set()
    for backend in CPU_BACKENDS:
        for number in (1, 2):
            fastopt.set_num_threads(number)
            params, grads = make(sizes, dtype, 100.0)
            opt = fastopt.Adam(params, backend=backend, max_grad_norm=0.5)
            assert opt.grad_norm is None
            for _ in range(3):
                opt.step(grads)
            norms.add(opt.grad_norm)
            ends.add(b"".join(param.tobytes() for param in params))
    fastopt.set_num_threads(None)
    assert len(norms) == len(ends) == 1
    assert norms.pop() == pytest.approx(exact(grads), rel=1e-14)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
# The loss is multiplied by grad_scale, and not by what clips gradients.
@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.optimizer._takes_value], ids=str)
@pytest.mark.parametrize("max_norm", [0.25, 1e9])
def test_a_clipped_step_is_a_step_with_grad_scale(
    variant: Variant, backend: str, max_norm: float
) -> None:
    params, grads = make((5, 100), "float32")
    others = [param.copy() for param in params]
    given = [grad.copy() for grad in grads]
    clipped = variant(params, backend=backend, max_grad_norm=max_norm)
    plain = variant(others, backend=backend)
    for scale in (1.0, 0.5, -2.0):
        clipped.step(grads, grad_scale=scale)
        norm = clipped.grad_norm
        assert norm is not None
        plain.step(grads, grad_scale=scale * min(1.0, max_norm / (norm + 1e-6)))
    assert [a.tobytes() for a in params] == [b.tobytes() for b in others]
    assert [a.tobytes() for a in grads] == [b.tobytes() for b in given]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("float32", 1e25),
        ("float32", 1e-30),
        ("float32", 3e38),
        ("float64", 1e200),
        ("float64", 1e-160),  # its squares are denormal: not 0, and of few bits
        ("float64", 1e-200),
        ("float64", 1e-310),
    ],
)
def test_a_norm_does_not_overflow_or_underflow_where_it_is_a_number(
    backend: str, dtype: str, size: float
) -> None:
    grad = np.full(1000, size, dtype)
    opt = fastopt.SGD(np.zeros(1000, dtype), lr=1e-3, backend=backend, max_grad_norm=1.0)
    opt.step(grad)
    assert opt.grad_norm == pytest.approx(float(grad[0]) * math.sqrt(1000), rel=1e-12, abs=0.0)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_norms_of_single_arrays_neither_overflow_nor_underflow(backend: str) -> None:
    sizes = [1.0, 1e-160, 0.0, 1e200, 1e-200, 1e-310, 1e150]
    grads = [np.full(5_000, size) for size in sizes]
    opt = fastopt.SGD([np.zeros(5_000) for _ in sizes], max_grad_norm=1.0, backend=backend)
    ((_, gradients),) = opt._engine.bind(grads)
    squares = partial(opt._engine.kernels[0].squares, gradients)
    found = array_norms([5_000] * len(sizes), squares, np.dtype(np.float64))
    expected = [float(grad[0]) * math.sqrt(5_000) for grad in grads]
    assert found == pytest.approx(expected, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_and_missing_gradients_have_a_norm_of_zero(backend: str, dtype: str) -> None:
    params = [np.ones(3, dtype), np.ones(70_000, dtype)]
    opt = fastopt.SGD(params, lr=0.1, backend=backend, max_grad_norm=1.0)
    opt.step([np.zeros(3, dtype), None])
    assert opt.grad_norm == 0.0
    opt.step([None, None])
    assert opt.grad_norm == 0.0
    assert all((param == 1.0).all() for param in params)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_no_number_says_so(backend: str, value: float) -> None:
    param = np.ones(3)
    opt = fastopt.SGD(param, backend=backend, max_grad_norm=1.0)
    opt.step(np.array([1.0, value, 2.0]))
    assert opt.grad_norm == pytest.approx(abs(value), nan_ok=True)
    # As torch.nn.utils.clip_grad_norm_: inf scales the others to 0, NaN makes all NaN.
    assert np.array_equal(np.isnan(param), [math.isnan(value), True, math.isnan(value)])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_limit_of_infinity_only_measures_whatever_the_norm(backend: str, value: float) -> None:
    param = np.ones(3)
    opt = fastopt.SGD(param, lr=1.0, backend=backend, max_grad_norm=math.inf)
    opt.step(np.array([1.0, value, 2.0]))
    np.testing.assert_array_equal(opt.grad_norm, abs(value))
    np.testing.assert_array_equal(param, [0.0, 1.0 - value, -1.0])
    grad = np.array([1.0, value, 2.0])
    np.testing.assert_array_equal(fastopt.clip_grad_norm_(grad, math.inf), abs(value))
    np.testing.assert_array_equal(grad, [1.0, value, 2.0])


def test_all_parameters_count_whatever_their_group_or_dtype() -> None:
    for backend in CPU_BACKENDS:
        params = [np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 2), order="F")[::2]]
        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]
        opt = fastopt.SGD(groups, lr=1.0, backend=backend, max_grad_norm=1.0)
        opt.step([[np.full(2, 3.0)], [np.full(2, 4.0, np.float32), np.full((1, 2), 5.0)]])
        assert opt.grad_norm == pytest.approx(10.0, rel=1e-15)
        assert params[0][0] == pytest.approx(-3.0 / (10.0 + 1e-6), rel=1e-15)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (0.0, ValueError),
        (-1.0, ValueError),
        (math.nan, ValueError),
        (-math.inf, ValueError),
        (True, TypeError),
        ("1", TypeError),
        (lambda step: 1.0, TypeError),
    ],
)
def test_a_bad_max_grad_norm_is_refused_at_once(bad: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="max_grad_norm must be a number"):
        fastopt.Adam(np.ones(1), max_grad_norm=bad)
    opt = fastopt.Adam(np.ones(1), max_grad_norm=2)
    with pytest.raises(kind, match="max_grad_norm"):
        opt.max_grad_norm = bad
    assert opt.max_grad_norm == 2.0
    opt.max_grad_norm = None
    opt.step(np.ones(1))
    assert opt.grad_norm is None


def test_a_function_is_refused_with_what_to_do_instead() -> None:
    said = r"SGD: max_grad_norm must be a number or None; got .*opt\.max_grad_norm between steps"
    for function in (fastopt.schedules.linear(1.0, 1.0, 0.5, 10), lambda step: 1.0):
        with pytest.raises(TypeError, match=said):
            fastopt.SGD(np.ones(1), max_grad_norm=function)  # type: ignore[arg-type]  # that is tested


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_it_can_be_set_between_steps(backend: str) -> None:
    param = np.zeros(1)
    opt = fastopt.SGD(param, 1.0, backend=backend)
    moved = []
    values: list[Any] = [math.inf, 0.5, np.float32(0.25), 2]
    for value in values:
        opt.max_grad_norm = value
        assert (type(opt.max_grad_norm), opt.max_grad_norm) == (float, float(value))
        before = param[0]
        opt.step(np.ones(1))
        assert opt.grad_norm == 1.0
        moved.append(before - param[0])
    np.testing.assert_allclose(moved, [1.0, 0.5, 0.25, 1.0], rtol=2e-6)
    assert "max_grad_norm=2.0" in repr(opt)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_grad_norm_belongs_to_the_last_step_only(backend: str) -> None:
    param, grad = np.ones(3), np.ones(3)
    opt = fastopt.Adam(param, max_grad_norm=math.inf, backend=backend)  # measures, clips nothing
    other = param.copy()
    plain = fastopt.Adam(other, backend=backend)
    for _ in range(2):
        opt.step(grad)
        plain.step(grad)
    assert opt.grad_norm == pytest.approx(math.sqrt(3))
    assert param.tobytes() == other.tobytes()
    opt.max_grad_norm = None
    assert opt.grad_norm is None
    opt.step(grad)
    assert opt.grad_norm is None
