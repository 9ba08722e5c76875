"""What a load says of hyperparameters and policies that were saved otherwise than they are here."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import schedules
from fastopt.checkpoint.settings import Description, Setting
from fastopt.errors import CheckpointError
from fastopt.optimizers.base import Optimizer
from helpers.variants import script

Load = Callable[[Optimizer, Optimizer], fastopt.LoadReport]


def made(lr: Any = 1e-3, **options: Any) -> Optimizer:
    return fastopt.Adam({"W": np.ones(2), "b": np.ones(3)}, lr, backend="numpy", **options)


@pytest.fixture(params=["load", "load_state_dict"])
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Load:
    """Both ways of loading what another optimizer has saved."""

    def by_file(into: Optimizer, source: Optimizer) -> fastopt.LoadReport:
        source.save(tmp_path / "a")
        return into.load(tmp_path / "a")

    def by_dict(into: Optimizer, source: Optimizer) -> fastopt.LoadReport:
        return into.load_state_dict(source.state_dict())

    return by_file if request.param == "load" else by_dict


def said(report: fastopt.LoadReport) -> list[tuple[Any, ...]]:
    return [(one.name, repr(one.saved), repr(one.here), one.holds) for one in report.settings]


def lr_fn(step: int) -> float:
    return 0.1 / (1 + step)


COSINE, OTHER = schedules.cosine(0.1, 100), schedules.cosine(0.1, 200)
COSINE_TEXT = "the function cosine(lr=0.1, total_steps=100, lr_min=0.0)"
OTHER_TEXT = "the function cosine(lr=0.1, total_steps=200, lr_min=0.0)"

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[tuple[Any, ...]], tuple[str, ...]]] = {
    "nothing": ({}, {}, [], ()),
    "nothing_of_all": (
        {"lr": COSINE, "bounds": (0, 1), "max_grad_norm": 1.0, "on_nonfinite": "skip"},
        {"lr": COSINE, "bounds": (0, 1), "max_grad_norm": 1, "on_nonfinite": "skip"},
        [],
        (),
    ),
    "number_for_number": (
        {"lr": 1e-3, "betas": (0.5, 0.75)},
        {"lr": 1e-5},
        [
            ("groups[0].lr", "0.001", "1e-05", "saved"),
            ("groups[0].betas", "(0.5, 0.75)", "(0.9, 0.999)", "saved"),
        ],
        (),
    ),
    "number_for_schedule": (
        {"lr": 0.5},
        {"lr": COSINE},
        [("groups[0].lr", "0.5", COSINE_TEXT, "here")],
        (),
    ),
    "schedule_for_number": (
        {"lr": COSINE},
        {"lr": 0.5},
        [("groups[0].lr", COSINE_TEXT, "0.5", "here")],
        ("groups[0].lr",),
    ),
    "schedule_for_other_schedule": (
        {"lr": COSINE},
        {"lr": OTHER},
        [("groups[0].lr", COSINE_TEXT, OTHER_TEXT, "here")],
        (),
    ),
    "plain_function": (
        {"weight_decay": partial(lr_fn)},
        {"weight_decay": 0.0},
        [
            (
                "groups[0].weight_decay",
                "the function functools.partial(<function lr_fn>)",
                "0.0",
                "here",
            )
        ],
        ("groups[0].weight_decay",),
    ),
    "parts_of_a_pair": (
        {"betas": (COSINE, 0.75)},
        {"betas": (0.5, 0.5)},
        [
            ("groups[0].betas[0]", COSINE_TEXT, "0.5", "here"),
            ("groups[0].betas[1]", "0.75", "0.5", "saved"),
        ],
        ("groups[0].betas[0]",),
    ),
    "number_for_a_part_of_a_pair": (
        {"betas": (0.5, 0.75)},
        {"betas": (COSINE, 0.75)},
        [("groups[0].betas[0]", "0.5", COSINE_TEXT, "here")],
        (),
    ),
    "clipping_is_gone": (
        {"max_grad_norm": 1.0, "on_nonfinite": "skip"},
        {},
        [
            ("max_grad_norm", "1.0", "None", "here"),
            ("on_nonfinite", "'skip'", "'propagate'", "here"),
        ],
        (),
    ),
    "clipping_is_new": (
        {},
        {"max_grad_norm": np.inf},
        [("max_grad_norm", "None", "inf", "here")],
        (),
    ),
    "flags": (
        {"maximize": True, "trainable": False},
        {},
        [
            ("groups[0].maximize", "True", "False", "saved"),
            ("groups[0].trainable", "False", "True", "saved"),
        ],
        (),
    ),
    "numbers_as_bounds": (
        {"bounds": (0, 2)},
        {"bounds": (0, 1)},
        [("groups[0].bounds", "(0.0, 2.0)", "(0.0, 1.0)", "saved")],
        (),
    ),
    "clip_value_is_gone": (
        {"clip_value": 1.0},
        {},
        [("groups[0].clip_value", "1.0", "None", "here")],
        (),
    ),
    "clip_value_is_new": (
        {},
        {"clip_value": 1.0},
        [("groups[0].clip_value", "None", "1.0", "here")],
        (),
    ),
    "clip_each_is_gone": (
        {"clip_each": 1.0},
        {},
        [("groups[0].clip_each", "1.0", "None", "here")],
        (),
    ),
    "clip_each_is_new": (
        {},
        {"clip_each": 1.0},
        [("groups[0].clip_each", "None", "1.0", "here")],
        (),
    ),
    "cautious_is_gone": (
        {"cautious": True},
        {},
        [("groups[0].cautious", "True", "False", "here")],
        (),
    ),
    "cautious_is_new": (
        {},
        {"cautious": True},
        [("groups[0].cautious", "False", "True", "here")],
        (),
    ),
    "mask_zero_is_gone": (
        {"mask_zero": True},
        {},
        [("groups[0].mask_zero", "True", "False", "here")],
        (),
    ),
    "mask_zero_is_new": (
        {},
        {"mask_zero": True},
        [("groups[0].mask_zero", "False", "True", "here")],
        (),
    ),
    "bounds_are_gone": (
        {"bounds": (0, 1)},
        {},
        [("groups[0].bounds", "(0.0, 1.0)", "None", "here")],
        (),
    ),
    "no_bounds": (
        {},
        {"bounds": (0, 1)},
        [("groups[0].bounds", "None", "(0.0, 1.0)", "here")],
        (),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_saved_otherwise_is_said_with_both_values_and_which_holds(
    name: str, load: Load
) -> None:
    theirs, ours, expected, missing = CASES[name]
    source, into = made(**theirs), made(**ours)
    before = {**into.param_groups[0].plain, "max_grad_norm": into.max_grad_norm}
    report = load(into, source)
    assert said(report) == expected
    assert report.missing == missing
    now = {**into.param_groups[0].plain, "max_grad_norm": into.max_grad_norm}
    now["on_nonfinite"], before["on_nonfinite"] = into.on_nonfinite, ours.get("on_nonfinite")
    for held in (now, before):
        held.update({f"betas[{k}]": part for k, part in enumerate(held["betas"])})
    for setting in report.settings:
        key = setting.name.rpartition(".")[2]
        wanted = setting.saved if setting.holds == "saved" else before[key] or setting.here
        assert now[key] == wanted, setting


def test_each_setting_is_a_line_of_its_own() -> None:
    into = made(1e-5, weight_decay=0.25, max_grad_norm=2.0)
    report = into.load_state_dict(made(1e-3, weight_decay=COSINE).state_dict())
    assert str(report).splitlines()[1:] == [
        "missing: groups[0].weight_decay",
        "groups[0].lr: now 0.001, as saved; it was 1e-05 here",
        "groups[0].weight_decay: still 0.25, as here; it was saved as "
        f"{COSINE_TEXT}, which no file holds",
        "max_grad_norm: still 2.0, as here; it was saved as None",
    ]


def test_bounds_that_are_arrays_are_told_apart(load: Load) -> None:
    def bounded(high: float) -> Optimizer:
        upper = {"W": np.full(2, high), "b": None}
        return made(bounds=(0.0, upper))

    assert said(load(bounded(2.0), bounded(2.0))) == []
    (other,) = load(bounded(2.0), bounded(3.0)).settings
    assert (other.name, other.holds) == ("groups[0].bounds", "here")
    assert isinstance(other.saved, Description)
    assert isinstance(other.here, Description)
    assert other.saved != other.here
    report = load(made(), bounded(3.0))
    (gone,) = report.settings
    assert (gone.saved, gone.here, gone.holds) == (other.saved, None, "here")
    assert report.missing == ("groups[0].bounds",)
    (new,) = load(bounded(2.0), made()).settings
    assert (new.saved, new.here, new.holds) == (None, other.here, "here")
    (numbers,) = load(bounded(2.0), made(bounds=(0, 1))).settings
    assert (numbers.saved, numbers.here, numbers.holds) == ((0.0, 1.0), other.here, "here")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith(("clip_", "cautious", "mask", "bounds"))]
)
def test_a_setting_around_the_rule_keeps_nothing_of_the_state_out(name: str, strict: bool) -> None:
    theirs, ours, expected, _ = CASES[name]
    source, into = made(**theirs), made(**ours)
    for _ in range(2):
        source.step({"W": np.array([0.25, -0.5]), "b": np.array([1.0, 0.0, 2.0])})
    report = into.load_state_dict(source.state_dict(), strict=strict)
    assert (said(report), report.mismatched) == (expected, ())
    assert into.step_count == 2
    np.testing.assert_equal(into.state_dict()["state"], source.state_dict()["state"])
    into.step({"W": np.ones(2), "b": np.ones(3)})  # and the rule is the one that was asked for


@pytest.mark.parametrize(
    "wrong", [{"clip_value": "much"}, {"bounds": 3}, {"cautious": "yes"}, {"lr_scale": -1.0}]
)
def test_what_is_kept_as_it_is_here_must_still_be_a_setting(wrong: dict[str, Any]) -> None:
    saved = made().state_dict()
    saved["groups"][0].update(wrong)
    with pytest.raises(CheckpointError, match=next(iter(wrong))):
        made(lr_scale={"W": np.ones(2), "b": 1.0}).load_state_dict(saved)


STATE = {
    "state_dtype": "bfloat16",
    "stochastic_rounding": True,
    "complex_moment": "modulus",
    "reset_at_bounds": True,
}


@pytest.mark.parametrize("name", STATE)
def test_a_setting_that_the_state_depends_on_is_refused_with_what_to_do(
    name: str, tmp_path: Path
) -> None:
    def with_option(**options: Any) -> Optimizer:
        return fastopt.Adam(np.ones(2, np.float32), bounds=(0, 2), backend="numpy", **options)

    source, into = with_option(**{name: STATE[name]}), with_option()
    ours = into.param_groups[0][name]
    for _ in range(2):
        source.step(np.ones(2, np.float32))
        source.save(tmp_path / "run")
    assert (tmp_path / "run.prev").is_file()
    message = rf"groups\[0\]\.{name}: expected {ours!r}; got {STATE[name]!r}\. .*strict=False"
    with pytest.raises(CheckpointError, match=message) as caught:
        into.load(tmp_path / "run")
    assert ".prev" not in str(caught.value)
    report = into.load(tmp_path / "run", strict=False)
    assert said(report) == [(f"groups[0].{name}", repr(STATE[name]), repr(ours), "here")]
    assert any(name in line for line in report.mismatched)
    assert into.step_count == 2
    converts = "convert=True" in str(caught.value)
    assert converts == (name in ("state_dtype", "stochastic_rounding"))
    if converts:
        assert with_option().load(tmp_path / "run", convert=True).step_count == 2
    assert with_option(**{name: STATE[name]}).load(tmp_path / "run").settings == ()


def test_a_plateau_takes_its_memory_over_and_says_what_else_is_other(load: Load) -> None:
    def plateau(patience: int) -> Any:
        return schedules.ReduceLROnPlateau(0.5, patience=patience)

    saved, here = plateau(1), plateau(1)
    saved.report(1.0)
    assert said(load(made(here), made(saved))) == []
    assert here.state_dict() == saved.state_dict()
    here = plateau(5)
    (other,) = load(made(here), made(saved)).settings
    assert "patience=1" in repr(other.saved)
    assert "patience=5" in repr(other.here)
    assert other.holds == "here"
    assert here.state_dict() == saved.state_dict()
    with pytest.raises(CheckpointError, match="strict=False"):
        load(made(0.25), made(saved))
    report = made(0.25).load_state_dict(made(saved).state_dict(), strict=False)
    (gone,) = report.settings
    assert (gone.here, gone.holds, report.missing) == (0.25, "here", ("groups[0].lr",))


def test_groups_of_other_parameters_keep_their_settings_and_say_so(load: Load) -> None:
    tree = {"W": np.ones(2), "b": np.ones(3)}

    def grouped() -> Optimizer:
        return fastopt.Adam(fastopt.groups(tree, {"b": {"lr": 0.5}}), 0.25, backend="numpy")

    into = grouped()
    assert said(load(into, made(1e-3))) == [
        ("groups[0].lr", "0.001", "0.25", "here"),
        ("groups[1].lr", "0.001", "0.5", "here"),
    ]
    assert [group["lr"] for group in into.param_groups] == [0.25, 0.5]
    whole = made(0.5)
    assert said(load(whole, grouped())) == [("groups[0].lr", "0.25", "0.5", "here")]
    scheduled = fastopt.Adam(fastopt.groups(tree, {"b": {"lr": COSINE}}), 0.5, backend="numpy")
    report = load(whole, scheduled)
    assert said(report) == [("groups[0].lr", COSINE_TEXT, "0.5", "here")]
    assert report.missing == ("groups[0].lr",)
    by_two = [("groups[1].lr", "0.5", "0.125", "saved")]
    into = fastopt.Adam(fastopt.groups(tree, {"b": {"lr": 0.125}}), 0.25, backend="numpy")
    assert said(load(into, grouped())) == by_two


def older(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a state_dict as versions before this one wrote it."""
    return {k: v for k, v in saved.items() if k not in ("policy", "described")}


