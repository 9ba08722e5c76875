"""A run of optax goes on here from the middle, and ends where it would have ended."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.interop import load_optax
from fastopt.optimizers.base import Optimizer
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

RUNS = [run for run in runs("optax") if not run.name.startswith("refused")]
REFUSED = [run for run in runs("optax") if run.name.startswith("refused")]
COUNTED = ("Adam", "AdamW", "Momentum")
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_run = pytest.mark.parametrize("run", RUNS, ids=str)


def is_counted(run: Run) -> bool:
    named = ("scheduled", "inside", "rms_inside", "rms_corrected", "rms_both", "rms_trace")
    return run.info["optimizer"] in COUNTED or run.name in named


def load(opt: Optimizer, run: Run, params_like: Any = None) -> None:
    more = {} if is_counted(run) else {"step_count": HALF}
    load_optax(opt, run.info["state"], params_like, **more)


@each_backend
@each_run
def test_ten_steps_there_and_ten_here_are_twenty_there(run: Run, backend: str) -> None:
    info = run.info
    opt = built(info, params := [p.copy() for p in info["p10"]], backend)
    load(opt, run)
    assert opt.step_count == HALF
    go(opt, info, HALF, STEPS)
    assert deviation(params, info) <= 1.0


@each_run
def test_the_state_is_that_of_ten_steps_here(run: Run) -> None:
    info = run.info
    opt = built(info, info["p10"], "numpy")
    load(opt, run)
    mine = built(info, first_params(info), "numpy")
    for group, loaded in zip(mine.param_groups, opt.param_groups, strict=True):
        group.update(loaded.plain)  # optax' numbers are rounded to float32
    go(mine, info, 0, HALF)
    found, wanted = opt.state_dict()["state"], mine.state_dict()["state"]
    for name, entry in found.items():
        for slot, value in entry.items():
            scale = 4e-6 if run.dtype == "float32" else 1e-11
            np.testing.assert_allclose(value, wanted[name][slot], rtol=scale, atol=0)


@each_run
def test_steps_that_are_not_counted_there_must_be_told(run: Run) -> None:
    opt = built(run.info, run.info["p10"], "numpy")
    state = run.info["state"]
    if is_counted(run):
        load_optax(opt, state, step_count=HALF)
        refuses(opt, lambda: load_optax(opt, state, step_count=HALF - 1), "10 steps")
    else:
        refuses(opt, lambda: load_optax(opt, state), "counts no steps", "step_count=")


def run_of(name: str, dtype: str = "float64") -> Run:
    return next(r for r in runs("optax") if (r.name, r.dtype) == (name, dtype))


# Which variant -----------------------------------------------------------------------------------


REASONS = {
    "refused_amsgrad": "maximum of the corrected",
    "refused_lion": "ScaleByLionState",
    "refused_multi_steps": "MultiStepsState",
    "refused_finite": "ApplyIfFiniteState",
    "refused_flat": "params_like",
    "refused_adamax": "ScaleByAdamState",
    "refused_momentum_scheduled": "it is open",
    "refused_momentum_first": "another algorithm",
    "refused_momentum_open": "it is open",
}


@each_backend
@pytest.mark.parametrize("run", REFUSED, ids=str)
def test_what_optax_computes_otherwise_is_refused(run: Run, backend: str) -> None:
    opt = built(run.info, first_params(run.info), backend)
    state = run.info["state"]
    refuses(opt, lambda: load_optax(opt, state, step_count=HALF), REASONS[run.name])


OTHER: list[tuple[str, dict[str, Any], str]] = [
    ("adam", {"bias_correction": False}, "bias_correction=True"),
    ("adam", {"amsgrad": True}, "vmax"),
    ("amsgrad_uncorrected", {"amsgrad": False}, "nu_max"),
    ("rms", {"bias_correction": True}, "bias_correction=False"),
    ("rms_corrected", {"bias_correction": False}, "bias_correction=True"),
    ("rms", {"centered": True}, "'a'"),
    ("rms_centered", {"centered": False}, "mu"),
    ("rms", {"momentum": 0.9}, "buf"),
    ("rms_momentum", {"momentum": 0.0}, "trace"),
    ("momentum", {"momentum": 0.0}, "trace"),
    ("sgd", {"momentum": 0.9}, "buf"),
    ("momentum", {"dampening": 0.5}, "dampening"),
    ("adagrad", {"eps": 1e-7}, "eps_inside_sqrt=True"),
    ("adagrad_eps", {"eps_inside_sqrt": False}, "eps_inside_sqrt=True"),
    ("adam", {"eps_hat": True}, "eps_hat"),
    ("momentum", {"lr_inside": True}, "lr_inside=False"),
    ("inside", {"lr_inside": False}, "lr_inside=True"),
    ("rms_trace", {"lr_inside": True}, "lr_inside=False"),
    ("rms_inside", {"lr_inside": False}, "lr_inside=True"),
    ("rms_momentum", {"lr": inverse}, "must be a number"),
    ("rms_momentum", {"lr": 0.0}, "must be a number"),
    ("injected", {"eps_inside_sqrt": True}, "eps_inside_sqrt"),
]


@pytest.mark.parametrize(("name", "change", "said"), OTHER)
def test_another_algorithm_is_refused(name: str, change: dict[str, Any], said: str) -> None:
    info = run_of(name).info
    opt = built(info, info["p10"], "numpy", **change)
    refuses(opt, lambda: load_optax(opt, info["state"], step_count=HALF), said)


def test_the_state_of_another_class_is_refused() -> None:
    firsts = {run.info["optimizer"]: run for run in reversed(RUNS) if run.info["inputs"]}
    assert len(firsts) == 7
    for run in firsts.values():
        for name in firsts:
            if {name, run.info["optimizer"]} <= {"Adam", "AdamW"} or name == "SGD" == run.name:
                continue
            opt = built({**run.info, "kwargs": {}, "optimizer": name}, run.info["p10"], "numpy")
            if name != run.info["optimizer"]:
                state = run.info["state"]
                refuses(opt, lambda o=opt, s=state: load_optax(o, s, step_count=HALF))


def test_an_optimizer_that_optax_does_not_have_is_refused() -> None:
    class Mine(fastopt.Adam):
        pass

    opt = Mine(np.ones(2))
    refuses(opt, lambda: load_optax(opt, ()), "Mine", kind=TypeError)
    wrong: Any = {}
    with pytest.raises(TypeError, match="dict"):
        load_optax(wrong, ())


# Hyperparameters ---------------------------------------------------------------------------------


@each_backend
def test_injected_hyperparameters_are_taken_over(backend: str) -> None:
    info = run_of("injected").info
    opt = fastopt.AdamW(nested_params(info), lr=7.0, betas=(0.5, 0.5), backend=backend)
    load_optax(opt, info["state"])
    group = opt.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.02, (0.8, 0.95))
    assert (group["eps"], group["weight_decay"]) == (1e-5, 0.25)


def nested_params(info: dict[str, Any]) -> Any:
    p = info["p10"]
    return {"layers": [p[0], (p[2],)], "b": p[1]}


def test_injected_hyperparameters_of_a_schedule_are_not() -> None:
    info = run_of("injected_schedule").info
    opt = fastopt.Adam(nested_params(info), lr=7.0)
    load_optax(opt, info["state"])
    assert (opt.lr, opt.param_groups[0]["betas"]) == (7.0, (0.8, 0.999))
    opt = fastopt.Adam(nested_params(info), lr=inverse)
    load_optax(opt, info["state"])
    assert opt.lr == inverse(HALF)


def injected(info: dict[str, Any], **changes: Any) -> Any:
    state = info["state"]
    return state._replace(hyperparams={**state.hyperparams, **changes})


INJECTED: list[tuple[dict[str, Any], str]] = [
    ({"eps_root": np.asarray(1e-6)}, "eps_root"),
    ({"b3": np.asarray(0.9)}, "b3"),
    ({"learning_rate": np.asarray(-1.0)}, "lr"),
    ({"learning_rate": np.asarray(np.nan)}, "lr"),
    ({"learning_rate": np.ones(2)}, "one number"),
    ({"b1": np.asarray(1.0)}, "betas"),
]


@pytest.mark.parametrize(("change", "said"), INJECTED)
def test_bad_injected_hyperparameters_are_refused(change: dict[str, Any], said: str) -> None:
    info = run_of("injected").info
    opt = built(info, info["p10"], "numpy")
    refuses(opt, lambda: load_optax(opt, injected(info, **change)), said)


def test_eps_root_is_eps_inside_the_root() -> None:
    info = run_of("injected").info
    opt = fastopt.AdamW(nested_params(info), eps_inside_sqrt=True)
    load_optax(opt, injected(info, eps=np.asarray(0.0), eps_root=np.asarray(1e-6)))
    assert opt.param_groups[0]["eps"] == 1e-6


def test_parted_optimizers_with_other_numbers_need_groups() -> None:
    info = run_of("partition").info
    fast, slow = ({"learning_rate": np.asarray(lr)} for lr in (0.1, 0.001))
    inject = namedtuple("InjectStatefulHyperparamsState", "count hyperparams inner_state")
    parts = info["state"].inner_states
    state = info["state"]._replace(
        inner_states={
            "fast": inject(np.asarray(HALF), fast, parts["fast"]),
            "slow": inject(np.asarray(HALF), slow, parts["slow"]),
        }
    )
    opt = fastopt.Adam(nested_params(info))
    refuses(opt, lambda: load_optax(opt, state), "0.1", "0.001", "group")
    opt = fastopt.Adam(fastopt.groups(nested_params(info), {"b": {"lr": 3.0}}))
    load_optax(opt, state)
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.001]


# Which parameter ---------------------------------------------------------------------------------


Adam = namedtuple("ScaleByAdamState", "count mu nu")
Empty = namedtuple("EmptyState", "")
Trace = namedtuple("TraceState", "trace")


def adam(mu: Any, nu: Any, count: Any = 3) -> Any:
    return (Adam(count, mu, nu), Empty())


def test_one_array_is_one_parameter() -> None:
    opt = fastopt.Adam(np.zeros(2))
    load_optax(opt, adam(np.array([1.0, -2.0]), np.array([3.0, 4.0])))
    entry = opt.state_dict()["state"]["params"]
    np.testing.assert_equal(entry, {"step": 3, "m": np.array([1.0, -2.0]), "v": np.array([3.0, 4])})


def test_a_run_that_has_not_begun_begins_here() -> None:
    opt = fastopt.Adam(np.zeros(2))
    fresh = opt.state_dict()
    opt.step(np.ones(2))
    load_optax(opt, adam(np.zeros(2), np.zeros(2), 0))
    np.testing.assert_equal(opt.state_dict(), fresh)
    sgd = fastopt.SGD(np.zeros(2), momentum=0.5)
    load_optax(sgd, (Trace(np.zeros(2)), Empty()), step_count=0)
    assert sgd.step_count == 0


def test_other_nesting_is_told_by_params_like() -> None:
    w, b = np.zeros(2), np.zeros(2)
    opt = fastopt.Adam([w, b])
    mu = {"dense": {"b": np.full(2, 1.0), "w": np.full(2, 2.0)}}
    state = adam(mu, mu)
    refuses(opt, lambda: load_optax(opt, state), "dense.b", "params_like")
    load_optax(opt, state, {"dense": {"b": b, "w": w}})
    found = opt.state_dict()["state"]
    assert [found[name]["m"][0] for name in ("0", "1")] == [2.0, 1.0]


def test_bad_params_like_is_refused() -> None:
    w, b = np.zeros(2), np.zeros(2)
    opt = fastopt.Adam({"w": w, "b": b})
    mu = {"w": np.ones(2), "b": np.ones(2)}
    for bad in ({"w": w}, {"w": w, "b": w}, {"w": w, "b": b.copy()}, [w, b, w], {}, "w", 3):
        refuses(opt, lambda p=bad: load_optax(opt, adam(mu, mu), p), kind=ValueError)


def test_groups_that_are_lists_have_the_names_of_their_trees() -> None:
    opt = fastopt.Adam([{"params": {"w": np.zeros(2)}}, {"params": {"b": np.zeros(2)}}])
    mu = {"w": np.full(2, 1.0), "b": np.full(2, 2.0)}
    load_optax(opt, adam(mu, mu))
    found = opt.state_dict()["state"]
    assert [found[name]["m"][0] for name in ("0.w", "1.b")] == [1.0, 2.0]


class Immutable:
    """An array of another library, as JAX's are: it becomes one of NumPy, and has no methods."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self.array


