"""Squares and coefficients that float32 does not hold are refused before a step, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.optimizers.base import Optimizer
from helpers.variants import CPU_BACKENDS, OF_MATRICES, SQUARING, VARIANT_OF, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
LED_BY_LR = [v for v in VARIANTS if v.led_by_lr]
each_led_by_lr = pytest.mark.parametrize("variant", LED_BY_LR, ids=str)
LINEAR = [v for v in VARIANTS if v not in SQUARING]
each_squaring = pytest.mark.parametrize("variant", SQUARING, ids=str)

LIMIT = 2.0**63
"""From this norm on squares overflow float32, or may."""


def make(dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    shapes: dict[str, Any] = {"a": (3,), "W": (90, 50), "b": (), "none": (0,)}
    return {name: np.asarray(rng.standard_normal(s)).astype(dtype) for name, s in shapes.items()}


def everything(opt: Optimizer, params: dict[str, Any]) -> list[Any]:
    entries = opt.state_dict()["state"].values()
    state = [np.asarray(value).tobytes() for entry in entries for value in entry.values()]
    return [opt.step_count, state, [param.tobytes() for param in params.values()]]


# Squares that overflow ---------------------------------------------------------------------------


def lone(size: float, dtype: Any = np.float32) -> dict[str, Any]:
    """Return gradients of this norm: of one number that is not 0."""
    grads = {name: np.zeros_like(param) for name, param in make(dtype).items()}
    grads["W"][7, 3] = -size
    return grads


@each_backend
@each_squaring
def test_a_norm_whose_squares_overflow_changes_nothing(variant: Variant, backend: str) -> None:
    for policy in ("skip", "raise"):
        params = make(np.float32)
        opt = variant(params, backend=backend, on_nonfinite=policy)
        opt.step(make(np.float32))
        before = everything(opt, params)
        if policy == "raise":
            said = r'"W"\] has a norm of 9.22e\+18.* is finite, but its squares overflow float32'
            with pytest.raises(FloatingPointError, match=said):
                opt.step(lone(LIMIT))
        else:
            opt.step(lone(LIMIT))
            assert opt.skipped_steps == 1
            assert opt.grad_norm == LIMIT
        assert everything(opt, params) == before


@each_backend
@each_squaring
def test_below_the_limit_and_under_propagate_steps_are_made(variant: Variant, backend: str) -> None:
    below = float(np.nextafter(np.float32(LIMIT), np.float32(0)))
    for policy, size in (("raise", below), ("skip", below), ("propagate", 1e25)):
        params = make(np.float32)
        opt = variant(params, backend=backend, on_nonfinite=policy)
        opt.step(lone(size))
        assert (opt.step_count, opt.skipped_steps) == (1, 0)
        assert all(np.isfinite(param).all() for param in params.values()) or policy == "propagate"


@each_backend
@each_squaring
def test_float64_holds_such_squares(variant: Variant, backend: str) -> None:
    params = make(np.float64)
    opt = variant(params, backend=backend, on_nonfinite="raise")
    opt.step(lone(1e30, np.float64))
    assert opt.step_count == 1


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
@each_variant
def test_gradients_of_nearly_nothing_are_taken(variant: Variant, backend: str) -> None:
    params = make(np.float32)
    grads = {name: param * np.float32(1e-30) for name, param in params.items()}
    opt = variant(params, backend=backend, on_nonfinite="raise")
    opt.step(grads)
    assert opt.step_count == 1


@each_backend
def test_what_counts_is_the_norm_after_scale_and_clipping(backend: str) -> None:
    params = make(np.float32)
    grads = {name: param * np.float32(1e25) for name, param in params.items()}
    opt = fastopt.Adam(params, backend=backend, on_nonfinite="raise", max_grad_norm=1.0)
    opt.step(grads)
    opt.max_grad_norm = None
    opt.step(grads, grad_scale=1e-20)
    with pytest.raises(FloatingPointError, match="overflow float32"):
        opt.step(grads, grad_scale=-1e-3)
    with pytest.raises(FloatingPointError, match="overflow float32"):
        opt.step(make(np.float32), grad_scale=1e25)
    opt.max_grad_norm = 1e20
    with pytest.raises(FloatingPointError, match=r"norm of 9.99e\+19, .*set max_grad_norm"):
        opt.step(grads)
    assert opt.step_count == 2


@each_backend
def test_the_array_with_the_largest_norm_is_named(backend: str) -> None:
    """Two that are too long together, of which neither is alone."""
    groups = [{"params": make(np.float32)}, {"params": [np.ones(3, np.complex64), np.ones(9)]}]
    opt = fastopt.Adam(groups, backend=backend, on_nonfinite="raise")
    first = lone(0.9 * LIMIT)
    second = [np.array([0.6 + 0.7j, 0, 0], np.complex64) * np.float32(LIMIT), np.ones(9)]
    said = r"grads\[1\]\[0\] has a norm of 8.5e\+18, .*smaller grad_scale.*state_dtype='float64'"
    with pytest.raises(FloatingPointError, match=said):
        opt.step([first, second])
    opt.step([first, [None, second[1]]])
    assert opt.step_count == 1


@each_backend
@pytest.mark.parametrize("dtype", [np.float16, np.complex64, np.float32])
def test_gradients_of_any_dtype_are_looked_at(dtype: Any, backend: str) -> None:
    params = {"W": np.ones((3, 4), dtype).T}
    grad = np.ones((4, 3), np.complex128 if dtype == np.complex64 else np.float64)
    opt = fastopt.Adam(params, backend=backend, on_nonfinite="raise")
    opt.step({"W": grad})
    grad[1, 2] = 1e20j if dtype == np.complex64 else 1e20
    with pytest.raises(FloatingPointError, match=r'"W"\] has a norm of 1e\+20'):
        opt.step({"W": grad})


@each_backend
def test_the_norm_of_all_counts_where_some_are_squared_in_float32(backend: str) -> None:
    params = {"single": np.ones(3, np.float32), "double": np.ones(3)}
    grads: dict[str, Any] = {"single": np.ones(3, np.float32), "double": np.full(3, 1e30)}
    opt = fastopt.Adam(params, backend=backend, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r'"double"\] has a norm of 1.73e\+30'):
        opt.step(grads)
    opt.step({**grads, "single": None})  # nothing is squared in float32 then
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


def test_cupy_arrays_under_raise(cupy: Any) -> None:
    params = {name: cupy.asarray(value) for name, value in make(np.float32).items()}
    opt = fastopt.Adam(params, eps=0.0, on_nonfinite="raise")
    for factor in (1e25, 1e-25):
        grads = {
            name: cupy.asarray(value * np.float32(factor))
            for name, value in make(np.float32).items()
        }
        if factor > 1:
            with pytest.raises(FloatingPointError, match=r'"W"\] .*overflow float32'):
                opt.step(grads)
        else:
            opt.step(grads)
    assert opt.step_count == 1


def test_rules_say_whether_they_average_squares() -> None:
    for variant in VARIANTS:
        rule = variant(np.ones(1))._state.buckets[0].rule
        assert rule.averages_squares == (variant in SQUARING), rule.name
        assert rule.averages_squares or not rule.takes_square


# Coefficients ------------------------------------------------------------------------------------

MISFITS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "lr_large": (fastopt.SGD, {"lr": 1e39}, r"lr comes to 1e\+39, which is infinite"),
    "lr_momentum": (fastopt.Momentum, {"lr": 1e39}, "step_size .* which is infinite"),
    "weight_decay": (fastopt.Adam, {"weight_decay": 1e39}, r"weight_decay comes to 1e\+39"),
    "decoupled": (fastopt.AdamW, {"lr": 1e20, "weight_decay": 1e30}, "lr . weight_decay"),
    "momentum": (fastopt.SGD, {"momentum": 1e40}, r"keep comes to 1e\+40, which is infinite"),
    "momentum_of_rmsprop": (fastopt.RMSprop, {"momentum": 1e40}, "momentum .* infinite"),
    "step_size": (fastopt.Adam, {"lr": 1e38, "betas": (0.99, 0.0)}, "step_size"),
    "eps": (fastopt.Adam, {"eps": 1e-35}, "eps must be 0 or at least"),
    "eps_large": (fastopt.Adam, {"eps": 1e39}, "eps .* infinite"),
    "eps_inside": (fastopt.RMSprop, {"eps": 1e39, "eps_inside_sqrt": True}, "eps_inside .* inf"),
    "eps_of_adadelta": (fastopt.Adadelta, {"eps": 1e39}, "eps.* infinite"),
    "start": (fastopt.Adagrad, {"initial_accumulator_value": 1e-46}, "the initial s .* 0 in"),
    "start_large": (fastopt.Adagrad, {"initial_accumulator_value": 1e39}, "the initial s .* inf"),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_a_coefficient_that_float32_has_not_is_refused(name: str, dtype: str) -> None:
    make_one, options, said = MISFITS[name]
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
    "lr": (fastopt.SGD, {"lr": lambda t: 0.1 if t < 2 else 1e50}, r"lr comes to 1e\+50"),
    "lr_of_adam": (fastopt.Adam, {"lr": lambda t: 0.1 if t < 2 else 1e40}, "step_size .* inf"),
    "weight_decay": (fastopt.Adam, {"weight_decay": lambda t: 0.1 if t < 2 else 1e50}, "weight_"),
    "momentum": (fastopt.SGD, {"momentum": lambda t: 0.9 if t < 2 else 1e50}, "keep comes to"),
    "beta": (fastopt.RMSprop, {"momentum": lambda t: 0.9 if t < 2 else 1e50}, "momentum comes"),
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


@each_backend
@each_variant
def test_zeros_and_schedules_that_end_at_0_are_fine(variant: Variant, backend: str) -> None:
    params = make(np.float32)
    lr = fastopt.schedules.linear(0.1, 1.0, 0.0, total_steps=2)
    opt = variant(params, lr=lr, backend=backend, weight_decay=0.0)
    for _ in range(4):
        opt.step(make(np.float32))
    assert opt.step_count == 4


# What may become nothing -------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("t", [1, 7])
def test_twice_the_learning_rate_doubles_what_is_said_to_be_proportional(
    variant: Variant, t: int
) -> None:
    formula, options = variant.optimizer, variant(np.ones(1)).param_groups[0]
    once = formula._scalars(options, 0.0625, t, 1e-19)
    twice = formula._scalars(options, 0.125, t, 1e-19)
    # What each array's memory is given is float64, and need not be proportional to anything.
    rule = formula._rule(options)
    free = rule.memory.inputs if rule.memory and rule.memory.over == "array" else ()
    once = {name: value for name, value in once.items() if name not in free}
    said = {name for name in once if name in formula._lr_scalars}
    # What a step does without is 0 (RAdam, before and after it adapts).
    assert {name for name in once if once[name] != twice[name]} == {n for n in said if once[n]}
    assert all(twice[name] == 2.0 * once[name] for name in said)
    assert said & set(rule.scalars)


def has_rate_inside(variant: Variant) -> bool:
    return variant.rate_inside or "lr_inside" in variant.options


VANISHING: dict[str, Any] = {
    "by schedule": {"lr": lambda t: 10.0 ** (-12 * t)},
    "its decay too": {"lr": lambda t: 10.0 ** (-12 * t), "weight_decay": 0.1},
    "weight decay": {"weight_decay": lambda t: 10.0 ** (-12 * t)},
    "from the first step on": {"lr": 1e-50, "weight_decay": 1e-50},
}


@each_backend
@each_led_by_lr
@pytest.mark.parametrize("case", VANISHING)
@pytest.mark.parametrize("dtype", ["float32", "complex64", "float16"])
def test_a_learning_rate_that_becomes_nothing_is_0_and_the_run_goes_on(
    variant: Variant, case: str, dtype: str, backend: str
) -> None:
    params = {"W": np.ones(300, dtype)}
    opt = variant(params, backend=backend, **VANISHING[case])
    for _ in range(5):
        before = params["W"].copy()
        opt.step({"W": np.full(300, 0.5, dtype)})
    assert opt.step_count == 5
    assert np.isfinite(params["W"]).all()
    # A rate inside the buffer is 0 for what comes; what was gathered before goes on at its own.
    gathered = has_rate_inside(variant) and case != "from the first step on"
    stays = bool((params["W"] == before).all())
    if dtype == "float16" and (gathered or case == "weight decay"):
        return  # whether a step is long enough to be seen
    assert stays == (case != "weight decay" and not gathered)


@each_backend
def test_so_it_does_when_it_is_brought_down_by_hand(backend: str) -> None:
    params = make(np.float32)
    opt = fastopt.AdamW(params, 1e-2, backend=backend)
    for _ in range(2_500):
        opt.lr *= 0.96
    opt.step(make(np.float32))
    opt.lr = 0.0
    opt.step(make(np.float32))
    assert opt.step_count == 2
    for name, start in make(np.float32).items():
        np.testing.assert_array_equal(params[name], start)


REPORTED: dict[str, tuple[Any, int]] = {
    "exponential": (fastopt.schedules.exponential(1e-2, 0.9), 933),
    "step_decay": (fastopt.schedules.step_decay(1e-3, 100), 4_200),
    "by_hand": (None, 2_405),
}
"""Learning rates with which runs in float32 have ended, and the step in which they did."""


@pytest.mark.parametrize("variant", [*LED_BY_LR, *OF_MATRICES], ids=str)
@pytest.mark.parametrize("case", REPORTED)
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "on_nonfinite": "skip"}], ids=len)
def test_the_rates_that_were_reported_become_0(
    variant: Variant, case: str, options: dict[str, Any], place: tuple[Any, str]
) -> None:
    xp, backend = place
    lr, last = REPORTED[case]
    param, grad = xp.ones((4, 4), "float32"), xp.full((4, 4), 0.5, "float32")
    opt = variant(param, backend=backend, **options, lr=1e-2 if lr is None else lr)
    opt.step(grad)
    saved = opt.state_dict()
    saved["step_count"] = last - 3
    for entry in saved["state"].values():
        entry["step"] = last - 3
    opt.load_state_dict(saved)
    for _ in range(last - 3 if lr is None else 0):
        opt.lr *= 0.96
    for step in range(last - 3, last + 20):
        if step == last + 5:
            before = np.asarray(param if xp is np else param.get()).copy()
        if lr is None:
            opt.lr *= 0.96
        opt.step(grad)
    assert opt.step_count == step + 1
    after = np.asarray(param if xp is np else param.get())
    if has_rate_inside(variant):  # what is in the buffer still moves it
        assert np.isfinite(after).all()
    else:
        np.testing.assert_array_equal(before, after)


@each_backend
@each_led_by_lr
def test_rates_of_several_groups_become_0_by_hand(variant: Variant, backend: str) -> None:
    params = [np.ones(3, np.float32), np.ones(3, np.float32)]
    groups = [{"params": params[0], "lr": 1e-2}, {"params": params[1], "lr": 1e-12}]
    opt = variant(groups, backend=backend, weight_decay=1e-3)
    for _ in range(130):
        for group in opt.param_groups:
            group["lr"] *= 0.44
            group["weight_decay"] *= 0.44
    opt.step([np.ones(3, np.float32)] * 2)
    for param in params:
        np.testing.assert_array_equal(param, np.ones(3))
    for group in opt.param_groups:
        group.update(lr=0, weight_decay=0)
    opt.step([np.ones(3, np.float32)] * 2)
    assert opt.step_count == 2


@pytest.mark.parametrize("name", ["sgd_momentum", "sgd_nesterov", "rmsprop_momentum"])
@pytest.mark.parametrize("by", ["number", "function"])
def test_a_momentum_that_becomes_nothing_is_0(name: str, by: str, place: tuple[Any, str]) -> None:
    xp, backend = place
    params = [xp.ones(300, "float32") for _ in range(2)]
    opts = [VARIANT_OF[name](param, backend=backend) for param in params]
    value: Any = (lambda step: 1e-46 / (1 + step)) if by == "function" else 1e-50
    opts[0].param_groups[0]["momentum"] = value
    opts[1].param_groups[0]["momentum"] = lambda step: 0.0
    for step in range(4):
        for opt in opts:
            opt.step(xp.full(300, 0.5 + step, "float32"))
    one, other = (param if xp is np else param.get() for param in params)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "on_nonfinite": "skip"}])
def test_a_device_makes_such_steps_in_the_bits_of_numpy(cupy: Any, options: dict[str, Any]) -> None:
    ends = []
    for xp in (np, cupy):
        params = {name: xp.asarray(value) for name, value in make(np.float32).items()}
        opt = fastopt.AdamW(params, lambda t: 10.0 ** (-12 * t), weight_decay=0.1, **options)
        for step in range(6):
            grads = make(np.float32)
            opt.step({name: xp.asarray(grad * step) for name, grad in grads.items()})
        ends.append([np.asarray(p if xp is np else p.get()) for p in params.values()])
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)
