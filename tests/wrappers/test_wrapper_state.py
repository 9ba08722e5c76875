"""What EMA, Accumulator, Lookahead and LossScaler remember: resumed in the same bits, or refused.

And what an interrupt leaves of what they do: all of it, or nothing.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.errors import CheckpointError
from helpers.around import copied, make_grads, make_params, same
from helpers.interruption import interrupted, places_of, whole_traces
from helpers.variants import CPU_BACKENDS, VARIANT_OF

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_dtype = pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.complex64]
)


@dataclass
class Run:
    """A training run with one of them; ``step`` depends on the step's number alone."""

    params: Any
    opt: fastopt.Optimizer
    kept: Any
    step: Callable[[int], object]

    def state(self) -> dict[str, Any]:
        return {"opt": self.opt.state_dict(), "kept": self.kept.state_dict()}

    def load(self, saved: dict[str, Any]) -> None:
        self.opt.load_state_dict(saved["opt"])
        self.kept.load_state_dict(saved["kept"])


def grads_of(params: Any, step: int) -> Any:
    grads = make_grads(params, step)
    if step % 3 == 1:
        grads["W"] = None
    if step % 4 == 2:
        grads["layers"][0] = None
    return grads


def with_ema(params: Any, backend: str) -> Run:
    opt = VARIANT_OF["adam"](params, lr=0.1, backend=backend)
    ema = fastopt.EMA(params, 0.9, warmup=True)

    def step(number: int) -> None:
        opt.step(grads_of(params, number))
        ema.update()

    return Run(params, opt, ema, step)


def with_accumulator(params: Any, backend: str) -> Run:
    opt = VARIANT_OF["sgd_momentum"](params, backend=backend)
    acc = fastopt.Accumulator(opt, 4)
    return Run(params, opt, acc, lambda number: acc.step(grads_of(params, number)))


def with_lookahead(params: Any, backend: str) -> Run:
    opt = VARIANT_OF["adamw"](params, lr=0.1, backend=backend)
    look = fastopt.Lookahead(opt, 3, 0.25)
    return Run(params, opt, look, lambda number: look.step(grads_of(params, number)))


def with_loss_scaler(params: Any, backend: str) -> Run:
    opt = VARIANT_OF["rmsprop"](params, lr=0.1, backend=backend)
    scaler = fastopt.LossScaler(64.0, growth_interval=3)

    def step(number: int) -> None:
        grads = grads_of(params, number)
        if number % 5 == 1:
            grads["back"][0, 0] = math.inf
        scaler.step(opt, grads)
        scaler.update()

    return Run(params, opt, scaler, step)


MAKERS = (with_ema, with_accumulator, with_lookahead, with_loss_scaler)
each_run = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)

# Resuming ----------------------------------------------------------------------------------------


@each_backend
@each_dtype
@each_run
@pytest.mark.parametrize("stop", [1, 5, 6, 8])
def test_resuming_ends_in_the_bits_of_going_on(
    make: Any, dtype: Any, backend: str, stop: int
) -> None:
    straight = make(make_params(dtype), backend)
    first = make(make_params(dtype), backend)
    for number in range(12):
        straight.step(number)
        if number < stop:
            first.step(number)
    resumed = make(copied(first.params), backend)
    resumed.load(first.state())
    np.testing.assert_equal(resumed.state(), first.state())
    for number in range(stop, 12):
        resumed.step(number)
    assert same(resumed.params, straight.params)
    np.testing.assert_equal(resumed.state(), straight.state())


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(part) for key, part in value.items())
    return type(value) in (str, int, float, bool) or type(value) is np.ndarray


@each_run
def test_a_state_dict_is_plain_and_a_copy(make: Any) -> None:
    run = make(make_params(), "numpy")
    for number in range(6):
        run.step(number)
    saved = run.kept.state_dict()
    kept = copy.deepcopy(saved)
    assert plain(saved)
    assert saved["fastopt"] == fastopt.__version__
    assert saved["kind"] == type(run.kept).__name__
    run.step(6)
    np.testing.assert_equal(saved, kept)
    run.kept.load_state_dict(saved)
    run.step(6)
    np.testing.assert_equal(saved, kept)


