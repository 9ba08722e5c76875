"""Lookahead: optax's fast and slow weights, with any optimizer inside."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from helpers.around import cases, copied, leaves, make_grads, make_params, same, vectors
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

RECORDED, CASES = vectors("lookahead"), cases("lookahead")
INNER: dict[str, Any] = {
    "sgd": lambda params, backend: fastopt.SGD(params, lr=0.1, backend=backend),
    "sgd_momentum": lambda params, backend: fastopt.SGD(
        params, lr=0.05, momentum=0.9, backend=backend
    ),
    "adam": lambda params, backend: fastopt.Adam(params, lr=0.01, backend=backend),
}
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_fast_and_slow_weights_are_those_of_optax(number: int, dtype: str, backend: str) -> None:
    case = CASES[number]
    params = [RECORDED[f"p{k}"].astype(dtype) for k in range(3)]
    grads = [RECORDED[f"g{k}"].astype(dtype) for k in range(3)]
    look = fastopt.Lookahead(INNER[case["inner"]](params, backend), case["k"], case["alpha"])
    for t in range(len(grads[0])):
        look.step([np.asarray(g[t]) for g in grads])
        near = 1e-12 if dtype == "float64" else 4 * (t + 1) * 2.0**-23
        for k in range(3):
            for got, name in ((params[k], "fast"), (look.slow[k], "slow")):
                expected = RECORDED[f"{number}/{name}{k}"][t]
                np.testing.assert_allclose(got, expected, rtol=near, atol=near)


@each_backend
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_it_is_the_formula_around_any_optimizer(variant: Variant, backend: str) -> None:
    params = make_params(np.float32)
    fast, slow = copied(params), copied(params)
    look = fastopt.Lookahead(variant(params, backend=backend), k=3, alpha=0.25)
    plain = variant(fast, backend=backend)
    for step in range(7):
        grads = make_grads(fast, step)
        look.step(grads, grad_scale=0.5)
        plain.step(grads, grad_scale=0.5)
        if step % 3 == 2:
            for p, s in zip(leaves(fast), leaves(slow), strict=True):
                s += np.float32(0.25) * (p - s)
                p[...] = s
        assert same(params, fast)
        assert same(look.slow, slow)
    assert look.step_count == plain.step_count == 7


@each_backend
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_slow_weights_of_half_precision_are_float32(dtype: Any, backend: str) -> None:
    """Moves of a thousandth: rounded to half precision, the slow weights would stand still."""
    param = np.full(3, 1.0, dtype)
    opt = fastopt.SGD(param, lr=1.0, backend=backend, master_weights=False)
    look = fastopt.Lookahead(opt, 1, 2.0**-10)
    for _ in range(512):
        look.step(np.full(3, 1.0, dtype))  # to 0, and a thousandth of the way there
    assert look.slow.dtype == np.float32
    assert param.dtype == dtype
    assert look.slow[0] == pytest.approx(0.5, abs=0.01)


def test_alpha_1_changes_nothing() -> None:
    params, others = make_params(), make_params()
    look, plain = fastopt.Lookahead(fastopt.Adam(params), 2, 1.0), fastopt.Adam(others)
    for step in range(6):
        look.step(make_grads(params, step))
        plain.step(make_grads(params, step))
    assert same(params, others)


def test_what_the_optimizer_says_and_takes_is_passed_on() -> None:
    opt = fastopt.SGD([{"params": np.ones(2)}, {"params": np.ones(3), "lr": 0.5}], lr=0.25)
    look = fastopt.Lookahead(opt)
    assert look.opt is opt
    assert look.lr == 0.25
    look.lr = 0.125
    assert opt.lr == 0.125
    assert look.param_groups[1]["lr"] == 0.125
    look.param_groups[1]["lr"] = 0.5
    look.step([np.ones(2), None])
    assert look.step_count == opt.step_count == 1
    assert look.slow[1].tolist() == [1.0] * 3
    assert look.on_nonfinite == "propagate"
    with pytest.raises(AttributeError, match="has no attribute 'alpha'"):
        look.alpha = 0.5  # type: ignore[attr-defined]
    assert repr(look).startswith("<Lookahead(k=5, alpha=0.5) of <SGD(")


@each_backend
def test_a_skipped_step_does_not_count(backend: str) -> None:
    param, plain = np.ones(2), np.ones(2)
    look = fastopt.Lookahead(fastopt.SGD(param, lr=0.1, on_nonfinite="skip", backend=backend), 2)
    other = fastopt.Lookahead(fastopt.SGD(plain, lr=0.1, backend=backend), 2)
    for step in range(9):
        if step % 3 == 1:
            look.step(np.array([math.nan, 1.0]))
        else:
            look.step(np.ones(2))
            other.step(np.ones(2))
        assert param.tobytes() == plain.tobytes()
    assert look.skipped_steps == 3


@each_backend
def test_a_step_that_raises_changes_nothing(backend: str) -> None:
    params = {"a": np.ones(2), "b": np.ones(3)}
    look = fastopt.Lookahead(fastopt.Adam(params, backend=backend, on_nonfinite="raise"), 1, 0.5)
    look.step({"a": np.ones(2), "b": np.ones(3)})
    before = copied(params), look.state_dict(), look.opt.state_dict()
    for bad, kind in [
        ({"a": np.ones(2)}, ValueError),
        ({"a": np.ones(2), "b": np.ones(2)}, ValueError),
        ({"a": np.ones(2), "b": np.full(3, math.nan)}, FloatingPointError),
    ]:
        with pytest.raises(kind):
            look.step(bad)
        np.testing.assert_equal((params, look.state_dict(), look.opt.state_dict()), before)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"k": 0}, ValueError, "Lookahead: k must be a whole number"),
        ({"k": 2.0}, TypeError, "Lookahead: k"),
        ({"k": True}, TypeError, "Lookahead: k"),
        ({"alpha": 0.0}, ValueError, r"Lookahead: alpha must be a number in \(0, 1\]"),
        ({"alpha": 1.5}, ValueError, "Lookahead: alpha"),
        ({"alpha": math.nan}, ValueError, "Lookahead: alpha"),
        ({"alpha": "x"}, TypeError, "Lookahead: alpha"),
    ],
)
def test_bad_arguments_are_refused(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        fastopt.Lookahead(fastopt.SGD(np.ones(1)), **options)
    with pytest.raises(TypeError, match="Lookahead takes an optimizer"):
        fastopt.Lookahead([np.ones(1)])  # type: ignore[arg-type]
