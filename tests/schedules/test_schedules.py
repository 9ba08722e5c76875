"""Schedules are pure functions of the step number, equal to PyTorch's and to their formulas."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import pickle
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import schedules
from fastopt.schedules import Schedule
from helpers.schedule_specs import RECORDED, made, names_in
from helpers.variants import CPU_BACKENDS, script

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
CASES = RECORDED["cases"]
PURE = [
    kind
    for kind in map(schedules.__dict__.get, schedules.__all__)
    if isinstance(kind, type) and kind not in (Schedule, schedules.ReduceLROnPlateau)
]
EXAMPLES = [made(case["schedule"]) for case in CASES]
each_example = pytest.mark.parametrize("schedule", EXAMPLES, ids=lambda s: type(s).__name__)


# Values ------------------------------------------------------------------------------------------


def test_every_schedule_is_recorded() -> None:
    seen = {
        o: {n for c in CASES if o in c["values"] for n in names_in(c["schedule"])} for o in OURS
    }
    names = {kind.__name__ for kind in PURE}
    assert len(names) == 13
    assert seen["closed"] == names
    assert seen["torch"] == names - {"inverse_sqrt"}  # PyTorch has none
    assert len(seen["optax"]) >= 9


OURS = {"torch": 1e-12, "optax": 1e-12, "closed": 2e-15}
"""How close we are to each oracle, relative to the value."""


RECORDS = [
    pytest.param(case, oracle, id=f"{case['schedule']['name']}-{oracle}")
    for case in CASES
    for oracle in case["values"]
]


@pytest.mark.parametrize(("case", "oracle"), RECORDS)
def test_a_schedule_equals_the_oracle(case: dict[str, Any], oracle: str) -> None:
    schedule, values = made(case["schedule"]), case["values"][oracle]
    steps = case["steps"][: len(values)]  # those far away are the formula's alone
    assert len(steps) == len(values) >= 3
    # Where an oracle computes 1 + cos, what it says of values near 0 is rounded.
    rounded = 0.0 if oracle == "closed" else 1e-16 * max(values)
    for step, expected in zip(steps, values, strict=True):
        assert schedule(step) == pytest.approx(expected, rel=OURS[oracle], abs=rounded), step


def test_a_period_begins_exactly_where_it_begins_however_late() -> None:
    for multiplier in (2, 3, 7, 10):
        schedule, begin, period = schedules.cosine_restarts(0.5, 3, multiplier), 0, 3
        while begin < 2**63:
            assert schedule(begin) == 0.5
            if begin:
                assert schedule(begin - 1) < 0.5
            begin, period = begin + period, period * multiplier
    cyclic = schedules.cyclic(0.25, 1.0, 2**20 + 1)
    for turns in (1, 2**30, 2**40):
        begin = turns * 2 * (2**20 + 1)
        assert [cyclic(begin + (2**20 + 1) * i) for i in range(3)] == [0.25, 1.0, 0.25]


def test_the_ends_are_exact() -> None:
    assert schedules.linear(0.1, 1 / 3, 1.0, 7)(7) == 0.1
    assert schedules.cosine(0.1, 7, 0.003)(0) == 0.1
    assert schedules.cosine(0.1, 7, 0.003)(7) == 0.003
    assert schedules.cosine(0.1, 7)(7) == 0.0
    assert schedules.polynomial(0.1, 7, 0.3)(7) == 0.0
    assert schedules.one_cycle(0.1, 30)(8) == 0.1
    assert schedules.one_cycle(0.1, 30)(29) == 0.1 / 25 / 1e4
    assert schedules.warmup(0.1, 5)(0) == 0.0
    assert schedules.warmup(0.1, 5)(5) == 0.1


@pytest.mark.parametrize(("pct_start", "total"), [(1.0, 1), (0.0, 1), (0.5, 2), (0.1, 10)])
def test_one_cycle_whose_way_up_or_down_has_no_step(pct_start: float, total: int) -> None:
    values = [schedules.one_cycle(1.0, total, pct_start)(step) for step in range(3 * total)]
    assert all(0.0 < value <= 1.0 for value in values)
    assert len(set(values[total - 1 :])) == 1


def test_a_growth_without_end_is_infinite_and_no_error_of_its_own() -> None:
    assert schedules.exponential(0.1, 2.0)(10**6) == math.inf
    opt = fastopt.SGD(np.ones(1), schedules.exponential(0.1, 1e200), backend="numpy")
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    with pytest.raises(ValueError, match=r"SGD: lr at step 2 must be a number in \[0, inf\)"):
        opt.step(np.ones(1))


# Properties --------------------------------------------------------------------------------------

value = st.floats(0.0, 10.0)
share = st.floats(0.0, 1.0)
count = st.integers(1, 200)
above = st.floats(0.01, 1e4)
ended = st.one_of(
    st.builds(schedules.constant, value),
    st.builds(schedules.multistep, value, st.lists(count, unique=True).map(sorted), share),
    st.builds(schedules.linear, value, value, value, count),
    st.builds(schedules.polynomial, value, count, above),
    st.builds(schedules.cosine, value, count, value),
    st.builds(schedules.one_cycle, value, count, share, above, above),
)
endless = st.one_of(
    st.builds(schedules.step_decay, value, count, share),
    st.builds(schedules.exponential, value, share),
    st.builds(schedules.cosine_restarts, value, count, st.integers(1, 5), value),
    st.builds(schedules.cyclic, value, value, count),
    st.builds(schedules.inverse_sqrt, value, count),
)


def joined(parts: list[Any], boundaries: list[int]) -> Schedule:
    size = min(len(parts), len(boundaries) + 1)
    return schedules.join(parts[:size], sorted(boundaries)[: size - 1])


nested = st.recursive(
    st.one_of(ended, endless, value),
    lambda parts: st.one_of(
        st.builds(schedules.warmup, parts, count, share),
        st.builds(
            joined,
            st.lists(parts, min_size=1, max_size=4),
            st.lists(count, unique=True, max_size=3),
        ),
    ),
    max_leaves=5,
).filter(callable)


@settings(max_examples=300)
@given(nested, st.lists(st.one_of(st.integers(0, 2_000), st.integers(0, 2**53)), min_size=1))
def test_no_value_is_ever_negative_or_not_finite(schedule: Schedule, steps: list[int]) -> None:
    values = [schedule(step) for step in steps]
    assert all(type(v) is float and 0.0 <= v < math.inf for v in values)
    assert [schedule(step) for step in reversed(steps)] == values[::-1]  # a pure function


@settings(max_examples=200)
@given(ended, st.integers(0, 2**60))
def test_a_schedule_that_ends_holds_its_last_value(schedule: Any, later: int) -> None:
    total = getattr(schedule, "total_steps", max(getattr(schedule, "milestones", ()), default=0))
    values = {schedule(step) for step in (total, total + 1, 10 * total, total + later)}
    assert len(values) == 1


@settings(max_examples=200)
@given(nested)
def test_a_schedule_can_be_read_compared_pickled_and_copied(schedule: Any) -> None:
    again = eval(repr(schedule), {**vars(schedules), "inf": math.inf})
    copies = [again, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)]
    for other in copies:
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert [other(step) for step in range(50)] == [schedule(step) for step in range(50)]
    assert schedule != schedules.constant(11.0)
    field = dataclasses.fields(schedule)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, field, 0.5)


@each_example
def test_a_far_step_takes_no_loop_over_the_steps_before(schedule: Schedule) -> None:
    # A loop or a recursion over 2**53 steps would not come back.
    assert schedule(2**53) >= 0.0
    assert schedule(2**62) >= 0.0


# What a schedule is made of ----------------------------------------------------------------------


def test_the_steps_of_a_schedule_begin_after_its_warmup() -> None:
    cosine = schedules.cosine(0.5, 90, 0.1)
    warm = schedules.warmup(cosine, 10)
    assert [warm(step) for step in range(10)] == [pytest.approx(0.05 * i) for i in range(10)]
    assert [warm(10 + step) for step in range(200)] == [cosine(step) for step in range(200)]


def test_functions_of_the_users_own_and_numbers_can_be_joined() -> None:
    asked: list[int] = []

    def mine(step: int) -> Any:
        asked.append(step)
        return np.float32(0.25)

    schedule = schedules.join([0.5, schedules.warmup(mine, 2), 1], [3, 8])
    assert [schedule(step) for step in range(10)] == [0.5] * 3 + [0.0, 0.125] + [0.25] * 3 + [
        1.0
    ] * 2
    assert asked == [0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(-1.0, ValueError), (math.nan, ValueError), ("1", TypeError), (None, TypeError)],
)
def test_a_bad_value_of_a_part_is_refused_with_its_place(bad: Any, kind: type[Exception]) -> None:
    schedule = schedules.join([0.5, schedules.warmup(lambda step: bad, 2)], [3])
    assert schedule(2) == 0.5
    text = r"warmup: schedule at its step 0 must be a number in \[0, inf\); got "
    with pytest.raises(kind, match=text + re.escape(repr(bad))):
        schedule(3)
    with pytest.raises(kind, match=r"join: schedules\[1\] at its step 7 must be"):
        schedules.join([0.5, lambda step: bad], [3])(10)


# Bad arguments -----------------------------------------------------------------------------------

NO_NUMBERS = [True, "0.1", None, [0.1], 1j, lambda t: 0.1]
NO_COUNTS = [1.0, "3", None, True, [3], np.float64(3)]
NOT_FINITE = [math.nan, math.inf, -math.inf]
Bad = list[tuple[Any, type[Exception]]]


def bad(kind: str) -> Bad:
    """Return what an argument of this kind must not be."""
    no_numbers: Bad = [(value, TypeError) for value in NO_NUMBERS]
    values: dict[str, Bad] = {
        "number": [*no_numbers, *((v, ValueError) for v in [-1e-300, -1, *NOT_FINITE])],
        "above": [*no_numbers, *((v, ValueError) for v in [0, -1, *NOT_FINITE])],
        "share": [*no_numbers, *((v, ValueError) for v in [-0.1, 1.1, *NOT_FINITE])],
        "count": [*((v, TypeError) for v in NO_COUNTS), (0, ValueError), (-3, ValueError)],
        "steps": [
            *((v, TypeError) for v in [3, None, "35", [1.0], [True]]),
            *((v, ValueError) for v in [[-1], [3, 2]]),
        ],
        "part": [
            *((v, TypeError) for v in NO_NUMBERS if not callable(v)),
            *((v, ValueError) for v in [-1, math.nan]),
        ],
        "parts": [
            *((v, TypeError) for v in [0.1, schedules.constant(0.1), [None], ["0.1", 0.1]]),
            ([0.1, -1], ValueError),
        ],
    }
    return values[kind]


KINDS = {
    "lr": "number",
    "lr_min": "number",
    "max_lr": "number",
    "base_lr": "number",
    "gamma": "number",
    "start_factor": "number",
    "end_factor": "number",
    "power": "above",
    "div_factor": "above",
    "final_div_factor": "above",
    "pct_start": "share",
    "step_size": "count",
    "step_size_up": "count",
    "total_steps": "count",
    "first_period": "count",
    "multiplier": "count",
    "warmup_steps": "count",
    "milestones": "steps",
    "boundaries": "steps",
    "schedule": "part",
    "schedules": "parts",
}
GOOD = {"number": 0.5, "above": 2.0, "share": 0.5, "count": 3, "part": 0.5, "parts": [0.5, 0.25]}


def good(kind: type[Schedule]) -> dict[str, Any]:
    names = inspect.signature(kind).parameters
    return {name: [4] if KINDS[name] == "steps" else GOOD[KINDS[name]] for name in names}


@pytest.mark.parametrize("kind", PURE, ids=lambda kind: kind.__name__)
def test_a_bad_argument_is_refused_at_once(kind: Any) -> None:
    arguments = good(kind)
    kind(**arguments)
    for name in arguments:
        for value, error in bad(KINDS[name]):
            text = rf"{kind.__name__}: {name}.* must be .*got "
            with pytest.raises(error, match=text) as caught:
                kind(**{**arguments, name: value})
            assert type(caught.value) is error


@pytest.mark.parametrize("boundaries", [[], [3, 4], [0]])
def test_the_boundaries_of_a_join_are_between_its_schedules(boundaries: list[int]) -> None:
    with pytest.raises(ValueError, match=r"join: boundaries.* must be .*got"):
        schedules.join([0.5, 0.25], boundaries)
    with pytest.raises(ValueError, match=r"got 0 boundaries for 0 schedules"):
        schedules.join([], [])
    with pytest.raises(ValueError, match=r"ascending order; got \[3, 3\]"):
        schedules.join([0.5, 0.25, 0.1], [3, 3])


@each_example
def test_a_step_is_a_whole_number_from_0_on(schedule: Schedule) -> None:
    wrong: list[tuple[Any, type[Exception]]] = [(-1, ValueError), (1.0, TypeError)]
    for step, kind in [*wrong, (True, TypeError), (None, TypeError), ("1", TypeError)]:
        with pytest.raises(kind, match="step must be a whole number from 0 on; got"):
            schedule(step)
    assert schedule(np.int64(3)) == schedule(3)


# In an optimizer ---------------------------------------------------------------------------------


@each_backend
@each_example
def test_an_optimizer_shows_and_follows_its_schedule(schedule: Schedule, backend: str) -> None:
    param, by_hand = np.ones(2), np.ones(2)
    opt = fastopt.SGD(param, schedule, backend=backend)
    assert opt.param_groups[0]["lr"] is schedule
    assert f"lr={schedule!r}" in repr(opt)
    for step in range(4):
        assert opt.lr == schedule(step)
        opt.step(np.ones(2))
        fastopt.SGD(by_hand, schedule(step), backend=backend).step(np.ones(2))
        np.testing.assert_array_equal(param, by_hand)


@each_backend
def test_a_skipped_step_and_a_new_start_keep_the_place_in_the_schedule(backend: str) -> None:
    schedule = schedules.warmup(schedules.cosine(0.1, 10), 5)
    opt = fastopt.Adam(np.ones(2), schedule, on_nonfinite="skip", backend=backend)
    for grad in (1.0, math.nan, 1.0, math.inf, 1.0):
        opt.step(np.full(2, grad))
    assert opt.lr == schedule(3)
    again = fastopt.Adam(np.ones(2), schedule, backend=backend)
    again.load_state_dict(opt.state_dict())
    assert again.lr == schedule(3)


# The module --------------------------------------------------------------------------------------


def test_the_module_is_there_when_it_is_asked_for_and_not_before() -> None:
    text = """
