"""Options that act around any rule equal what was recorded of Adam with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastopt.optimizers.common import one_minus_power
from fastopt_kernels import adam
from fastopt_kernels.around import cautious, clip_each, clip_value, mask_zero
from fastopt_kernels.around.fragment import Fragment
from helpers.rule_forms import (
    FORMS,
    One,
    flat,
    fragment_of,
    kept,
    options_of,
    vectors_of,
    worst,
)
from helpers.vectors import Vector

FRAGMENTS = {"mask_zero": mask_zero.FRAGMENT, "cautious": cautious.FRAGMENT}
CLIPS = {"clip_value": clip_value.FRAGMENT, "clip_each": clip_each.FRAGMENT}
VECTORS = [vector for name in FRAGMENTS for vector in vectors_of(name)]
CLIPPED = [vector for name in CLIPS for vector in vectors_of(name)]
DEFAULTS = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
ADAMW = {"weight_decay": 1e-2}


def adam_step(p: Any, grad: Any, state: dict[str, Any], options: dict[str, Any], t: int) -> Any:
    """Return parameter and state after a step of Adam's own rule, as new arrays."""
    beta1, beta2 = options["betas"]
    c1, c2 = one_minus_power(beta1, t), one_minus_power(beta2, t)
    after = {slot: values.copy() for slot, values in {"p": p, **state}.items()}
    step_size = options["lr"] * math.sqrt(c2) / c1
    numbers = (1.0 - beta1, 1.0 - beta2, math.sqrt(c2) * options["eps"], step_size)
    adam.RULE.numpy(after["p"], grad, grad * grad, after["m"], after["v"], *numbers)
    return after


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_a_fragment_equals_the_oracle(vector: Vector, form: str) -> None:
    fragment = FRAGMENTS[vector.path.stem]
    decoupled = vector.info["optimizer"] == "AdamW"
    paths, ones = [], []
    for k, (p, grads) in enumerate(zip(*flat(vector), strict=True)):
        options = options_of(vector, k, DEFAULTS | (ADAMW if decoupled else {}))
        decay, path = options["weight_decay"], []
        state = {"m": np.zeros_like(p), "v": np.zeros_like(p)}
        for step in range(vector.info["steps"]):
            given = grads[step]
            grad = given if decoupled else given + decay * p
            decayed = p - options["lr"] * decay * p if decoupled else p
            after = adam_step(decayed, grad, state, options, step + 1)
            both = {"plain_grad": given, "grad": grad}
            values = both | {"before": p, "decayed": decayed, "after": after["p"]}
            p, numbers = kept(fragment, form, values, {})
            for slot, old in state.items():
                values = both | {"before": old, "decayed": old, "after": after[slot]}
                on = fragment.on == "all"
                state[slot] = fragment_of(fragment, form, values, numbers) if on else after[slot]
            path.append(p)
        paths.append(np.stack(path))
        ones.append(One(p, state, vector.info["steps"]))
    assert worst(vector, paths, ones) <= 1e-11


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_of_nan_is_not_0(form: str) -> None:
    values = {
        "plain_grad": np.array([0.0, -0.0, np.nan]),
        "before": np.array([1.0, 2.0, 3.0]),
        "after": np.array([4.0, 5.0, np.nan]),
    }
    got, _ = kept(mask_zero.FRAGMENT, form, values, {})
    np.testing.assert_array_equal(got, [1.0, 2.0, np.nan])


@pytest.mark.parametrize("form", FORMS)
def test_where_nothing_agrees_nothing_moves(form: str) -> None:
    values = {
        "grad": np.array([1.0, -1.0, 0.0, np.nan]),
        "decayed": np.array([1.0, 1.0, 1.0, 1.0]),
        "after": np.array([2.0, 0.0, 0.0, 0.0]),
    }
    got, numbers = kept(cautious.FRAGMENT, form, values, {})
    np.testing.assert_array_equal(got, values["decayed"])
    assert numbers == {"scale": 1.0 / 1e-3}


@pytest.mark.parametrize("form", FORMS)
def test_a_product_that_would_underflow_agrees(form: str) -> None:
    values = {
        "grad": np.array([1e-200, 1.0]),
        "decayed": np.array([1e-200, 1.0]),
        "after": np.array([0.0, 2.0]),
    }
    got, numbers = kept(cautious.FRAGMENT, form, values, {})
    assert numbers == {"scale": 2.0}
    np.testing.assert_array_equal(got, [-1e-200, 1.0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "vector", [v for v in CLIPPED if v.info["optimizer"].startswith("Adam")], ids=str
)
def test_gradients_are_clipped_as_by_the_oracle(vector: Vector, form: str) -> None:
    decoupled = vector.info["optimizer"] == "AdamW"
    paths, ones = [], []
    for k, (p, grads) in enumerate(zip(*flat(vector), strict=True)):
        options = options_of(vector, k, DEFAULTS | (ADAMW if decoupled else {}))
        decay, path = options["weight_decay"], []
        state = {"m": np.zeros_like(p), "v": np.zeros_like(p)}
        for step in range(vector.info["steps"]):
            grad = grads[step]
            for name, fragment in CLIPS.items():
                if name in options:
                    values = {"plain_grad": grads[step], "grad": grad}
                    grad, _ = kept(fragment, form, values, {name: options[name]})
            decayed = p - options["lr"] * decay * p if decoupled else p
            grad = grad if decoupled else grad + decay * p
            after = adam_step(decayed, grad, state, options, step + 1)
            p, state = after["p"], {slot: after[slot] for slot in state}
            path.append(p)
        paths.append(np.stack(path))
        ones.append(One(p, state, vector.info["steps"]))
    assert worst(vector, paths, ones) <= 1e-11


def wrong(**changes: Any) -> Fragment:
    right = {
        "name": "keep",
        "at": "after",
        "numpy": lambda before, after: after,
        "numba": lambda before, after: after,
        "cupy": "kept = after; (void)before;",
    }
    return Fragment(**{**right, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Keep"},
        {"at": "before"},
        {"on": "state"},
        {"numba": None},
        {"numba": lambda after, before: after},
        {"numpy": lambda after, before: after, "numba": lambda after, before: after},
        {"numpy": lambda nonsense: nonsense, "numba": lambda nonsense: nonsense},
        {"at": "gradient"},  # before and after are not there yet
        {"cupy": "kept = before;"},
        {"cupy": "after = before;"},
        {"cupy": "kept = 2.0 * after + before;"},
        {"scalars": ("rate",)},
        {"sums": cautious.FRAGMENT.sums},
    ],
)
def test_a_fragment_whose_forms_disagree_is_refused(changes: dict[str, Any]) -> None:
    assert wrong().values == ("before", "after")
    with pytest.raises(TypeError):
        wrong(**changes)
