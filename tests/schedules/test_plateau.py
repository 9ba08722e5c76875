"""ReduceLROnPlateau follows PyTorch's policy, and what it remembers is part of the checkpoint."""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from fastopt.schedules import ReduceLROnPlateau, cosine, join, warmup
from helpers.schedule_specs import RECORDED
from helpers.variants import CPU_BACKENDS

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)


def tired(lr: float = 0.5, **options: Any) -> ReduceLROnPlateau:
    """Return a plateau that has reduced its lr once, to lr / 10."""
    plateau = ReduceLROnPlateau(lr, patience=1, **options)
    for loss in (1.0, 1.0, 1.0):
        plateau.report(loss)
    assert plateau(0) == lr * 0.1
    return plateau


# The policy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDED["plateaus"], ids=lambda r: str(len(r["options"])))
def test_the_learning_rate_falls_as_pytorchs(record: dict[str, Any]) -> None:
    plateau = ReduceLROnPlateau(**record["options"])
    got = []
    for loss in map(float, record["losses"]):
        if math.isnan(loss):
            with pytest.warns(RuntimeWarning, match="loss is NaN"):
                plateau.report(loss)
        else:
            plateau.report(loss)
        got.append(plateau(0))
    assert got == pytest.approx(record["lr"], rel=1e-12)
    assert len(set(got)) > 1 or record["options"]["lr"] == 1e-7  # where eps forbids it


def test_the_value_is_the_present_one_at_any_step() -> None:
    plateau = tired(0.5)
    assert {plateau(step) for step in (0, 1, 2**53)} == {0.5 * 0.1}
    with pytest.raises(ValueError, match="step must be"):
        plateau(-1)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 10**400])
def test_what_is_not_finite_is_never_better(mode: str, bad: Any) -> None:
    plateau = ReduceLROnPlateau(0.5, patience=1, mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plateau.report(bad)
        plateau.report(2.0)
        assert plateau.state_dict()["best"] == 2.0
        plateau.report(bad)
        assert plateau(0) == 0.5
        plateau.report(bad)
    assert plateau(0) == 0.05
    assert plateau.state_dict()["best"] == 2.0


def test_a_warning_that_is_made_an_error_changes_nothing() -> None:
    plateau = tired()
    before = plateau.state_dict()
    with pytest.raises(RuntimeWarning, match="NaN"):  # the tests' filter makes it one
        plateau.report(math.nan)
    assert plateau.state_dict() == before


LOSSES = [1, 1.0, np.float32(1), np.float64(1), np.int64(1), np.array(1.0), Decimal(1)]
NO_LOSSES = [None, "1.0", b"1", True, np.True_, np.array(True), 1j, np.complex64(1), np.array(1j)]
NO_LOSSES += [[1.0], np.array([1.0]), np.ones(2), np.array("1"), {}, object()]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_any_one_number(loss: Any) -> None:
    plateau = ReduceLROnPlateau(0.5)
    plateau.report(loss)
    assert type(plateau.state_dict()["best"]) is float
    assert plateau.state_dict()["best"] == 1.0


@pytest.mark.parametrize("loss", NO_LOSSES)
def test_what_is_no_loss_is_refused_and_changes_nothing(loss: Any) -> None:
    plateau = tired()
    before = plateau.state_dict()
    with pytest.raises(TypeError, match="a loss must be one number; got"):
        plateau.report(loss)
    assert plateau.state_dict() == before


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"lr": -1}, ValueError),
    ({"lr": math.inf}, ValueError),
    ({"lr": True}, TypeError),
    ({"lr": cosine(0.1, 10)}, TypeError),
    ({"factor": 1.0}, ValueError),
    ({"factor": -0.1}, ValueError),
    ({"patience": -1}, ValueError),
    ({"patience": 1.0}, TypeError),
    ({"threshold": -1e-4}, ValueError),
    ({"threshold": math.nan}, ValueError),
    ({"threshold_mode": "relative"}, ValueError),
    ({"cooldown": -1}, ValueError),
    ({"lr_min": -1}, ValueError),
    ({"lr_min": None}, TypeError),
    ({"eps": -1}, ValueError),
    ({"mode": "low"}, ValueError),
    ({"mode": None}, TypeError),
]


