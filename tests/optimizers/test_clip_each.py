"""clip_each: the gradient of each array is scaled down by its own norm, before weight decay."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from helpers.bits import differences
from helpers.clipping import drawn, run
from helpers.variants import CLIPPING, CPU_BACKENDS, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
SIZES = (1.0, 0.01, 100.0, 1.0, 0.5)
PLAIN = [v for v in VARIANTS if v not in CLIPPING]
LIMIT = 0.625


def norm_of(grad: Array) -> float:
    """Return the norm of the numbers, or of the parts of complex ones, exactly rounded."""
    wide = grad.astype(complex).ravel()
    parts = np.concatenate([wide.real, wide.imag])
    return math.sqrt(math.fsum((parts * parts).tolist()))


def scaled(grad: Array, limit: float = LIMIT) -> Array:
    factor = min(1.0, limit / (norm_of(grad) + 1e-6))
    return np.asarray(grad * grad.real.dtype.type(factor))


@each_backend
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_it_is_a_step_with_gradients_that_were_scaled_before(
    variant: Variant, dtype: Any, backend: str
) -> None:
    grads: list[list[Any]] = [drawn(seed, dtype, SIZES) for seed in range(1, 6)]
    grads[2][0] = grads[3][1] = None
    if variant.options.get("mask_zero"):
        grads[1][4][:40] = 0
    before = [[None if g is None else scaled(g) for g in given] for given in grads]
    options = {"weight_decay": 0.125, "backend": backend}
    expected = run(variant, drawn(0, dtype, SIZES), before, **options)
    got = run(variant, drawn(0, dtype, SIZES), grads, clip_each=LIMIT, **options)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-9, atol=1e-14, err_msg=name)


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, "float64", "bfloat16", "int8"])
def test_sums_and_factor_are_in_float64_whatever_is_stored(
    state_dtype: str | None, dtype: Any, backend: str
) -> None:
    """The factor is rounded to the arithmetic's dtype, as all scalars are."""
    grads = drawn(1, dtype, SIZES)
    params, expected = [np.zeros_like(g) for g in grads], []
    opt = fastopt.SGD(params, lr=1.0, clip_each=LIMIT, state_dtype=state_dtype, backend=backend)
    opt.step(grads)
    real = np.float64 if state_dtype == "float64" else np.float32
    for grad in grads:
        wide = grad.astype(np.result_type(real, 1j) if np.dtype(dtype).kind == "c" else real)
        made = -scaled(wide)
        narrow = np.complex64 if np.dtype(dtype).kind == "c" else np.float32
        expected.append(made.astype(narrow).astype(dtype))
    ends = [{str(k): array for k, array in enumerate(some)} for some in (params, expected)]
    assert differences(*ends) == {}


@each_backend
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e19, 1e30])
def test_squares_that_float32_does_not_hold_are_summed(size: float, backend: str) -> None:
    param, grad = np.zeros(4, np.float32), np.full(4, size, np.float32)
    opt = fastopt.SGD(param, lr=1.0, clip_each=2.0, backend=backend)
    opt.step(grad)
    expected = -1.0 if size > 1 else -size
    np.testing.assert_allclose(param, np.full(4, expected), rtol=1e-6)


@each_backend
def test_what_comes_before_it_and_after_it(backend: str) -> None:
    param, other = np.array([2.0, -4.0]), np.array([1.0])
    options: dict[str, Any] = {"clip_value": 3.0, "clip_each": 1.0, "maximize": True}
    opt = fastopt.SGD([param, other], lr=1.0, weight_decay=0.5, backend=backend, **options)
    opt.step([np.array([2.0, 10.0]), np.array([1.0])], grad_scale=2.0)
    factor = 1.0 / (math.hypot(4.0 - 1.0, 3.0) + 1e-6)  # (4, 20) is cut off at 3
    expected = [2.0 - (-3.0 * factor + 1.0), -4.0 - (-3.0 * factor - 2.0)]
    np.testing.assert_allclose(param, expected, rtol=1e-15)
    np.testing.assert_allclose(other, [1.0 - (-2.0 / (2.0 + 1e-6) + 0.5)], rtol=1e-15)


