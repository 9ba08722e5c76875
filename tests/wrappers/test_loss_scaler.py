"""LossScaler: PyTorch's policy, with limits: a scale that cannot vanish, an end to skipping."""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from helpers.around import cases, vectors
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

RECORDED, CASES = vectors("loss_scaler"), cases("loss_scaler")
FAR = {"min_scale": 2.0**-100, "max_scale": 2.0**100}
"""PyTorch has no limits, so the vectors are met with limits that are never reached."""
BAD = np.array([1.0, math.inf])

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def iterate(scaler: fastopt.LossScaler, opt: Any, grads: Any) -> Any:
    """Make a step of one optimizer and let the scale follow; return the outcome."""
    outcome = scaler.step(opt, grads)
    scaler.update()
    return outcome


fixed = settings(max_examples=100)


@each_backend
@pytest.mark.parametrize("number", range(len(CASES)))
def test_scale_and_steps_are_those_of_pytorch(number: int, backend: str) -> None:
    scaler = fastopt.LossScaler(**CASES[number], **FAR)
    param = np.ones(4)
    opt = fastopt.SGD(param, lr=0.125, momentum=0.5, backend=backend)
    grads, bad = RECORDED[f"{number}/g"], RECORDED[f"{number}/bad"]
    for t, (grad, poisoned) in enumerate(zip(grads, bad, strict=True)):
        scaled = grad * scaler.scale
        if poisoned:
            scaled[1] = math.nan if grad[0] > 0 else math.inf
        assert iterate(scaler, opt, scaled) == (not poisoned)
        # PyTorch keeps the scale in float32.
        assert scaler.scale == pytest.approx(RECORDED[f"{number}/scale"][t], rel=1e-5)
        assert scaler.state_dict()["good_steps"] == RECORDED[f"{number}/tracker"][t]
        np.testing.assert_allclose(param, RECORDED[f"{number}/p"][t], rtol=1e-5)
    assert opt.skipped_steps == bad.sum()
    assert opt.step_count == (~bad).sum()


@each_backend
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_scaled_step_is_the_step_and_clipping_sees_unscaled_gradients(
    variant: Variant, backend: str
) -> None:
    one, two = np.ones(50, np.float32), np.ones(50, np.float32)
    opt = variant(one, backend=backend, max_grad_norm=1.5)
    plain = variant(two, backend=backend, max_grad_norm=1.5)
    scaler = fastopt.LossScaler()
    rng = np.random.default_rng(0)
    for step in range(6):
        grad = rng.standard_normal(50).astype(np.float32)
        poisoned = step in (1, 4)
        scaled = grad * np.float32(scaler.scale)
        if poisoned:
            scaled[7] = math.inf
        takes = variant.optimizer._takes_value
        loss = {"value": 2.0} if takes else {}
        scaler.step(opt, scaled, **({"value": scaler.multiply(2.0)} if takes else {}))
        scaler.update()
        if not poisoned:
            plain.step(grad, **loss)
            assert opt.grad_norm == pytest.approx(float(np.linalg.norm(grad)), rel=1e-6)
        assert one.tobytes() == two.tobytes()
    assert scaler.scale == 65536.0 / 4


def test_gradients_that_underflow_in_float16_survive() -> None:
    small, lost, kept = 1e-9, np.zeros(2, np.float32), np.zeros(2, np.float32)
    fastopt.SGD(lost, lr=1.0).step(np.full(2, small, np.float16))
    scaler = fastopt.LossScaler()
    iterate(scaler, fastopt.SGD(kept, lr=1.0), np.full(2, small * scaler.scale, np.float16))
    assert not lost.any()
    np.testing.assert_allclose(kept, -small, rtol=1e-3)


@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
def test_the_optimizers_policy_and_schedule_wait(policy: Any) -> None:
    param = np.ones(2)
    opt = fastopt.SGD(param, lr=lambda t: 0.5**t, on_nonfinite=policy)
    scaler = fastopt.LossScaler()
    assert not iterate(scaler, opt, BAD)
    assert (opt.lr, opt.step_count, opt.skipped_steps) == (1.0, 0, 1)
    assert opt.on_nonfinite == policy
    assert param.tolist() == [1.0, 1.0]


# The limits --------------------------------------------------------------------------------------


def test_the_scale_does_not_grow_beyond_its_limit() -> None:
    scaler = fastopt.LossScaler(2.0**22, growth_factor=3.0, growth_interval=1)
    opt = fastopt.SGD(np.ones(2), lr=0.0)
    seen = []
    for _ in range(4):
        iterate(scaler, opt, np.ones(2))
        seen.append(scaler.scale)
    assert seen == [3 * 2.0**22, 2.0**24, 2.0**24, 2.0**24]