@pytest.mark.parametrize(("options", "kind"), BAD_ARGUMENTS)
def test_a_bad_argument_is_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"ReduceLROnPlateau: {next(iter(options))} must be .*got"):
        ReduceLROnPlateau(**{"lr": 0.1, **options})


# What it remembers -------------------------------------------------------------------------------


def test_a_state_dict_is_json_and_goes_on_where_it_was() -> None:
    straight = ReduceLROnPlateau(0.1, patience=2, cooldown=1, factor=0.5)
    losses = [1.0, 0.5, 0.6, 0.6, 0.6, 0.7, 0.7, 0.4, 0.4, 0.4, 0.4]
    for cut in range(len(losses)):
        straight = ReduceLROnPlateau(0.1, patience=2, cooldown=1, factor=0.5)
        first = ReduceLROnPlateau(0.1, patience=2, cooldown=1, factor=0.5)
        later = ReduceLROnPlateau(0.1, patience=2, cooldown=1, factor=0.5)
        for loss in losses[:cut]:
            straight.report(loss)
            first.report(loss)
        later.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        for loss in losses[cut:]:
            straight.report(loss)
            later.report(loss)
            assert later.state_dict() == straight.state_dict()


def test_it_can_be_pickled_and_copied_with_its_memory_and_equals_itself_alone() -> None:
    plateau = tired()
    for other in (pickle.loads(pickle.dumps(plateau)), copy.deepcopy(plateau)):
        assert other.state_dict() == plateau.state_dict()
        assert repr(other) == repr(plateau)
        assert other != plateau
        other.report(0.1)
        assert other.state_dict() != plateau.state_dict()
    assert plateau == plateau


STATE = tired().state_dict()
DAMAGE: dict[str, Any] = {
    "nothing": None,
    "text": "state",
    "list": [STATE],
    "empty": {},
    "a_key_less": {k: v for k, v in STATE.items() if k != "best"},
    "a_key_more": {**STATE, "patience": 3},
    "other_mode": {**STATE, "mode": "max"},
    "lr_negative": {**STATE, "lr": -0.1},
    "lr_nan": {**STATE, "lr": math.nan},
    "lr_text": {**STATE, "lr": "0.1"},
    "lr_none": {**STATE, "lr": None},
    "best_inf": {**STATE, "best": math.inf},
    "best_text": {**STATE, "best": "1"},
    "bad_negative": {**STATE, "bad_reports": -1},
    "bad_float": {**STATE, "bad_reports": 1.0},
    "cooldown_bool": {**STATE, "cooldown_left": True},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_refused_and_changes_nothing(name: str) -> None:
    plateau = tired(0.25)
    before = plateau.state_dict()
    with pytest.raises(CheckpointError, match="ReduceLROnPlateau: "):
        plateau.load_state_dict(DAMAGE[name])
    assert plateau.state_dict() == before


# In an optimizer ---------------------------------------------------------------------------------


def sgd(*lrs: Any, backend: str | None = None, **options: Any) -> Optimizer:
    groups = [{"params": np.ones(2), "lr": lr} for lr in lrs]
    return fastopt.SGD(groups, backend=backend, **options)


def lrs_of(opt: Optimizer) -> list[float]:
    return [group["lr"](0) for group in opt.param_groups]


@each_backend
def test_a_report_acts_on_the_next_step(backend: str) -> None:
    plateau, param = ReduceLROnPlateau(1.0, patience=0, factor=0.5), np.zeros(1)
    opt = fastopt.SGD(param, plateau, backend=backend)
    for loss in (3.0, 3.0, 2.0, 2.0):
        opt.step(np.full(1, -1.0))
        plateau.report(loss)
    assert param[0] == 1.0 + 1.0 + 0.5 + 0.5
    assert opt.lr == 0.25
    assert "ReduceLROnPlateau(lr=1.0, factor=0.5, " in repr(opt)


@each_backend
@pytest.mark.parametrize("clip", [None, 1e9])
@pytest.mark.parametrize("failure", ["skipped", "raised"])
def test_a_report_acts_on_a_step_that_is_tried_again(
    failure: str, clip: float | None, backend: str
) -> None:
    plateau, param = ReduceLROnPlateau(1.0, patience=0, factor=0.5), np.zeros(2)
    policy = "skip" if failure == "skipped" else "propagate"
    opt = fastopt.SGD(param, plateau, max_grad_norm=clip, on_nonfinite=policy, backend=backend)
    plateau.report(1.0)
    if failure == "skipped":
        opt.step(np.array([1.0, math.nan]))
    else:
        with pytest.raises(ValueError, match="shape"):
            opt.step(np.ones(3))
    plateau.report(1.0)
    opt.step(np.ones(2))
    np.testing.assert_array_equal(param, [-0.5, -0.5])


@each_backend
def test_a_step_that_failed_is_tried_again_with_new_values_whatever_was_set(backend: str) -> None:
    plateau, param = ReduceLROnPlateau(1.0, patience=0, factor=0.5), np.zeros(2)
    opt = fastopt.SGD(param, plateau, backend=backend)
    plateau.report(1.0)
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.ones(3))
    plateau.report(1.0)
    opt.max_grad_norm = math.inf  # another way through the step
    opt.step(np.ones(2))
    np.testing.assert_array_equal(param, [-0.5, -0.5])