import sys, fastopt
assert "fastopt.schedules" not in sys.modules
assert fastopt.schedules.cosine(0.1, 10)(10) == 0.0
assert "ReduceLROnPlateau" not in dir(fastopt)
try:
    fastopt.shedules
except AttributeError as error:
    assert "shedules" in str(error)
else:
    raise SystemExit("no error")
"""
    done = script(text)
    assert done.returncode == 0, done.stderr
    assert isinstance(fastopt.schedules, types.ModuleType)


def test_every_schedule_is_documented_with_its_formula_range_and_source() -> None:
    for kind in PURE:
        said = inspect.getdoc(kind) or ""
        assert "Args:" in said
        for name in inspect.signature(kind).parameters:
            assert re.search(rf"^    {name}: ", said, re.MULTILINE), (kind, name)
        assert "Source: " in said or kind is schedules.constant


def test_the_order_of_arguments_is_the_contracts() -> None:
    contract: dict[Callable[..., Any], str] = {
        schedules.step_decay: "lr, step_size, gamma=0.1",
        schedules.multistep: "lr, milestones, gamma=0.1",
        schedules.exponential: "lr, gamma",
        schedules.linear: "lr, start_factor, end_factor, total_steps",
        schedules.polynomial: "lr, total_steps, power=1.0",
        schedules.cosine: "lr, total_steps, lr_min=0.0",
        schedules.cosine_restarts: "lr, first_period, multiplier=1, lr_min=0.0",
        schedules.one_cycle: "max_lr, total_steps, pct_start=0.3, div_factor=25.0, "
        "final_div_factor=10000.0",
        schedules.cyclic: "base_lr, max_lr, step_size_up",
        schedules.inverse_sqrt: "lr, warmup_steps",
        schedules.warmup: "schedule, warmup_steps, start_factor=0.0",
        schedules.join: "schedules, boundaries",
    }
    for kind, arguments in contract.items():
        names = inspect.signature(kind).parameters.values()
        shown = [p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in names]
        assert ", ".join(shown) == arguments
