"""The outcome of a step: whether it was made, and the norm of its gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.variants import CPU_BACKENDS

GRAD, BAD = np.array([3.0, 4.0]), np.array([1.0, math.nan])

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


@each_backend
def test_where_nothing_can_skip_all_steps_have_one_outcome(backend: str) -> None:
    opt, other = (fastopt.SGD(np.zeros(2), backend=backend) for _ in range(2))
    outcome = opt.step(GRAD)
    assert outcome.made
    assert outcome.grad_norm is None
    assert opt.step(BAD) is outcome
    assert other.step(GRAD, grad_scale=0.5) is outcome


@each_backend
def test_it_says_whether_the_step_was_made_and_the_norm_before_clipping(backend: str) -> None:
    opt = fastopt.SGD(np.zeros(2), max_grad_norm=1.0, on_nonfinite="skip", backend=backend)
    made, skipped = opt.step(GRAD, grad_scale=2.0), opt.step(BAD)
    last = opt.step(GRAD)
    assert (made.made, skipped.made, last.made) == (True, False, True)
    assert [bool(made), bool(skipped)] == [True, False]
    assert made.grad_norm == pytest.approx(10.0, rel=1e-15)  # of its own step, not of the last one
    assert last.grad_norm == pytest.approx(5.0, rel=1e-15)
    assert last.grad_norm == opt.grad_norm
    assert skipped.grad_norm is not None
    assert math.isnan(skipped.grad_norm)
    assert repr(made) == "<Outcome: made, grad_norm=10>"
    assert repr(skipped) == "<Outcome: skipped, grad_norm=nan>"


def test_it_is_equal_to_a_bool_and_has_no_hash() -> None:
    opt = fastopt.SGD(np.zeros(2), on_nonfinite="skip")
    made, skipped = opt.step(GRAD), opt.step(BAD)
    assert (made, skipped) == (True, False)
    assert made != skipped
    assert made == opt.step(GRAD)
    assert made != 1.5
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)


@each_backend
def test_an_outcome_cannot_be_changed(backend: str) -> None:
    outcome: Any = fastopt.SGD(np.zeros(2), backend=backend).step(GRAD)
    for name in ("made", "grad_norm", "other"):
        with pytest.raises(AttributeError):
            setattr(outcome, name, False)


@each_backend
def test_wrappers_pass_it_on(backend: str) -> None:
    opt = fastopt.SGD(np.zeros(2), max_grad_norm=1.0, on_nonfinite="skip", backend=backend)
    look = fastopt.Lookahead(fastopt.Accumulator(opt, 2), 3)
    assert look.step(GRAD) is None
    outcome = look.step(GRAD)
    assert outcome is not None
    assert outcome.made
    assert outcome.grad_norm == pytest.approx(5.0, rel=1e-15)
    assert [look.step(BAD), look.step(BAD)] == [None, False]
    assert look.step(BAD) is None  # it is dropped
    assert look.step(GRAD)
    acc = fastopt.Accumulator(opt, 2)
    assert acc.flush() is None
    acc.step(GRAD)
    assert acc.flush() == True  # noqa: E712 - None is no outcome
