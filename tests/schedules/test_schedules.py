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
    assert len(names) == 18
    assert seen["closed"] == names
    without = {"inverse_sqrt", "inverse_time", "rex", "chebyshev", "wsd"}  # PyTorch has none
    assert seen["torch"] == names - without
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
    keras = schedules.polynomial(0.5, 7, 0.3, 0.25, cycle=True)
    turns = schedules.chebyshev(0.5, 64, 0.25)
    for number in (1, 3, 10**9, 2**50):
        assert keras(7 * number) == 0.25 < keras(7 * number + 1)
        assert turns(64 * number + 5) == turns(5)
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
    for anneal in ("cosine", "linear"):
        three = schedules.one_cycle(0.1, 30, 0.3, anneal=anneal, three_phase=True)
        assert (three(8), three(16), three(29)) == (0.1, 0.1 / 25, 0.1 / 25 / 1e4)
        assert schedules.one_cycle(0.1, 30, anneal=anneal)(1000) == 0.1 / 25 / 1e4
    assert schedules.polynomial(0.1, 7, 0.3, 0.025)(0) == 0.1
    assert schedules.polynomial(0.1, 7, 0.3, 0.025)(7) == 0.025
    assert (schedules.rex(0.1, 7, 0.003)(0), schedules.rex(0.1, 7, 0.003)(7)) == (0.1, 0.003)
    for shape in ("linear", "cosine", "sqrt"):
        steps = schedules.wsd(0.1, 20, 4, 6, 0.003, shape)
        assert [steps(step) for step in (0, 4, 14, 20, 10**9)] == [0.0, 0.1, 0.1, 0.003, 0.003]
        assert 0.003 < steps(19) < steps(15) < 0.1
    assert schedules.warmup(0.1, 5)(0) == 0.0
    assert schedules.warmup(0.1, 5)(5) == 0.1


@pytest.mark.parametrize(("pct_start", "total"), [(1.0, 1), (0.0, 1), (0.5, 2), (0.1, 10)])
def test_one_cycle_whose_way_up_or_down_has_no_step(pct_start: float, total: int) -> None:
    values = [schedules.one_cycle(1.0, total, pct_start)(step) for step in range(3 * total)]
    assert all(0.0 < value <= 1.0 for value in values)
    assert len(set(values[total - 1 :])) == 1


def test_the_fractal_order_is_that_of_the_paper_and_contracts() -> None:
    """Agarwal, Goel and Zhang: (1, 8, 4, 5, 2, 7, 3, 6), and a whole turn is Chebyshev's best."""
    angles = [(2 * k - 1) * math.pi / 16 for k in (1, 8, 4, 5, 2, 7, 3, 6)]
    values = [2.0 / (11.0 - 9.0 * math.cos(angle)) for angle in angles]  # curvatures from 1 to 10
    schedule = schedules.chebyshev(1.0, 8, 0.1)
    assert [schedule(step) for step in range(16)] == pytest.approx(2 * values, rel=1e-15)
    left = np.ones(1001)
    for step in range(8):
        left *= 1.0 - schedule(step) * np.linspace(1.0, 10.0, 1001)
    bound = 1.0 / math.cosh(8 * math.acosh(11.0 / 9.0))
    assert abs(left).max() == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: schedules.one_cycle(1.0, 9, 0.6, three_phase=True),
            r"pct_start .* \[0, 0.5\].*0.6",
        ),
        (lambda: schedules.cyclic(0.1, 1.0, 9, gamma=0.5), "gamma must be left out .*got 0.5"),
        (lambda: schedules.wsd(0.1, 9, 5, 5), "total_steps=9 for 5 \\+ 5"),
        (lambda: schedules.chebyshev(1.0, 12, 0.1), "total_steps must be a power of two.*got 12"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("count", [0, 1])
def test_a_product_is_of_two_or_more(count: int) -> None:
    with pytest.raises(TypeError, match=rf"product: factors must be two or more.*got {count}"):
        schedules.product(*[0.5] * count)


def test_a_product_of_many_names_the_factor_that_is_no_good() -> None:
    half = schedules.product(0.5, schedules.exponential(1.0, 0.5), lambda step: step - 2)
    assert half(3) == 0.5 * 0.125
    text = r"product: factors\[2\] at its step 1 must be a number in \[0, inf\); got -1"
    with pytest.raises(ValueError, match=text):
        half(1)


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
    st.builds(schedules.polynomial, value, count, above, value),
    st.builds(schedules.cosine, value, count, value),
    st.builds(schedules.rex, value, count, value),
    st.builds(
        schedules.one_cycle,
        value,
        count,
        st.floats(0.0, 0.5),
        above,
        above,
        st.sampled_from(["cosine", "linear"]),
        st.booleans(),
    ),
    st.builds(schedules.one_cycle, value, count, share, above, above),
    st.builds(
        lambda parts, *rest: schedules.wsd(rest[0], sum(parts), parts[0], parts[1], *rest[1:]),
        st.tuples(st.integers(0, 50), count, st.integers(0, 50)),
        value,
        value,
        st.sampled_from(["linear", "cosine", "sqrt"]),
        share,
    ),
)
endless = st.one_of(
    st.builds(schedules.step_decay, value, count, share),
    st.builds(schedules.exponential, value, share),
    st.builds(schedules.cosine_restarts, value, count, st.integers(1, 5), value),
    st.builds(schedules.cyclic, value, value, count),
    st.builds(schedules.cyclic, value, value, count, count, st.just("triangular2")),
    st.builds(schedules.cyclic, value, value, count, count, st.just("exp_range"), share),
    st.builds(schedules.inverse_sqrt, value, count),
    st.builds(schedules.inverse_time, value, value, count, st.booleans()),
    st.builds(schedules.polynomial, value, count, above, value, st.just(True)),
    st.builds(schedules.chebyshev, above, st.sampled_from([1, 2, 8, 2**40]), above),
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
        st.builds(schedules.product, parts, parts),
        st.builds(schedules.product, parts, parts, parts),
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

NO_NUMBERS = [True, "0.1", None, [0.1], 1j, np.ones(2), np.array("1"), lambda t: 0.1]
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
        "from_0": [*((v, TypeError) for v in NO_COUNTS), (-1, ValueError)],
        "count or none": [*((v, TypeError) for v in NO_COUNTS if v is not None), (0, ValueError)],
        "flag": [(v, TypeError) for v in [1, 0.0, None, "True", np.array(True)]],
        "word": [(1, TypeError), (None, TypeError), ("triangle", ValueError), ("", ValueError)],
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
    "cycle": "flag",
    "staircase": "flag",
    "three_phase": "flag",
    "anneal": "word",
    "mode": "word",
    "shape": "word",
    "decay_steps": "count",
    "step_size_down": "count or none",
}
OTHER = {
    ("chebyshev", "lr"): "above",
    ("chebyshev", "lr_min"): "above",
    ("wsd", "warmup_steps"): "from_0",
    ("cyclic", "gamma"): "share",
}
GOOD = {"number": 0.5, "above": 2.0, "share": 0.5, "count": 4, "part": 0.5, "parts": [0.5, 0.25]}
GOOD |= {"from_0": 0, "count or none": 3, "flag": True, "steps": [4]}  # type: ignore[dict-item]
WORDS = {"anneal": "linear", "mode": "exp_range", "shape": "sqrt"}