@each_backend
def test_resuming_goes_on_with_the_reduced_learning_rate(backend: str) -> None:
    def run(param: Any, plateau: Any, saved: Any, losses: list[float]) -> dict[str, Any]:
        opt = fastopt.Adam(param, plateau, backend=backend)
        if saved is not None:
            opt.load_state_dict(saved)
        for loss in losses:
            opt.step(np.full(3, loss))
            plateau.report(loss)
        return opt.state_dict()

    losses = [1.0, 1.0, 1.0, 0.5, 0.6, 0.7, 0.8, 0.9]
    whole, part = np.ones(3), np.ones(3)
    straight = run(whole, ReduceLROnPlateau(0.1, patience=1), None, losses)
    saved = run(part, ReduceLROnPlateau(0.1, patience=1), None, losses[:4])
    assert set(saved["groups"][0]["lr"]) == {"schedule"}
    json.dumps(saved["groups"], allow_nan=False)
    resumed = run(part, ReduceLROnPlateau(0.1, patience=1), copy.deepcopy(saved), losses[4:])
    np.testing.assert_array_equal(whole, part)
    np.testing.assert_equal(resumed, straight)


@each_backend
def test_one_plateau_serves_several_groups_and_all_of_them(backend: str) -> None:
    shared, own = ReduceLROnPlateau(0.5, patience=1), ReduceLROnPlateau(0.5, patience=1)
    opt = sgd(shared, shared, own, backend=backend)
    for loss in (1.0, 1.0, 1.0):
        shared.report(loss)
    assert lrs_of(opt) == [0.05, 0.05, 0.5]
    again = ReduceLROnPlateau(0.5)
    other = sgd(again, again, ReduceLROnPlateau(0.5), backend=backend)
    other.load_state_dict(opt.state_dict())
    assert lrs_of(other) == [0.05, 0.05, 0.5]
    assert again.state_dict() == shared.state_dict()
    everywhere = ReduceLROnPlateau(0.25)
    with pytest.raises(ValueError, match="lr_scale"):  # the rates are not one
        other.lr = everywhere
    for group in other.param_groups:
        group["lr"] = everywhere
    other.lr = last = ReduceLROnPlateau(0.125)
    assert all(group["lr"] is last for group in other.param_groups)


