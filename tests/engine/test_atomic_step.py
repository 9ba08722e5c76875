"""A step is made whole or not at all: errors, Ctrl-C and other threads leave no half step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers.base import Optimizer
from helpers.interruption import interrupted, places_of, whole_traces
from helpers.variants import CPU_BACKENDS, HAS_NUMBA, VARIANT_OF, VARIANTS, Variant, script

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


@dataclass
class Schedule:
    """A schedule that gives something else, or raises it, when it is told to."""

    usual: float = 0.01
    instead: list[Any] = field(default_factory=list)

    def __call__(self, t: int) -> Any:
        if not self.instead:
            return self.usual / (1 + t)
        value = self.instead.pop()
        if isinstance(value, Exception):
            raise value
        return value


@dataclass
class Model:
    """Parameters of two groups, two dtypes and several layouts, with an optimizer."""

    opt: Optimizer
    trees: list[dict[str, Array]]
    lr: Schedule
    decay: Schedule

    def grads(self) -> list[dict[str, Any]]:
        """Return new gradients, which depend on the step alone."""
        rng = np.random.default_rng(self.opt.step_count + 1)
        return [
            {name: rng.standard_normal(p.shape).astype(p.dtype) for name, p in tree.items()}
            for tree in self.trees
        ]

    def look(self) -> dict[str, Any]:
        """Return copies of everything that a step changes."""
        return {"params": [{k: p.copy() for k, p in tree.items()} for tree in self.trees]} | {
            key: value for key, value in self.opt.state_dict().items() if key != "groups"
        }


def model(variant: Variant, backend: str, by_pattern: bool = False) -> Model:
    first = {
        "a": np.ones(5, np.float32),
        "b": np.ones((3, 4), np.float64),
        "c": np.ones((6, 4), np.float32)[::2],
        "d": np.ones((), np.float32),
    }
    second = {"a": np.ones(2, np.float32), "z": np.ones((4, 3), np.float32).T}
    lr, decay = Schedule(0.01), Schedule(0.1)
    own = {"lr": lr, "weight_decay": decay}
    groups: Any = [{"params": first}, {"params": second, **own}]
    if by_pattern:  # the gradients are nested in the same way
        groups = fastopt.groups([first, second], {"1.**": own})
    return Model(variant(groups, backend=backend), [first, second], lr, decay)


def same(one: Any, two: Any) -> bool:
    try:
        np.testing.assert_equal(one, two)
    except AssertionError:
        return False
    return True


# Errors ------------------------------------------------------------------------------------------

Failure = Callable[[Model], Iterator[dict[str, Any]]]
FAILURES: dict[str, tuple[type[Exception], Failure]] = {}
"""What makes a step fail: yields its arguments, and mends afterwards what it broke."""


def failure(kind: type[Exception]) -> Callable[[Failure], Failure]:
    def keep(made: Failure) -> Failure:
        FAILURES[made.__name__] = kind, made
        return made

    return keep


def last_gradient(change: Callable[[Array, Model], Any]) -> Failure:
    def made(of: Model) -> Iterator[dict[str, Any]]:
        grads = of.grads()
        grads[1]["z"] = change(grads[1]["z"], of)
        yield {"grads": grads}

    return made


FAILURES |= {
    "wrong_shape": (ValueError, last_gradient(lambda g, _: g.T)),
    "too_short": (ValueError, last_gradient(lambda g, _: g[:, 1:])),
    "integers": (TypeError, last_gradient(lambda g, _: g.astype(int))),
    "complex_numbers": (TypeError, last_gradient(lambda g, _: g.astype(complex))),
    "objects": (TypeError, last_gradient(lambda g, _: g.astype(object))),
    "no_array": (TypeError, last_gradient(lambda g, _: g.tolist()[0][0])),
    "its_own_parameter": (ValueError, last_gradient(lambda _, of: of.trees[1]["z"])),
    "a_list": (TypeError, last_gradient(lambda g, _: list(g))),
}


@failure(ValueError)
def missing_leaf(of: Model) -> Iterator[dict[str, Any]]:
    grads = of.grads()
    del grads[1]["z"]
    yield {"grads": grads}


@failure(ValueError)
def missing_group(of: Model) -> Iterator[dict[str, Any]]:
    yield {"grads": of.grads()[:1]}


@failure(ValueError)
def read_only_parameter(of: Model) -> Iterator[dict[str, Any]]:
    of.trees[1]["z"].flags.writeable = False
    yield {"grads": of.grads()}
    of.trees[1]["z"].flags.writeable = True


@failure(ValueError)
def rebound_parameter(of: Model) -> Iterator[dict[str, Any]]:
    kept = of.trees[1]["z"]
    of.trees[1]["z"] = kept.copy()
    yield {"grads": of.grads()}
    of.trees[1]["z"] = kept


for number, (bad, raised) in enumerate(
    [
        (np.nan, ValueError),
        (np.inf, ValueError),
        (-1.0, ValueError),
        ("0.1", TypeError),
        (None, TypeError),
        (True, TypeError),
        (0.1j, TypeError),
        (np.array([0.1, 0.2]), TypeError),
        (ArithmeticError("no value"), ArithmeticError),
    ]
):

    def bad_lr(of: Model, value: Any = bad) -> Iterator[dict[str, Any]]:
        of.lr.instead.append(value)
        yield {"grads": of.grads(), "grad_scale": 0.5}

    def bad_decay(of: Model, value: Any = bad) -> Iterator[dict[str, Any]]:
        of.decay.instead.append(value)
        yield {"grads": of.grads()}

    FAILURES[f"schedule_{number}"] = raised, bad_lr
    FAILURES[f"weight_decay_schedule_{number}"] = raised, bad_decay

for number, (bad, raised) in enumerate(
    [
        (np.nan, ValueError),
        (-np.inf, ValueError),
        ("1.0", TypeError),
        (None, TypeError),
        (True, TypeError),
        (1j, TypeError),
        (np.array([1.0, 2.0]), TypeError),
        ([1.0], TypeError),
    ]
):

    def bad_scale(of: Model, value: Any = bad) -> Iterator[dict[str, Any]]:
        yield {"grads": of.grads(), "grad_scale": value}

    FAILURES[f"grad_scale_{number}"] = raised, bad_scale


@each_backend
@each_variant
@pytest.mark.parametrize("by_pattern", [False, True])
def test_a_step_that_raises_changes_nothing_and_leaves_no_trace(
    variant: Variant, backend: str, by_pattern: bool
) -> None:
    wrong = []
    for name, (kind, breaks) in FAILURES.items():
        tried, expected = (model(variant, backend, by_pattern) for _ in range(2))
        tried.opt.step(tried.grads())
        expected.opt.step(expected.grads())
        before, raised = tried.look(), type(None)
        for arguments in breaks(tried):
            try:
                tried.opt.step(**arguments)
            except Exception as error:
                raised = type(error)
        if raised is not kind:
            wrong.append(f"{name} raised {raised.__name__}, not {kind.__name__}")
        elif not same(tried.look(), before):
            wrong.append(f"{name} changed something")
        else:
            tried.opt.step(tried.grads())
            expected.opt.step(expected.grads())
            if not same(tried.look(), expected.look()):
                wrong.append(f"{name} left a trace in the next step")
    assert wrong == []


@each_backend
@pytest.mark.parametrize("value", [np.nan, True, "1.0", np.array([1.0, 2.0])], ids=repr)
def test_a_bad_grad_scale_is_refused_by_the_shortest_way_through_a_step_too(
    value: Any, backend: str
) -> None:
    param = np.ones(3)
    opt = VARIANT_OF["sgd"](param, backend=backend)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match="grad_scale"):
            opt.step(np.ones(3), grad_scale=value)
        np.testing.assert_array_equal(param, np.ones(3))
    assert opt.step_count == 0


# Ctrl-C ------------------------------------------------------------------------------------------


@dataclass
class Small:
    """A step of some kind over some parameters: what every place of it is interrupted in."""

    opt: Optimizer
    params: list[Array]
    grads: list[Any]

    def step(self) -> None:
        self.opt.step(self.grads)

    def look(self) -> Any:
        return [p.copy() for p in self.params], self.opt.state_dict()


def one_bucket(backend: str) -> Small:
    params = [np.ones(5), np.ones(40)]
    return Small(fastopt.Adam(params, backend=backend), params, [np.ones(5), np.ones(40)])


def gaps_and_casts(backend: str) -> Small:
    params = [np.ones(10)[::2], np.ones(4)]
    return Small(fastopt.Adam(params, backend=backend), params, [np.ones(5), np.ones(4, "f4")])


def two_buckets_and_a_missing_gradient(backend: str) -> Small:
    params = [np.ones(5), np.ones(4, np.float32), np.ones(3, np.float32)]
    grads = [np.ones(5), None, np.ones(3, np.float32)]
    return Small(fastopt.SGD(params, momentum=0.9, backend=backend), params, grads)


class Freezing(Small):
    """Freezes and trains a group in turns."""

    def step(self) -> None:
        self.opt.param_groups[1]["trainable"] = self.opt.step_count % 2 == 0
        self.opt.step(self.grads)

    def look(self) -> Any:
        params, saved = super().look()
        return params, {key: value for key, value in saved.items() if key != "groups"}


def groups_of_one_tree(backend: str) -> Small:
    params = [np.ones(5), np.ones(4), np.ones(3)]
    groups = fastopt.groups(params, {"[12]": {"lr": 0.5}})
    grads = [np.ones(5), np.ones(4), np.ones(3)]
    return Freezing(fastopt.Adam(groups, backend=backend), params, grads)


KINDS = (one_bucket, gaps_and_casts, two_buckets_and_a_missing_gradient, groups_of_one_tree)


@whole_traces
@each_backend
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_an_interrupt_anywhere_in_a_step_leaves_it_whole_or_not_begun(
    make: Callable[[str], Small], backend: str
) -> None:
    reference = make(backend)
    ends = []
    for _ in range(4):
        ends.append(reference.look())
        reference.step()
    begun = done = 0
    wrong = []
    sample = make(backend)
    sample.step()
    tries = places_of(sample.step)
    for at in tries:
        tried = make(backend)
        tried.step()
        came_out = interrupted(tried.step, at)
        steps = tried.opt.step_count
        begun, done = begun + (steps == 1), done + (steps == 2)
        if not came_out:
            wrong.append(f"swallowed at place {at}")
        if not same(tried.look(), ends[steps]):
            wrong.append(f"half a step at place {at}")
        try:
            tried.step()
        except RuntimeError:
            wrong.append(f"no step is possible any more after place {at}")
        else:
            if not same(tried.look(), ends[steps + 1]):
                wrong.append(f"the next step is wrong after place {at}")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert wrong == []
    assert begun > 5, "the test found no place before the update"
    assert begun + done == len(tries) > 100


@whole_traces
def test_a_group_is_trained_again_after_an_interrupt_in_the_step_that_froze_it() -> None:
    def sequence(call: Callable[[Optimizer], Any], skip: bool) -> tuple[Any, Any]:
        small = groups_of_one_tree("numpy")
        group = small.opt.param_groups[1]
        small.opt.step(small.grads)
        group["trainable"] = False
        came_out = None if skip else call(small.opt)
        group["trainable"] = True
        small.opt.step(small.grads)
        return came_out, small.look()

    grads = groups_of_one_tree("numpy").grads
    not_begun, done = (sequence(lambda opt: opt.step(grads), skip)[1] for skip in (True, False))
    tries, _ = sequence(lambda opt: places_of(lambda: opt.step(grads)), False)
    wrong = []
    for at in tries:
        came_out, end = sequence(lambda opt: interrupted(lambda: opt.step(grads), at), False)  # noqa: B023 - now
        assert came_out is not None
        if not same(end, done if end[1]["step_count"] == 3 else not_begun):
            wrong.append(at)
    assert wrong == []
    assert len(tries) > 10


@whole_traces
@each_backend
def test_an_interrupt_while_state_is_loaded_leaves_the_old_or_the_new(backend: str) -> None:
    source = one_bucket(backend)
    source.step()
    saved = source.opt.state_dict()
    wrong = []
    one_bucket(backend).opt.load_state_dict(saved)  # what is worked out once is, before we count
    sample = one_bucket(backend).opt
    tries = places_of(lambda: sample.load_state_dict(saved))
    for at in tries[backend == "numpy" :: 2]:  # no backend has a part in it: each sees a half
        tried = one_bucket(backend)
        old = tried.opt.state_dict()
        came_out = interrupted(lambda opt=tried.opt: opt.load_state_dict(saved), at)  # type: ignore[misc]
        assert came_out is not None
        now = tried.opt.state_dict()
        if not (same(now, old) or same(now, saved)):
            wrong.append(at)
    assert wrong == [], "half loaded"
    assert len(tries) > 100


RANDOM_INTERRUPTS = """
import os, random, signal, sys, threading, time
import numpy as np
import fastopt