def kind_of(kind: type[Schedule], name: str) -> str:
    return OTHER.get((kind.__name__, name), KINDS[name])


def good(kind: type[Schedule]) -> dict[str, Any]:
    names = inspect.signature(kind).parameters
    return {name: WORDS[name] if name in WORDS else GOOD[kind_of(kind, name)] for name in names}


@pytest.mark.parametrize("value", [(0.5, value) for value, _ in bad("part")], ids=repr)
def test_a_bad_factor_is_refused_at_once(value: Any) -> None:
    kind = TypeError if not isinstance(value[1], int | float) or value[1] is True else ValueError
    with pytest.raises(kind, match=r"product: factors\[1\] must be a number in .*got"):
        schedules.product(*value)


@pytest.mark.parametrize(
    "kind", [k for k in PURE if k is not schedules.product], ids=lambda kind: kind.__name__
)
def test_a_bad_argument_is_refused_at_once(kind: Any) -> None:
    arguments = good(kind)
    kind(**arguments)
    for name in arguments:
        for value, error in bad(kind_of(kind, name)):
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
        schedules.polynomial: "lr, total_steps, power=1.0, lr_min=0.0, cycle=False",
        schedules.cosine: "lr, total_steps, lr_min=0.0",
        schedules.cosine_restarts: "lr, first_period, multiplier=1, lr_min=0.0",
        schedules.one_cycle: "max_lr, total_steps, pct_start=0.3, div_factor=25.0, "
        "final_div_factor=10000.0, anneal='cosine', three_phase=False",
        schedules.cyclic: "base_lr, max_lr, step_size_up, step_size_down=None, "
        "mode='triangular', gamma=1.0",
        schedules.chebyshev: "lr, total_steps, lr_min",
        schedules.inverse_time: "lr, gamma, step_size=1, staircase=False",
        schedules.rex: "lr, total_steps, lr_min=0.0",
        schedules.wsd: "lr, total_steps, warmup_steps, decay_steps, lr_min=0.0, shape='linear', "
        "start_factor=0.0",
        schedules.product: "factors",
        schedules.inverse_sqrt: "lr, warmup_steps",
        schedules.warmup: "schedule, warmup_steps, start_factor=0.0",
        schedules.join: "schedules, boundaries",
    }
    for kind, arguments in contract.items():
        names = inspect.signature(kind).parameters.values()
        shown = [p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in names]
        assert ", ".join(shown) == arguments
