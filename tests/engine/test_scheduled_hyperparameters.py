"""Whatever hyperparameter is scheduled: PyTorch's results, checked values, asked once per step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastopt
from fastopt.engine.step import Scalars
from fastopt.schedules import linear
from helpers.schedule_specs import RECORDED, made
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)

SCHEDULED = {
    "momentum": (fastopt.SGD, {"momentum": 0.5}),
    "dampening": (fastopt.SGD, {"momentum": 0.5}),
    "beta": (fastopt.Momentum, {}),
    "rmsprop_momentum": (fastopt.RMSprop, {"momentum": 0.5}),
    "lr": (fastopt.Adam, {}),
    "weight_decay": (fastopt.AdamW, {}),
}
each_scheduled = pytest.mark.parametrize("case", SCHEDULED)


def of(case: str, schedule: Any, params: Any, **more: Any) -> Any:
    """Return an optimizer of which one hyperparameter is a schedule."""
    make, options = SCHEDULED[case]
    return make(params, **{**options, **more, name_of(case): schedule})


def name_of(case: str) -> str:
    return case.removeprefix("rmsprop_")


@each_backend
@pytest.mark.parametrize("record", RECORDED["runs"], ids=lambda r: r["optimizer"])
def test_a_run_under_schedules_equals_pytorchs(record: dict[str, Any], backend: str) -> None:
    options = {name: made(value) for name, value in record["options"].items()}
    limit = options.pop("max_grad_norm", None)  # a number, which is set for every step
    param = np.ones(3)
    opt = getattr(fastopt, record["optimizer"])(param, **options, backend=backend)
    for step, (grad, expected) in enumerate(zip(record["grads"], record["params"], strict=True)):
        opt.max_grad_norm = limit if limit is None else limit(step)
        opt.step(np.array(grad))
        np.testing.assert_allclose(param, expected, rtol=1e-11)


@each_backend
@each_scheduled
def test_a_schedule_is_the_same_as_setting_its_values(case: str, backend: str) -> None:
    name, values = name_of(case), [0.5, 0.25, 0.75, 0.125]
    shape = {"a": np.ones(3), "b": [np.ones((2, 2), np.float32)]}
    params = [shape, {"a": np.ones(3), "b": [np.ones((2, 2), np.float32)]}]
    opts = [
        of(case, first, tree, backend=backend)
        for first, tree in zip((values.__getitem__, 0.5), params, strict=True)
    ]
    for step, value in enumerate(values):
        opts[1].param_groups[0][name] = value
        for opt in opts:
            opt.step({"a": np.full(3, 1.0 + step), "b": [np.ones((2, 2), np.float32)]})
        np.testing.assert_array_equal(params[0]["a"], params[1]["a"])
        np.testing.assert_array_equal(params[0]["b"][0], params[1]["b"][0])


@each_backend
@each_scheduled
def test_a_schedule_is_asked_once_for_every_step(case: str, backend: str) -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.5

    params = [np.ones(2), np.ones(3, np.float32)]  # two buckets
    opt = of(case, schedule, params, backend=backend)
    opt.step([np.ones(2), np.ones(3, np.float32)])
    opt.step([None, np.ones(3, np.float32)])
    opt.step([np.ones(2, np.float32), np.ones(3)])
    with pytest.raises(ValueError, match="shape"):
        opt.step([np.ones(2), np.ones(4)])
    opt.step([np.ones(2), np.ones(3, np.float32)])
    assert [step for step in asked if step < 3] == [0, 1, 2]
    assert set(asked[3:]) == {3}
    assert len(asked[3:]) <= 2  # the step that failed may have asked


BAD = [(-1.0, ValueError), (math.nan, ValueError), (None, TypeError), (True, TypeError)]
BAD += [("0.5", TypeError), (np.ones(1), TypeError), (lambda t: 0.5, TypeError)]


@each_backend
@each_scheduled
def test_a_bad_value_of_a_schedule_is_refused_with_name_and_step(case: str, backend: str) -> None:
    name = name_of(case)
    bad = [(value, kind) for value, kind in BAD if name != "dampening" or value != -1.0]
    bad += [(1.0, ValueError)] if name == "beta" else []
    bad += [(math.inf, ValueError)]
    values: list[Any] = [0.5]
    param = np.ones(2)
    opt = of(case, lambda step: values[-1], param, backend=backend)
    opt.step(np.ones(2))
    before, state = param.copy(), opt.state_dict()
    for value, kind in bad:
        values.append(value)
        with pytest.raises(kind, match=f"{name} at step 1 must be a number .*got"):
            opt.step(np.ones(2))
        np.testing.assert_array_equal(param, before)
        np.testing.assert_equal(opt.state_dict(), state)
    values.append(0.25)
    opt.step(np.ones(2))
    assert opt.step_count == 2


def test_a_bad_value_names_the_group() -> None:
    groups = [{"params": np.ones(1)}, {"params": np.ones(1), "momentum": lambda t: -1}]
    opt = fastopt.SGD(groups, momentum=0.5, backend="numpy")
    with pytest.raises(ValueError, match=r"SGD, params\[1\]: momentum at step 0 must be"):
        opt.step([np.ones(1)] * 2)


@each_variant
def test_without_a_schedule_nothing_is_worked_out_twice(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    prepare = Scalars.prepare

    def counted(self: Any, options: Any) -> None:
        calls.append(1)
        prepare(self, options)

    monkeypatch.setattr(Scalars, "prepare", counted)
    opt = variant(np.ones(2), backend="numpy")
    for _ in range(5):
        opt.step(np.ones(2))
    assert len(calls) == 1
    opt.param_groups[0]["lr"] = 0.25
    opt.step(np.ones(2))
    assert len(calls) == 2


# Of momentum -------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("make", [fastopt.SGD, fastopt.RMSprop])
def test_a_momentum_that_is_a_schedule_has_a_buffer_at_any_value(make: Any, backend: str) -> None:
    param, opt_values = np.ones(2), [0.0, 0.5, 0.0]
    opt = make(param, 1.0, momentum=opt_values.__getitem__, backend=backend)
    for _ in opt_values:
        opt.step(np.ones(2))
    assert "buf" in opt.state_dict()["state"]["params"]
    if make is fastopt.SGD:
        np.testing.assert_array_equal(param, 1.0 - (1.0 + 1.5 + 1.0))
    opt.param_groups[0]["momentum"] = 0.25  # the same state
    with pytest.raises(ValueError, match="needs other state"):
        opt.param_groups[0]["momentum"] = 0.0


def test_no_schedule_can_be_set_where_there_is_no_buffer() -> None:
    opt = fastopt.SGD(np.ones(1))
    with pytest.raises(ValueError, match="needs other state"):
        opt.param_groups[0]["momentum"] = linear(0.9, 0.5, 1.0, 10)


def test_nesterov_takes_a_scheduled_momentum_and_no_dampening() -> None:
    fastopt.SGD(np.ones(1), momentum=linear(0.9, 0.5, 1.0, 10), nesterov=True)
    with pytest.raises(ValueError, match=r"nesterov=True needs .* dampening=linear"):
        fastopt.SGD(np.ones(1), momentum=0.9, dampening=linear(0.9, 0, 1, 9), nesterov=True)


def test_a_corrected_average_has_one_beta() -> None:
    rise = linear(0.9, 0.5, 1.0, 10)
    text = r"bias_correction divides by 1 - beta\^t.*beta must be a number.*got beta=linear"
    with pytest.raises(ValueError, match=text):
        fastopt.Momentum(np.ones(1), beta=rise, bias_correction=True)
    opt = fastopt.Momentum(np.ones(1), beta=rise)
    with pytest.raises(ValueError, match=text):
        opt.param_groups[0]["bias_correction"] = True
    opt.param_groups[0].update(bias_correction=True, beta=0.5)


# Parameters that can be called -------------------------------------------------------------------


class Model(NamedTuple):
    """Parameters in a container that can be called."""

    w: Any

    def __call__(self, step: int) -> str:
        raise AssertionError("this is no schedule")


@each_backend
def test_parameters_that_can_be_called_are_no_schedule(backend: str) -> None:
    model = Model(np.ones(1))
    opt = fastopt.SGD(model, lambda step: 0.5, backend=backend)
    opt.step(Model(np.ones(1)))
    assert model.w[0] == 0.5
    assert opt.param_groups[0]["params"] is model