def test_skipping_at_the_smallest_scale_ends_in_an_error() -> None:
    scaler = fastopt.LossScaler(1.0, min_scale=0.25, max_skips=3)
    param = np.ones(2)
    opt = fastopt.SGD(param, lr=0.0)
    for expected in (0.5, 0.25, 0.25, 0.25):
        assert not iterate(scaler, opt, BAD)
        assert scaler.scale == expected
    assert iterate(scaler, opt, np.ones(2))  # which makes it count anew
    for _ in range(2):
        assert not iterate(scaler, opt, BAD)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="steps in a row were skipped at the smallest"):
            iterate(scaler, opt, BAD)
    assert iterate(scaler, opt, np.ones(2))
    assert param.tolist() == [1.0, 1.0]
    assert (opt.step_count, opt.skipped_steps) == (2, 8)


def test_by_default_the_scale_ends_below_1_and_skipping_after_some_time() -> None:
    scaler, opt = fastopt.LossScaler(), fastopt.SGD(np.ones(2))
    for _ in range(30 + 9):
        assert not iterate(scaler, opt, BAD)
    with pytest.raises(FloatingPointError, match="10 steps in a row"):
        iterate(scaler, opt, BAD)
    assert scaler.scale == 2.0**-14
    assert opt.skipped_steps == 30 + 10


@fixed
@given(
    st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.floats(1.1, 8), st.floats(0.1, 0.9)
)
def test_the_scale_stays_within_its_limits_whatever_happens(
    bad: list[bool], interval: int, growth: float, backoff: float
) -> None:
    scaler = fastopt.LossScaler(
        1.0, growth, backoff, interval, min_scale=0.01, max_scale=50.0, max_skips=100
    )
    opt = fastopt.SGD(np.ones(2), lr=0.0)
    good = 0
    for poisoned in bad:
        before = scaler.scale
        iterate(scaler, opt, BAD if poisoned else np.ones(2))
        good = 0 if poisoned else good + 1
        if poisoned:
            expected = max(before * backoff, 0.01)
        elif good == interval:
            expected, good = min(before * growth, 50.0), 0
        else:
            expected = before
        assert scaler.scale == expected
    assert opt.skipped_steps == sum(bad)


# With wrappers -----------------------------------------------------------------------------------


def test_with_an_accumulator_only_steps_of_the_optimizer_count() -> None:
    param = np.zeros(2)
    acc = fastopt.Accumulator(fastopt.SGD(param, lr=1.0), 2)
    scaler = fastopt.LossScaler(8.0, growth_interval=2)
    bad = (False, False, True, False, False, False, False, False)
    made = [iterate(scaler, acc, BAD if now else np.full(2, scaler.scale)) for now in bad]
    assert made == [None, True, None, False, None, True, None, True]
    assert param.tolist() == [-3.0, -3.0]  # each micro-batch divided by the scale it was made with
    assert scaler.scale == 8.0  # halved once, doubled once
    assert (acc.skipped_steps, acc.step_count) == (1, 3)


def test_with_a_lookahead_a_skipped_step_does_not_count() -> None:
    param = np.zeros(2)
    look = fastopt.Lookahead(fastopt.SGD(param, lr=1.0), 2, 0.5)
    scaler = fastopt.LossScaler(1.0)
    for bad in (False, True, False):
        iterate(scaler, look, BAD if bad else np.full(2, scaler.scale))
    assert param.tolist() == [-1.0, -1.0]


# What is refused ---------------------------------------------------------------------------------


def test_a_step_that_raises_leaves_the_scale() -> None:
    opt = fastopt.SGD(np.ones(2))
    scaler = fastopt.LossScaler(growth_interval=1)
    with pytest.raises(ValueError, match="must have the shape"):
        scaler.step(opt, np.ones(3))
    with pytest.raises(TypeError, match=r"LossScaler.step takes an optimizer; got ndarray"):
        scaler.step(np.ones(2), opt)  # type: ignore[arg-type]
    assert (scaler.scale, opt.skipped_steps) == (65536.0, 0)
    assert "scale 65536" in repr(scaler)


