"""cautious_decay: decoupled weight decay acts where the update goes towards 0 too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt_kernels.around import cautious_decay
from helpers.bits import differences
from helpers.clipping import drawn, run
from helpers.rule_forms import FORMS, kept
from helpers.variants import CPU_BACKENDS, OF_MATRICES, VARIANTS, Variant

FRAGMENT = cautious_decay.FRAGMENT
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
EVERY = [*VARIANTS, *OF_MATRICES]


def decoupled(variant: Variant) -> bool:
    """Return whether decay acts on the parameter itself, before the rule."""
    group = variant(variant.one_parameter).param_groups[0]
    return variant.optimizer._decay(group) == "parameter"


DECOUPLED = [v for v in EVERY if decoupled(v) and not v.options.keys() & {"cautious", "l1"}]
OTHERS = [v for v in EVERY if not decoupled(v)]
SHAPES = ((4, 3), (3, 4))


def matrices(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in SHAPES]


def expected_of(variant: Variant, backend: str, decay: float, steps: int) -> list[Array]:
    """Return parameters whose decay is added by hand, to the steps of one that has none."""
    params, options = matrices(0), {"weight_decay": 0.0, "lr": 0.125, "backend": backend}
    opt = variant(params, **options | {"cautious_decay": False})
    for step in range(1, steps + 1):
        before = [p.copy() for p in params]
        opt.step(matrices(step))
        for p, old in zip(params, before, strict=True):
            p -= np.where((old - p) * old >= 0, 0.125 * decay * old, 0.0)
    return params


@each_backend
@pytest.mark.parametrize("variant", DECOUPLED, ids=str)
def test_it_is_decay_where_the_update_agrees(variant: Variant, backend: str) -> None:
    params, options = matrices(0), {"weight_decay": 0.5, "lr": 0.125, "backend": backend}
    opt = variant(params, **options | {"cautious_decay": True})
    for step in range(1, 5):
        opt.step(matrices(step))
    for one, other in zip(params, expected_of(variant, backend, 0.5, 4), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


@each_backend
@pytest.mark.parametrize("variant", OTHERS, ids=str)
def test_decay_that_is_a_part_of_the_update_is_refused(variant: Variant, backend: str) -> None:
    with pytest.raises(
        ValueError, match=r"cautious_decay is for weight decay .*(AdamW|_decay=True)"
    ):
        variant(variant.one_parameter, backend=backend, cautious_decay=True)


@each_backend
def test_some_decay_and_some_do_not(backend: str) -> None:
    """At 0 the step and the sign of the parameter are that of a product that is not negative."""
    param = np.array([1.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    grads = np.array([1.0, -1.0, 0.0, -1.0, 1.0, 1.0])
    options: dict[str, Any] = {"weight_decay": 0.5, "cautious_decay": True, "backend": backend}
    fastopt.Lion(param, lr=0.25, **options).step(grads)
    np.testing.assert_array_equal(param, [0.625, 1.25, 0.875, -0.625, -1.25, -0.25])


@each_backend
def test_beside_cautious_it_looks_at_what_that_lets_through(backend: str) -> None:
    """The second element's momentum is against its gradient: it stays, and so it decays."""
    param, grads = np.array([-1.0, -1.0]), ([1.0, 1.0], [1.0, -0.01])
    options: dict[str, Any] = {"weight_decay": 0.5, "cautious_decay": True, "cautious": True}
    opt = fastopt.Lion(param, lr=0.25, backend=backend, **options)
    for grad in grads:
        opt.step(np.array(grad))
    np.testing.assert_array_equal(param, [-1.25 - 0.5, -1.25 + 0.125 * 1.25])


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_without_decay_it_changes_no_bit(dtype: Any, backend: str) -> None:
    grads: list[list[Any]] = [drawn(seed, dtype) for seed in range(1, 5)]
    options = {"lr": 0.75, "weight_decay": 0.0, "backend": backend}
    plain = run(fastopt.AdamW, drawn(0, dtype), grads, **options)
    other = run(fastopt.AdamW, drawn(0, dtype), grads, cautious_decay=True, **options)
    assert differences(plain, other) == {}


@pytest.mark.parametrize("form", FORMS)
def test_products_that_would_underflow_and_nan(form: str) -> None:
    values = {
        "before": np.array([1e-200, -1e-200, 1e-200, np.nan, 1.0]),
        "decayed": np.array([5e-201, -5e-201, 5e-201, np.nan, 0.5]),
        "after": np.array([4e-201, -6e-201, 6e-201, np.nan, np.nan]),
    }
    got, _ = kept(FRAGMENT, form, values, {})
    expected = [4e-201, -1.1e-200, 1.1e-200, np.nan, np.nan]
    np.testing.assert_allclose(got, expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("form", FORMS)
def test_where_nothing_has_decayed_nothing_is_rounded(form: str) -> None:
    """What is added and taken off again is not always what there was."""
    before, after = np.array([2.0**-53]), np.array([1.0 + 2.0**-52])
    assert before + (after - before) != after
    values = {"before": before, "decayed": before.copy(), "after": after}
    got, _ = kept(FRAGMENT, form, values, {})
    np.testing.assert_array_equal(got, after)


@each_backend
def test_it_differs_between_groups_and_cannot_change(backend: str) -> None:
    params = [np.array([1.0]), np.array([1.0])]
    groups = [{"params": [params[0]], "cautious_decay": True}, {"params": [params[1]]}]
    opt = fastopt.Lion(groups, lr=0.25, weight_decay=0.5, backend=backend)
    opt.step([[np.array([-1.0])], [np.array([-1.0])]])
    assert [p.item() for p in params] == [1.25, 1.125]
    with pytest.raises(ValueError, match="cautious_decay is False in this optimizer"):
        opt.param_groups[1]["cautious_decay"] = True


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (fastopt.Momentum, "is added to the gradient. .* such as AdamW"),
        (fastopt.Adam, "is added to the gradient. .* set decoupled_weight_decay=True"),
        (fastopt.AdamP, "is worked out together with the update.* such as AdamW"),
        (fastopt.SGDP, "is worked out together with the update.* such as AdamW"),
        (fastopt.Adafactor, "is worked out together with the update.* such as AdamW"),
    ],
)
def test_a_refusal_says_what_decay_there_is(optimizer: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"that of {optimizer.__name__} {reason}"):
        optimizer([np.ones((2, 2))], cautious_decay=True)