@each_backend
def test_all_gradients_together_are_scaled_before(backend: str) -> None:
    params = [np.zeros(2), np.zeros(1)]
    opt = fastopt.SGD(params, lr=1.0, max_grad_norm=13.0, clip_each=4.0, backend=backend)
    opt.step([np.array([6.0, 8.0]), np.array([24.0])])
    assert opt.grad_norm == 26.0
    half = 13.0 / (26.0 + 1e-6)
    np.testing.assert_allclose(params[0], -4.0 * np.array([0.6, 0.8]), rtol=1e-6)
    np.testing.assert_allclose(params[0][0], -6 * half * 4.0 / (10 * half + 1e-6), rtol=1e-15)
    np.testing.assert_allclose(params[1], [-24 * half * 4.0 / (24 * half + 1e-6)], rtol=1e-15)


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_is_as_with_pytorch(dtype: Any, backend: str) -> None:
    """Factor 0 of an infinite norm, and 0 * inf is NaN; a NaN goes through its array."""
    params = [np.zeros(2, dtype), np.zeros(2, dtype), np.zeros(2, dtype)]
    opt = fastopt.SGD(params, lr=1.0, clip_each=1.0, backend=backend)
    opt.step([np.array(pair, dtype) for pair in ([np.inf, 1.0], [np.nan, 1.0], [0.25, 0.5])])
    np.testing.assert_array_equal(params[0], [np.nan, 0.0])
    np.testing.assert_array_equal(params[1], [np.nan, np.nan])
    np.testing.assert_array_equal(params[2], [-0.25, -0.5])


@each_backend
def test_a_norm_that_float64_does_not_hold_is_infinite(backend: str) -> None:
    param = np.zeros(2)
    opt = fastopt.SGD(param, lr=1.0, clip_each=1.0, backend=backend)
    opt.step(np.array([1e160, 1.0]))
    np.testing.assert_array_equal(param, [0.0, 0.0])


@each_backend
def test_the_sum_is_in_the_order_of_all_norms(backend: str) -> None:
    """The factor has the bits of clip_grad_norm_ on one array after the other."""
    params, plain = (drawn(0, np.float64, SIZES) for _ in range(2))
    opt = fastopt.Adam(params, clip_each=0.1, backend=backend)
    other = fastopt.Adam(plain, backend=backend)
    for seed in range(1, 4):
        grads = drawn(seed, np.float64, SIZES)
        opt.step(grads)
        for grad in grads:
            fastopt.clip_grad_norm_([grad], 0.1)
        other.step(grads)
    ends = [{str(k): array for k, array in enumerate(some)} for some in (params, plain)]
    assert differences(*ends) == {}


@each_backend
def test_it_differs_between_groups_is_set_between_steps_and_saved(backend: str) -> None:
    params = [np.zeros(1), np.zeros(1), np.zeros(1)]
    groups = [
        {"params": [params[0]], "clip_each": 1.0},
        {"params": [params[1]], "clip_each": 1e9},
        {"params": [params[2]]},
    ]
    opt = fastopt.SGD(groups, lr=1.0, backend=backend)
    grads = [[np.array([3.0])]] * 3
    opt.step(grads)
    kernels = list(opt._engine.kernels)
    opt.param_groups[0]["clip_each"] = 0.25
    opt.step(grads)
    assert opt._engine.kernels == kernels  # nothing was compiled anew
    np.testing.assert_allclose(params, [[-1.25], [-6.0], [-6.0]], rtol=1e-6)
    assert "memory" not in opt.state_dict()
    assert [group["clip_each"] for group in opt.state_dict()["groups"]] == [0.25, 1e9, None]


@each_backend
def test_gradient_buffers_are_clipped_and_stay_as_they_are(backend: str) -> None:
    param = np.zeros(2)
    opt = fastopt.SGD(param, lr=1.0, clip_each=1.0, clip_value=3.0, backend=backend)
    buffers = opt.gradient_buffers()
    buffers[:] = [3.0, 4.0]
    opt.step(buffers)
    np.testing.assert_allclose(param, -np.full(2, math.sqrt(0.5)), rtol=1e-6)
    np.testing.assert_array_equal(buffers, [3.0, 4.0])


def test_members_have_no_norms() -> None:
    with pytest.raises(ValueError, match="clip_each sums over whole arrays; it cannot have"):
        fastopt.SGD(np.ones((2, 3)), clip_each=1.0, members=2)


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices_are_clipped_before_their_rule(dtype: Any, backend: str) -> None:
    def matrices(seed: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        shapes = ((4, 3), (4, 3), (5, 8), (0, 3), (3, 6))
        made = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        return [*made[:-1], np.asfortranarray(made[-1])]

    params, plain = matrices(0), matrices(0)
    options = {"lr": 0.1, "weight_decay": 0.1, "backend": backend}
    opt = fastopt.Muon(params, clip_value=0.75, clip_each=0.5, **options)
    other = fastopt.Muon(plain, **options)
    for seed in range(1, 8):
        grads: list[Any] = matrices(seed)
        if seed == 3:
            grads[1] = None
        if seed == 5:
            opt.param_groups[0]["clip_each"] = 2.0
        opt.step(grads)
        limit = 2.0 if seed >= 5 else 0.5
        cut = [None if g is None else scaled(np.clip(g, -0.75, 0.75), limit) for g in grads]
        other.step(cut)
    close = 2e-5 if dtype is np.float32 else 1e-12
    for one, two in zip(params, plain, strict=True):
        np.testing.assert_allclose(one, two, rtol=close, atol=close)