def test_different_memories_for_one_schedule_are_refused() -> None:
    saved = sgd(tired(), ReduceLROnPlateau(0.5)).state_dict()
    shared = ReduceLROnPlateau(0.25)
    refuses(sgd(shared, shared), saved, r"groups\[1\]: lr: .* used in several places")


def refuses(opt: Optimizer, saved: Any, match: str, strict: bool = True) -> None:
    before = opt.state_dict()
    with pytest.raises(CheckpointError, match=match):
        opt.load_state_dict(saved, strict=strict)
    np.testing.assert_equal(opt.state_dict(), before)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_memory_in_a_state_dict_changes_nothing_at_all(name: str) -> None:
    opt = sgd(ReduceLROnPlateau(0.5), ReduceLROnPlateau(0.5), momentum=0.5)
    saved = sgd(tired(), tired(), momentum=0.25).state_dict()
    saved["groups"][1]["lr"] = {"schedule": DAMAGE[name]}
    refuses(opt, saved, r"groups\[1\]: lr: ")


def test_the_rest_being_damaged_leaves_the_memory_as_it_is() -> None:
    opt = sgd(ReduceLROnPlateau(0.5), momentum=0.5)
    saved = sgd(tired(), momentum=0.5).state_dict()
    saved["state"]["0.params"]["buf"] = np.ones(3)
    refuses(opt, saved, "buf")
    assert lrs_of(opt) == [0.5]


@pytest.mark.parametrize("ours", [0.25, cosine(0.25, 10), lambda step: 0.25])
def test_a_memory_that_has_no_place_is_refused_or_left_out(ours: Any) -> None:
    saved = sgd(tired()).state_dict()
    refuses(
        sgd(ours), saved, r"groups\[0\]: lr: 1 schedules with a memory .*strict=False keeps ours"
    )
    opt = sgd(ours)
    opt.load_state_dict(saved, strict=False)
    assert opt.lr == 0.25
    saved["groups"][0].update(lr=None, nesterov=saved["groups"][0]["lr"])
    refuses(opt, saved, r"groups\[0\]: nesterov")
    saved["groups"][0]["unknown"] = saved["groups"][0].pop("nesterov")
    refuses(opt, saved, "unknown", strict=False)


@pytest.mark.parametrize("theirs", [0.25, cosine(0.25, 10)])
def test_a_plateau_stays_when_no_memory_was_saved(theirs: Any) -> None:
    opt = sgd(tired())
    opt.load_state_dict(sgd(theirs).state_dict())
    assert lrs_of(opt) == [0.05]


def test_a_memory_inside_of_other_schedules_is_saved() -> None:
    def schedules() -> tuple[list[ReduceLROnPlateau], Any]:
        parts = [ReduceLROnPlateau(0.5, patience=1), ReduceLROnPlateau(0.25, patience=1)]
        return parts, join([warmup(parts[0], 10), 0.1, parts[1]], [20, 30])

    parts, schedule = schedules()
    for loss in (1.0, 1.0, 1.0):
        parts[1].report(loss)
    assert [schedule(step) for step in (5, 10, 20, 30)] == [0.25, 0.5, 0.1, 0.025]
    saved = copy.deepcopy(sgd(schedule).state_dict())
    again, other = schedules()
    sgd(other).load_state_dict(saved)
    assert [part.state_dict() for part in again] == [part.state_dict() for part in parts]
    refuses(sgd(again[0]), saved, r"2 schedules with a memory were saved, and .* has 1")


def test_a_limit_of_the_norm_is_no_schedule() -> None:
    for schedule in (ReduceLROnPlateau(1.0), warmup(ReduceLROnPlateau(1.0), 3)):
        with pytest.raises(TypeError, match=r"max_grad_norm must be .* got .*ReduceLROnPlateau"):
            fastopt.SGD(np.ones(1), max_grad_norm=schedule)  # type: ignore[arg-type]  # that is tested