@pytest.mark.parametrize(
    ("options", "kind", "name"),
    [
        ({"init_scale": 0.0}, ValueError, "init_scale"),
        ({"init_scale": -1.0}, ValueError, "init_scale"),
        ({"init_scale": math.inf}, ValueError, "init_scale"),
        ({"init_scale": 2.0**25}, ValueError, "init_scale"),
        ({"init_scale": 2.0**-15}, ValueError, "init_scale"),
        ({"init_scale": "x"}, TypeError, "init_scale"),
        ({"growth_factor": 1.0}, ValueError, "growth_factor"),
        ({"growth_factor": math.nan}, ValueError, "growth_factor"),
        ({"backoff_factor": 1.0}, ValueError, "backoff_factor"),
        ({"backoff_factor": 0.0}, ValueError, "backoff_factor"),
        ({"growth_interval": 0}, ValueError, "growth_interval"),
        ({"growth_interval": 1.5}, TypeError, "growth_interval"),
        ({"min_scale": 0.0}, ValueError, "min_scale"),
        ({"max_scale": 2.0**-20}, ValueError, "max_scale"),
        ({"max_scale": math.inf}, ValueError, "max_scale"),
        ({"max_skips": 0}, ValueError, "max_skips"),
        ({"max_skips": True}, TypeError, "max_skips"),
    ],
)
def test_bad_arguments_are_refused(options: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=f"LossScaler: {name} must be"):
        fastopt.LossScaler(**options)


# Several optimizers, one scaler -------------------------------------------------------------------


def test_the_scale_changes_once_per_iteration() -> None:
    """With a scale that grew between the two steps the second buffer would be 0.5."""
    params = [np.zeros(2), np.zeros(2)]
    opts = [fastopt.SGD(param, lr=1.0) for param in params]
    scaler = fastopt.LossScaler(8.0, growth_interval=1)
    for opt in opts:
        assert scaler.step(opt, np.full(2, 8.0))
    assert scaler.scale == 8.0
    scaler.update()
    assert scaler.scale == 16.0
    assert [param.tolist() for param in params] == [[-1.0, -1.0]] * 2


def test_one_skipped_step_of_several_lets_the_scale_fall_once() -> None:
    opts = [fastopt.SGD(np.zeros(2)) for _ in range(3)]
    scaler = fastopt.LossScaler(8.0, growth_interval=1)
    made = [
        bool(scaler.step(opt, grads))
        for opt, grads in zip(opts, (BAD, np.ones(2), BAD), strict=True)
    ]
    scaler.update()
    assert (made, scaler.scale) == ([False, True, False], 4.0)
    scaler.update()  # without a step nothing happens
    assert scaler.scale == 4.0


def test_an_optimizer_steps_once_between_two_updates() -> None:
    opt, other = fastopt.SGD(np.zeros(2)), fastopt.SGD(np.zeros(2))
    scaler = fastopt.LossScaler()
    scaler.step(opt, np.ones(2))
    with pytest.raises(RuntimeError, match=r"stepped already.*scaler.update\(\)"):
        scaler.step(opt, np.ones(2))
    scaler.step(other, np.ones(2))
    scaler.update()
    scaler.step(opt, np.ones(2))
    assert (opt.step_count, other.step_count) == (2, 1)


def test_an_optimizer_that_is_gone_is_not_taken_for_a_new_one_in_its_memory() -> None:
    scaler = fastopt.LossScaler()
    gc.freeze()  # so that little is gone through
    for _ in range(50):
        assert scaler.step(fastopt.SGD(np.zeros(2)), np.ones(2))
        gc.collect()
    gc.unfreeze()


def test_an_accumulator_that_has_stepped_waits_for_the_update() -> None:
    """A micro-batch before it would be added with a scale that is about to change."""
    acc = fastopt.Accumulator(fastopt.SGD(np.zeros(2)), 2)
    scaler = fastopt.LossScaler(8.0)
    assert [scaler.step(acc, np.ones(2)), scaler.step(acc, BAD)] == [None, False]
    for opt in (acc, acc.innermost):
        with pytest.raises(RuntimeError, match="once per iteration"):
            scaler.step(opt, np.ones(2))
    assert (acc.count, acc.skipped_steps, acc.step_count) == (0, 1, 0)
    scaler.update()
    scaler.update()
    assert scaler.scale == 4.0
    scaler.step(acc, np.ones(2))
    scaler.update()  # nothing has stepped
    assert scaler.state_dict()["good_steps"] == 0
    assert scaler.step(acc, np.ones(2))
    scaler.update()
    assert scaler.state_dict()["good_steps"] == 1


def test_the_scale_falls_if_any_optimizer_of_the_iteration_skipped_and_stays_until_then() -> None:
    params = [np.zeros(2), np.zeros(2)]
    scaler = fastopt.LossScaler(8.0)
    assert not scaler.step(fastopt.SGD(params[0], lr=1.0), BAD)
    assert scaler.step(fastopt.SGD(params[1], lr=1.0), np.full(2, 8.0))
    assert [param.tolist() for param in params] == [[0.0, 0.0], [-1.0, -1.0]]
    assert scaler.scale == 8.0
    scaler.update()
    assert scaler.scale == 4.0


