"""minimize from several starts: each fit ends as one by itself, and none disturbs another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import OptimizeResult

import fastopt

METHODS = ["adam", "lbfgs"]
K = 6
minimize = fastopt.minimize


def starts(count: int = K) -> Any:
    return 4 * np.random.default_rng(5).standard_normal((count, 2))


def himmelblau(x: Any) -> Any:
    """For one point and for many: values of shape (...), gradients (..., 2)."""
    a, b = x[..., 0], x[..., 1]
    one, two = a**2 + b - 11, a + b**2 - 7
    slope = (4 * a * one + 2 * two, 2 * one + 4 * b * two)
    xp = fastopt.array_namespace(x)
    return one * one + two * two, xp.stack(slope, axis=-1)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"bounds": [(-3, 2.5), (None, 3)]},
    {"maxiter": 11},
    {"tol": None, "ftol": 1e-4},
    {"tol": None, "xtol": 1e-3},
    {"gtol": 1.0},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_members_end_in_the_bits_of_runs_one_by_one(options: Any, method: str) -> None:
    named = {"maxiter": 2000, "method": method, **options}
    if method == "adam":
        named["lr"] = 0.1
    x0 = starts()
    together = minimize(himmelblau, x0, starts=K, **named)
    members, most = together.members, 0
    for k in range(K):
        alone = minimize(himmelblau, x0[k], **named)
        most = max(most, alone.nfev)
        np.testing.assert_array_equal(members.x[k], alone.x)
        assert members.fun[k] == alone.fun
        assert members.grad_norm[k] == alone.grad_norm
        assert (members.status[k], members.success[k]) == (alone.status, alone.success)
        assert members.nit[k] == alone.nit
        assert alone.message.startswith(members.message[k])
        if method == "adam":
            values = together.history.value[:, k]
            np.testing.assert_array_equal(values[: alone.nit + 1], alone.history.value)
            assert np.isnan(values[alone.nit + 1 :]).all()
    best = int(np.argmin(members.fun))
    assert together.best == best
    assert together.fun == members.fun[best]
    np.testing.assert_array_equal(together.x, members.x[best])
    assert together.x.shape == (2,)
    assert together.message.startswith(f"Start {best} of {K} came lowest; ")
    assert together.nfev == most  # for all at once
    np.testing.assert_array_equal(x0, starts())


@pytest.mark.parametrize("method", METHODS)
def test_trees_with_a_number_for_each_member(method: str) -> None:
    aim = np.arange(1.0, 4.0)

    def fun(x: Any) -> Any:
        assert x["a"].shape == (3,)
        assert x["b"].shape == (3, 2, 2)
        one, two = x["a"] - aim, x["b"] - aim[:, None, None]
        value = one**2 + (two**2).sum(axis=(1, 2))
        return value, {"a": 2 * one, "b": (2 * two).astype(np.float32)}

    start = {"a": np.zeros(3), "b": np.zeros((3, 2, 2), np.float32)}
    bounds = {"a": (None, 2.5), "b": np.array([[[-9, 9]] * 4])[0]}
    result = minimize(
        fun,
        start,
        starts=3,
        method=method,
        lr=0.1 if method == "adam" else None,
        gtol=1e-5,
        maxiter=2000,
        bounds=bounds,
    )
    assert result.members.success.all(), result
    np.testing.assert_allclose(result.members.x["a"], [1, 2, 2.5], atol=1e-4)
    np.testing.assert_allclose(result.members.x["b"][2], np.full((2, 2), 3.0), atol=1e-4)
    assert result.x["a"].shape == ()
    assert result.x["b"].shape == (2, 2)


def test_each_member_may_have_a_learning_rate_of_its_own() -> None:
    rates = np.array([0.3, 0.01, 0.1, 0.05, 0.2, 0.02])
    together = minimize(himmelblau, starts(), starts=K, lr=rates, maxiter=40)
    for k in range(K):
        alone = minimize(himmelblau, starts()[k], lr=rates[k], maxiter=40)
        np.testing.assert_array_equal(together.members.x[k], alone.x)


@pytest.mark.parametrize("method", METHODS)
def test_a_member_that_is_not_finite_leaves_the_others_alone(method: str) -> None:
    def fun(x: Any) -> Any:
        assert np.isfinite(x).all()
        value, gradient = himmelblau(x)
        value[0] = np.nan
        if x[1, 0] != x0[1, 0]:
            value[1], gradient[1] = np.inf, np.nan
        gradient[2] = [1.0, np.nan]
        return value, gradient

    x0 = starts()
    named: dict[str, Any] = {"method": method, "maxiter": 2000}
    named["lr"] = 0.1 if method == "adam" else None
    result = minimize(fun, x0, starts=K, **named)
    clean = minimize(himmelblau, x0, starts=K, **named)
    members = result.members
    np.testing.assert_array_equal(members.x[3:], clean.members.x[3:])
    np.testing.assert_array_equal(members.x[:3], x0[:3])
    assert list(members.status) == [3, 3 if method == "adam" else 2, 3, 0, 0, 0]
    assert "the value is nan at x0; begin where it is finite" in members.message[0]
    assert "the gradient of x[2] holds NaN or infinity at x0" in members.message[2]
    if method == "adam":
        assert "the value is inf at iteration 1" in members.message[1]
    assert result.success
    assert result.best >= 3
    assert np.isnan(members.fun[0])


@pytest.mark.parametrize("method", METHODS)
def test_limits_callbacks_and_ctrl_c(method: str) -> None:
    few = minimize(himmelblau, starts(), starts=K, method=method, maxfun=5)
    assert (few.nfev, set(few.members.status)) == (5, {6})
    soon = minimize(himmelblau, starts(), starts=K, method=method, max_time=1e-9)
    assert (soon.nfev, set(soon.members.status)) == (1, {7})
    seen: list[Any] = []

    def callback(intermediate_result: OptimizeResult) -> None:
        seen.append(intermediate_result)
        if len(seen) == 3:
            raise StopIteration

    stopped = minimize(himmelblau, starts(), starts=K, method=method, callback=callback)
    assert set(stopped.members.status) == {99}
    assert seen[0].x.shape == (K, 2)
    assert seen[0].fun.shape == seen[0].grad_norm.shape == (K,)

    def interrupted(intermediate_result: OptimizeResult) -> None:
        raise KeyboardInterrupt

    ended = minimize(himmelblau, starts(), starts=K, method=method, callback=interrupted)
    assert set(ended.members.status) == {9}
    assert "Ctrl-C" in ended.message
    np.testing.assert_array_equal(ended.members.fun, himmelblau(ended.members.x)[0])


def test_progress_says_how_many_run(capsys: pytest.CaptureFixture[str]) -> None:
    minimize(himmelblau, starts(), starts=K, lr=0.1, maxiter=20, progress=True)
    assert "of 6 running" in capsys.readouterr().err


BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (np.zeros(2), {}, ValueError, r"first axis of x must count them, \(6, ...\); got \(2,\)"),
    ({"a": 1.0}, {}, ValueError, r'x\["a"\] must count them'),
    (None, {"starts": 0}, ValueError, "starts"),
    (None, {"jac": "2-point"}, ValueError, "let fun return the gradient"),
    (None, {"batches": []}, ValueError, "batches are for one start"),
    (None, {"method": "muon"}, ValueError, "member"),
]


@pytest.mark.parametrize(("x0", "more", "error", "words"), BAD)
def test_what_is_refused(x0: Any, more: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        minimize(himmelblau, starts() if x0 is None else x0, **{"starts": K, **more})


def test_values_must_be_one_for_each() -> None:
    with pytest.raises(TypeError, match="an array of 6 real numbers, the value of each start"):
        minimize(lambda x: (1.0, x), starts(), starts=K)


@pytest.mark.parametrize("method", METHODS)
def test_arrays_of_a_device_stay_there(cupy: Any, method: str) -> None:
    def fun(x: Any) -> Any:
        assert isinstance(x, cupy.ndarray)
        return himmelblau(x)

    named: dict[str, Any] = {"method": method, "starts": K, "maxiter": 25, "bounds": (-3, 3)}
    named["lr"] = 0.1 if method == "adam" else None
    there = minimize(fun, cupy.asarray(starts()), **named)
    host = minimize(himmelblau, starts(), **named)
    assert isinstance(there.x, cupy.ndarray)
    np.testing.assert_allclose(there.members.x.get(), host.members.x, atol=1e-6)
    assert list(there.members.status) == list(host.members.status)