def test_arrays_of_others_are_read() -> None:
    opt = fastopt.Adam(np.zeros(2))
    ones = Immutable(np.ones(2))
    load_optax(opt, adam(ones, ones, Immutable(np.array(3, np.int32))))
    np.testing.assert_array_equal(opt.state_dict()["state"]["params"]["m"], np.ones(2))


# Frozen leaves -----------------------------------------------------------------------------------


Masked = namedtuple("MaskedNode", "")
MaskedState = namedtuple("MaskedState", "inner_state")
Partition = namedtuple("PartitionState", "inner_states")
Inject = namedtuple("InjectStatefulHyperparamsState", "count hyperparams inner_state")
GAP: Any = Masked()
TWO = {"enc": {"W": np.full(2, 2.0), "b": GAP}, "dec": GAP}
FROZEN: dict[str, Any] = {
    "masked": (MaskedState(adam(TWO, TWO)),),
    "set_to_zero": Partition(
        {"train": MaskedState(adam(TWO, TWO)), "freeze": MaskedState(Empty())}
    ),
    "none": adam({**TWO, "dec": None}, {**TWO, "dec": [None, None]}),
    "leaf_by_leaf": adam({**TWO, "dec": [GAP, GAP]}, {**TWO, "dec": [GAP, GAP]}),
}


