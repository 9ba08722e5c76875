"""A run moves between PyTorch and here in the middle, and ends where it would have ended."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.options import FRAGMENTS
from fastopt.interop import load_torch, to_torch
from fastopt.optimizers.adam import DECOUPLED
from fastopt.optimizers.base import Optimizer
from golden.interop.move_format import outline
from helpers.moved_runs import (
    HALF,
    STEPS,
    Run,
    built,
    decoded,
    deviation,
    first_params,
    go,
    inverse,
    refuses,
    runs,
)
from helpers.variants import CPU_BACKENDS, VARIANT_OF, VARIANTS, Variant

RUNS = runs("torch")
BACK = {(run.name, run.dtype): run for run in runs("to_torch")}
KNOWN = (fastopt.SGD, fastopt.Adagrad, fastopt.RMSprop, fastopt.Adadelta)
TORCH = [
    v
    for v in VARIANTS
    if not {*FRAGMENTS} & v.options.keys()  # which PyTorch does not have
    if v.optimizer in (*KNOWN, fastopt.Adam, fastopt.AdamW)
    and not {"eps_inside_sqrt", "eps_hat", "lr_inside", "bias_correction"} & v.options.keys()
    and v.name != "sgd_decoupled"
]
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_run = pytest.mark.parametrize("run", RUNS, ids=str)


def load(opt: Optimizer, state: Any, **more: Any) -> None:
    """Load a recorded state; of SGD PyTorch does not tell how many steps there were."""
    load_torch(opt, state, **{"step_count": HALF} if type(opt) is fastopt.SGD else {}, **more)


# From there to here ------------------------------------------------------------------------------


@each_backend
@each_run
def test_ten_steps_there_and_ten_here_are_twenty_there(run: Run, backend: str) -> None:
    info = run.info
    params = info["p10"]
    opt = built({**info, "p10": None}, params := [p.copy() for p in params], backend)
    load(opt, info["state"])
    go(opt, run.info, HALF, STEPS)
    assert deviation(params, run.info) <= 1.0
    assert opt.step_count == STEPS


OTHER = {
    **{"lr": 7.0, "weight_decay": 0.75, "eps": 0.5, "betas": (0.25, 0.25), "beta": 0.25},
    **{"momentum": 0.25, "lr_decay": 2.0, "rho": 0.25, "initial_accumulator_value": 3.0},
}


@each_run
def test_hyperparameters_are_taken_over(run: Run) -> None:
    info = run.info
    params = [p.copy() for p in info["p10"]]
    right = built(info, [p.copy() for p in params], "numpy")
    opt = built(info, params, "numpy")
    for group in opt.param_groups:
        momentum = bool(group.get("momentum"))
        wrong = {k: v for k, v in OTHER.items() if k in group and (k != "momentum" or momentum)}
        group.update(wrong, maximize=not group["maximize"])
    load(opt, info["state"])
    assert [g.plain for g in opt.param_groups] == [g.plain for g in right.param_groups]
    go(opt, info, HALF, STEPS)
    assert deviation(params, info) <= 1.0


@each_run
def test_the_state_is_that_of_ten_steps_here(run: Run) -> None:
    info = run.info
    opt = built(info, info["p10"], "numpy")
    load(opt, info["state"])
    mine = built(info, first_params(info), "numpy")
    go(mine, info, 0, HALF)
    found, wanted = opt.state_dict()["state"], mine.state_dict()["state"]
    assert found.keys() == wanted.keys()
    for name, entry in found.items():
        # PyTorch's SGD counts no steps: those that a parameter missed are not known.
        if info["optimizer"] != "SGD":
            assert entry["step"] == wanted[name]["step"]
        assert (entry["step"] == 0) == (wanted[name]["step"] == 0)
        for slot in entry.keys() - {"step"}:
            scale = 4e-6 if run.dtype == "float32" else 1e-11
            np.testing.assert_allclose(entry[slot], wanted[name][slot], rtol=scale, atol=0)


def run_of(name: str, dtype: str = "float64") -> dict[str, Any]:
    return next(run for run in RUNS if (run.name, run.dtype) == (name, dtype)).info


@each_backend
def test_a_parameter_that_never_had_a_gradient_is_at_its_first_step(backend: str) -> None:
    for name in ("SGD.dampening", "RMSprop.momentum", "Adam.amsgrad"):
        info = run_of(name)
        assert 0 not in info["state"]["state"]
        opt = built(info, info["p10"], backend)
        opt.step([np.asarray(3.0), np.ones(5), np.ones((3, 4))])
        load(opt, info["state"])
        entry = opt.state_dict()["state"]["0"]
        assert entry.pop("step") == 0
        assert not any(slot.any() for slot in entry.values())


def test_adagrad_begins_with_the_initial_value_of_the_other_run() -> None:
    for kind in (np.float64, np.complex64):
        opt = fastopt.Adagrad(np.ones(2, kind), initial_accumulator_value=7.0)
        other = fastopt.Adagrad(np.ones(2, kind), initial_accumulator_value=0.25)
        state = to_torch(other)
        state["state"] = {}
        load_torch(opt, state)
        np.testing.assert_equal(opt.state_dict(), other.state_dict())


# Which is which ----------------------------------------------------------------------------------


def trained(params: Any, grads: Any, steps: int = 2, **options: Any) -> Optimizer:
    opt = fastopt.Adam(params, **options)
    for _ in range(steps):
        opt.step(grads)
    return opt


def pair() -> dict[str, Array]:
    """Return two parameters of one shape whose written order is not the sorted one."""
    return {"w": np.ones(2), "b": np.full(2, 5.0)}


GRADS = {"w": np.array([1.0, 2.0]), "b": np.array([-3.0, 4.0])}


def test_by_position_a_dict_has_the_order_in_which_it_is_written() -> None:
    state = to_torch(trained([np.ones(2), np.full(2, 5.0)], [GRADS["w"], GRADS["b"]]))
    opt = fastopt.Adam(pair())
    load_torch(opt, state)
    np.testing.assert_equal(opt.state_dict(), trained(pair(), GRADS).state_dict())


def named_state(names: list[str]) -> dict[str, Any]:
    state = to_torch(trained([np.ones(2), np.full(2, 5.0)], [GRADS["b"], GRADS["w"]]))
    state["param_groups"][0]["param_names"] = names
    return state


def test_stored_names_come_before_positions() -> None:
    opt = fastopt.Adam(pair())
    load_torch(opt, named_state(["b", "w"]))
    np.testing.assert_equal(opt.state_dict(), trained(pair(), GRADS).state_dict())


def test_names_as_keys_of_the_state_are_names() -> None:
    state = to_torch(trained([np.ones(2), np.full(2, 5.0)], [GRADS["b"], GRADS["w"]]))
    state["state"] = {"b": state["state"][0], "w": state["state"][1]}
    state["param_groups"][0]["params"] = ["b", "w"]
    opt = fastopt.Adam(pair())
    load_torch(opt, state)
    np.testing.assert_equal(opt.state_dict(), trained(pair(), GRADS).state_dict())


@pytest.mark.parametrize(
    "names", [{"w": 1, "b": 0}, {"w": "two", "b": "one"}, {"w": 1, "b": "one"}]
)
def test_the_users_word_comes_before_all(names: Any) -> None:
    opt = fastopt.Adam(pair())
    load_torch(opt, named_state(["one", "two"]), names=names)
    np.testing.assert_equal(opt.state_dict(), trained(pair(), GRADS).state_dict())
    load_torch(opt, named_state(["w", "b"]), names={"w": 1, "b": 0})
    np.testing.assert_equal(opt.state_dict(), trained(pair(), GRADS).state_dict())


def test_names_that_fit_in_part_are_in_doubt() -> None:
    opt = trained(pair(), GRADS)
    refuses(opt, lambda: load_torch(opt, named_state(["b", "weight"])), "weight", "names=")


NAMES: dict[str, tuple[Any, type[Exception]]] = {
    "a_list": (["w", "b"], TypeError),
    "one_less": ({"w": 0}, ValueError),
    "one_more": ({"w": 0, "b": 1, "c": 2}, ValueError),
    "twice": ({"w": 0, "b": 0}, ValueError),
    "twice_by_name": ({"w": 0, "b": "one"}, ValueError),
    "beyond": ({"w": 0, "b": 2}, ValueError),
    "negative": ({"w": 0, "b": -1}, ValueError),
    "unknown": ({"w": 0, "b": "three"}, ValueError),
    "bool": ({"w": False, "b": True}, ValueError),
    "float": ({"w": 0.0, "b": 1.0}, ValueError),
}


@pytest.mark.parametrize("case", NAMES)
def test_bad_names_are_refused(case: str) -> None:
    names, kind = NAMES[case]
    opt = trained(pair(), GRADS)
    state = named_state(["one", "two"])
    refuses(opt, lambda: load_torch(opt, state, names=names), "names", kind=kind)
    if case not in ("a_list", "one_less", "one_more"):
        refuses(opt, lambda: to_torch(opt, names=names), "names", kind=kind)


def test_groups_there_and_none_here_need_names_and_equal_numbers() -> None:
    groups = [{"params": [np.full(2, 5.0)], "lr": 0.5}, {"params": [np.ones(2)], "lr": 0.5}]
    source = fastopt.Adam(groups)
    for _ in range(2):
        source.step([[GRADS["b"]], [GRADS["w"]]])
    opt = fastopt.Adam(pair())
    names = {"b": 0, "w": 1}
    refuses(opt, lambda: load_torch(opt, to_torch(source)), "by position", "names=")
    load_torch(opt, to_torch(source), names=names)
    np.testing.assert_equal(opt.state_dict(), trained(pair(), GRADS, lr=0.5).state_dict())
    source.param_groups[1]["lr"] = 0.25
    refuses(opt, lambda: load_torch(opt, to_torch(source), names=names), "lr=0.5", "lr=0.25")


def test_groups_by_pattern_take_over_their_own_numbers() -> None:
    opt = fastopt.Adam(fastopt.groups(pair(), {"b": {"lr": 0.1}}))
    source = fastopt.Adam(
        [{"params": [np.ones(2)], "lr": 0.5}, {"params": [np.full(2, 5.0)], "lr": 0.25}]
    )
    source.step([[GRADS["w"]], [GRADS["b"]]])
    load_torch(opt, to_torch(source))
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.25]
    again = to_torch(opt)
    np.testing.assert_equal(again, to_torch(source))


def test_a_parameter_that_was_replaced_is_refused() -> None:
    params = pair()
    opt = trained(params, GRADS)
    state = to_torch(opt)
    params["b"] = np.full(2, 5.0)
    refuses(opt, lambda: load_torch(opt, state), "b is no longer", kind=ValueError)
    refuses(opt, lambda: to_torch(opt), "b is no longer", kind=ValueError)


# Numbers of steps, schedules ---------------------------------------------------------------------


def test_a_schedule_of_ours_stays() -> None:
    opt = fastopt.Adam(pair(), inverse)
    load_torch(opt, named_state(["b", "w"]))
    assert opt.lr == inverse(2)
    assert opt.param_groups[0]["lr"] is inverse


def test_step_count_is_for_what_pytorch_does_not_count() -> None:
    opt = fastopt.Adam(pair())
    state = named_state(["b", "w"])
    load_torch(opt, state, step_count=9)
    assert opt.step_count == 9
    assert {entry["step"] for entry in opt.state_dict()["state"].values()} == {2}
    refuses(opt, lambda: load_torch(opt, state, step_count=1), "step_count=1", "2 steps")
    for bad in (1.0, "3", True, [3]):
        refuses(opt, lambda b=bad: load_torch(opt, state, step_count=b), kind=TypeError)
    sgd = fastopt.SGD(np.ones(2), momentum=0.5)
    sgd.step(np.ones(2))
    kept = to_torch(sgd)
    refuses(sgd, lambda: load_torch(sgd, kept), "counts no steps", "step_count=")
    refuses(sgd, lambda: load_torch(sgd, kept, step_count=0), "count is 0")


# From here to there ------------------------------------------------------------------------------


each_back = pytest.mark.parametrize("run", [r for r in RUNS if r.name != "Adam.named"], ids=str)


@each_backend
@each_back
def test_what_is_written_is_what_pytorch_writes_and_what_it_took(run: Run, backend: str) -> None:
    info, back = run.info, BACK[run.name, run.dtype].info
    opt = built(info, first_params(info), backend)
    go(opt, info, 0, HALF)
    mine, theirs = to_torch(opt), info["state"]
    assert outline(mine) == back["taken"]
    assert mine["state"].keys() == theirs["state"].keys()
    for one, entry in mine["state"].items():
        assert outline(entry) == outline({key: theirs["state"][one][key] for key in entry})
        assert entry.keys() == theirs["state"][one].keys()
        for key in entry:
            scale = 4e-6 if run.dtype == "float32" else 1e-11
            np.testing.assert_allclose(entry[key], theirs["state"][one][key], rtol=scale, atol=0)
    for group, other in zip(mine["param_groups"], theirs["param_groups"], strict=True):
        if "betas" in other:
            other["betas"] = tuple(other["betas"])
        assert {**group, "foreach": False} == other  # it was recorded one tensor at a time


@each_back
def test_ten_steps_here_and_ten_there_were_twenty_there(run: Run) -> None:
    assert deviation(BACK[run.name, run.dtype].info["p20"], run.info) <= 1.0


def test_tensors_are_made_by_the_function_that_is_given() -> None:
    opt = trained(pair(), GRADS)
    seen: list[Array] = []

    def tensor(array: Array) -> tuple[str, Array]:
        seen.append(array)
        return "tensor", array

    written = to_torch(opt, tensor)
    flat = [value for entry in written["state"].values() for value in entry.values()]
    assert {id(one[1]) for one in flat} == {id(array) for array in seen}
    assert all(one[0] == "tensor" for one in flat)
    assert all(type(a) is np.ndarray and a.flags.writeable and a.flags.owndata for a in seen)
    assert len(seen) == 6  # steps too: PyTorch counts them in place
    for array in seen:
        array[...] = 77
    np.testing.assert_equal(opt.state_dict(), trained(pair(), GRADS).state_dict())


def test_names_give_the_order_that_pytorch_has() -> None:
    opt = trained(pair(), GRADS)
    given = to_torch(opt, names={"w": 1, "b": 0})
    assert given["param_groups"][0]["params"] == [0, 1]
    wanted = opt.state_dict()["state"]
    np.testing.assert_array_equal(given["state"][0]["exp_avg"], wanted["b"]["m"])
    np.testing.assert_array_equal(given["state"][1]["exp_avg"], wanted["w"]["m"])
    groups = fastopt.Adam([{"params": {"w": np.ones(2)}}, {"params": {"b": np.ones(2)}}])
    with pytest.raises(ValueError, match="group by group"):
        to_torch(groups, names={"0.w": 1, "1.b": 0})


def test_a_schedule_is_written_as_the_value_of_the_next_step() -> None:
    opt = trained(pair(), GRADS, lr=inverse)
    assert to_torch(opt)["param_groups"][0]["lr"] == inverse(2)


HERE_ALONE: dict[str, Callable[[], Any]] = {
    "eps_inside_sqrt": lambda: fastopt.Adam(np.ones(2), eps_inside_sqrt=True),
    "Adagrad has no eps_inside_sqrt": lambda: fastopt.Adagrad(np.ones(2), eps_inside_sqrt=True),
    "eps_hat": lambda: fastopt.AdamW(np.ones(2), eps_hat=True),
    "RMSprop has no lr_inside": lambda: fastopt.RMSprop(np.ones(2), momentum=0.9, lr_inside=True),
    "lr_inside": lambda: fastopt.SGD(np.ones(2), momentum=0.9, lr_inside=True),
    "bias_correction": lambda: fastopt.AdamW(np.ones(2), bias_correction=False),
    "RMSprop has no bias_correction": lambda: fastopt.RMSprop(np.ones(2), bias_correction=True),
    "bounds": lambda: fastopt.SGD(np.ones(2), bounds=(0.0, 3.0)),
    "adaptive_clip": lambda: fastopt.SGD(np.ones(2), adaptive_clip=0.1),
    "centralize": lambda: fastopt.SGD(np.ones(2), centralize=True),
    "decoupled_lr": lambda: fastopt.AdamW(np.ones(2), decoupled_lr=True),
    "float16": lambda: fastopt.Adam(np.ones(2, np.float16)),
}


@pytest.mark.parametrize("part", HERE_ALONE)
def test_what_pytorch_does_not_have_is_not_written(part: str) -> None:
    opt = HERE_ALONE[part]()
    refuses(opt, lambda: to_torch(opt), part, kind=ValueError)


def test_an_optimizer_that_pytorch_does_not_have_is_refused() -> None:
    opt = fastopt.Momentum(np.ones(2))
    for call in (lambda: to_torch(opt), lambda: load_torch(opt, {})):
        refuses(opt, call, "Momentum", "Adagrad", kind=TypeError)
    wrong: Any = {"state": {}}
    with pytest.raises(TypeError, match="optimizer of fastopt"):
        to_torch(wrong)
    with pytest.raises(TypeError, match="optimizer of fastopt"):
        load_torch(wrong, {})


# There and back ----------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("variant", TORCH, ids=str)
@settings(max_examples=8)
@given(
    shapes=st.lists(st.sampled_from([(), (0,), (1,), (3,), (2, 3)]), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "float64", "complex64"]),
    steps=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_there_and_back_is_the_same_state(
    variant: Variant, backend: str, shapes: Any, dtype: str, steps: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    params = [np.array(rng.standard_normal(shape), dtype) for shape in shapes]
    opt = variant(params, backend=backend)
    for _ in range(steps):
        some = [np.array(rng.standard_normal(shape), dtype) for shape in shapes]
        opt.step([None if rng.random() < 0.3 else grad for grad in some])
    again = variant([p.copy() for p in params], backend=backend)
    written = to_torch(opt)
    kept = copy.deepcopy(written)
    load_torch(again, written, step_count=opt.step_count)
    np.testing.assert_equal(written, kept)
    mine, other = opt.state_dict(), again.state_dict()
    if variant.optimizer is fastopt.SGD:  # each parameter's own count is not kept there
        for saved in (mine, other):
            for entry in saved["state"].values():
                del entry["step"]
    np.testing.assert_equal(other, mine)


# Tensors -----------------------------------------------------------------------------------------


class Device:
    def __init__(self, type: str) -> None:
        self.type = type

    def __str__(self) -> str:
        return f"{self.type}:0"


class Tensor:
    """What is looked at of a tensor."""

    def __init__(self, array: Any, device: str = "cpu", attached: bool = True) -> None:
        self.array = np.asarray(array)
        self.device = Device(device)
        self.attached = attached

    @property
    def dtype(self) -> str:
        return f"torch.{self.array.dtype}"

    def detach(self) -> Tensor:
        return Tensor(self.array, self.device.type, attached=False)

    def numpy(self) -> Array:
        if self.device.type != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if self.attached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return self.array

    __array__ = None  # numpy() alone is what is asked


def tensors(state: Any, device: str = "cpu") -> Any:
    if isinstance(state, dict):
        return {key: tensors(value, device) for key, value in state.items()}
    return Tensor(state, device) if isinstance(state, np.ndarray) else state


def test_tensors_are_read_and_need_not_be_detached() -> None:
    opt = fastopt.Adam(pair())
    state = named_state(["b", "w"])
    state["state"] = tensors(state["state"])
    state["param_groups"][0] |= {"lr": Tensor(0.25), "betas": (Tensor([0.5]), 0.75)}
    load_torch(opt, state)
    wanted = trained(pair(), GRADS)
    np.testing.assert_equal(opt.state_dict()["state"], wanted.state_dict()["state"])
    assert (opt.lr, opt.param_groups[0]["betas"]) == (0.25, (0.5, 0.75))


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
def test_a_tensor_on_another_device_is_refused_with_what_to_do(device: str) -> None:
    opt = trained(pair(), GRADS)
    state = named_state(["b", "w"])
    state["state"] = tensors(state["state"], device)
    refuses(opt, lambda: load_torch(opt, state), f"{device}:0", ".cpu()", "state[")


def test_older_dicts_and_what_schedulers_leave_are_read() -> None:
    opt = fastopt.Adam(pair())
    state = named_state(["b", "w"])
    (group,) = state["param_groups"]
    for later in ("maximize", "decoupled_weight_decay", "fused", "capturable", "foreach"):
        del group[later]
    group |= {"initial_lr": 0.1, "max_lr": 0.3}
    for entry in state["state"].values():
        entry["step"] = 2  # before 1.12 a Python number
    load_torch(opt, state)
    np.testing.assert_equal(opt.state_dict(), trained(pair(), GRADS).state_dict())


# Refusals ----------------------------------------------------------------------------------------


def of(state: Any, *place: Any, value: Any) -> Any:
    changed = copy.deepcopy(state)
    target = changed
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    return changed


def without(state: Any, *place: Any) -> Any:
    changed = copy.deepcopy(state)
    target = changed
    for name in place[:-1]:
        target = target[name]
    del target[place[-1]]
    return changed


M = ("state", 0, "exp_avg")
G = ("param_groups", 0)
DAMAGE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nothing": (lambda s: None, "state_dict()"),
    "a_checkpoint_of_more": (lambda s: {"optimizer": s}, "['optimizer']"),
    "no_state": (lambda s: without(s, "state"), "state"),
    "state_list": (lambda s: of(s, "state", value=[]), "state"),
    "no_groups": (lambda s: without(s, "param_groups"), "param_groups"),
    "groups_dict": (lambda s: of(s, "param_groups", value={}), "list of dicts"),
    "groups_empty": (lambda s: of(s, "param_groups", value=[]), "no group"),
    "group_text": (lambda s: of(s, *G, value="lr"), "list of dicts"),
    "params_missing": (lambda s: without(s, *G, "params"), "params"),
    "params_one_less": (lambda s: of(s, *G, "params", value=[0]), "state holds [1]"),
    "params_one_more": (lambda s: of(s, *G, "params", value=[0, 1, 2]), "3"),
    "params_twice": (lambda s: of(s, *G, "params", value=[0, 0]), "twice"),
    "params_bools": (lambda s: of(s, *G, "params", value=[False, True]), "numbers or names"),
    "names_one_less": (lambda s: of(s, *G, "param_names", value=["b"]), "param_names"),
    "names_text": (lambda s: of(s, *G, "param_names", value="bw"), "param_names"),
    "stray_state": (lambda s: of(s, "state", 7, value=s["state"][0]), "[7]"),
    "no_lr": (lambda s: without(s, *G, "lr"), "lr"),
    "no_amsgrad": (lambda s: without(s, *G, "amsgrad"), "amsgrad"),
    "another_key": (lambda s: of(s, *G, "momentum_decay", value=0.1), "momentum_decay"),
    "lr_negative": (lambda s: of(s, *G, "lr", value=-1.0), "lr"),
    "lr_nan": (lambda s: of(s, *G, "lr", value=float("nan")), "lr"),
    "lr_two": (lambda s: of(s, *G, "lr", value=np.ones(2)), "lr"),
    "lr_text": (lambda s: of(s, *G, "lr", value="0.1"), "lr"),
    "lr_none": (lambda s: of(s, *G, "lr", value=None), "lr"),
    "betas_one": (lambda s: of(s, *G, "betas", value=0.9), "betas"),
    "betas_high": (lambda s: of(s, *G, "betas", value=(0.9, 1.0)), "betas"),
    "maximize_text": (lambda s: of(s, *G, "maximize", value="no"), "maximize"),
    "amsgrad": (lambda s: of(s, *G, "amsgrad", value=True), "amsgrad"),
    "decoupled": (lambda s: of(s, *G, "decoupled_weight_decay", value=True), "decoupled"),
    "entry_list": (lambda s: of(s, "state", 0, value=[1]), "state[0]"),
    "slot_missing": (lambda s: without(s, *M), "state[0]: exp_avg_sq"),
    "slot_more": (lambda s: of(s, "state", 0, "max_exp_avg_sq", value=np.ones(2)), "max_exp"),
    "slot_unknown": (lambda s: of(s, "state", 0, "sum", value=np.ones(2)), "sum"),
    "step_missing": (lambda s: without(s, "state", 0, "step"), "step"),
    "step_half": (lambda s: of(s, "state", 0, "step", value=np.float32(1.5)), "1.5"),
    "step_negative": (lambda s: of(s, "state", 0, "step", value=-1), "step"),
    "step_nan": (lambda s: of(s, "state", 0, "step", value=float("nan")), "step"),
    "step_infinite": (lambda s: of(s, "state", 0, "step", value=float("inf")), "step"),
    "step_bool": (lambda s: of(s, "state", 0, "step", value=True), "step"),
    "step_zero": (lambda s: of(s, "state", 0, "step", value=0), "count is 0"),
    "step_two": (lambda s: of(s, "state", 0, "step", value=np.ones(2)), "step"),
    "step_text": (lambda s: of(s, "state", 0, "step", value="2"), "step"),
    "shape": (lambda s: of(s, *M, value=np.zeros(3)), "(3,)"),
    "column": (lambda s: of(s, *M, value=np.zeros((2, 1))), "(2, 1)"),
    "float32": (lambda s: of(s, *M, value=np.zeros(2, np.float32)), "float32"),
    "float16": (lambda s: of(s, *M, value=np.zeros(2, np.float16)), "float16"),
    "integers": (lambda s: of(s, *M, value=np.zeros(2, np.int64)), "int64"),
    "complex": (lambda s: of(s, *M, value=np.zeros(2, complex)), "complex128"),
    "other_byte_order": (lambda s: of(s, *M, value=np.zeros(2, ">f8")), ">f8"),
    "objects": (lambda s: of(s, *M, value=np.array([None, None])), "numbers"),
    "text": (lambda s: of(s, *M, value="zeros"), "numbers"),
    "a_list": (lambda s: of(s, *M, value=[[1.0], 2.0]), "cannot be read"),
    "squares_below_zero": (
        lambda s: of(s, "state", 0, "exp_avg_sq", value=-np.ones(2)),
        "negative",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_refused_and_changes_nothing(name: str) -> None:
    change, said = DAMAGE[name]
    opt = trained(pair(), GRADS)
    state = named_state(["b", "w"])
    refuses(opt, lambda: load_torch(opt, change(state)), said)


ALGORITHMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "amsgrad": ("adam", {}, {"amsgrad": True}),
    "centered": ("rmsprop", {}, {"centered": True}),
    "nesterov": ("sgd_nesterov", {}, {"nesterov": False}),
    "the momentum of": ("sgd_momentum", {}, {"momentum": 0.0, "dampening": 0.0}),
    "momentum": ("rmsprop", {"momentum": 0.5}, {}),
}


@each_backend
@pytest.mark.parametrize("part", ALGORITHMS)
def test_another_algorithm_is_refused_either_way(part: str, backend: str) -> None:
    name, first, second = ALGORITHMS[part]
    one, two = (VARIANT_OF[name](np.ones(2), backend=backend, **o) for o in (first, second))
    for opt, other in ((one, two), (two, one)):
        other.step(np.ones(2))
        refuses(opt, lambda o=opt, s=other: load_torch(o, to_torch(s), step_count=1), part)


OURS: dict[str, Callable[[], Any]] = {
    "eps_inside_sqrt": lambda: fastopt.Adam(pair(), eps_inside_sqrt=True),
    "eps_hat": lambda: fastopt.Adam(pair(), eps_hat=True),
    "bias_correction": lambda: fastopt.Adam(pair(), bias_correction=False),
}


@pytest.mark.parametrize("part", OURS)
def test_a_variant_that_pytorch_does_not_have_is_refused(part: str) -> None:
    opt = OURS[part]()
    refuses(opt, lambda: load_torch(opt, named_state(["b", "w"])), part)


def test_adam_with_decoupled_decay_is_adamw_in_pytorch() -> None:
    one = fastopt.Adam(pair(), weight_decay=0.1, decoupled_weight_decay=True)
    two = fastopt.AdamW(pair(), weight_decay=0.1)
    one.step(GRADS)
    two.step(GRADS)
    written = to_torch(one)
    np.testing.assert_equal(written, to_torch(two))
    load_torch(two, written)
    old = written["param_groups"][0]
    del old[DECOUPLED]  # which older versions do not have
    refuses(one, lambda: load_torch(one, written), DECOUPLED)


OF_OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lr_inside": (fastopt.SGD, {"momentum": 0.9}),
    "decoupled_weight_decay": (fastopt.SGD, {"momentum": 0.9}),
    "eps_inside_sqrt": (fastopt.Adagrad, {}),
    "eps_hat": (fastopt.AdamW, {"amsgrad": True}),
}


@pytest.mark.parametrize("option", OF_OTHERS)
def test_variants_of_other_libraries_are_refused_either_way(option: str) -> None:
    make, options = OF_OTHERS[option]
    plain, other = (make(np.ones(2), **options, **more) for more in ({}, {option: True}))
    for opt in (plain, other):
        opt.step(np.ones(2))
    refuses(other, lambda: load_torch(other, to_torch(plain), step_count=1), option)
    refuses(other, lambda: to_torch(other), option, kind=ValueError)


def test_the_state_of_another_class_is_refused() -> None:
    for variant in TORCH:
        other = variant(pair())
        other.step(GRADS)
        for optimizer in (*KNOWN, fastopt.Adam, fastopt.AdamW):
            opt: Any = optimizer(pair())
            same = optimizer is fastopt.AdamW and variant.options.get(DECOUPLED)  # its other name
            if optimizer is not variant.optimizer and not same:
                refuses(opt, lambda o=opt, s=other: load_torch(o, to_torch(s), step_count=1))


def test_stored_trees_are_read_as_they_were_written() -> None:
    node = {"named": "State", "fields": [["a", {"array": 0}], ["b", {"tuple": [{"value": 1}]}]]}
    found = decoded(node, {"0": np.ones(2)})
    assert type(found).__name__ == "State"
    assert (found.a.tolist(), found.b) == ([1.0, 1.0], (1,))