@each_run
def test_a_restorer_writes_when_it_is_called_and_not_before(make: Any) -> None:
    run = make(make_params(), "numpy")
    for number in range(5):
        run.step(number)
    saved = run.kept.state_dict()
    run.step(5)
    later = run.kept.state_dict()
    write = run.kept._restorer(saved)
    np.testing.assert_equal(run.kept.state_dict(), later)
    assert write() is None
    np.testing.assert_equal(run.kept.state_dict(), saved)


# What is refused ---------------------------------------------------------------------------------


def changed(saved: dict[str, Any], *keys: str, to: Any) -> dict[str, Any]:
    """Return a copy with one entry changed, or left out if ``to`` is an ellipsis."""
    made = copy.deepcopy(saved)
    inner = made
    for key in keys[:-1]:
        inner = inner[key]
    if to is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = to
    return made


NOT_COUNTS = (-1, 1.0, True, None, "1", 2**63, math.nan, ...)
COUNTS = {"EMA": ["updates"], "Accumulator": ["count"], "Lookahead": ["steps"]}
COUNTS["LossScaler"] = ["good_steps", "skips"]
ARRAYS = {"EMA": "average", "Accumulator": "sum", "Lookahead": "slow"}


def damages(saved: dict[str, Any]) -> list[Any]:
    kind = saved["kind"]
    bad: list[Any] = [None, [], 1, {}, changed(saved, "kind", to="Adam")]
    bad += [changed(saved, "kind", to=...), changed(saved, "kind", to=None)]
    bad += [changed(saved, key, to=to) for key in COUNTS[kind] for to in NOT_COUNTS]
    if kind == "LossScaler":
        wrong = (0.0, -1.0, math.nan, math.inf, 2.0**25, 2.0**-15, True, "1", None, ...)
        return bad + [changed(saved, "scale", to=to) for to in wrong]
    name = ARRAYS[kind]
    array = saved[name]["layers.0"]
    bad += [changed(saved, name, to=to) for to in (None, [], array, ...)]
    others = (array[:-1], array[None], array.astype("f4"), array.astype(">f8"), array.tolist())
    bad += [changed(saved, name, "layers.0", to=to) for to in (*others, None, 1.0)]
    bad.append(changed(saved, name, "other", to=array))
    if kind == "Accumulator":
        return [*bad, changed(saved, "count", to=0), changed(saved, "count", to=5)]
    if kind == "Lookahead":
        bad.append(changed(saved, "steps", to=3))
    return [*bad, changed(saved, name, "W", to=...), changed(saved, name, to={})]


@each_run
def test_what_does_not_fit_is_refused_and_changes_nothing(make: Any) -> None:
    run = make(make_params(), "numpy")
    for number in range(7):
        run.step(number)
    saved = run.kept.state_dict()
    run.step(7)
    before = run.state()
    wrong = []
    for number, bad in enumerate(damages(saved)):
        try:
            run.kept.load_state_dict(bad)
        except CheckpointError:
            pass
        else:
            wrong.append(number)
        np.testing.assert_equal(run.state(), before)
    assert wrong == []
    run.kept.load_state_dict(saved)


def test_the_message_says_what_is_missing() -> None:
    ema = fastopt.EMA({"a": np.ones(2), "b": np.ones(3)})
    saved = ema.state_dict()
    saved["average"]["c"] = saved["average"].pop("a")
    with pytest.raises(CheckpointError, match=r"lacks 1 parameters \['a'\].* too many \['c'\]"):
        ema.load_state_dict(saved)
    with pytest.raises(CheckpointError, match="the state is of EMA; this is Lookahead"):
        fastopt.Lookahead(fastopt.SGD(np.ones(1))).load_state_dict(saved)
    look = fastopt.Lookahead(fastopt.SGD(np.ones(1)))
    with pytest.raises(CheckpointError, match="steps must be a whole number from 0 to 4; got 5"):
        look.load_state_dict({**look.state_dict(), "steps": 5})


# Ctrl-C ------------------------------------------------------------------------------------------