def with_frozen_leaves(**options: Any) -> Optimizer:
    tree = {"enc": {"W": np.ones(2), "b": np.ones(3)}, "dec": [np.ones(4), np.ones(())]}
    opt = fastopt.Adam(fastopt.groups(tree, {"enc.b": options, "dec.*": options}), lr=0.5)
    opt.step({"enc": {"W": np.ones(2), "b": np.ones(3)}, "dec": [np.ones(4), np.ones(())]})
    return opt


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("trainable", [True, False])
def test_leaves_that_are_frozen_there_have_no_state_and_begin_here(
    name: str, trainable: bool
) -> None:
    opt = with_frozen_leaves(trainable=trainable)
    load_optax(opt, FROZEN[name])
    found = opt.state_dict()["state"]
    steps = {key: (entry["step"], entry["m"].ravel()[0]) for key, entry in found.items()}
    assert steps == {"enc.W": (3, 2.0), "enc.b": (0, 0.0), "dec.0": (0, 0.0), "dec.1": (0, 0.0)}
    assert opt.step_count == 3


def test_frozen_leaves_share_a_group_with_others_whose_settings_are_injected() -> None:
    rate = {"learning_rate": np.asarray(0.125)}
    inner = Inject(np.asarray(3), rate, adam(TWO, TWO))
    opt = fastopt.Adam({"enc": {"W": np.ones(2), "b": np.ones(3)}, "dec": [np.ones(1)]}, lr=0.5)
    load_optax(opt, Partition({"train": MaskedState(inner), "freeze": MaskedState(Empty())}))
    assert (opt.lr, opt.state_dict()["state"]["enc.W"]["step"]) == (0.125, 3)


