"""find_lr: a suggestion that trains, nothing changed by it, and doubts where there are any."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 20)) * np.geomspace(1.0, 0.2, 20)
Y = (X @ RNG.standard_normal(20) + 0.3 * RNG.standard_normal(400) > 0).astype(float)
CURVATURES = np.array([1.0, 5.0, 20.0])


def logistic(params: Any, batch: Any) -> Any:
    x, y = X[batch], Y[batch]
    z = x @ params["w"] + params["b"]
    loss = (np.logaddexp(0, z) - y * z).mean()
    error = (0.5 * (1 + np.tanh(z / 2)) - y) / len(y)
    return loss, {"w": x.T @ error, "b": error.sum()}


def batches(seed: int = 1) -> Iterator[Any]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(0, 400, 32)


def fresh() -> Any:
    return {"w": np.zeros(20), "b": np.zeros(())}


def quadratic(x: Any) -> Any:
    return 0.5 * float((CURVATURES * x * x).sum()), CURVATURES * x


@pytest.mark.parametrize("method", ["adam", "sgd", "rmsprop", fastopt.Lion])
def test_the_suggestion_trains_better_than_much_smaller_and_much_larger_ones(method: Any) -> None:
    found = fastopt.find_lr(logistic, fresh(), method, batches=batches())
    assert found.low <= found.suggestion <= found.high
    assert found.losses.shape == (3, 100)

    def end(lr: float) -> float:
        run = fastopt.minimize(
            logistic, fresh(), method=method, lr=lr, batches=batches(2), maxiter=200
        )
        return float(run.history.value[-30:].mean())

    middle = end(found.suggestion)
    assert middle < end(found.suggestion / 100)
    assert middle < end(found.suggestion * 100)


def test_the_curve_is_what_a_loop_by_hand_gives() -> None:
    found = fastopt.find_lr(quadratic, np.ones(3), "momentum", lr_min=1e-4, lr_max=1e-1, steps=12)
    x = np.ones(3)
    opt = fastopt.Momentum(x)
    losses = []
    for lr in np.geomspace(1e-4, 1e-1, 12):
        opt.lr = lr
        opt.step(quadratic(x)[1])
        losses.append(quadratic(x)[0])
    np.testing.assert_array_equal(found.losses, [losses])  # and a second run would be the same
    np.testing.assert_array_equal(found.lrs, np.geomspace(1e-4, 1e-1, 12))
    assert found.losses[0, -1] < 25.0
    assert not found.sure
    assert "still falls at lr_max = 0.1: take a larger one" in found.message


def test_gradient_descent_on_a_quadratic_function_stays_below_the_stable_rate() -> None:
    found = fastopt.find_lr(quadratic, np.ones(3), "sgd")
    assert found.sure, found
    assert 2e-3 < found.suggestion < 2 / CURVATURES.max()
    assert np.isnan(found.losses[0, -1])  # it ended where it diverged
    assert repr(found).startswith(f"<RangeTest: A learning rate of {found.suggestion:.2g}")


def test_nothing_is_changed_and_an_optimizer_goes_on_from_its_state() -> None:
    params = fresh()
    opt = fastopt.Adam(params, lr=0.01)
    feed = batches()
    for _ in range(20):
        opt.step(logistic(params, next(feed))[1])
    before = {name: array.copy() for name, array in params.items()}
    saved = opt.state_dict()
    found = fastopt.find_lr(logistic, opt, batches=feed, runs=2)
    for name, array in params.items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_equal(opt.state_dict(), saved)
    assert opt.lr == 0.01
    assert np.isfinite(found.suggestion)
    again = fastopt.Adam(params, lr=0.01)
    cold = fastopt.find_lr(logistic, again, batches=batches(), runs=1)
    assert again.step_count == 0
    warm = fastopt.find_lr(logistic, opt, batches=batches(), runs=1)
    assert not np.array_equal(cold.losses, warm.losses, equal_nan=True)


def test_groups_and_optimizers_that_take_the_loss() -> None:
    groups = [{"params": np.ones(2), "lr_scale": 0.5}, {"params": np.ones(1)}]

    def fun(params: Any) -> Any:
        loss, grad = quadratic(np.concatenate(params))
        return loss, [grad[:2], grad[2:]]

    assert np.isfinite(fastopt.find_lr(fun, groups, "sgd").suggestion)
    assert np.isfinite(fastopt.find_lr(quadratic, np.ones(3), "momo").suggestion)
    different = [{"params": np.ones(2), "lr": 0.5}, {"params": np.ones(1), "lr": 0.1}]
    with pytest.raises(ValueError, match="lr_scale"):
        fastopt.find_lr(fun, different, "sgd")


def test_a_list_of_batches_begins_again_and_an_iterator_ends_the_test() -> None:
    few = [np.arange(400)[k::5] for k in range(5)]
    found = fastopt.find_lr(logistic, fresh(), batches=few, runs=2)
    assert np.isfinite(found.suggestion)
    taken = iter([*few * 8])
    ended = fastopt.find_lr(logistic, fresh(), batches=taken, lr_min=1e-4, steps=50)
    assert ended.losses.shape == (1, 50)
    assert np.isfinite(ended.losses[0]).sum() == 39
    for none in ([], iter(few)):
        with pytest.raises(ValueError, match="8 or more for a run, and the first run had fewer"):
            fastopt.find_lr(logistic, fresh(), batches=none)


def nan_at_once(x: Any) -> Any:
    return np.nan, x * 1


HOPELESS = {
    "same": (lambda x: (1.0, 1.0 * x), "the same whatever the learning rate: step_fn must use"),
    "uphill": (lambda x: (quadratic(x)[0], -quadratic(x)[1]), "sign of the gradients"),
    "nan": (nan_at_once, "not finite before the first step"),
    "steep": (lambda x: (quadratic(1e12 * x)[0], 1e24 * x), "diverges from the first steps on"),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_where_the_curve_tells_nothing_there_is_no_suggestion(name: str) -> None:
    fun, words = HOPELESS[name]
    found = fastopt.find_lr(fun, np.ones(3), "sgd")
    assert np.isnan(found.suggestion)
    assert not found.sure
    assert found.message.startswith("No suggestion. ")
    assert words in found.message


def test_losses_that_scatter_more_than_they_fall_are_not_sure() -> None:
    rng = np.random.default_rng(3)

    def fun(x: Any) -> Any:
        return quadratic(x)[0] + 30 * rng.standard_normal(), CURVATURES * x

    found = fastopt.find_lr(fun, np.ones(3), "sgd")
    assert not found.sure
    assert "scatters" in found.message or "never falls" in found.message


def test_a_picture_is_drawn_only_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fastopt.find_lr(quadratic, np.ones(3), "sgd")
    found.picture(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000
    fastopt.find_lr(lambda x: (1.0, 1.0 * x), np.ones(3), "sgd").picture()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        found.picture()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr_min": 0}, ValueError, "lr_min must be above 0"),
    ({"lr_min": "a"}, TypeError, "lr_min must be a number"),
    ({"lr_min": 1.0, "lr_max": 0.1}, ValueError, "lr_min must be below lr_max"),
    ({"steps": 3}, ValueError, "steps"),
    ({"runs": 0}, ValueError, "runs"),
    ({"options": {"lr": 1.0}}, ValueError, "what is looked for"),
    ({"method": 3}, TypeError, "by name or class"),
    ({"method": "L-BFGS-B"}, ValueError, "no learning rate to find"),
    ({"method": fastopt.LBFGS}, ValueError, "no learning rate to find"),
    ({"params": fastopt.SGD(np.ones(2)), "options": {"momentum": 0.9}}, ValueError, "leave opt"),
    ({"step_fn": lambda x: 1.0}, TypeError, "a pair, the loss and the gradients"),
    ({"step_fn": lambda x: (x, x)}, TypeError, "one real number"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD)
def test_what_is_refused(arguments: Any, error: type[Exception], words: str) -> None:
    named = {"step_fn": quadratic, "params": np.ones(3), **arguments}
    with pytest.raises(error, match=words):
        fastopt.find_lr(**named)


def test_on_a_device(cupy: Any) -> None:
    there = cupy.asarray(CURVATURES)

    def fun(x: Any) -> Any:
        return 0.5 * (there * x * x).sum(), there * x

    found = fastopt.find_lr(fun, cupy.ones(3), "sgd", steps=30)
    host = fastopt.find_lr(quadratic, np.ones(3), "sgd", steps=30)
    np.testing.assert_allclose(found.losses, host.losses, rtol=1e-6)
    np.testing.assert_allclose(found.suggestion, host.suggestion)
