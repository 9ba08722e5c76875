"""What NaN and infinity in gradients do: nothing, or everything, or an error with a name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt
from fastopt.optimizers.base import Optimizer
from helpers.variants import CPU_BACKENDS, HAS_NUMBA, VARIANTS, Variant

SHAPES = {"first": (3,), "second": (130, 70), "third": (), "empty": (0, 4)}
POISON = [math.nan, math.inf, -math.inf]

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def make(dtype: str, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def everything(opt: Optimizer, params: dict[str, Any]) -> list[Any]:
    saved = opt.state_dict()
    slots = [
        (k, i, np.asarray(v).tobytes()) for k, e in saved["state"].items() for i, v in e.items()
    ]
    return [saved["step_count"], slots, [param.tobytes() for param in params.values()]]


@each_backend
@each_variant
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_step_with_one_bad_element_changes_nothing(
    variant: Variant, dtype: str, backend: str, policy: Any
) -> None:
    params = make(dtype)
    opt = variant(params, backend=backend, on_nonfinite=policy)
    opt.step(make(dtype, 1))
    before = everything(opt, params)
    for number, (name, bad) in enumerate(zip(["first", "second", "third"], POISON, strict=True), 1):
        grads = make(dtype, 2)
        grads[name].flat[-1] = bad
        if policy == "raise":
            with pytest.raises(FloatingPointError, match=rf'grads\["{name}"\] holds NaN or inf'):
                opt.step(grads)
            assert opt.skipped_steps == 0
        else:
            opt.step(grads)
            assert opt.skipped_steps == number
            assert opt.grad_norm is not None
            assert not math.isfinite(opt.grad_norm)
        assert everything(opt, params) == before


@each_backend
@each_variant
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_step_of_finite_gradients_is_that_of_propagate(
    variant: Variant, backend: str, policy: Any
) -> None:
    looked, plain = make("float32"), make("float32")
    one = variant(looked, backend=backend, on_nonfinite=policy)
    other = variant(plain, backend=backend)
    for seed in range(1, 12):
        grads = make("float32", seed)
        if seed % 3 == 0:
            grads["second"] = None
        one.step(grads, grad_scale=0.5)
        other.step(grads, grad_scale=0.5)
    assert everything(one, looked) == everything(other, plain)


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_numbers_are_finite(dtype: str, backend: str) -> None:
    params, grads = make(dtype), make(dtype, 1)
    for grad in grads.values():
        grad[...] = np.finfo(dtype).max
    opt = fastopt.SGD(params, lr=0.0, backend=backend, on_nonfinite="raise")
    opt.step(grads)
    assert opt.step_count == 1


@each_backend
def test_propagate_does_not_look(backend: str) -> None:
    params, grads = make("float32"), make("float32", 1)
    grads["first"][1] = math.nan
    opt = fastopt.Adam(params, backend=backend)
    opt.step(grads)
    assert opt.step_count == 1
    assert opt.grad_norm is None
    assert np.isnan(params["first"]).tolist() == [False, True, False]


@each_backend
def test_with_clipping_the_bad_step_is_skipped_and_the_next_is_clipped(backend: str) -> None:
    params, plain = make("float32"), make("float32")
    opt = fastopt.Adam(params, backend=backend, on_nonfinite="skip", max_grad_norm=0.5)
    other = fastopt.Adam(plain, backend=backend, max_grad_norm=0.5)
    for seed in range(6):
        grads = make("float32", seed)
        if seed % 2:
            grads["second"][3, 3] = math.inf
        else:
            other.step(grads)
        opt.step(grads)
    assert everything(opt, params) == everything(other, plain)
    assert opt.skipped_steps == 3


@each_backend
@pytest.mark.parametrize("large", [np.float64(1e300), np.float64(-1e39)])
def test_what_the_parameters_dtype_cannot_hold_is_not_finite(large: Any, backend: str) -> None:
    params = make("float32")
    grads = make("float64", 1)
    grads["second"][0, 0] = large
    opt = fastopt.Adam(params, backend=backend, on_nonfinite="skip")
    opt.step(grads)
    assert (opt.skipped_steps, opt.step_count) == (1, 0)


@each_backend
def test_groups_are_skipped_together_and_schedules_stand_still(backend: str) -> None:
    first, second = make("float32"), make("float64")
    groups = [{"params": first, "lr": lambda t: 0.1 / (t + 1)}, {"params": second}]
    opt = fastopt.SGD(groups, lr=1.0, backend=backend, on_nonfinite="skip")
    kept = [first["first"].copy(), second["first"].copy()]
    grads = [make("float32", 1), make("float64", 2)]
    grads[1]["third"][...] = math.nan
    opt.step(grads)
    assert [kept[0].tolist(), kept[1].tolist()] == [a["first"].tolist() for a in (first, second)]
    assert opt.lr == 0.1
    opt.on_nonfinite = "raise"
    with pytest.raises(FloatingPointError, match=r'grads\[1\]\["third"\]'):
        opt.step(grads)


@given(st.data())
def test_any_element_of_any_array_is_seen(data: Any) -> None:
    backend = data.draw(st.sampled_from(CPU_BACKENDS))
    sizes = data.draw(st.lists(st.integers(1, 9000), min_size=1, max_size=5))
    params = [np.zeros(size, np.float32) for size in sizes]
    grads = [np.ones(size, np.float32) for size in sizes]
    which = data.draw(st.integers(0, len(sizes) - 1))
    grads[which][data.draw(st.integers(0, sizes[which] - 1))] = data.draw(st.sampled_from(POISON))
    opt = fastopt.SGD(params, backend=backend, on_nonfinite="raise")
    with pytest.raises(FloatingPointError, match=rf"grads\[{which}\]"):
        opt.step(grads)
    assert not any(param.any() for param in params)


@pytest.mark.parametrize("wrong", ["ignore", None, True, 1, "SKIP"])
def test_another_policy_is_refused(wrong: Any) -> None:
    params = make("float32")
    with pytest.raises(
        (TypeError, ValueError), match="on_nonfinite must be one of propagate, skip"
    ):
        fastopt.Adam(params, on_nonfinite=wrong)
    opt = fastopt.Adam(params)
    with pytest.raises(
        (TypeError, ValueError), match="on_nonfinite must be one of propagate, skip"
    ):
        opt.on_nonfinite = wrong
    assert opt.on_nonfinite == "propagate"


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_warm_optimizer_compiles_nothing_more(
    policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastopt.backends.numba import backend as numba_backend

    params = make("float32")
    opt = fastopt.Adam(params, backend="numba", on_nonfinite=policy).warmup()
    monkeypatch.setattr(numba_backend, "_work", None)
    monkeypatch.setattr(numba_backend, "_squares", None)
    opt.step(make("float32"))
    assert opt.step_count == 1