def make(dtypes):
    rng = np.random.default_rng(0)
    sizes = [3, 30_000, 1, 500, 7_000, 30_000] * 6
    params = [rng.random(n).astype(dtypes[k % len(dtypes)]) for k, n in enumerate(sizes)]
    return params, fastopt.Adam(params, lr=1e-3, backend=sys.argv[1])

def step(params, opt):
    opt.step(grads[opt.step_count % len(grads)])

def same(one, two):
    np.testing.assert_equal(one[0], two[0])
    np.testing.assert_equal(one[1].state_dict(), two[1].state_dict())

random.seed(int(sys.argv[2]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
stopped = 0
for dtypes in (["f4"], ["f4", "f8"]):
    tried, reference = make(dtypes), make(dtypes)
    grads = [[np.random.default_rng(s).random(p.size).astype(p.dtype) - 0.5 for p in tried[0]]
             for s in range(2)]
    start = time.perf_counter()
    step(*tried)
    step(*reference)
    start = time.perf_counter()
    step(*tried)
    step(*reference)
    usual = (time.perf_counter() - start) / 2
    for trial in range(32):
        delay = random.uniform(0, 3) * usual
        kill = lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGINT))
        thread = threading.Thread(target=kill)
        try:
            thread.start()
            while True:
                step(*tried)
        except KeyboardInterrupt:
            stopped += 1
        thread.join()
        while reference[1].step_count < tried[1].step_count:
            step(*reference)
        same(tried, reference)