def swapping(params: Any, backend: str) -> Run:
    run = with_ema(params, backend)
    update = run.step

    def step(number: int) -> None:
        if number < 2:
            update(number)
        else:
            with run.kept.swap():
                pass

    return Run(params, run.opt, run.kept, step)


INTERRUPTED = [
    (with_accumulator, 2, "adds"),
    (with_accumulator, 3, "steps"),
    (with_lookahead, 1, "steps"),
    (with_lookahead, 2, "pulls"),
    (with_loss_scaler, 3, "grows"),
    (with_loss_scaler, 6, "skips"),
    (swapping, 2, "swaps"),
]


@whole_traces
@pytest.mark.parametrize(
    ("make", "number"),
    [(m, n) for m, n, _ in INTERRUPTED],
    ids=[f"{m.__name__}-{what}" for m, _, what in INTERRUPTED],
)
def test_an_interrupt_anywhere_leaves_a_step_whole_or_not_begun(make: Any, number: int) -> None:
    def begun() -> Run:
        params = {"W": np.ones(2), "layers": [np.ones(3)], "back": np.ones((4, 2))[::2]}
        run: Run = make(params, CPU_BACKENDS[-1])
        for earlier in range(number):
            run.step(earlier)
        return run

    whole = begun()
    before = copied(whole.params), whole.state()
    whole.step(number)
    after = copied(whole.params), whole.state()
    seen = set()
    sample = begun()
    tries = places_of(lambda: sample.step(number))
    for at in tries:
        tried = begun()
        found = interrupted(lambda tried=tried: tried.step(number), at)  # type: ignore[misc]
        assert found, f"the interrupt at place {at} was lost"
        if isinstance(tried.kept, fastopt.LossScaler):
            tried.kept.update()  # which is due if the step was made, and else does nothing
        now = tried.params, tried.state()
        ends = [k for k, end in enumerate((before, after)) if equal(now, end)]
        assert ends, f"half a step at place {at}"
        seen |= set(ends)
    assert len(tries) > 20
    assert seen == {0, 1}


@whole_traces
def test_an_interrupt_anywhere_in_an_update_leaves_it_whole_or_not_begun() -> None:
    def made() -> fastopt.EMA:
        params = {"a": np.ones(3), "b": np.ones((4, 2))[::2]}
        ema = fastopt.EMA(params, 0.5)
        params["a"] += 1.0
        params["b"] += 1.0
        return ema

    ends = [made().state_dict()]
    whole = made()
    whole.update()
    ends.append(whole.state_dict())
    seen = set()
    for at in places_of(made().update):
        ema = made()
        assert interrupted(ema.update, at) is not None
        now = [k for k, end in enumerate(ends) if equal(ema.state_dict(), end)]
        assert now, f"half an update at place {at}"
        seen |= set(now)
    assert seen == {0, 1}


def equal(one: Any, two: Any) -> bool:
    try:
        np.testing.assert_equal(one, two)
    except AssertionError:
        return False
    return True


# Threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("kind", ["Accumulator", "Lookahead"])
def test_no_state_is_torn_that_is_read_while_another_thread_steps(kind: str, backend: str) -> None:
    """With gradients of ones all that is remembered is the same number everywhere."""
    params = [np.zeros(size) for size in (200_000, 7, 50_000)]
    grads = [np.ones(param.shape) for param in params]
    opt = fastopt.SGD(params, 1.0, backend=backend).warmup()
    wrapper: Any = fastopt.Lookahead(opt, 1)
    if kind == "Accumulator":
        wrapper = fastopt.Accumulator(opt, 10**9)
    wrapper.step(grads)
    first, stop = wrapper.state_dict(), threading.Event()

    def steps() -> None:
        while not stop.is_set():
            wrapper.step(grads)

    thread = threading.Thread(target=steps)
    thread.start()
    try:
        for number in range(200):
            saved = wrapper.state_dict()
            arrays = saved["sum" if kind == "Accumulator" else "slow"].values()
            found = {float(value) for array in arrays for value in np.unique(array)}
            assert len(found) == 1
            assert kind == "Lookahead" or found == {saved["count"]}
            if number % 10 == 0:
                wrapper.load_state_dict(first)
    finally:
        stop.set()
        thread.join()
