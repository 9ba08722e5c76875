"""Scalars that are arrays: members in one array end with the bits of optimizers of their own."""

from __future__ import annotations

import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers import common
from fastopt.optimizers.base import Optimizer
from helpers.members import (
    LAYOUTS,
    MEMBERS,
    Layout,
    hyperparameters_of,
    member_run,
    separate_runs,
    values,
)
from helpers.variants import CPU_BACKENDS, ELEMENTWISE, VARIANT_OF, Variant

DTYPES = (np.float32, np.float64, np.complex64)


def same(one: dict[str, Array], two: dict[str, Array]) -> None:
    assert one.keys() == two.keys()
    for name, array in one.items():
        other = two[name]
        assert array.dtype == other.dtype
        assert array.tobytes() == other.tobytes(), name


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_members_have_the_bits_of_separate_optimizers(
    variant: Variant, dtype: Any, layout: Layout, backend: str
) -> None:
    settings = hyperparameters_of(variant)
    together = member_run(variant, settings, dtype, layout, backend=backend)
    same(together, separate_runs(variant, settings, dtype, layout, backend=backend))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ELEMENTWISE, ids=str)
def test_steps_in_one_call_have_the_bits_of_separate_optimizers(
    variant: Variant, dtype: Any, backend: str
) -> None:
    settings = hyperparameters_of(variant)
    change = {"lr": [0.2, 0.0, 0.1, 0.05, 0.2], "weight_decay": 0.25}
    if "weight_decay" not in settings:
        del change["weight_decay"]
    more: dict[str, Any] = {"change": change, "missing": False, "backend": backend}
    together = member_run(variant, settings, dtype, **more)
    same(together, separate_runs(variant, settings, dtype, **more))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {"state_dtype": "float64"},
        {"mask_zero": True},
        {"maximize": True},
        {"bounds": (-0.5, 2.0), "reset_at_bounds": True},
        {"complex_moment": "modulus"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_members_with_common_options(name: str, options: Any, backend: str) -> None:
    dtype = np.complex64 if "complex_moment" in options else np.float32
    variant = VARIANT_OF[name]
    settings = hyperparameters_of(variant)
    for layout in LAYOUTS[:3]:
        more = {**options, "backend": backend}
        together = member_run(variant, settings, dtype, layout, **more)
        same(together, separate_runs(variant, settings, dtype, layout, **more))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("master_weights", [True, False])
def test_members_in_half_precision(master_weights: bool, dtype: Any, backend: str) -> None:
    variant = VARIANT_OF["adamw"]
    settings = {**hyperparameters_of(variant), "eps": 1e-2}
    more: dict[str, Any] = {"master_weights": master_weights, "backend": backend}
    together = member_run(variant, settings, dtype, **more)
    same(together, separate_runs(variant, settings, dtype, **more))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_bounds_that_are_arrays(backend: str) -> None:
    params = np.linspace(-1, 1, 3 * 4).reshape(3, 4)
    grads = np.linspace(1, -2, 3 * 4).reshape(3, 4)
    lower, upper = params - 0.1, params + 0.2
    lr = np.array([0.3, 0.0, 0.02])
    together = params.copy()
    fastopt.Adam(together, lr, bounds=(lower, upper), members=3, backend=backend).step(grads)
    for member in range(3):
        own = params[member].copy()
        bounds = (lower[member], upper[member])
        fastopt.Adam(own, lr[member], bounds=bounds, backend=backend).step(grads[member])
        assert own.tobytes() == together[member].tobytes()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_setting_changed_between_steps(backend: str) -> None:
    variant = VARIANT_OF["adamw"]
    settings = hyperparameters_of(variant)
    change = {"lr": [0.2, 0.0, 0.1, 0.05, 0.2], "weight_decay": 0.25, "eps": 1e-3}
    together = member_run(variant, settings, np.float32, change=change, backend=backend)
    same(together, separate_runs(variant, settings, np.float32, change=change, backend=backend))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_schedules_that_return_arrays(backend: str) -> None:
    rates, decays = np.array([0.1, 0.01, 0.0, 0.3, 0.02]), np.array([0.0, 0.1, 0.2, 0.0, 0.5])
    params, grads = values(np.float32, 0), [values(np.float32, step) for step in range(9)]
    together = [array.copy() for array in params]
    opt = fastopt.AdamW(
        together,
        lr=lambda step: rates / (step + 1),
        weight_decay=lambda step: decays * step,
        members=MEMBERS,
        backend=backend,
    )
    for given in grads:
        opt.step(given)
    for member in range(MEMBERS):
        own = [np.array(array[member]) for array in params]
        alone = fastopt.AdamW(
            own,
            lr=lambda step, rate=rates[member]: rate / (step + 1),
            weight_decay=lambda step, decay=decays[member]: decay * step,
            backend=backend,
        )
        for given in grads:
            alone.step([np.array(grad[member]) for grad in given])
        for one, all_of_them in zip(own, together, strict=True):
            assert one.tobytes() == np.ascontiguousarray(all_of_them[member]).tobytes()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_more_elements_than_a_chunk_and_a_block(backend: str) -> None:
    rng = np.random.default_rng(0)
    params, grads = rng.standard_normal((2, 3, 70_001)).astype(np.float32)
    lr = np.array([0.1, 0.01, 0.3])
    for order in ("C", "F"):
        together = np.array(params, order=order)
        opt = fastopt.Adam([together], lr, members=3, backend=backend)
        opt.step([np.array(grads, order=order)])
        for member in range(3):
            own = params[member].copy()
            fastopt.Adam([own], lr[member], backend=backend).step([grads[member].copy()])
            assert own.tobytes() == together[member].tobytes()


@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="needs numba")
def test_a_step_of_many_members_is_one_compiled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 10_000
    params, grads = np.ones((count, 3), np.float32), np.ones((count, 3), np.float32)
    opt = fastopt.Adam(params, np.linspace(1e-4, 1e-2, count), members=count, backend="numba")
    opt.warmup()
    fused: Any = opt._engine._fused
    calls, step = [], fused._step
    monkeypatch.setattr(fused, "_step", lambda *about: calls.append(about) or step(*about))
    monkeypatch.setattr(opt._engine.kernels[0], "update", None)
    assert opt.step(grads)
    assert len(calls) == 1
    assert len(np.unique(params)) > count / 2


