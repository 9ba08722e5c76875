"""clip_value: every element of the gradient is cut off, before weight decay and any rule."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.backends.cupy import source
from fastopt.backends.numba import codegen
from fastopt.checkpoint.settings import Setting
from fastopt.core.arrays import Array
from fastopt.core.dtypes import UpdateSpec
from fastopt_kernels import adam
from fastopt_kernels.around import clip_value
from helpers.bits import differences
from helpers.clipping import drawn, run
from helpers.variants import CLIPPING, CPU_BACKENDS, ONE_PASS, VARIANTS, Variant

DTYPES = (np.float32, np.complex128, ml_dtypes.bfloat16)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
PLAIN = [v for v in VARIANTS if v not in CLIPPING]


def cut(grad: Array, limit: float) -> Array:
    """Cut each part off, in the dtype of the arithmetic."""
    parts = grad.view(grad.real.dtype) if grad.ndim else grad.reshape(1).view(grad.real.dtype)
    wide = parts.astype(np.float32) if parts.dtype.itemsize == 2 else parts
    whole = np.clip(wide, -limit, limit).astype(parts.dtype)
    return whole.view(grad.dtype).reshape(grad.shape)


@each_backend
@each_dtype
@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_it_is_a_step_with_gradients_that_were_cut_off_before(
    variant: Variant, dtype: Any, backend: str
) -> None:
    grads: list[list[Any]] = [drawn(seed, dtype) for seed in range(1, 5)]
    grads[2][0] = None
    if variant.options.get("mask_zero"):
        grads[1][4][:40] = 0
    before = [[None if g is None else cut(g, 0.625) for g in given] for given in grads]
    options = {"weight_decay": 0.125, "backend": backend}
    expected = run(variant, drawn(0, dtype), before, **options)
    got = run(variant, drawn(0, dtype), grads, clip_value=0.625, **options)
    assert differences(expected, got) == {}


@each_backend
def test_what_comes_before_it_and_after_it(backend: str) -> None:
    param, grads = np.array([2.0, -4.0, 1.0]), np.array([6.0, -8.0, 0.0])
    options: dict[str, Any] = {"max_grad_norm": 5.0, "clip_value": 3.5, "maximize": True}
    opt = fastopt.SGD(param, lr=1.0, weight_decay=0.5, backend=backend, **options)
    opt.step(grads, grad_scale=0.5)  # the norm is 5: it stays (3, -4, 0)
    scale = 5.0 / (5.0 + 1e-6)
    assert opt.grad_norm == 5.0
    cut_off = [-3.0 * scale, 3.5, 0.0]  # the sign of maximize
    expected = [2.0 - (cut_off[0] + 1.0), -4.0 - (cut_off[1] - 2.0), 1.0 - 0.5]
    np.testing.assert_allclose(param, expected, rtol=1e-15)


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_stays_and_infinity_is_cut_off(dtype: Any, backend: str) -> None:
    param = np.zeros(5, dtype)
    opt = fastopt.SGD(param, lr=1.0, clip_value=0.1, backend=backend)
    opt.step(np.array([np.nan, np.inf, -np.inf, -0.0, 1e-30], dtype))
    tenth = dtype(0.1)
    np.testing.assert_array_equal(param, np.array([np.nan, -tenth, tenth, 0.0, -1e-30], dtype))


@each_backend
def test_a_gradient_that_is_not_finite_is_judged_before_it_is_cut_off(backend: str) -> None:
    param = np.ones(3)
    opt = fastopt.SGD(param, clip_value=1.0, on_nonfinite="skip", backend=backend)
    assert not opt.step(np.array([np.inf, 1.0, 1.0]))
    assert opt.skipped_steps == 1
    assert (param == 1).all()


@each_backend
def test_what_is_masked_is_what_was_0_before_it(backend: str) -> None:
    param = np.ones(4)
    opt = fastopt.SGD(param, lr=1.0, mask_zero=True, clip_value=0.5, backend=backend)
    opt.step(np.array([0.0, -0.0, 0.25, -3.0]))
    np.testing.assert_array_equal(param, [1.0, 1.0, 0.75, 1.5])


@each_backend
def test_it_differs_between_groups_and_is_set_between_steps(backend: str) -> None:
    first, second, third = np.zeros(2), np.zeros(2), np.zeros(2)
    groups = [
        {"params": [first], "clip_value": 1.0},
        {"params": [second], "clip_value": 2},
        {"params": [third]},
    ]
    opt = fastopt.SGD(groups, lr=1.0, backend=backend)
    grads = [[np.array([3.0, -0.5])]] * 3
    opt.step(grads)
    kernels = list(opt._engine.kernels)
    opt.param_groups[0]["clip_value"] = 0.25
    opt.param_groups[1]["clip_value"] = math.inf
    opt.step(grads)
    assert opt._engine.kernels == kernels  # nothing was compiled anew
    np.testing.assert_array_equal(first, [-1.25, 0.75])
    np.testing.assert_array_equal(second, [-5.0, 1.0])
    np.testing.assert_array_equal(third, [-6.0, 1.0])


@each_backend
@pytest.mark.parametrize("name", ["clip_value", "clip_each"])
def test_it_is_not_turned_on_or_off_in_use_and_the_advice_helps(name: str, backend: str) -> None:
    opt = fastopt.Adam(np.ones(3), backend=backend)
    with pytest.raises(ValueError, match=rf"Adam: {name} is None .* with {name}=2.0, or with math"):
        opt.param_groups[0][name] = 2.0
    assert opt.param_groups[0][name] is None
    options: dict[str, Any] = {name: math.inf}
    param, plain = np.ones(3), np.ones(3)
    opt = fastopt.Adam(param, backend=backend, **options)
    other = fastopt.Adam(plain, backend=backend)
    grad = np.array([1e200, np.inf, np.nan])
    for one in (opt, other):
        one.step(grad)
    np.testing.assert_array_equal(param, plain)  # infinity acts on nothing
    opt.param_groups[0][name] = 2.0
    with pytest.raises(ValueError, match=f"{name} is 2.0 .* set it to math.inf"):
        opt.param_groups[0][name] = None
    opt.param_groups[0][name] = math.inf
    for one in (opt, other):
        one.step(np.ones(3))
    np.testing.assert_array_equal(param, plain)


@pytest.mark.parametrize("limit", [1e-46, 1e-300, 4e38, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.complex64])
def test_a_limit_that_float32_does_not_hold_is_refused(dtype: Any, limit: float) -> None:
    said = rf"clip_value comes to {limit:.3g}, which is (0|infinite) in float32".replace("+", r"\+")
    with pytest.raises(ValueError, match=said) as error:
        fastopt.Adam({"w": np.ones(3, dtype)}, clip_value=limit)
    assert "array(" not in str(error.value)
    opt = fastopt.Adam({"w": np.ones(3, dtype)}, clip_value=1.0)
    with pytest.raises(ValueError, match=said):
        opt.param_groups[0]["clip_value"] = limit
    assert opt.param_groups[0]["clip_value"] == 1.0
    with pytest.raises(ValueError, match=said):
        fastopt.SGD(np.ones((2, 2), dtype), clip_value=np.array([1.0, limit]), members=2)
    fastopt.Adam({"w": np.ones(3, dtype)}, clip_value=limit, state_dtype="float64")
    fastopt.Adam({"w": np.ones(3)}, clip_value=limit)
    fastopt.Adam({"w": np.ones(3, dtype)}, clip_each=limit)  # which is compared in float64


@each_backend
def test_each_member_has_its_own(backend: str) -> None:
    param = np.zeros((3, 2))
    limits = np.array([1.0, math.inf, 0.5])
    opt = fastopt.SGD(param, lr=1.0, clip_value=limits, members=3, backend=backend)
    opt.step(np.full((3, 2), 2.0))
    np.testing.assert_array_equal(param[:, 0], [-1.0, -2.0, -0.5])
    with pytest.raises(
        ValueError, match=r"clip_value, if it is not None, must hold numbers .*0\.0"
    ):
        opt.param_groups[0]["clip_value"] = np.array([1.0, 0.0, 1.0])


@pytest.mark.parametrize("name", ["clip_value", "clip_each"])
def test_what_was_saved_of_it_is_taken_over_or_reported(name: str) -> None:
    limits: dict[float | None, dict[str, Any]] = {value: {name: value} for value in (1.0, 2.0)}
    params = {"w": np.ones(3)}
    saved = {value: fastopt.Adam(params, **limits[value]).state_dict() for value in limits}
    saved[None] = fastopt.Adam(params).state_dict()
    opt, off = fastopt.Adam(params, **limits[1.0]), fastopt.Adam(params)
    assert not opt.load_state_dict(saved[2.0]).mismatched
    assert opt.param_groups[0][name] == 2.0
    for one, other in ((opt, None), (off, 1.0)):
        ours = one.param_groups[0][name]
        for strict in (True, False):
            report = one.load_state_dict(saved[other], strict=strict)
            assert report.settings == (Setting(f"groups[0].{name}", other, ours, "here"),)
            assert report.mismatched == ()
            assert one.param_groups[0][name] == ours


def test_where_it_is_off_nothing_of_it_is_compiled() -> None:
    off = UpdateSpec.of(np.dtype(np.float32))
    on = UpdateSpec.of(np.dtype(np.float32), fragments=(clip_value.FRAGMENT,))
    assert on.name == f"{off.name}-clip_value"
    for spec, is_there in ((off, False), (on, True)):
        kernel = source.kernel(adam.RULE, spec, source.Addresses())
        texts = codegen.loop_source(adam.RULE, spec), "".join(map(str, kernel.values()))
        assert ["clip" in text for text in texts] == [is_there] * 2
    assert [v.name for v in ONE_PASS if "clip_value" in v.options] == ["adam_clip_value"]
