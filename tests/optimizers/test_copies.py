"""Optimizers that are copied, pickled and sent: alone, and inside what holds the arrays too."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from helpers.cuda.runs import on_host
from helpers.variants import CPU_BACKENDS, OF_MATRICES, VARIANTS, Variant

WAYS: list[Callable[[Any], Any]] = [
    copy.deepcopy,
    lambda value: pickle.loads(pickle.dumps(value)),
    lambda value: pickle.loads(pickle.dumps(value, protocol=2)),
]
ways = pytest.mark.parametrize("way", WAYS, ids=["deepcopy", "pickle", "protocol 2"])


class Estimator:
    """As in scikit-learn: holds the arrays and the optimizer."""

    def __init__(self, opt: Any, params: Any) -> None:
        self.opt = opt
        self.params = params


def draw(seed: int, *shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@ways
@pytest.mark.parametrize("variant", [*VARIANTS, *OF_MATRICES], ids=str)
def test_in_a_copy_arrays_and_optimizer_belong_together(
    place: tuple[Any, str], variant: Variant, way: Callable[[Any], Any]
) -> None:
    xp, backend = place
    params = {"W": [xp.asarray(draw(1, 8, 9))], "b": xp.asarray(draw(2, 4, 5))}
    opt = variant(params, backend=backend, max_grad_norm=1.0)
    first = Estimator(opt, params)

    def steps(model: Estimator, numbers: range) -> None:
        for k in numbers:
            grads = {"W": [xp.asarray(draw(k, 8, 9))], "b": xp.asarray(draw(k + 50, 4, 5))}
            model.opt.step(grads)

    steps(first, range(3))
    other = way(first)
    assert other.opt.params is other.params
    assert other.params["b"] is not params["b"]
    assert other.opt.backend == opt.backend
    assert (other.opt.step_count, other.opt.max_grad_norm) == (3, 1.0)
    assert other.opt.grad_norm == opt.grad_norm
    kept = on_host(params["b"]).tobytes()
    steps(other, range(3, 6))
    assert on_host(params["b"]).tobytes() == kept, "the copy trains arrays of its own"
    steps(first, range(3, 6))
    assert on_host(params["b"]).tobytes() == on_host(other.params["b"]).tobytes()
    assert on_host(params["W"][0]).tobytes() == on_host(other.params["W"][0]).tobytes()


@pytest.mark.parametrize("state_dtype", [None, "float64", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.complex64])
@ways
def test_stored_state_is_copied_as_it_is(
    place: tuple[Any, str], state_dtype: str | None, dtype: Any, way: Callable[[Any], Any]
) -> None:
    xp, backend = place
    param = xp.asarray(draw(1, 5000, dtype=dtype))
    opt = fastopt.Adam(param, 0.01, backend=backend, state_dtype=state_dtype)
    for k in range(3):
        opt.step(xp.asarray(draw(k, 5000, dtype=dtype)))
    other = way(opt)
    for each in (opt, other):
        each.step(xp.asarray(draw(9, 5000, dtype=dtype)))
    assert on_host(other.params).tobytes() == on_host(param).tobytes()
    one, two = opt.state_dict(), other.state_dict()
    for slot, value in one["state"]["params"].items():
        assert np.array_equal(value, two["state"]["params"][slot]), slot


@ways
@pytest.mark.parametrize("layout", ["F", "strided", "reversed", "empty", "0-d"])
def test_any_layout(place: tuple[Any, str], layout: str, way: Callable[[Any], Any]) -> None:
    """A copied array need not lie in memory as the first one does."""
    xp, backend = place
    params = {
        "F": lambda: xp.asarray(draw(1, 80, 70)).T,
        "strided": lambda: xp.asarray(draw(1, 80, 140))[:, ::2],
        "reversed": lambda: xp.asarray(draw(1, 80, 70))[::-1],
        "empty": lambda: xp.zeros((0, 3), np.float32),
        "0-d": lambda: xp.asarray(draw(1)),
    }
    for state_dtype in (None, "int8"):
        param = params[layout]()
        opt = fastopt.Adam(param, 0.01, backend=backend, state_dtype=state_dtype)
        opt.step(xp.asarray(draw(2, *param.shape)))
        other = way(opt)
        for each in (opt, other):
            each.step(xp.asarray(draw(3, *param.shape)))
        atol = 0.0 if state_dtype is None else 2e-2
        np.testing.assert_allclose(on_host(other.params), on_host(param), rtol=0, atol=atol)


@ways
def test_groups_patterns_settings_and_hooks(way: Callable[[Any], Any]) -> None:
    params = {"a": np.ones(3), "b": np.ones(2)}
    groups = fastopt.groups(params, {"b": {"lr": 0.5, "maximize": True}})
    opt = fastopt.SGD(groups, fastopt.schedules.cosine(1.0, 10), momentum=0.9, bounds=(-5, 5))
    opt.before_step.append(count)
    opt.step({"a": np.ones(3), "b": np.ones(2)})
    opt.param_groups[0]["momentum"] = 0.5
    opt.on_nonfinite = "skip"
    other = way(opt)
    assert [g.plain for g in other.param_groups] == [g.plain for g in opt.param_groups]
    assert other.param_groups[1]["params"]["b"] is other.params["b"]
    assert other.before_step == [count]
    assert other.on_nonfinite == "skip"
    for each in (opt, other):
        each.step({"a": np.ones(3), "b": np.ones(2)})
        each.step({"a": np.full(3, np.nan), "b": np.ones(2)})
    assert other.params["a"].tolist() == params["a"].tolist()
    assert other.params["b"].tolist() == params["b"].tolist()
    assert (other.skipped_steps, other.step_count) == (1, 2)
    listed = fastopt.SGD([{"params": np.ones(2)}, {"params": [np.ones(1)], "lr": 3.0}], 1.0)
    again = way(listed)
    assert again.param_groups[1]["params"] is again.params[1]
    again.step([np.ones(2), [np.ones(1)]])
    assert again.params[1][0].tolist() == [-2]


def count(opt: fastopt.Optimizer) -> None:
    """Do nothing, as a function that can be pickled."""


@ways
def test_settings_of_a_copy_are_its_own_and_are_refused_alike(way: Callable[[Any], Any]) -> None:
    opt = fastopt.Adam(np.ones(2, np.float32), 0.1)
    other = way(opt)
    other.lr = 0.5
    assert opt.lr == 0.1
    with pytest.raises(ValueError, match="Adam: lr must be a number in"):
        other.lr = -1
    with pytest.raises(ValueError, match=r"Adam: state_dtype is None in this optimizer"):
        other.param_groups[0]["state_dtype"] = "int8"


@ways
def test_options_that_are_arrays_go_along(way: Callable[[Any], Any]) -> None:
    low = {"a": np.array([-0.5, -9.0]), "b": None}
    scale = {"a": np.array([1.0, 2.0]), "b": 0.5}
    params = {"a": np.zeros(2), "b": np.zeros(1)}
    opt = fastopt.SGD([{"params": params, "bounds": (low, None), "lr_scale": scale}], 1.0)
    other = way(opt)
    for each in (opt, other):
        each.step([{"a": np.ones(2), "b": np.ones(1)}])
        assert each.params[0]["a"].tolist() == [-0.5, -2.0]
        assert each.params[0]["b"].tolist() == [-0.5]


@ways
def test_a_schedule_with_a_memory_goes_along(way: Callable[[Any], Any]) -> None:
    plateau = fastopt.schedules.ReduceLROnPlateau(1.0, factor=0.5, patience=0)
    opt = fastopt.SGD(np.zeros(1), plateau)
    plateau.report(1.0)
    plateau.report(2.0)
    opt.step(np.ones(1))
    other = way(Estimator(opt, plateau))
    assert other.opt.param_groups[0]["lr"] is other.params
    assert other.opt.lr == opt.lr == 0.5
    other.params.report(3.0)
    assert (other.opt.lr, opt.lr) == (0.25, 0.5)


@ways
def test_members_are_copied(way: Callable[[Any], Any]) -> None:
    opt = fastopt.Adam(np.ones((3, 2)), np.array([0.1, 0.2, 0.3]), members=3)
    opt.step(np.ones((3, 2)))
    other = way(opt)
    for each in (opt, other):
        each.step(np.ones((3, 2)))
    assert other.params.tobytes() == opt.params.tobytes()


def test_a_shallow_copy_steps_the_same_arrays_with_state_of_its_own() -> None:
    param = np.zeros(2)
    opt = fastopt.SGD(param, 1.0, momentum=0.5)
    opt.step(np.ones(2))
    other = copy.copy(opt)
    assert other.params is param
    other.step(np.zeros(2))
    assert param.tolist() == [-1.5, -1.5]
    assert (opt.step_count, other.step_count) == (1, 2)


def trained(model: Estimator) -> Estimator:
    """Make two steps in another process."""
    for _ in range(2):
        model.opt.step({"w": model.params["w"] * 2})
    return model


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_one_is_sent_to_another_process_and_back(backend: str) -> None:
    def made() -> Estimator:
        params = {"w": np.array([1.0, -2.0])}
        return Estimator(fastopt.SGD(params, 0.1, momentum=0.9, backend=backend), params)

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        back = pool.submit(trained, trained(made())).result()
    here = trained(trained(made()))
    assert back.opt.step_count == 4
    assert back.opt.params is back.params
    assert back.params["w"].tolist() == here.params["w"].tolist()


def test_a_copy_while_another_thread_steps_is_whole() -> None:
    """The lock is held while state is collected; parameters are the user's to keep still."""
    import threading

    opt = fastopt.Adam({"a": np.ones(1000), "b": np.ones(1000)})
    stop = threading.Event()

    def go() -> None:
        while not stop.is_set():
            opt.step({"a": np.ones(1000), "b": np.ones(1000)})

    thread = threading.Thread(target=go)
    thread.start()
    try:
        for _ in range(30):
            state = opt._copied()["saved"]
            steps = {entry["step"] for entry in state["state"].values()}
            assert steps == {state["step_count"]}
            first, second = (entry["m"] for entry in state["state"].values())
            assert np.array_equal(first, second)
    finally:
        stop.set()
        thread.join()