# Helpers -----------------------------------------------------------------------------------------


def test_helpers_give_an_element_the_bits_of_a_float() -> None:
    rng = np.random.default_rng(0)
    betas = np.concatenate([[0.0, 0.5, 0.5, 1 - 1e-9], 1 - 10.0 ** rng.uniform(-6, 0, 2000)])
    for t in (1, 2, 37, 10_000):
        found = common.one_minus_power(betas, t)
        assert found.tolist() == [common.one_minus_power(beta, t) for beta in betas.tolist()]
    assert common.sqrt(betas).tolist() == [common.sqrt(beta) for beta in betas.tolist()]
    eps = np.array([0.0, 1e-8, 1e-3])
    for inside in (False, True):
        for c in (0.25, np.array([1.0, 0.1, 0.3])):
            options = {"eps": eps, "eps_inside_sqrt": inside}
            found = common.eps_scalars(options, 1e-19, c, common.sqrt(c))
            for k, one in enumerate(eps.tolist()):
                own = float(np.broadcast_to(c, 3)[k])
                options = {"eps": one, "eps_inside_sqrt": inside}
                alone = common.eps_scalars(options, 1e-19, own, common.sqrt(own))
                assert tuple(float(np.broadcast_to(value, 3)[k]) for value in found) == alone


# Errors ------------------------------------------------------------------------------------------


def made(optimizer: type[Optimizer] = fastopt.Adam, **options: Any) -> Optimizer:
    return optimizer({"w": np.zeros((3, 2), np.float32)}, **{"members": 3, **options})


