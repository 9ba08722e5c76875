"""An optimizer by its name: fastopt.optimizer, and the names that fastopt.optimizers lists."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.variants import one_parameter, public_optimizers, script

EVERY = public_optimizers()


@pytest.mark.parametrize("optimizer", EVERY)
def test_every_optimizer_is_found_by_its_name(optimizer: Any) -> None:
    name = optimizer.__name__
    for said in (name, name.lower(), name.upper(), f" {name[0]}-{name[1:]}. ", "_".join(name)):
        assert type(fastopt.optimizer(said, one_parameter(optimizer))) is optimizer


def test_it_takes_what_the_class_takes() -> None:
    params, others = {"w": np.ones(3)}, {"w": np.ones(3)}
    opt = fastopt.optimizer("adam_w", params, 0.1, betas=(0.5, 0.75), backend="numpy")
    other = fastopt.AdamW(others, 0.1, betas=(0.5, 0.75), backend="numpy")
    for one in (opt, other):
        one.step({"w": np.array([1.0, -2.0, 0.5])})
    np.testing.assert_array_equal(params["w"], others["w"])
    groups = fastopt.groups(params, {"w": {"lr_scale": 0.5}})
    assert fastopt.optimizer("sgd", groups, lr=1.0).param_groups[0]["lr_scale"] == 0.5


def test_what_the_class_refuses_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"SGD.*\bbetas\b"):
        fastopt.optimizer("sgd", np.ones(1), betas=(0.9, 0.999))
    with pytest.raises(ValueError, match="AdamW: lr must be"):
        fastopt.optimizer("adamw", np.ones(1), lr=-1.0)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("adamm", "'Adam'"),
        ("Adm-W", "'AdamW'"),
        ("RMSProb", "'RMSprop'"),
        ("momentun", "'Momentum'"),
        ("ada_grad2", "'Adagrad'"),
    ],
)
def test_a_name_that_there_is_not_is_an_error_with_the_closest(name: str, close: str) -> None:
    with pytest.raises(ValueError, match=rf"no optimizer '{name}'; did you mean .*{close}.*\?"):
        fastopt.optimizer(name, np.ones(1))


@pytest.mark.parametrize("name", ["", "qqqq", "Optimizer", "EMA", "groups", "__name__", "*"])
def test_what_is_public_and_no_optimizer_is_not_made(name: str) -> None:
    with pytest.raises(ValueError, match=r"fastopt\.optimizers\.names\(\) lists all"):
        fastopt.optimizer(name, np.ones(1))


@pytest.mark.parametrize("wrong", [None, 3, fastopt.Adam, b"adam"])
def test_a_name_is_a_string(wrong: Any) -> None:
    with pytest.raises(TypeError, match="the name of an optimizer must be a string; got"):
        fastopt.optimizer(wrong, np.ones(1))
    with pytest.raises(TypeError, match="the pattern of names must be a string; got"):
        fastopt.optimizers.names(wrong)


def test_all_names_are_those_of_the_public_optimizers() -> None:
    names = fastopt.optimizers.names()
    assert sorted(names) == sorted(optimizer.__name__ for optimizer in EVERY)
    assert names == sorted(names, key=str.lower)
    assert fastopt.optimizers.names("*") == names
    plain = ["".join(filter(str.isalnum, name.lower())) for name in names]
    assert len(set(plain)) == len(names), "two names that differ in punctuation alone"


def test_names_by_pattern() -> None:
    names = fastopt.optimizers.names
    assert {"Adam", "AdamW"} <= set(names("adam*")) < set(names("ada*"))
    assert names("ADAM_*") == names("adam*")
    assert names("adam") == ["Adam"]
    assert names("Adam-W") == ["AdamW"]
    assert names("s?d") == ["SGD"]
    assert {"Adagrad", "Adadelta"} <= set(names("ada[dg]*")) <= set(names("ada*"))
    assert "Adam" not in names("ada[!m]*")
    assert "Adam" not in names("ada[a-l]*")
    assert names("nothing*") == []


LAZY = """
import json, sys
import fastopt
names = fastopt.optimizers.names()
before = sorted(name for name in sys.modules if name.startswith("fastopt.optimizers."))
import numpy as np
fastopt.optimizer("adamw", np.ones(1), backend="numpy")
after = sorted(name for name in sys.modules if name.startswith("fastopt.optimizers."))
print(json.dumps([names, before, sorted(set(after) - set(before))]))
"""


def test_listing_names_imports_no_optimizer_and_making_one_its_own_file() -> None:
    run = script(LAZY)
    assert run.returncode == 0, run.stderr
    names, before, more = json.loads(run.stdout)
    assert names == fastopt.optimizers.names()
    assert before == ["fastopt.optimizers.base"]
    assert set(more) <= {"fastopt.optimizers.adam", "fastopt.optimizers.common"}
