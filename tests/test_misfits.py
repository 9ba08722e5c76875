"""Squares and coefficients that float32 does not hold are refused before a step, by name."""

from __future__ import annotations

import math
import shutil
from typing import Any

import numpy as np
import pytest
from cuda.fake_cupy import FakeCupy
from cuda.runs import installed
from variants import CPU_BACKENDS, SQUARING, VARIANTS, Variant

import fastopt
from fastopt.optimizer import Optimizer

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
LINEAR = [v for v in VARIANTS if v not in SQUARING]
each_squaring = pytest.mark.parametrize("variant", SQUARING, ids=str)

LIMIT = {"float32": math.sqrt(float(np.finfo(np.float32).max)), "float64": math.sqrt(1.7976931e308)}


def make(dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    shapes: dict[str, Any] = {"a": (3,), "W": (90, 50), "b": (), "none": (0,)}
    return {name: np.asarray(rng.standard_normal(s)).astype(dtype) for name, s in shapes.items()}


def everything(opt: Optimizer, params: dict[str, Any]) -> list[Any]:
    entries = opt.state_dict()["state"].values()
    state = [np.asarray(value).tobytes() for entry in entries for value in entry.values()]
    return [opt.step_count, state, [param.tobytes() for param in params.values()]]


# Squares that overflow ---------------------------------------------------------------------------


@each_backend
@each_squaring
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_square_that_overflows_changes_nothing(
    variant: Variant, dtype: str, backend: str
) -> None:
    for policy in ("skip", "raise"):
        params = make(dtype)
        opt = variant(params, backend=backend, on_nonfinite=policy)
        opt.step(make(dtype))
        before, grads = everything(opt, params), make(dtype)
        grads["W"][7, 3] = -1.01 * LIMIT[dtype]
        if policy == "raise":
            said = rf'grads\["W"\] is finite, but .* too large for {dtype}.*scale_safe=True'
            with pytest.raises(FloatingPointError, match=said):
                opt.step(grads)
        else:
            opt.step(grads)
            assert opt.skipped_steps == 1
        assert everything(opt, params) == before


@each_backend
@each_squaring
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squares_that_just_fit_are_taken(variant: Variant, dtype: str, backend: str) -> None:
    """Their sum overflows, and that is nobody's business."""
    params, grads = make(dtype), make(dtype)
    grads["W"][...] = 0.99 * LIMIT[dtype]
    grads["a"] = None
    opt = variant(params, backend=backend, on_nonfinite="raise")
    opt.step(grads)
    assert opt.step_count == 1
    assert all(np.isfinite(param).all() for param in params.values())


@each_backend
@pytest.mark.parametrize("variant", LINEAR, ids=str)
def test_rules_without_squares_take_what_is_finite(variant: Variant, backend: str) -> None:
    for factor in (1e30, 1e-30):
        params = make(np.float32)
        grads = {name: param * np.float32(factor) for name, param in params.items()}
        opt = variant(params, backend=backend, on_nonfinite="raise")
        opt.step(grads)
        assert opt.step_count == 1


@each_backend
def test_what_counts_is_the_gradient_after_scale_and_clipping(backend: str) -> None:
    params = make(np.float32)
    grads = {name: param * np.float32(1e25) for name, param in params.items()}
    opt = fastopt.Adam(params, backend=backend, on_nonfinite="raise", max_grad_norm=1.0)
    opt.step(grads)
    opt.max_grad_norm = None
    opt.step(grads, grad_scale=1e-20)
    with pytest.raises(FloatingPointError, match="too large for float32"):
        opt.step(grads, grad_scale=1e-3)
    with pytest.raises(FloatingPointError, match="too large for float32"):
        opt.step(make(np.float32), grad_scale=1e25)
    assert opt.step_count == 2


@each_backend
def test_a_modulus_counts_as_if_both_parts_were_as_large(backend: str) -> None:
    for size, fits in ((1.3e19, True), (1.31e19, False)):
        opt = fastopt.Adam(
            [np.ones(3, np.complex64)],
            backend=backend,
            on_nonfinite="raise",
            complex_moment="modulus",
        )
        if fits:
            opt.step([np.full(3, size * (1 + 1j), np.complex64)])
            assert opt.step_count == 1
            continue
        with pytest.raises(FloatingPointError, match="square of a modulus in it may be too large"):
            opt.step([np.full(3, size, np.complex64)])


@each_backend
@pytest.mark.parametrize("dtype", [np.float16, np.complex64, np.float32])
def test_gradients_of_any_dtype_are_looked_at(dtype: Any, backend: str) -> None:
    params = {"W": np.ones((3, 4), dtype).T}
    grad = np.ones((4, 3), np.complex128 if dtype == np.complex64 else np.float64)
    opt = fastopt.Adam(params, backend=backend, on_nonfinite="raise")
    opt.step({"W": grad})
    grad[1, 2] = 1e20j if dtype == np.complex64 else 1e20
    with pytest.raises(FloatingPointError, match=r"too large for float32.* element is 1e\+20"):
        opt.step({"W": grad})


@each_backend
def test_where_nobody_said_what_is_squared_nothing_is_looked_for(backend: str) -> None:
    class OfUnknownUnits(fastopt.Adam):
        _units = None

    params = make(np.float32)
    opt = OfUnknownUnits(params, backend=backend, on_nonfinite="raise")
    opt.step({name: np.full_like(param, 1e25) for name, param in params.items()})
    assert opt.step_count == 1


@each_backend
@each_squaring
def test_scale_safe_steps_take_them(variant: Variant, backend: str) -> None:
    for factor in (1e30, 1e-30):
        params = make(np.float32)
        grads = {name: param * np.float32(factor) for name, param in params.items()}
        opt = variant(params, backend=backend, on_nonfinite="raise", scale_safe=True)
        opt.step(grads)
        assert opt.step_count == 1


def test_a_frozen_group_is_not_looked_at() -> None:
    params = make(np.float32)
    opt = fastopt.Adam(fastopt.groups(params, {"W": {"trainable": False}}), on_nonfinite="raise")
    grads = make(np.float32)
    grads["W"] = None
    opt.step(grads)
    grads["W"] = np.full((90, 50), 1e30, np.float32)
    opt.step(grads)
    grads["a"][1] = 1e30
    with pytest.raises(FloatingPointError, match=r'grads\["a"\]'):
        opt.step(grads)


# Squares that are lost ---------------------------------------------------------------------------

SMALL_EPS = [
    Variant("adam", fastopt.Adam, {"eps": 0.0}),
    Variant("adam_1e-20", fastopt.Adam, {"eps": 1e-20}),
    Variant("amsgrad", fastopt.AdamW, {"eps": 0.0, "amsgrad": True}),
    Variant("rmsprop", fastopt.RMSprop, {"eps": 1e-16}),
    Variant("adagrad", fastopt.Adagrad, {"eps": 0.0}),
]


@each_backend
@pytest.mark.parametrize("variant", SMALL_EPS, ids=str)
def test_squares_that_are_lost_are_said_under_raise_alone(variant: Variant, backend: str) -> None:
    for policy in ("raise", "skip", "propagate"):
        params, grads = make(np.float32), make(np.float32)
        grads["W"] *= np.float32(1e-25)
        opt = variant(params, backend=backend, on_nonfinite=policy)
        if policy == "raise":
            said = r'grads\["W"\] is not 0, but all squares in it underflow for float32.*scale_safe'
            with pytest.raises(FloatingPointError, match=said):
                opt.step(grads)
            grads["W"][3, 3] = 1e-9  # one that is not lost is enough
            opt.step(grads)
            grads["W"][...] = 0
            opt.step(grads)
            opt.step({**grads, "W": None})
            assert opt.step_count == 3
        else:
            opt.step(grads)
            assert (opt.step_count, opt.skipped_steps) == (1, 0)


@each_backend
@each_squaring
def test_where_eps_outweighs_them_nothing_is_lost(variant: Variant, backend: str) -> None:
    """Gradients of nearly nothing are what a run that has converged ends with."""
    params = make(np.float32)
    grads = {name: param * np.float32(1e-30) for name, param in params.items()}
    opt = variant(params, backend=backend, on_nonfinite="raise")
    if opt.param_groups[0]["eps"] == 0:
        with pytest.raises(FloatingPointError, match="underflow"):
            opt.step(grads)
        return
    opt.step(grads)
    assert opt.step_count == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which runs the CUDA text")
def test_cupy_arrays_under_raise() -> None:
    with installed(FakeCupy()) as cupy:
        params = {name: cupy.asarray(value) for name, value in make(np.float32).items()}
        opt = fastopt.Adam(params, eps=0.0, on_nonfinite="raise")
        for factor, said in ((1e25, "too large"), (1e-25, "underflow")):
            grads = {
                name: cupy.asarray(value * np.float32(factor))
                for name, value in make(np.float32).items()
            }
            with pytest.raises(FloatingPointError, match=said):
                opt.step(grads)
        assert opt.step_count == 0


# Coefficients ------------------------------------------------------------------------------------

TOO_SMALL: dict[str, tuple[Any, dict[str, Any], str]] = {
    "lr": (fastopt.SGD, {"lr": 1e-46}, "lr comes to 1e-46, which is 0"),
    "lr_large": (fastopt.SGD, {"lr": 1e39}, r"lr comes to 1e\+39, which is infinite"),
    "lr_momentum": (fastopt.Momentum, {"lr": 1e-46}, "step_size .* which is 0"),
    "weight_decay": (fastopt.Adam, {"weight_decay": 1e-46}, "weight_decay comes to 1e-46"),
    "decoupled": (fastopt.AdamW, {"lr": 1e-20, "weight_decay": 1e-30}, "lr . weight_decay"),
    "momentum": (fastopt.SGD, {"momentum": 1e-50}, "keep comes to 1e-50"),
    "momentum_of_rmsprop": (fastopt.RMSprop, {"momentum": 1e40}, "momentum .* infinite"),
    "step_size": (fastopt.Adam, {"lr": 1e-44, "betas": (0.0, 0.9999)}, "step_size"),
    "eps": (fastopt.Adam, {"eps": 1e-35}, "eps must be 0 or at least"),
    "eps_large": (fastopt.Adam, {"eps": 1e39}, "eps .* infinite"),
    "eps_inside": (fastopt.RMSprop, {"eps": 1e39, "eps_inside_sqrt": True}, "eps_inside .* inf"),
    "eps_of_adadelta": (fastopt.Adadelta, {"eps": 1e39}, "eps.* infinite"),
    "start": (fastopt.Adagrad, {"initial_accumulator_value": 1e-46}, "the initial s .* 0 in"),
    "start_large": (fastopt.Adagrad, {"initial_accumulator_value": 1e39}, "the initial s .* inf"),
}


@pytest.mark.parametrize("name", TOO_SMALL)
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_a_coefficient_that_float32_has_not_is_refused(name: str, dtype: str) -> None:
    make_one, options, said = TOO_SMALL[name]
    params = {"W": np.ones(3, dtype), "b": np.ones(3, np.complex128)}
    with pytest.raises(ValueError, match=rf'(?s){said}.*params\["W"\]'):
        make_one(params, **options)
    make_one({"b": params["b"]}, **options)  # float64 has them
    opt = make_one(params)
    before = dict(opt.param_groups[0])
    settable = {k: v for k, v in options.items() if k != "momentum" or before["momentum"]}
    if len(settable) == len(options):
        with pytest.raises(ValueError, match=said):
            opt.param_groups[0].update(options)
        assert dict(opt.param_groups[0]) == before


SCHEDULES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "lr": (fastopt.SGD, {"lr": lambda t: 0.1 if t < 2 else 1e-50}, "lr comes to 1e-50"),
    "lr_of_adam": (fastopt.Adam, {"lr": lambda t: 0.1 if t < 2 else 1e40}, "step_size .* inf"),
    "weight_decay": (fastopt.Adam, {"weight_decay": lambda t: 0.1 if t < 2 else 1e-50}, "weight_"),
    "momentum": (fastopt.SGD, {"momentum": lambda t: 0.9 if t < 2 else 1e-50}, "keep comes to"),
    "beta": (fastopt.RMSprop, {"momentum": lambda t: 0.9 if t < 2 else 1e-50}, "momentum comes"),
}