def test_from_within_a_step_it_is_refused() -> None:
    opt = fastopt.SGD(np.ones(1), lambda t: float(bool(copy.copy(opt))))
    with pytest.raises(RuntimeError, match="in a step already"):
        opt.step(np.ones(1))


def test_what_cannot_be_pickled_says_so_itself() -> None:
    opt = fastopt.SGD(np.ones(1), lambda t: 0.1)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dump(opt, io.BytesIO())
    assert copy.deepcopy(opt).lr == 0.1


# What stands around an optimizer ------------------------------------------------------------------


def averaged(opt: Any, params: Any) -> Any:
    return fastopt.EMA(params, 0.5)


AROUND: list[Callable[[Any, Any], Any]] = [
    averaged,
    lambda opt, params: fastopt.EMA(params, "mean"),
    lambda opt, params: fastopt.Lookahead(opt, k=3, alpha=0.25),
    lambda opt, params: fastopt.Accumulator(opt, every=2),
    lambda opt, params: fastopt.Accumulator(fastopt.Lookahead(opt, k=2), every=2),
]


@ways
@pytest.mark.parametrize("make", AROUND, ids=["ema", "mean", "lookahead", "accumulator", "both"])
def test_wrappers_go_along(
    place: tuple[Any, str], way: Callable[[Any], Any], make: Callable[[Any, Any], Any]
) -> None:
    xp, backend = place
    params = {"a": xp.asarray(draw(1, 5)), "b": [xp.asarray(draw(2, 3, 2, dtype=np.float16))]}
    opt = fastopt.SGD(params, 0.1, momentum=0.9, backend=backend)
    first = Estimator([opt, make(opt, params)], params)

    def go(model: Estimator, numbers: range) -> None:
        opt, around = model.opt
        for k in numbers:
            half = draw(k + 9, 3, 2, dtype=np.float16)
            grads = {"a": xp.asarray(draw(k, 5)), "b": [xp.asarray(half)]}
            if isinstance(around, fastopt.EMA):
                opt.step(grads)
                around.update()
            else:
                around.step(grads)

    go(first, range(5))
    other = way(first)
    opt_there, around_there = other.opt
    if not isinstance(around_there, fastopt.EMA):
        assert around_there.innermost is opt_there
    for each in (first, other):
        go(each, range(5, 12))
    for name in ("a", "b"):
        mine, theirs = first.params[name], other.params[name]
        mine, theirs = (mine, theirs) if name == "a" else (mine[0], theirs[0])
        assert on_host(mine).tobytes() == on_host(theirs).tobytes()
    np.testing.assert_equal(around_there.state_dict(), first.opt[1].state_dict())