def test_parameters_without_the_axis_are_named() -> None:
    params = {"w": np.zeros((3, 2)), "b": np.zeros((2, 3))}
    with pytest.raises(ValueError, match=r'first axis .* 3 members; params\["b"\] .*\(2, 3\)'):
        fastopt.Adam(params, members=3)
    with pytest.raises(ValueError, match=r"has the shape \(\)"):
        fastopt.Adam(np.array(1.0), members=3)
    with pytest.raises(ValueError, match="members must be a whole number"):
        made(members=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": np.ones(2)}, r"lr must be a number .* array of 3 .* shape \(2,\)"),
        ({"lr": np.ones((3, 1))}, r"shape \(3, 1\)"),
        ({"lr": np.ones(3, bool)}, "got bool"),
        ({"lr": np.array([1.0, -1.0, 1.0])}, r"lr must hold numbers .* -1.0 for member 1"),
        ({"lr": np.array([1.0, 1.0, np.nan])}, "nan for member 2"),
        ({"betas": (np.array([0.9, 1.0, 0.9]), 0.9)}, r"betas\[0\] .* member 1"),
        ({"eps": np.array([0.0, 1e-40, 1.0])}, "eps must be 0 or at least"),
        ({"betas": (0.9, np.array([0.9, 1 - 1e-17, 0.9]))}, "member 1"),
        ({"weight_decay": np.array([0.0, 1e300, 0.0])}, "weight_decay comes to 1e.300"),
        ({"max_grad_norm": 1.0, "capturable": True}, "not clipped .* no step is captured"),
        ({"on_nonfinite": "skip", "optimizer": fastopt.Sophia}, "not skipped .* Hessian"),
        ({"state_dtype": "bfloat16"}, "no state in codes"),
        ({"state_dtype": "int8"}, "no state in codes"),
        ({"stochastic_rounding": True, "master_weights": False}, "not rounded by chance"),
        ({"cautious": True}, "cautious sums over whole arrays"),
        ({"optimizer": fastopt.LAMB}, "LAMB has no members"),
        ({"optimizer": fastopt.Prodigy}, "Prodigy has no members"),
        ({"optimizer": fastopt.Muon}, "Muon has no members"),
    ],
)
def test_what_members_cannot_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_arrays_without_members_are_refused_as_before() -> None:
    with pytest.raises(TypeError, match="lr must be a number"):
        fastopt.Adam(np.zeros(3), lr=np.ones(3))


def test_settings_between_steps_are_checked() -> None:
    opt = made()
    with pytest.raises(ValueError, match="shape"):
        opt.lr = np.ones(4)
    rates = np.array([1, 2, 3])
    opt.lr = rates
    rates[:] = 0
    assert opt.param_groups[0]["lr"].tolist() == [1.0, 2.0, 3.0]
    assert not opt.param_groups[0]["lr"].flags.writeable


def test_schedules_of_members_are_checked() -> None:
    params = np.zeros((3, 2), np.float32)
    opt = fastopt.Adam(params, lambda step: np.ones(3) * (1 - 2 * step), members=3)
    opt.step(np.ones((3, 2), np.float32))
    before = params.copy()
    with pytest.raises(ValueError, match="lr at step 1 must hold numbers"):
        opt.step(np.ones((3, 2), np.float32))
    assert np.array_equal(params, before)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_pickled_bucket_keeps_its_members(backend: str) -> None:
    params = [np.ones((3, 4)), np.asfortranarray(np.ones((3, 5)))]
    opt = fastopt.Adam(params, lr=np.array([0.1, 0.2, 0.3]), backend=backend, members=3)
    (bucket,) = opt._state.buckets
    copy = pickle.loads(pickle.dumps(bucket))
    assert copy.members == bucket.members == 3
    assert [p.member for p in copy.parameters] == [p.member for p in bucket.parameters]