@each_backend
@pytest.mark.parametrize("name", SCHEDULES)
def test_of_a_schedule_it_is_an_error_in_the_step(name: str, backend: str) -> None:
    make_one, options, said = SCHEDULES[name]
    params = make(np.float32)
    opt = make_one(params, backend=backend, **options)
    opt.step(make(np.float32))
    opt.step(make(np.float32))
    before = everything(opt, params)
    with pytest.raises(ValueError, match=said):
        opt.step(make(np.float32))
    assert everything(opt, params) == before


@each_variant
def test_what_scale_safe_carries_need_not_fit(variant: Variant) -> None:
    options: dict[str, Any] = {"weight_decay": 0.0}
    if variant in LINEAR:
        options["lr"] = 1e45
    elif variant.name != "adadelta":
        options["eps"] = 1e-60
    else:
        return  # its eps is of steps, too
    params = {"W": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match=r"eps|infinite"):
        variant(params, **options)
    opt = variant(params, scale_safe=True, **options)
    opt.step({"W": np.full(3, 1e-40 if variant in LINEAR else 1e-30, np.float32)})
    assert np.isfinite(params["W"]).all()
    assert (params["W"] != 0).all()


@each_backend
@each_variant
def test_zeros_and_schedules_that_end_at_0_are_fine(variant: Variant, backend: str) -> None:
    params = make(np.float32)
    lr = fastopt.schedules.linear(0.1, 1.0, 0.0, total_steps=2)
    opt = variant(params, lr=lr, backend=backend, weight_decay=0.0)
    for _ in range(4):
        opt.step(make(np.float32))
    assert opt.step_count == 4