print(stopped, "interrupts")
"""


@pytest.mark.xdist_group("apart")
@each_backend
def test_sixty_four_interrupts_at_random_moments_leave_no_half_step(backend: str) -> None:
    end = script(RANDOM_INTERRUPTS, backend, "0")
    assert (end.returncode, end.stdout) == (0, "64 interrupts\n"), end.stderr


@whole_traces
@each_backend
def test_the_users_own_signal_handler_is_called_once_and_kept(backend: str) -> None:
    calls: list[int] = []

    def handler(number: int, frame: Any) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        small = gaps_and_casts(backend)
        small.step()
        for at in (0, 5, 20, 50):
            assert interrupted(small.step, at) is False
            assert signal.getsignal(signal.SIGINT) is handler
        assert calls == [signal.SIGINT] * 4
        assert small.opt.step_count == 5
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        small.step()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# Threads -----------------------------------------------------------------------------------------


@each_backend
def test_a_second_thread_in_one_optimizer_waits(backend: str) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def lr(t: int) -> float:
        inside.set()
        go_on.wait()
        return 1.0

    param, done = np.zeros(3), threading.Event()
    opt = fastopt.SGD(param, lr, backend=backend)

    def second() -> None:
        opt.step(np.ones(3))
        done.set()

    threads = [threading.Thread(target=opt.step, args=[np.ones(3)])]
    threads[0].start()
    try:
        inside.wait()
        threads.append(threading.Thread(target=second))
        threads[1].start()
        assert not done.wait(0.2)
        assert opt.step_count == 0
        assert not param.any()
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    assert done.is_set()
    np.testing.assert_array_equal(param, -2 * np.ones(3))
    assert opt.step_count == 2


@each_backend
def test_no_state_dict_is_torn_while_another_thread_steps(backend: str) -> None:
    """With a gradient of ones, momentum 1 and lr 1 the buffer is the number of steps everywhere."""
    params = [np.zeros(shape, np.float64) for shape in ((20_000,), (7,), (300, 20), ())]
    grads = [np.ones(param.shape) for param in params]
    opt = fastopt.SGD(params, 1.0, momentum=1.0, backend=backend).warmup()
    opt.step(grads)
    first = opt.state_dict()
    stop = threading.Event()

    def steps() -> None:
        while not stop.is_set():
            opt.step(grads)

    thread = threading.Thread(target=steps)
    thread.start()
    try:
        for number in range(200):
            saved = opt.state_dict()
            count = saved["step_count"]
            for entry in saved["state"].values():
                assert entry["step"] == count
                assert (entry["buf"] == count).all()
            if number % 10 == 0:
                opt.load_state_dict(first)
    finally:
        stop.set()
        thread.join()


@each_backend
def test_a_schedule_that_steps_its_own_optimizer_is_refused(backend: str) -> None:
    param = np.zeros(3)

    def lr(t: int) -> float:
        opt.step(np.ones(3))
        return 1.0

    opt = fastopt.SGD(param, lr, backend=backend)
    with pytest.raises(RuntimeError, match="in a step already"):
        opt.step(np.ones(3))
    assert not param.any()
    opt.lr = 1.0
    opt.step(np.ones(3))
    np.testing.assert_array_equal(param, -np.ones(3))


@each_backend
@pytest.mark.parametrize("method", ["step", "state_dict", "warmup"])
def test_a_signals_handler_within_a_step_must_not_touch_the_state(
    method: str, backend: str
) -> None:
    param = np.zeros(3)

    def lr(t: int) -> float:
        if t == 1:
            signal.raise_signal(signal.SIGTERM)
        return 1.0

    def handler(number: int, frame: Any) -> None:
        getattr(opt, method)(*[np.ones(3)] * (method == "step"))

    opt = fastopt.SGD(param, lr, backend=backend)
    opt.step(np.ones(3))
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(RuntimeError, match=r"in this very\s+thread.*handler of a signal"):
            opt.step(np.ones(3))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (opt.step_count, param.tolist()) == (1, [-1.0] * 3)
    opt.lr = 1.0
    opt.step(np.ones(3))  # the failure has not kept the lock
    assert (opt.step_count, param.tolist()) == (2, [-2.0] * 3)


@each_backend
def test_a_step_in_a_thread_that_is_not_the_main_one_is_made(backend: str) -> None:
    small, expected = gaps_and_casts(backend), gaps_and_casts(backend)
    thread = threading.Thread(target=small.step)
    thread.start()
    thread.join()
    expected.step()
    assert same(small.look(), expected.look())


TWO_THREADS = """
import sys, threading
import numpy as np
import fastopt

