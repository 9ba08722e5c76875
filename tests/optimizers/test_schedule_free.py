"""Schedule-free optimizers: where the parameters are in training and when they are evaluated."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core import arrays
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_optimizer = pytest.mark.parametrize(
    "make", [fastopt.ScheduleFreeSGD, fastopt.ScheduleFreeAdamW]
)
SHAPES: dict[str, tuple[int, ...]] = {"a": (), "W": (5, 4), "b": (7,)}


def draw(seed: int, dtype: Any = np.float64) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    drawn = {name: np.array(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    if np.dtype(dtype).kind == "c":
        drawn = {k: np.array(v + 1j * rng.standard_normal(v.shape)) for k, v in drawn.items()}
    return {name: values.astype(dtype) for name, values in drawn.items()}


def trained(make: Any, steps: int = 6, dtype: Any = np.float64, **options: Any) -> tuple[Any, Any]:
    params = draw(0, dtype)
    opt = make(params, **{"lr": 0.05, **options})
    for step in range(steps):
        opt.step(draw(step + 1, dtype))
    return opt, params


def bits(params: dict[str, Array]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in params.items()}


# Where it evaluates -----------------------------------------------------------------------------


def direction(make: Any, g: Array, v: Array, t: int) -> Array:
    if make is fastopt.ScheduleFreeSGD:
        return g
    v += (1 - 0.999) * (g * g - v)
    return g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


@each_backend
@each_optimizer
def test_it_evaluates_at_the_weighted_average_of_z(make: Any, backend: str) -> None:
    params, y = draw(0), draw(0)
    opt = make(params, lr=lambda t: 0.02 + 0.01 * (t % 3), warmup_steps=4, r=1.0, backend=backend)
    z, x, v = (copy.deepcopy(y) for _ in range(3))
    total, peak, t = dict.fromkeys(y, 0.0), dict.fromkeys(y, 0.0), dict.fromkeys(y, 0)
    for array in v.values():
        array[...] = 0
    for step in range(12):
        grads: dict[str, Any] = draw(step + 1)
        grads["b"] = None
        if step % 4 == 1:
            grads["W"] = None
        opt.step(grads)
        for name, g in grads.items():
            if g is None:
                continue
            t[name] += 1
            lr = (0.02 + 0.01 * (step % 3)) * min(1.0, t[name] / 4)
            peak[name] = max(peak[name], lr)
            weight = t[name] * peak[name] ** 2
            total[name] += weight
            z[name] = z[name] - lr * direction(make, g, v[name], t[name])
            x[name] = x[name] + weight / total[name] * (z[name] - x[name])
            y[name] = 0.9 * x[name] + 0.1 * z[name]
    for name, array in params.items():
        np.testing.assert_allclose(array, y[name], rtol=1e-12)
    with opt.eval():
        for name, array in params.items():
            np.testing.assert_allclose(array, x[name], rtol=1e-12)
        np.testing.assert_array_equal(params["b"], draw(0)["b"])  # no step, no average
    for name, array in params.items():
        np.testing.assert_allclose(array, y[name], rtol=1e-12)


@each_optimizer
@pytest.mark.parametrize("state", [None, "bfloat16", "int8", "float64"])
def test_whatever_the_state_is_stored_in(make: Any, state: str | None) -> None:
    opt, params = trained(make, dtype=np.float32, state_dtype=state)
    exact, whole = trained(make, dtype=np.float32)
    before = bits(params)
    with opt.eval(), exact.eval():
        for name, array in params.items():
            np.testing.assert_allclose(array, whole[name], atol=0.02)
    assert bits(params) == before


def test_averages_are_within_the_bounds() -> None:
    params = draw(0)
    lower = {name: np.full(array.shape, -0.5) for name, array in params.items()}
    for bounds in [(-0.5, 0.5), (lower, 0.5)]:
        params = {name: np.array(np.clip(array, -0.5, 0.5)) for name, array in draw(0).items()}
        opt = fastopt.ScheduleFreeSGD(params, lr=0.5, momentum=0.2, bounds=bounds)
        for step in range(8):
            opt.step(draw(step % 3))
        with opt.eval():
            assert all((abs(array) <= 0.5).all() for array in params.values())


# Back to the bits -------------------------------------------------------------------------------


DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.complex64, np.complex128]


@each_backend
@each_optimizer
@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluating_changes_no_run(make: Any, dtype: Any, backend: str) -> None:
    opt, params = trained(make, 0, dtype, backend=backend)
    other, others = trained(make, 0, dtype, backend=backend)
    for step in range(9):
        for one in (opt, other):
            one.step(draw(step + 1, dtype))
        before = bits(params)
        with opt.eval() as same:
            assert same is opt
            assert not opt.training
            assert bits(params) != before or step == 0  # then x is z
        assert bits(params) == before == bits(others)
    assert repr(opt.state_dict()) == repr(other.state_dict())


@each_optimizer
def test_no_number_is_lost(make: Any) -> None:
    params = {"a": np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e308])}
    opt = make(params, lr=1e-3)
    opt.step({"a": np.ones(7)})
    params["a"][:6] = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324]
    before = bits(params)
    opt.eval()
    opt.train()
    assert bits(params) == before


def test_whatever_the_layout_is() -> None:
    base = np.random.default_rng(0).standard_normal((6, 8, 4))
    params = [base[::2, ::-1, 1], np.asfortranarray(base[0]), base[1, :, :2].T, np.zeros((0, 3))]
    whole = base.copy()
    opt = fastopt.ScheduleFreeAdamW(params, lr=0.1)
    for step in range(3):
        opt.step([np.full(param.shape, 1.0 + step % 2) for param in params])
    before, kept = base.copy(), [param.copy() for param in params]
    with opt.eval():
        assert not np.array_equal(params[0], kept[0])
        assert np.array_equal(base[:, :, 3], whole[:, :, 3])  # what belongs to none is left alone
    assert np.array_equal(base, before)
    assert all(map(np.array_equal, params, kept))


# Modes ------------------------------------------------------------------------------------------


@each_optimizer
def test_modes_are_set_as_often_as_one_likes(make: Any) -> None:
    opt, params = trained(make)
    y = bits(params)
    opt.train()
    assert opt.training
    assert bits(params) == y
    opt.eval()
    x = bits(params)
    opt.eval()
    assert bits(params) == x != y
    with opt.eval():
        assert bits(params) == x
    assert bits(params) == x  # it was so before
    with opt.train():
        assert bits(params) == y
        opt.step(draw(1))
        opt.eval()
    assert not opt.training
    opt.train()
    assert opt.training


def test_an_exception_ends_it_too() -> None:
    opt, params = trained(fastopt.ScheduleFreeSGD)
    y = bits(params)
    with pytest.raises(ZeroDivisionError), opt.eval(), opt.train(), opt.eval():
        raise ZeroDivisionError
    assert bits(params) == y
    assert opt.training


@each_optimizer
def test_what_cannot_be_done_in_eval_mode_says_so_and_does_nothing(make: Any) -> None:
    opt, params = trained(make)
    y, saved = bits(params), repr(opt.state_dict())
    called: list[Any] = []
    opt.before_step.append(called.append)
    grads = draw(1)
    tries: list[Callable[[], Any]] = [
        lambda: opt.step(grads),
        lambda: opt.step(grads, params=draw(3)),
        lambda: opt.updates(grads),
        lambda: opt.rebind(draw(3)),
        lambda: opt.resize("b", np.ones(3)),
        lambda: opt.add_param_group({"params": np.ones(3)}),
        lambda: fastopt.Lookahead(opt).step(grads),
        lambda: fastopt.Accumulator(opt, every=1).add(grads),
        lambda: fastopt.LossScaler().step(opt, grads),
    ]
    with opt.eval():
        x = bits(params)
        for attempt in tries:
            with pytest.raises(RuntimeError, match=r"in eval mode.*opt\.train\(\)"):
                attempt()
        assert bits(params) == x
        opt.warmup()
        opt.lr = 0.01
        opt.lr = 0.05
        assert bits(params) == x
    assert bits(params) == y
    assert repr(opt.state_dict()) == saved
    assert not called
    opt.step(grads)


def test_there_is_no_mode_to_set_in_the_middle_of_a_step() -> None:
    params = draw(0)
    opt: Any = None

    def rate(t: int) -> float:
        if opt is not None:
            with pytest.raises(RuntimeError, match="in a step already"):
                opt.eval()
        return 0.1

    opt = fastopt.ScheduleFreeSGD(params, lr=rate)
    opt.step(draw(1))
    assert opt.training
    opt.after_step.append(lambda same: same.eval())
    opt.step(draw(2))
    assert not opt.training


def test_a_parameter_that_was_replaced_is_an_error() -> None:
    opt, params = trained(fastopt.ScheduleFreeSGD)
    own, params["b"] = params["b"], params["b"].copy()
    with pytest.raises(ValueError, match="no longer the array"):
        opt.eval()
    assert opt.training
    params["b"] = own
    y = bits(params)
    opt.eval()
    params["b"] = own.copy()
    with pytest.raises(ValueError, match="no longer the array"):
        opt.train()
    assert not opt.training
    params["b"] = own
    opt.train()
    assert bits(params) == y


def test_without_memory_for_it_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    opt, params = trained(fastopt.ScheduleFreeSGD)
    y = bits(params)
    write, calls = arrays.write_beyond, iter(range(9))

    def fail(*given: Any) -> None:
        if next(calls) == 2:
            raise MemoryError
        write(*given)

    monkeypatch.setattr(arrays, "write_beyond", fail)
    with pytest.raises(MemoryError):
        opt.eval()
    assert bits(params) == y
    assert opt.training


# What is remembered -----------------------------------------------------------------------------


@contextmanager
def evaluating(opt: Any, yes: bool) -> Iterator[None]:
    if yes:
        with opt.eval():
            yield
    else:
        yield


@each_optimizer
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_checkpoints_are_the_same_in_both_modes(make: Any, dtype: Any, tmp_path: Path) -> None:
    opt, params = trained(make, dtype=dtype)
    y, states = bits(params), []
    for mode in (False, True):
        with evaluating(opt, mode):
            shown = bits(params)
            opt.save(tmp_path / f"{mode}")
            states.append(repr(opt.state_dict()))
            assert bits(params) == shown
            checkpoints = fastopt.Checkpoints(tmp_path / f"many-{mode}")
            checkpoints.save(opt)
            checkpoints.wait()
    assert states[0] == states[1]
    for saved in (False, True):
        for mode in (False, True):
            other, others = trained(make, 2, dtype)
            with evaluating(other, mode):
                other.load(tmp_path / f"{saved}")
                assert (bits(others) == y) != mode
                with opt.eval():
                    assert (bits(others) == bits(params)) == mode
            assert bits(others) == y
            again, copies = trained(make, 2, dtype)
            with evaluating(again, mode):
                again.load(fastopt.Checkpoints(tmp_path / f"many-{saved}").latest())
            assert bits(copies) == y
            assert repr(other.state_dict()) == repr(again.state_dict()) == states[0]


@each_optimizer
def test_state_alone_is_taken_over_in_both_modes(make: Any) -> None:
    opt, params = trained(make)
    ends = []
    for mode in (False, True):
        other, others = trained(make, 2)
        for name, array in params.items():
            others[name][...] = array
        with evaluating(other, mode):
            other.load_state_dict(opt.state_dict())
        other.step(draw(30))
        ends.append(bits(others))
    opt.step(draw(30))
    assert ends == [bits(params)] * 2


def test_a_load_that_fails_leaves_the_mode_and_all_else(tmp_path: Path) -> None:
    opt, params = trained(fastopt.ScheduleFreeSGD)
    fastopt.SGD(draw(0)).save(tmp_path / "other")
    y = bits(params)
    with opt.eval():
        x = bits(params)
        with pytest.raises(fastopt.CheckpointError):
            opt.load(tmp_path / "other")
        assert bits(params) == x
        assert not opt.training
    assert bits(params) == y


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@each_optimizer
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies_are_in_the_mode_of_the_original(make: Any, duplicate: Any) -> None:
    opt, params = trained(make)
    y = bits(params)
    with opt.eval():
        x = bits(params)
        other, others = duplicate((opt, params))
        alone = duplicate(opt)
    assert not other.training
    assert other.params is others
    assert bits(others) == bits(alone.params) == x
    for one in (other, alone):
        one.train()
        assert bits(one.params) == y
    for one in (opt, other, alone):
        one.step(draw(20))
    assert bits(params) == bits(others) == bits(alone.params) != y
    assert duplicate(opt).training


# What stands around it --------------------------------------------------------------------------


@each_optimizer
def test_lookahead_does_not_take_averages_for_what_was_written(make: Any) -> None:
    ends = []
    for evaluates in (False, True):
        params = draw(0)
        opt = make(params, lr=0.05)
        ahead = fastopt.Lookahead(opt, k=3)
        for step in range(8):
            ahead.step(draw(step + 1))
            slow = copy.deepcopy(ahead.slow)
            with evaluating(opt, evaluates):
                assert repr(ahead.slow) == repr(slow)
                saved = ahead.state_dict()
            assert repr(ahead.state_dict()) == repr(saved)
        ends.append((bits(params), repr(ahead.state_dict())))
    assert ends[0] == ends[1]


def test_an_ema_averages_what_the_parameters_are() -> None:
    opt, params = trained(fastopt.ScheduleFreeSGD)
    ema = fastopt.EMA(opt, decay=0.5)
    ema.update()
    before = bits(params)
    assert bits(ema.average) == before
    opt.step({name: np.ones_like(array) for name, array in params.items()})
    y = bits(params)
    with ema.swap():
        assert bits(params) == before
        with opt.eval():
            pass
        assert bits(params) == before
    assert bits(params) == y


def test_parameters_come_and_go_between_evaluations() -> None:
    opt, params = trained(fastopt.ScheduleFreeAdamW)
    with opt.eval():
        x = params["W"].copy()
    moved = {name: array.copy() for name, array in params.items()}
    opt.rebind(moved)
    opt.resize("W", np.concatenate([moved["W"][1:4], np.ones((2, 4))]), keep=[1, 2, 3])
    with opt.eval():
        np.testing.assert_array_equal(moved["W"], np.concatenate([x[1:4], np.ones((2, 4))]))
    opt.add_param_group({"params": {"new": np.ones(3)}})
    with opt.eval():
        np.testing.assert_array_equal(opt.params[1]["new"], 1.0)


def test_what_is_written_from_outside_moves_the_average_along() -> None:
    opt, params = trained(fastopt.ScheduleFreeSGD)
    with opt.eval():
        x = params["W"].copy()
    params["W"] += 1.0
    with opt.eval():
        np.testing.assert_allclose(params["W"], x + 1.0, rtol=1e-14)
