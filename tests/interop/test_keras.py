"""A run of keras goes on here from the middle, and ends where it would have ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.interop import load_keras
from helpers.moved_runs import (
    HALF,
    STEPS,
    Run,
    built,
    deviation,
    first_params,
    go,
    inverse,
    refuses,
    runs,
)
from helpers.variants import CPU_BACKENDS

ALL = runs("keras")
SAME = [run for run in ALL if not run.name.startswith("refused")]
REFUSED = [run for run in ALL if run.name.startswith("refused")]
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


class Variable:
    """What is looked at of a variable of keras."""

    def __init__(self, path: str, value: Any) -> None:
        self.path = path
        self.value = value
        self.name = path.rpartition("/")[2]

    def numpy(self) -> Any:
        return self.value


FORMS = {
    "variables": lambda info: [Variable(path, value) for path, value in info["state"].items()],
    "by_path": lambda info: info["state"],
    "by_name": lambda info: {path.rpartition("/")[2]: v for path, v in info["state"].items()},
    "stored": lambda info: info["stored"],
    "values": lambda info: list(info["stored"].values()),
}
each_form = pytest.mark.parametrize("form", FORMS)


@each_backend
@each_form
@pytest.mark.parametrize("run", SAME, ids=str)
def test_ten_steps_there_and_ten_here_are_twenty_there(run: Run, form: str, backend: str) -> None:
    info = run.info
    opt = built(info, params := [p.copy() for p in info["p10"]], backend)
    if not callable(opt.param_groups[0]["lr"]):
        opt.lr = 7.0  # keras knows the rate
    load_keras(opt, FORMS[form](info))
    assert opt.step_count == HALF
    go(opt, info, HALF, STEPS)
    assert deviation(params, info) <= 1.0


REASONS = {
    "refused_average": "b_average",
    "refused_accumulated": "b_gradient_accumulator",
    "refused_momentum_scheduled": "construct one with lr_inside=True",
}


@pytest.mark.parametrize("run", REFUSED, ids=str)
def test_what_keras_computes_otherwise_is_refused(run: Run) -> None:
    opt = built(run.info, first_params(run.info), "numpy")
    refuses(opt, lambda: load_keras(opt, run.info["state"]), REASONS[run.name])
    refuses(opt, lambda: load_keras(opt, list(map(np.asarray, run.info["state"].values()))))


def run_of(name: str) -> dict[str, Any]:
    return next(r for r in ALL if (r.name, r.dtype) == (name, "float64")).info


OTHER: list[tuple[str, dict[str, Any], str]] = [
    ("adam", {"bias_correction": False}, "bias_correction=True"),
    ("adam", {"amsgrad": True}, ""),
    ("adam_amsgrad", {"amsgrad": False}, ""),
    ("rms", {"eps_inside_sqrt": False}, "eps_inside_sqrt=True"),
    ("rms", {"bias_correction": True}, "bias_correction=False"),
    ("rms", {"momentum": 0.5}, ""),
    ("rms_both", {"centered": False}, ""),
    ("sgd", {"momentum": 0.9}, ""),
    ("momentum", {"momentum": 0.0}, ""),
    ("momentum", {"dampening": 0.5}, "dampening=0.0"),
    ("momentum", {"lr": inverse}, "times the learning rate"),
    ("inside", {"dampening": 0.5, "lr_inside": False}, "dampening=0.0"),
    ("adagrad", {"lr_decay": 0.5}, "lr_decay=0.0"),
    ("rms_inside", {"lr_inside": False}, "lr_inside=True"),
    ("adagrad_eps", {"eps_inside_sqrt": False}, "eps_inside_sqrt=True"),
    ("adam_hat", {"eps_hat": False}, "eps_hat=True"),
    ("adam_hat", {"eps_inside_sqrt": True}, "eps_inside_sqrt=False"),
    ("adamw_hat", {"eps_hat": False}, "eps_hat=True"),
]


@each_form
@pytest.mark.parametrize(("name", "change", "said"), OTHER)
def test_another_algorithm_is_refused(
    name: str, change: dict[str, Any], said: str, form: str
) -> None:
    info = run_of(name)
    opt = built(info, info["p10"], "numpy", **change)
    refuses(opt, lambda: load_keras(opt, FORMS[form](info)), said)


def test_the_state_of_another_class_is_refused() -> None:
    firsts = {run.info["optimizer"]: run.info for run in SAME if run.dtype == "float64"}
    assert len(firsts) == 6
    for theirs in firsts.values():
        for mine, info in firsts.items():
            if mine != theirs["optimizer"] and {mine, theirs["optimizer"]} != {"Adam", "AdamW"}:
                opt = built(info, info["p10"], "numpy")
                refuses(opt, lambda o=opt, s=theirs: load_keras(o, s["state"]))


def test_an_optimizer_that_keras_does_not_have_is_refused() -> None:
    opt = fastopt.Momentum(np.ones(2))
    refuses(opt, lambda: load_keras(opt, {}), "Momentum", kind=TypeError)


def test_the_velocity_of_keras_is_ours_bit_by_bit() -> None:
    info = run_of("inside")
    opt = built(info, info["p10"], "numpy")
    load_keras(opt, info["state"])
    state = {path.rpartition("/")[2]: value for path, value in info["state"].items()}
    for name, entry in opt.state_dict()["state"].items():
        np.testing.assert_array_equal(entry["v"], state[f"{name.replace('.', '_')}_momentum"])


def adam(params: Any) -> fastopt.Optimizer:
    """Return an Adam with the eps of keras."""
    return fastopt.Adam(params, eps=1e-7, eps_hat=True)


# Which parameter ---------------------------------------------------------------------------------


def variables(**changes: Any) -> dict[str, Any]:
    """Return the variables of an Adam over w and b, which have one shape."""
    found = {
        "adam/iteration": np.int32(3),
        "adam/learning_rate": np.asarray(0.25),
        "adam/w_momentum": np.full(2, 1.0),
        "adam/w_velocity": np.full(2, 2.0),
        "adam/b_momentum": np.full(2, 3.0),
        "adam/b_velocity": np.full(2, 4.0),
    }
    found |= {f"adam/{name}": value for name, value in changes.items()}
    return {name: value for name, value in found.items() if value is not None}


def by_name(opt: fastopt.Optimizer) -> dict[str, list[float]]:
    state = opt.state_dict()["state"]
    return {name: [entry["m"][0], entry["v"][0]] for name, entry in state.items()}


def test_parameters_are_matched_by_name_if_the_names_are_the_same() -> None:
    opt = adam({"b": np.zeros(2), "w": np.zeros(2)})
    load_keras(opt, variables())
    assert by_name(opt) == {"w": [1.0, 2.0], "b": [3.0, 4.0]}
    assert (opt.lr, opt.step_count) == (0.25, 3)


def test_parameters_are_matched_by_position_if_no_name_is_the_same() -> None:
    opt = adam({"x": np.zeros(2), "a": np.zeros(2)})
    for given in (variables(), list(variables().values())):
        load_keras(opt, given)
        assert by_name(opt) == {"x": [1.0, 2.0], "a": [3.0, 4.0]}


@pytest.mark.parametrize("names", [{"x": 1, "a": 0}, {"x": "b", "a": "w"}])
def test_the_users_word_comes_before_all(names: Any) -> None:
    opt = adam({"x": np.zeros(2), "a": np.zeros(2)})
    load_keras(opt, variables(), names=names)
    assert by_name(opt) == {"a": [1.0, 2.0], "x": [3.0, 4.0]}
    refuses(opt, lambda: load_keras(opt, variables(), names={"x": 0}), "names", kind=ValueError)


def test_names_that_fit_in_part_are_in_doubt() -> None:
    opt = adam({"w": np.zeros(2), "a": np.zeros(2)})
    refuses(opt, lambda: load_keras(opt, variables()), "names=")


def test_groups_with_one_state_are_read_and_others_are_not() -> None:
    groups: list[dict[str, Any]] = [{"params": {"w": np.zeros(2)}}, {"params": {"b": np.zeros(2)}}]
    opt = adam(groups)
    load_keras(opt, variables())
    assert by_name(opt) == {"0.w": [1.0, 2.0], "1.b": [3.0, 4.0]}
    groups[1]["amsgrad"] = True
    opt = adam(groups)
    refuses(opt, lambda: load_keras(opt, variables()), "the same state of all parameters")


# Refusals ----------------------------------------------------------------------------------------


STORED = {str(k): value for k, value in enumerate(variables().values())}
DAMAGE: dict[str, tuple[Any, str]] = {
    "nothing": (None, "optimizer.variables"),
    "text": ("variables", "optimizer.variables"),
    "empty": ({}, ""),
    "empty_list": ([], "expected 6 variables"),
    "no_iteration": (variables(iteration=None), "iteration"),
    "iteration_half": (variables(iteration=1.5), "iteration"),
    "iteration_zero": (variables(iteration=0), "count is 0"),
    "iteration_negative": (variables(iteration=-1), "iteration"),
    "rate_text": (variables(learning_rate="0.1"), "learning_rate"),
    "rate_whole": (variables(learning_rate=np.int32(1)), "learning_rate"),
    "rate_negative": (variables(learning_rate=-0.5), "lr"),
    "slot_missing": (variables(w_velocity=None), "w_momentum"),
    "parameter_missing": (variables(w_velocity=None, w_momentum=None), "1"),
    "parameter_more": (variables(c_velocity=np.ones(2), c_momentum=np.ones(2)), "3"),
    "unknown": (variables(w_average=np.ones(2)), "w_average"),
    "twice": ({**variables(), "other/w_velocity": np.ones(2)}, "the same state"),
    "shape": (variables(w_velocity=np.ones(3)), "(3,)"),
    "float32": (variables(w_velocity=np.ones(2, np.float32)), "float32"),
    "float16": (variables(w_velocity=np.ones(2, np.float16)), "float16"),
    "squares_below_zero": (variables(w_velocity=-np.ones(2)), "negative"),
    "stored_one_less": ({k: v for k, v in STORED.items() if k != "5"}, ""),
    "stored_two_more": ({**STORED, "6": np.ones(2), "7": np.ones(2)}, "expected 6"),
    "stored_gap": ({**{k: v for k, v in STORED.items() if k != "5"}, "9": np.ones(2)}, "6"),
    "mixed_keys": ({**STORED, "adam/w_velocity": np.ones(2)}, ""),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_variables_are_refused_and_change_nothing(name: str) -> None:
    given, said = DAMAGE[name]
    opt = adam({"w": np.zeros(2), "b": np.zeros(2)})
    opt.step({"w": np.ones(2), "b": np.ones(2)})
    refuses(opt, lambda: load_keras(opt, given), said)


def test_complex_parameters_are_refused() -> None:
    opt = fastopt.SGD(np.zeros(2, complex), momentum=0.5)
    given = {"iteration": 1, "learning_rate": 0.5, "w_momentum": np.ones(2, complex)}
    refuses(opt, lambda: load_keras(opt, given), "complex")


def test_a_rate_of_zero_cannot_be_taken_out_of_a_buffer() -> None:
    opt = fastopt.SGD(np.zeros(2), momentum=0.5)
    given = {"iteration": 1, "learning_rate": 0.0, "w_momentum": np.ones(2)}
    refuses(opt, lambda: load_keras(opt, given), "above 0")