@ways
def test_an_ema_of_groups_and_counters(way: Callable[[Any], Any]) -> None:
    count = np.array([3])
    ema = fastopt.EMA([{"params": {"w": np.ones(2)}}, {"params": count}], 0.5)
    ema.update()
    count += 1
    other = way(ema)
    other.update()
    assert other.average[1].tolist() == [4]
    assert ema.average[1].tolist() == [3]
    assert other.average[0]["w"].tolist() == [1, 1]
    with ema.swap(), pytest.raises(RuntimeError, match="inside a swap"):
        way(ema)


@ways
def test_a_loss_scaler_goes_along(place: tuple[Any, str], way: Callable[[Any], Any]) -> None:
    xp, backend = place
    opt = fastopt.SGD(xp.zeros(2, np.float32), 1.0, backend=backend)
    scaler = fastopt.LossScaler(8.0, growth_interval=3, max_skips=4)
    for _ in range(2):
        scaler.step(opt, xp.ones(2, np.float32))
        scaler.update()
    scaler.step(opt, xp.ones(2, np.float32))
    with pytest.raises(RuntimeError, match=r"call scaler\.update\(\) before"):
        way(scaler)
    scaler.update()
    other = way(scaler)
    assert other.scale == scaler.scale == 16
    mine = fastopt.SGD(xp.zeros(2, np.float32), 1.0, backend=backend)
    other.step(mine, xp.full(2, np.inf, np.float32))
    other.update()
    assert (other.scale, scaler.scale) == (8, 16)
    assert other.state_dict() == {**scaler.state_dict(), "scale": 8.0}


@ways
def test_hooks_may_hold_what_stands_around_the_optimizer(way: Callable[[Any], Any]) -> None:
    opt = fastopt.SGD(np.zeros(2), 1.0)
    ema = fastopt.EMA(opt, 0.5)
    opt.after_step.append(ema.update)
    opt.step(np.ones(2))
    for first in (lambda: way(opt), lambda: way([ema, opt])[1]):
        other = first()
        other.step(np.ones(2))
        (update,) = other.after_step
        assert update.__self__ is not ema
        assert update.__self__.average.tolist() == [-1.5, -1.5]
    assert ema.average.tolist() == [-1, -1]