SHAPES = [(300_000,), (7, 100), ()]

def train(params, grads):
    opt = fastopt.Adam(params, backend=sys.argv[1])
    for step in range(40):
        opt.step(grads, grad_scale=1.0 + step % 2)

def make(value):
    return [np.full(shape, value, np.float32) for shape in SHAPES]

grads = [[np.random.default_rng(s).random(shape, np.float32) for shape in SHAPES] for s in range(3)]
alone, together = [make(1) for _ in range(3)], [make(1) for _ in range(3)]
for some in zip(alone, grads):
    train(*some)
threads = [threading.Thread(target=train, args=some) for some in zip(together, grads)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for one, two in zip(together, alone):
    for first, second in zip(one, two):
        np.testing.assert_array_equal(first, second)
print("same")
"""


@each_backend
def test_optimizers_in_several_threads_do_not_meet(backend: str) -> None:
    end = script(TWO_THREADS, backend)
    assert (end.returncode, end.stdout) == (0, "same\n"), end.stderr


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_optimizers_in_several_threads_do_not_meet_on_numbas_workqueue_layer() -> None:
    end = script(TWO_THREADS, "numba", NUMBA_THREADING_LAYER="workqueue")
    assert (end.returncode, end.stdout) == (0, "same\n"), end.stderr


FORKED = """
import os, sys
import numpy as np
import fastopt

def made():
    param = np.ones(200_000, np.float32)
    return param, fastopt.Adam(param, backend="numba")

grad = np.linspace(-1, 1, 200_000, dtype=np.float32)
expected, opt = made()
opt.step(grad)
opt.step(grad)
param, opt = made()
opt.step(grad)  # in parallel: the threads of this process are not in its child
child = os.fork()
if child == 0:
    opt.step(grad)
    os._exit(0 if np.array_equal(param, expected) else 3)
_, status = os.waitpid(child, 0)
opt.step(grad)
assert np.array_equal(param, expected)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_a_forked_child_steps_on(layer: str) -> None:
    end = script(FORKED, NUMBA_THREADING_LAYER=layer)
    assert (end.returncode, end.stdout) == (0, "0\n"), end.stderr
