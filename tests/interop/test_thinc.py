"""thinc's models are trained through thinc's protocol, in thinc's numbers where it has them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array

pytest.importorskip("thinc")

from thinc import api, optimizers, schedules

import fastopt.thinc as ours

STEPS = 12
KEY = (0, "W")


def run(make: Any, shape: tuple[int, ...] = (4, 3), scale: float = 1.0) -> tuple[Array, Any]:
    """Return the parameters after some steps of gradients that come from outside."""
    rng = np.random.default_rng(3)
    weights, optimizer = rng.standard_normal(shape).astype("f"), make()
    for _ in range(STEPS):
        gradient = scale * rng.standard_normal(shape).astype("f")
        weights, gradient = optimizer(KEY, weights, gradient)
        assert not gradient.any()
        optimizer.step_schedules()
    return weights, optimizer


CASES: dict[str, dict[str, Any]] = {
    "adam": {"beta2": 0.99},
    "large_eps": {"eps": 0.1},
    "sgd": {"beta1": 0.0, "beta2": 0.0},
    "l2": {"L2": 0.3, "L2_is_weight_decay": False, "grad_clip": 0.0},
    "not_clipped": {"grad_clip": 0.0},
    "scheduled": {"beta1": [0.5, 0.6, 0.9], "grad_clip": [0.5, 0.0, 2.0]},
}


@pytest.mark.parametrize("rate", [0.02, "warmup", "list"])
@pytest.mark.parametrize("case", CASES)
def test_thincs_own_arguments_give_thincs_numbers(case: str, rate: Any) -> None:
    def make(of: Any) -> Any:
        rates = {"warmup": schedules.warmup_linear(0.1, 4, 20), "list": [0.1, 0.05, 0.02]}
        options = {name: [*v] if isinstance(v, list) else v for name, v in CASES[case].items()}
        return of(rates.get(rate, rate), **options)

    one, theirs = run(lambda: make(optimizers.Optimizer))
    other, optimizer = run(lambda: make(ours.Optimizer))
    # Clipping divides by norm + 1e-6 here.
    np.testing.assert_allclose(other, one, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(optimizer.averages[KEY], theirs.averages[KEY], rtol=2e-5, atol=1e-5)
    assert optimizer.nr_update[KEY] == STEPS


def test_decay_is_thincs_to_the_order_of_the_rate_squared() -> None:
    options: dict[str, Any] = {"L2": 0.1, "grad_clip": 0.0}
    one, _ = run(lambda: optimizers.Optimizer(1e-3, **options))
    other, _ = run(lambda: ours.Optimizer(1e-3, **options))
    without, _ = run(lambda: ours.Optimizer(1e-3, grad_clip=0.0))
    np.testing.assert_allclose(other, one, atol=2 * STEPS * 0.1 * 1e-6)
    assert abs(without - one).max() > 1e-3


@pytest.mark.parametrize("name", ["lion", "adan", "Prodigy", fastopt.Yogi])
def test_any_other_makes_its_own_steps(name: Any) -> None:
    options = {"weight_decay": 0.01}
    made = ours.Optimizer(0.01, optimizer=name, options=options, grad_clip=0.5)
    got, _ = run(lambda: made)
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((4, 3)).astype("f")
    formula = fastopt.optimizers.named(name) if isinstance(name, str) else name
    opt = formula(weights, lr=0.01, max_grad_norm=0.5, **options)
    for _ in range(STEPS):
        opt.step(rng.standard_normal((4, 3)).astype("f"))
    assert np.array_equal(got, weights)


def test_every_key_counts_its_own_steps_and_lr_scale_scales() -> None:
    optimizer = ours.Optimizer(0.1, beta1=0.0, beta2=0.0, grad_clip=0.0, use_averages=False)
    for scale in (1.0, 0.5, 1.0):
        w = np.zeros(2)  # another array at each call, of float64
        got, _ = optimizer((1, "b"), w, np.ones(2), lr_scale=scale)
        assert got is w
        np.testing.assert_allclose(w, -0.1 * scale)
    optimizer((2, "b"), np.zeros(3), np.ones(3))
    assert dict(optimizer.nr_update) == {(1, "b"): 3, (2, "b"): 1}
    empty = np.zeros((0, 2))
    assert optimizer((3, "E"), empty, empty) == (empty, empty)


def test_a_model_learns_and_its_averages_are_used() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 8)).astype("f")
    Y = np.eye(3, dtype="f")[(X @ rng.standard_normal((8, 3))).argmax(axis=1)]
    model = api.chain(api.Relu(16), api.Softmax(3)).initialize(X, Y)
    theirs, optimizer = optimizers.Adam(0.02), ours.Optimizer(0.02)
    seen: dict[Any, Array] = {}  # what thinc's own makes of the same gradients, step by step

    def both(key: Any, weights: Array, gradient: Array, **others: Any) -> tuple[Array, Array]:
        seen.setdefault(key, weights.copy())
        theirs(key, seen[key], gradient.copy(), **others)
        return optimizer(key, weights, gradient, **others)

    for _ in range(60):
        guess, back = model.begin_update(X)
        back((guess - Y) / len(X))
        model.finish_update(both)
        theirs.step_schedules()
        optimizer.step_schedules()
    assert len(seen) == len(optimizer.averages) == 4
    for node in model.walk():
        for name in node.param_names:
            key = (node.id, name)
            np.testing.assert_allclose(node.get_param(name), seen[key], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                optimizer.averages[key], theirs.averages[key], rtol=1e-4, atol=1e-5
            )
    with model.use_params(optimizer.averages):
        assert (model.predict(X).argmax(axis=1) == Y.argmax(axis=1)).mean() > 0.9
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.nr_update == optimizer.nr_update


def test_a_configuration_makes_one() -> None:
    text = """
    [optimizer]
    @optimizers = "fastopt.v1"
    optimizer = "lion"
    grad_clip = 0.5
    [optimizer.learn_rate]
    @schedules = "warmup_linear.v1"
    initial_rate = 0.01
    warmup_steps = 10
    total_steps = 100
    [optimizer.options]
    weight_decay = 0.1
    """
    made = api.registry.resolve(api.Config().from_str(text))["optimizer"]
    assert isinstance(made, optimizers.Optimizer)
    run(lambda: made)
    opt = made._made[KEY]
    assert isinstance(opt, fastopt.Lion)
    assert (opt.max_grad_norm, opt.param_groups[0]["weight_decay"]) == (0.5, 0.1)
    assert opt.lr == pytest.approx(0.01 * (100 - 11) / (100 - 10))  # of the twelfth step


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"optimizer": "lion", "beta1": 0.5}, ValueError, r"options=\{"),
        ({"optimizer": "momo"}, ValueError, "the loss or the Hessian"),
        ({"optimizer": "liom"}, ValueError, "did you mean"),
        ({"optimizer": 3}, TypeError, "name or class"),
        ({"options": {"eps": 1}}, ValueError, "optimizer='adam'"),
        ({"optimizer": "adam", "options": {"lr": 1}}, ValueError, "learn_rate"),
        ({"learn_rate": "hello"}, ValueError, "schedule"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ours.Optimizer(**{"learn_rate": 0.1, **options})


def test_without_thinc_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['thinc'] = None; import fastopt; fastopt.thinc"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "pip install thinc" in ended.stderr
