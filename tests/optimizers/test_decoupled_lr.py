"""decoupled_lr: weight decay is a share per step, which the schedule alone changes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.buckets import memory_names
from fastopt.core.hyperparameters import decay_is_decoupled
from helpers.variants import CPU_BACKENDS, OF_MATRICES, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
EVERY = [*VARIANTS, *OF_MATRICES]
SHAPES = ((4, 3), (3, 4))


def takes(variant: Variant) -> bool:
    """Return whether decay is a step of its own, at a rate that is known."""
    group = variant(variant.one_parameter).param_groups[0]
    known = not memory_names(variant.rule, "optimizer")
    return known and decay_is_decoupled(variant.optimizer, group)


TAKING = [v for v in EVERY if takes(v)]
OTHERS = [v for v in EVERY if v not in TAKING]


def matrices(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in SHAPES]


@each_backend
@pytest.mark.parametrize("variant", TAKING, ids=str)
def test_it_is_a_decay_that_was_divided_by_the_rate(variant: Variant, backend: str) -> None:
    params, plain = matrices(0), matrices(0)
    options = {"lr": 0.125, "backend": backend}
    one = variant(params, **options | {"weight_decay": 0.05, "decoupled_lr": True})
    two = variant(plain, **options | {"weight_decay": 0.05 / 0.125})
    for step in range(1, 6):
        if step == 3:
            one.lr = two.lr = 0.02
        if step == 4:
            one.param_groups[0]["decoupled_lr"] = 0.5
            two.param_groups[0]["weight_decay"] = 0.05 / 0.5
        one.step(matrices(step))
        two.step(matrices(step))
    for got, want in zip(params, plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)


@each_backend
@pytest.mark.parametrize("variant", OTHERS, ids=str)
def test_decay_of_another_kind_is_refused(variant: Variant, backend: str) -> None:
    said = r"(is for weight decay .*(AdamW|_decay=True)|estimates as it goes; leave out)"
    with pytest.raises(ValueError, match=f"decoupled_lr {said}|decoupled_lr is a .*{said}"):
        variant(variant.one_parameter, lr=0.1, backend=backend, decoupled_lr=True)


@each_backend
def test_a_schedule_needs_a_number_and_goes_by_it(backend: str) -> None:
    rates = [0.1, 0.4, 0.2, 0.0]
    param = np.ones(3)
    schedule: Any = rates.__getitem__
    with pytest.raises(ValueError, match=r"largest value is not known .* as decoupled_lr=\.\.\."):
        fastopt.AdamW(param, lr=schedule, decoupled_lr=True)
    options: dict[str, Any] = {"weight_decay": 0.5, "decoupled_lr": 0.4, "backend": backend}
    opt = fastopt.Lion(param, lr=schedule, **options)
    share = 1.0
    for rate in rates:
        opt.step(np.zeros(3))
        share *= 1 - 0.5 * rate / 0.4
        np.testing.assert_allclose(param, share, rtol=1e-15)


@each_backend
def test_decay_with_a_schedule_of_its_own(backend: str) -> None:
    param = np.ones(2)
    options: dict[str, Any] = {"decoupled_lr": True, "backend": backend}
    opt = fastopt.AdamW(param, lr=0.01, weight_decay=lambda t: 0.5 / (1 + t), **options)
    for _ in range(2):
        opt.step(np.zeros(2))
    np.testing.assert_allclose(param, 0.5 * 0.75, rtol=1e-15)


@each_backend
def test_groups_have_each_its_own_and_lr_scale_is_no_part_of_it(backend: str) -> None:
    ones = [np.ones(2) for _ in range(5)]
    groups: list[dict[str, Any]] = [
        {"params": [ones[0]]},
        {"params": [ones[1]], "lr": 0.5},
        {"params": [ones[2]], "lr_scale": 0.5},
        {"params": [ones[3]], "decoupled_lr": 0.02},
        {"params": [ones[4]], "decoupled_lr": False, "lr": 0.5},
    ]
    opt = fastopt.AdamW(groups, lr=0.01, weight_decay=0.1, decoupled_lr=True, backend=backend)
    more = np.ones(2)
    opt.add_param_group({"params": [more], "lr": 0.25})
    assert [g["decoupled_lr"] for g in opt.param_groups] == [0.01, 0.5, 0.01, 0.02, None, 0.25]
    opt.step([[np.zeros(2)]] * 6)
    for one, share in zip([*ones, more], (0.1, 0.1, 0.05, 0.05, 0.05, 0.1), strict=True):
        np.testing.assert_allclose(one, 1 - share, rtol=1e-15)


@each_backend
def test_it_is_saved_loaded_copied_and_set(backend: str) -> None:
    options: dict[str, Any] = {"weight_decay": 0.1, "decoupled_lr": True, "backend": backend}
    param = np.ones(2)
    opt = fastopt.AdamW(param, lr=0.01, **options)
    opt.lr = 0.005
    saved = opt.state_dict()
    assert saved["groups"][0]["decoupled_lr"] == 0.01
    other = fastopt.AdamW(np.ones(2), lr=0.3, **options)
    other.load_state_dict(saved)
    for one in (opt, other, pickle.loads(pickle.dumps(opt))):
        one.step(np.zeros(2))
        np.testing.assert_allclose(one.params, 1 - 0.05, rtol=1e-15)
    opt.param_groups[0]["decoupled_lr"] = None
    opt.step(np.zeros(2))
    np.testing.assert_allclose(param, (1 - 0.05) * (1 - 0.1 * 0.005), rtol=1e-15)


@each_backend
def test_it_goes_with_cautious_decay_and_rates_of_elements(backend: str) -> None:
    param, grads = np.array([1.0, 1.0]), np.array([1.0, -1.0])
    options: dict[str, Any] = {"weight_decay": 0.5, "decoupled_lr": 0.25, "backend": backend}
    fastopt.Lion(param, lr=0.125, cautious_decay=True, **options).step(grads)
    np.testing.assert_array_equal(param, [1.0 - 0.125 - 0.25, 1.0 + 0.125])
    param = np.array([1.0, 1.0])
    fastopt.Lion(param, lr=0.125, lr_scale=np.array([1.0, 0.5]), **options).step(np.zeros(2))
    np.testing.assert_array_equal(param, [0.75, 0.875])


@each_backend
def test_members_have_each_its_own(backend: str) -> None:
    params, rates = np.ones((3, 2)), np.array([0.1, 0.2, 0.4])
    options: dict[str, Any] = {"weight_decay": 0.5, "decoupled_lr": True, "backend": backend}
    opt = fastopt.AdamW(params, lr=rates, members=3, **options)
    opt.step(np.zeros((3, 2)))
    np.testing.assert_allclose(params, 0.5, rtol=1e-15)
    opt.lr = 0.1
    opt.step(np.zeros((3, 2)))
    np.testing.assert_allclose(params[:, 0], 0.5 * (1 - 0.5 * 0.1 / rates), rtol=1e-15)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.0, "decoupled_lr": True}, "lr is 0.0; hand in the largest one"),
        ({"lr": "a", "decoupled_lr": True}, r"AdamW: lr must be a number in \[0, inf\); got 'a'"),
        ({"decoupled_lr": -1.0}, r"decoupled_lr, if it is not None, must be a number in \(0, inf"),
        ({"decoupled_lr": lambda t: 1.0}, "decoupled_lr, if it is not None, must be a number"),
    ],
)
def test_rates_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        fastopt.AdamW(np.ones(3), **options)


def test_muon_with_adamw_has_one_for_matrices_alone() -> None:
    with pytest.raises(ValueError, match=r"AdamW goes by adamw_lr here\. Make an optimizer for"):
        fastopt.MuonWithAdamW([np.ones((2, 2)), np.ones(2)], decoupled_lr=True)
    opt = fastopt.MuonWithAdamW([np.ones((2, 2))], lr=0.02, decoupled_lr=True)
    assert opt.param_groups[0]["decoupled_lr"] == 0.02


def test_a_decay_that_float32_does_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="lr \\* weight_decay comes to"):
        fastopt.AdamW(np.ones(3, np.float32), lr=1.0, weight_decay=1.0, decoupled_lr=1e-39)