def test_older_states_say_what_they_can() -> None:
    saved = older(made(lr_fn, max_grad_norm=1.0).state_dict())
    report = made(0.5).load_state_dict(saved)
    assert said(report) == [("groups[0].lr", "a function", "0.5", "here")]
    assert report.missing == ("groups[0].lr",)
    for into in (made(lr_fn), made(COSINE, max_grad_norm=3.0)):
        assert said(into.load_state_dict(saved)) == []
    plain = older(made(0.25).state_dict())
    upper = {"W": np.ones(2), "b": None}
    assert said(made(0.5, bounds=(None, upper)).load_state_dict(plain)) == [
        ("groups[0].lr", "0.25", "0.5", "saved")
    ]
    memory = older(made(schedules.ReduceLROnPlateau(0.5)).state_dict())
    assert said(made(schedules.ReduceLROnPlateau(0.25)).load_state_dict(memory)) == []
    report = made(0.5).load_state_dict(memory, strict=False)
    assert said(report) == [("groups[0].lr", "a schedule with a memory", "0.5", "here")]


def test_one_number_for_each_member_is_compared_too(load: Load) -> None:
    def members(*lr: float) -> Optimizer:
        return fastopt.Adam(np.ones((2, 3)), np.array(lr), members=2, backend="numpy")

    assert load(members(0.1, 0.2), members(0.1, 0.2)).settings == ()
    (other,) = load(members(0.1, 0.2), members(0.1, 0.3)).settings
    assert (other.saved.tolist(), other.here.tolist(), other.holds) == (
        [0.1, 0.3],
        [0.1, 0.2],
        "saved",
    )


