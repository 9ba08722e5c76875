"""fastopt.LBFGS: an iteration per step, trees, bounds, what is saved, what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.errors import CheckpointError
from helpers.functions import rosenbrock

START = np.tile([-1.2, 1.0], 6)


def tree_of(x: Array, dtypes: tuple[Any, ...] = (np.float64,) * 3) -> dict[str, Any]:
    """Return twelve numbers as a tree: a turned matrix with gaps, a vector, a 0-d array."""
    room = np.zeros((6, 4), dtypes[0])
    room[::2, ::2] = x[:6].reshape(2, 3).T
    return {
        "W": room[::2, ::2].T,
        "rest": [x[6:11].astype(dtypes[1]), np.array(x[11], dtypes[2])],
    }


def flat(tree: dict[str, Any]) -> Array:
    parts = [tree["W"].reshape(-1), tree["rest"][0], tree["rest"][1].reshape(1)]
    return np.concatenate([part.astype(float) for part in parts])


def closure_of(params: dict[str, Any], calls: list[Any] | None = None) -> Callable[[], Any]:
    def closure() -> tuple[Any, Any]:
        if calls is not None:
            calls.append(flat(params))
        value, gradient = rosenbrock(flat(params))
        return value, tree_of(gradient)

    return closure


def test_a_step_is_an_iteration_and_ends_at_the_best_point() -> None:
    params = tree_of(START)
    opt = fastopt.LBFGS(params)
    calls: list[Any] = []
    closure = closure_of(params, calls)
    values, total = [], 0
    for _ in range(400):
        outcome = opt.step(closure)
        total += outcome.evaluations
        assert total == len(calls)
        value, gradient = rosenbrock(flat(params))
        assert outcome.value == value
        assert outcome.projected_gradient == abs(gradient).max()
        values.append(value)
        if outcome.projected_gradient <= 1e-9 or not outcome:
            break
    assert values == sorted(values, reverse=True)
    assert opt.step_count == len(values)
    assert outcome.projected_gradient <= 1e-9
    np.testing.assert_allclose(flat(params), 1.0, atol=1e-8)
    assert opt.params is params


def test_the_gradient_of_a_number_may_be_the_scalar_that_numpy_makes_of_it() -> None:
    params = {"a": np.array(4.0), "b": np.array(1.0, np.float32)}
    opt = fastopt.LBFGS(params)

    def closure() -> tuple[Any, Any]:
        way = params["a"] - 3.0, params["b"] - 2.0
        assert isinstance(way[0], np.float64)
        return way[0] ** 2 + way[1] ** 2, {"a": 2.0 * way[0], "b": 2.0 * way[1]}

    while opt.step(closure).projected_gradient > 1e-6:
        pass
    assert (params["a"], params["b"]) == pytest.approx((3.0, 2.0))


@pytest.mark.parametrize("dtypes", [(np.float32,) * 3, (np.float32, np.float64, np.float32)])
def test_single_precision_alone_and_beside_double(dtypes: tuple[Any, ...]) -> None:
    params = tree_of(START, dtypes)
    opt = fastopt.LBFGS(params)
    for _ in range(300):
        if not opt.step(closure_of(params)):
            break
    assert [params["W"].dtype, *(one.dtype for one in params["rest"])] == list(
        map(np.dtype, dtypes)
    )
    assert rosenbrock(flat(params))[0] < 1e-6


def test_bounds_hold_from_the_start() -> None:
    params = tree_of(START)
    upper = {"W": np.full((2, 3), 0.5), "rest": [None, 0.8]}
    opt = fastopt.LBFGS(params, bounds=(-1.0, upper))
    calls: list[Any] = []
    closure = closure_of(params, calls)
    while opt.step(closure).projected_gradient > 1e-7:
        assert opt.step_count < 100
    limit = np.array([0.5] * 6 + [np.inf] * 5 + [0.8])
    assert all(((x >= -1.0) & (x <= limit)).all() for x in calls)
    assert (flat(params) == limit).any()


def test_values_written_from_outside_are_followed() -> None:
    params, fresh = tree_of(START), tree_of(START)
    opt = fastopt.LBFGS(params)
    for _ in range(5):
        opt.step(closure_of(params))
    params["rest"][0][...] = fresh["rest"][0][...] = 0.25
    params["rest"][1][...] = fresh["rest"][1][...] = -2.0
    params["W"][...] = fresh["W"][...] = 3.0
    other = fastopt.LBFGS(fresh)
    for _ in range(5):
        assert opt.step(closure_of(params)) == other.step(closure_of(fresh))


def test_what_the_closure_raises_leaves_the_parameters_as_they_were() -> None:
    params, undisturbed = tree_of(START), tree_of(START)
    opt, other = fastopt.LBFGS(params), fastopt.LBFGS(undisturbed)
    for _ in range(6):
        opt.step(closure_of(params))
        other.step(closure_of(undisturbed))
    before = flat(params)

    def broken() -> Any:
        raise RuntimeError("no batch")

    with pytest.raises(RuntimeError, match="no batch"):
        opt.step(broken)
    assert flat(params).tobytes() == before.tobytes()
    for _ in range(6):
        assert opt.step(closure_of(params)) == other.step(closure_of(undisturbed))


@pytest.mark.parametrize("way", ["dict", "file", "pickle", "deepcopy"])
@pytest.mark.parametrize("bounds", [None, (-1.5, 0.9)])
def test_a_run_is_resumed_in_the_same_bits(way: str, bounds: Any, tmp_path: Path) -> None:
    params = tree_of(START)
    opt = fastopt.LBFGS(params, bounds=bounds, history=5)
    for _ in range(9):
        opt.step(closure_of(params))
    if way in ("dict", "file"):
        resumed = tree_of(np.zeros(12))
        other = fastopt.LBFGS(resumed, bounds=bounds, history=5)
        if way == "dict":
            other.load_state_dict(opt.state_dict())
        else:
            opt.save(tmp_path / "run.safetensors", notes={"epoch": 3})
            assert other.load(tmp_path / "run.safetensors") == {"epoch": 3}
    else:
        other = copy.deepcopy(opt) if way == "deepcopy" else pickle.loads(pickle.dumps(opt))
        resumed = other.params
    assert other.step_count == 9
    for _ in range(9):
        assert opt.step(closure_of(params)) == other.step(closure_of(resumed))
    assert flat(params).tobytes() == flat(resumed).tobytes()


def test_states_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    params = tree_of(START)
    opt = fastopt.LBFGS(params)
    opt.step(closure_of(params))
    state, before = opt.state_dict(), flat(params).tobytes()
    short = fastopt.LBFGS(tree_of(START), history=3).state_dict()
    renamed = {**state, "shapes": {"V": [2, 3]}}
    damaged = {**state, "minimizer": {**state["minimizer"], "search": {}}}
    for wrong in (short, renamed, damaged, {**state, "x": None}, {"kind": "EMA"}, {}):
        with pytest.raises(CheckpointError):
            opt.load_state_dict(wrong)
    adam = fastopt.Adam(np.ones(3))
    adam.save(tmp_path / "adam.safetensors")
    with pytest.raises(CheckpointError, match="a checkpoint of Adam, not of LBFGS"):
        opt.load(tmp_path / "adam.safetensors")
    opt.save(tmp_path / "lbfgs.safetensors")
    with pytest.raises(CheckpointError, match="LBFGS"):
        adam.load(tmp_path / "lbfgs.safetensors")
    whole = (tmp_path / "lbfgs.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-9])
    with pytest.raises(CheckpointError):
        opt.load(tmp_path / "cut.safetensors")
    assert flat(params).tobytes() == before


def test_a_failure_is_said() -> None:
    x = np.full(3, 2.0)
    opt = fastopt.LBFGS(x)
    outcome = opt.step(lambda: (x @ x, -2.0 * x))
    assert not outcome
    assert "the gradient contradicts the function" in str(outcome.failed)
    assert x.tolist() == [2.0, 2.0, 2.0]


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    params = tree_of(START)
    opt = fastopt.LBFGS(params)
    closure = closure_of(params)

    def partly() -> tuple[Any, Any]:
        value, gradient = closure()
        return value, {**gradient, "W": None}

    while opt.step(partly).projected_gradient > 1e-6:
        assert opt.step_count < 100
    assert flat(params)[:6].tobytes() == START[:6].tobytes()
    assert (flat(params)[6:] != START[6:]).all()


OPTIONS_REFUSED = {
    "lr": (1e-3, "the line search finds the length"),
    "weight_decay": (0.1, "add weight_decay / 2"),
    "max_grad_norm": (1.0, "compares the gradients with the values"),
    "clip_value": (1.0, "changes gradients or single updates"),
    "momentum": (0.9, "no option 'momentum'"),
}


@pytest.mark.parametrize("name", OPTIONS_REFUSED)
def test_options_that_make_no_sense_are_refused(name: str) -> None:
    value, said = OPTIONS_REFUSED[name]
    with pytest.raises(TypeError, match=said):
        fastopt.LBFGS(np.ones(3), **{name: value})


@pytest.mark.parametrize("dtype", [np.float16, np.complex64, np.int64])
def test_parameters_of_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"params"):
        fastopt.LBFGS({"W": np.ones(3, dtype)})


def test_arguments_are_checked() -> None:
    x = np.ones(3)
    with pytest.raises(TypeError, match="one tree of parameters, and no groups"):
        fastopt.LBFGS([{"params": x}])
    for name in ("history", "max_line_steps"):
        with pytest.raises(ValueError, match=name):
            fastopt.LBFGS(x, **{name: 0})
    opt = fastopt.LBFGS({"W": x})
    with pytest.raises(TypeError, match="takes a function that returns"):
        opt.step({"W": x})  # type: ignore[arg-type]  # that is tested
    wrong: dict[str, Any] = {
        "two things": (lambda: 1.0),
        "a real number first": (lambda: ({"W": x}, 1.0)),
        r'grads\["W"\] must be an array': (lambda: (1.0, {"W": [1.0] * 3})),
        r"of the shape \(3,\)": (lambda: (1.0, {"W": np.ones(4)})),
        "grads must be nested as": (lambda: (1.0, {"V": x})),
    }
    for said, closure in wrong.items():
        with pytest.raises((TypeError, ValueError), match=said):
            opt.step(closure)
        assert x.tolist() == [1.0, 1.0, 1.0]
    opt.params["W"] = np.ones(3)
    with pytest.raises(ValueError, match="another array than when LBFGS was made"):
        opt.step(lambda: (1.0, {"W": x}))