def test_all_leaves_may_be_frozen() -> None:
    opt = with_frozen_leaves()
    load_optax(opt, MaskedState(adam(GAP, GAP)))
    assert opt.step_count == 0
    assert not any(entry["m"].any() for entry in opt.state_dict()["state"].values())


def test_a_gap_in_one_of_two_averages_is_in_doubt() -> None:
    opt = fastopt.Adam({"w": np.zeros(2), "b": np.zeros(2)})
    whole = {"w": np.ones(2), "b": np.ones(2)}
    state = adam(whole, {"w": np.ones(2), "b": GAP})
    refuses(opt, lambda: load_optax(opt, state), "b: the optimizer keeps ['m', 'v']")


# Refusals ----------------------------------------------------------------------------------------


def damaged() -> dict[str, tuple[Any, str]]:
    one = {"w": np.ones(2), "b": np.ones(2)}
    return {
        "nothing": (None, "nested tuples"),
        "a_dict_of_arrays": ({"mu": one, "nu": one}, "nested tuples"),
        "an_array": (np.ones(2), "nested tuples"),
        "empty": ((), "counts no steps"),
        "another_state": (namedtuple("MyState", "count mu nu")(3, one, one), "MyState"),
        "another_field": (namedtuple("ScaleByAdamState", "count mu xi")(3, one, one), "xi"),
        "no_parameter": (adam({"w": np.ones(2)}, one), "got ScaleByAdamState.nu"),
        "one_parameter_more": (adam({**one, "c": np.ones(2)}, one), "c"),
        "not_of_another": (adam({"w": np.ones(2)}, {"w": np.ones(2)}), "b: the optimizer keeps"),
        "shape": (adam({**one, "w": np.ones(3)}, one), "(3,)"),
        "nu_of_another_shape": (adam(one, {**one, "w": np.ones((2, 1))}), "(2, 1)"),
        "float32": (adam({**one, "w": np.ones(2, np.float32)}, one), "float32"),
        "bfloat16": (adam({**one, "w": np.ones(2, ml_dtypes.bfloat16)}, one), "bfloat16"),
        "text": (adam({**one, "w": "mu"}, one), "numbers"),
        "squares_below_zero": (adam(one, {**one, "w": -np.ones(2)}), "negative"),
        "count_negative": (adam(one, one, np.int32(-1)), "count"),
        "count_zero": (adam(one, one, 0), "count is 0"),
        "count_half": (adam(one, one, 1.5), "count"),
        "count_none": (adam(one, one, None), "count"),
        "count_array": (adam(one, one, np.ones(2)), "count"),
        "counts_differ": ((*adam(one, one), namedtuple("ScaleByScheduleState", "count")(4)), "4"),
        "twice": ((adam(one, one), adam(one, one)), "are both m"),
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_state_is_refused_and_changes_nothing(name: str) -> None:
    state, said = damaged()[name]
    opt = fastopt.Adam({"w": np.zeros(2), "b": np.zeros(2)})
    opt.step({"w": np.ones(2), "b": np.ones(2)})
    refuses(opt, lambda: load_optax(opt, state), said)


@pytest.mark.parametrize("before", [(), (Empty(),), (Empty(), Empty())])
def test_where_the_learning_rate_of_a_momentum_is_must_show(before: Any) -> None:
    opt = fastopt.SGD(np.zeros(2), momentum=0.5)
    state = (*before, Trace(np.ones(2)))
    load_optax(opt, (*state, Empty()), step_count=2)
    if before:
        refuses(opt, lambda: load_optax(opt, state, step_count=2), "it is open")
    else:
        load_optax(opt, state, step_count=2)


def test_squares_of_complex_numbers_are_refused_and_momentum_is_not() -> None:
    ones = np.ones(2, complex)
    opt: Optimizer = fastopt.Adam(np.zeros(2, complex))
    refuses(opt, lambda: load_optax(opt, adam(ones, ones)), "|g|^2")
    sgd = fastopt.SGD(np.zeros(2, complex), momentum=0.5)
    load_optax(sgd, (Trace(ones * 2j), Empty()), step_count=1)
    np.testing.assert_array_equal(sgd.state_dict()["state"]["params"]["buf"], ones * 2j)


def test_what_is_read_is_left_as_it_was() -> None:
    for run in RUNS:
        state = run.info["state"]
        kept = copy.deepcopy(state)
        opt = built(run.info, run.info["p10"], "numpy")
        load_optax(opt, state, step_count=HALF)
        go(opt, run.info, HALF, HALF + 2)
        np.testing.assert_equal(state, kept)