def test_loading_begins_a_new_iteration() -> None:
    opt, scaler = fastopt.SGD(np.zeros(2)), fastopt.LossScaler(8.0)
    saved = scaler.state_dict()
    scaler.step(opt, BAD)
    scaler.load_state_dict(saved)
    scaler.update()
    assert scaler.scale == 8.0
    assert scaler.step(opt, np.ones(2))


@each_backend
def test_both_optimizers_of_a_backward_pass_divide_by_its_scale(backend: str) -> None:
    """With a scale that grew in between the second m would be 0.05 g."""
    params = [np.zeros(2, np.float32), np.zeros(3, np.float32)]
    opts = [fastopt.Adam(param, backend=backend) for param in params]
    scaler = fastopt.LossScaler(8.0, growth_interval=1)
    for iteration, grown in enumerate((16.0, 32.0, 64.0)):
        scale = scaler.scale
        for opt, param in zip(opts, params, strict=True):
            assert scaler.step(opt, np.full(param.shape, scale, np.float32))
            assert scaler.scale == scale
        scaler.update()
        assert scaler.scale == grown
        m = 1 - 0.9 ** (iteration + 1)
        for opt, param in zip(opts, params, strict=True):
            found = opt.state_dict()["state"]["params"]["m"]
            np.testing.assert_allclose(found, np.full(param.shape, m), rtol=1e-6)


@each_backend
@pytest.mark.parametrize("first", [True, False])
def test_a_skipped_and_a_made_step_in_one_iteration(first: bool, backend: str) -> None:
    params = [np.zeros(2), np.zeros(2)]
    opts = [fastopt.SGD(param, lr=1.0, backend=backend) for param in params]
    scaler = fastopt.LossScaler(8.0, growth_interval=2)
    for opt in opts:
        assert scaler.step(opt, np.full(2, 8.0))
    scaler.update()
    assert scaler.state_dict()["good_steps"] == 1
    grads = [BAD, np.full(2, 8.0)] if first else [np.full(2, 8.0), BAD]
    made = [bool(scaler.step(opt, grad)) for opt, grad in zip(opts, grads, strict=True)]
    assert made == [not first, first]
    assert scaler.scale == 8.0
    scaler.update()
    assert (scaler.scale, scaler.state_dict()["good_steps"]) == (4.0, 0)
    assert [opt.skipped_steps for opt in opts] == [int(first), int(not first)]
    for opt in opts:
        assert scaler.step(opt, np.full(2, 4.0))
    scaler.update()
    assert [param[0] for param in params] == ([-2.0, -3.0] if first else [-3.0, -2.0])
    assert (scaler.scale, scaler.state_dict()["good_steps"]) == (4.0, 1)


@each_backend
def test_several_accumulators_share_a_scale_over_their_micro_batches(backend: str) -> None:
    """A scale that grew after the first one's step would halve the second one's gradients."""
    params = [np.zeros(2), np.zeros(2)]
    accs = [fastopt.Accumulator(fastopt.SGD(p, lr=1.0, backend=backend), 2) for p in params]
    scaler = fastopt.LossScaler(8.0, growth_interval=1)
    scales = []
    for batch in range(6):
        scale = scaler.scale
        scales.append(scale)
        for number, acc in enumerate(accs):
            bad = (batch, number) == (2, 0)  # in the first micro-batch of the second step
            outcome = scaler.step(acc, np.full(2, math.inf if bad else scale))
            assert (outcome is None) == (batch % 2 == 0)
        scaler.update()
    assert scales == [8.0, 8.0, 16.0, 16.0, 8.0, 8.0]
    assert scaler.scale == 16.0
    assert [param[0] for param in params] == [-2.0, -3.0]
    assert [acc.skipped_steps for acc in accs] == [1, 0]


@each_backend
def test_an_accumulator_beside_an_optimizer_that_steps_every_time(backend: str) -> None:
    """The scale may change between its micro-batches: each is divided by its own."""
    one, two = np.zeros(2), np.zeros(2)
    plain = fastopt.SGD(one, lr=1.0, backend=backend)
    acc = fastopt.Accumulator(fastopt.SGD(two, lr=1.0, backend=backend), 2)
    scaler = fastopt.LossScaler(8.0, growth_interval=1)
    for scale in (8.0, 16.0, 32.0, 64.0):
        assert scaler.scale == scale
        for opt in (plain, acc):
            scaler.step(opt, np.full(2, scale))
        with pytest.raises(RuntimeError, match=r"stepped already.*scaler.update\(\)"):
            scaler.step(plain, np.full(2, scale))
        scaler.update()
    assert (one[0], two[0]) == (-4.0, -2.0)
    assert (plain.step_count, acc.step_count) == (4, 2)
