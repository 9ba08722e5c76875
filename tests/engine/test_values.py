"""A step is a chain of values: what an engine keeps can be dropped at any moment."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.optimizers.base import Optimizer
from helpers.variants import CPU_BACKENDS

MAKES: dict[str, Callable[..., Optimizer]] = {
    "adam": lambda params, **o: fastopt.Adam(params, lr=0.05, **o),
    "rmsprop": lambda params, **o: fastopt.RMSprop(params, lr=0.05, momentum=0.5, **o),
    "lamb": lambda params, **o: fastopt.LAMB(params, lr=0.05, cautious=True, **o),
    "prodigy": lambda params, **o: fastopt.Prodigy(params, mask_zero=True, **o),
}
EVENTS: dict[str, Callable[[Optimizer], object]] = {
    "nothing": lambda opt: None,
    "a rate": lambda opt: setattr(opt, "lr", 0.03),
    "a schedule": lambda opt: setattr(opt, "lr", lambda t: 0.1 / (1 + t)),
    "a scale": lambda opt: opt.param_groups[1].update(lr_scale=0.3),
    "a scale by function": lambda opt: opt.param_groups[0].update(lr_scale=lambda t: 1.0 / (1 + t)),
    "a limit": lambda opt: setattr(opt, "max_grad_norm", 0.5),
    "no limit": lambda opt: setattr(opt, "max_grad_norm", None),
    "skip": lambda opt: setattr(opt, "on_nonfinite", "skip"),
    "propagate": lambda opt: setattr(opt, "on_nonfinite", "propagate"),
    "load": lambda opt: opt.load_state_dict(opt.state_dict()),
    "freeze": lambda opt: opt.param_groups[1].update(trainable=False),
    "train": lambda opt: opt.param_groups[1].update(trainable=True),
    "warm up": lambda opt: opt.warmup(),
}
SHAPES = (((5,), (70, 3)), ((4, 6), (4099,)))
histories = st.lists(
    st.tuples(
        st.sampled_from(sorted(EVENTS)),
        st.sampled_from([None, 0, 1, 2, 3]),  # the gradient that is missing
        st.booleans(),  # whether one is not finite
        st.sampled_from([1.0, 0.5, 2.0]),
    ),
    min_size=1,
    max_size=12,
)


def run(
    make: Callable[..., Optimizer], history: Any, backend: str, dtype: Any, drops: bool
) -> list[Any]:
    rng = np.random.default_rng(5)
    trees = [[rng.standard_normal(shape).astype(dtype) for shape in group] for group in SHAPES]
    trees[1][0] = np.asfortranarray(trees[1][0])
    opt = make([{"params": tree} for tree in trees], backend=backend)
    for event, missing, bad, scale in history:
        if drops:
            opt._engine.invalidate()
        EVENTS[event](opt)
        grads = [[rng.standard_normal(p.shape).astype(dtype) for p in tree] for tree in trees]
        if bad and opt.on_nonfinite == "skip":
            grads[0][1][3, 1] = np.nan
        flat: list[Any] = [grad for group in grads for grad in group]
        if missing is not None:
            flat[missing] = None
        if drops:
            opt._engine.invalidate()
        opt.step([flat[:2], flat[2:]], grad_scale=scale)
    saved = opt.state_dict()
    state = [np.asarray(v).tobytes() for e in saved["state"].values() for v in e.values()]
    counts = [opt.step_count, opt.skipped_steps, repr(opt.grad_norm), repr(saved.get("memory"))]
    return [*(p.tobytes() for tree in trees for p in tree), *state, *counts]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@settings(max_examples=40)
@given(history=histories)
def test_dropping_all_caches_changes_no_bit(
    make: Callable[..., Optimizer], backend: str, dtype: Any, history: Any
) -> None:
    kept = run(make, history, backend, dtype, drops=False)
    assert run(make, history, backend, dtype, drops=True) == kept


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_bucket_can_be_pickled(make: Callable[..., Optimizer], backend: str) -> None:
    rng = np.random.default_rng(6)
    params = [rng.standard_normal((5, 4)), rng.standard_normal((6, 5))[::2], np.ones(3)]
    opt = make(params, backend=backend)
    for _ in range(3):
        opt.step([rng.standard_normal(p.shape) for p in params])
    for bucket in opt._state.buckets:
        copy = pickle.loads(pickle.dumps(bucket))
        assert (copy.rule, copy.spec, copy.group) == (bucket.rule, bucket.spec, bucket.group)
        assert copy.positions == bucket.positions
        np.testing.assert_array_equal(copy.steps, bucket.steps)
        np.testing.assert_array_equal(copy.memory, bucket.memory)
        pairs = zip(copy.state(), bucket.state(), strict=True)
        for (leaf, step, slots), (own, own_step, own_slots) in pairs:
            assert (leaf.name, step, slots.keys()) == (own.name, own_step, own_slots.keys())
            assert not np.shares_memory(leaf.array, own.array)
            np.testing.assert_array_equal(leaf.array, own.array)
            for slot, values in own_slots.items():
                np.testing.assert_array_equal(slots[slot], values)
        for parameter in copy.parameters:
            assert parameter.copied or np.shares_memory(parameter.flat, parameter.leaf.array)