ADDRESSES = """
import sys
import numpy as np
import fastopt

class Warm:
    def __call__(self, step):
        return 0.1

more = [object() for _ in range(int(sys.argv[2]))]
opt = fastopt.SGD(np.ones(1), Warm(), backend="numpy")
if sys.argv[2] == "0":
    opt.save(sys.argv[1])
else:
    print(opt.load(sys.argv[1]).settings)
"""


def test_the_same_function_in_another_process_is_the_same(tmp_path: Path) -> None:
    for count, wanted in (("0", ""), ("1000", "()\n")):
        done = script(ADDRESSES, str(tmp_path / "a"), count)
        assert (done.returncode, done.stdout) == (0, wanted), done.stderr


def test_a_file_says_of_what_function_it_is(tmp_path: Path) -> None:
    made(COSINE, max_grad_norm=np.inf).save(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    manifest = json.loads(header["__metadata__"]["fastopt"])
    assert manifest["groups"][0]["lr"] is None
    assert manifest["described"] == [{"lr": COSINE_TEXT}]
    assert manifest["policy"] == {
        "max_grad_norm": {"$float": "inf"},
        "on_nonfinite": "propagate",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"policy": None},
        {"policy": [1]},
        {"described": {}},
        {"described": []},
        {"described": [{"lr": 3}]},
        {"described": [3]},
        {"described": [{}, {}]},
    ],
)
def test_what_is_no_policy_or_description_is_refused(change: dict[str, Any]) -> None:
    opt = made(0.5)
    saved = {**made().state_dict(), **change}
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(CheckpointError, match=next(iter(change))):
        opt.load_state_dict(saved)
    np.testing.assert_equal(opt.state_dict(), before)


def test_a_setting_is_a_plain_value() -> None:
    setting = Setting("groups[0].lr", 0.5, 0.25, "saved")
    assert setting == Setting("groups[0].lr", 0.5, 0.25, "saved")
    with pytest.raises(AttributeError):
        setting.holds = "here"  # type: ignore[misc]  # it is frozen
