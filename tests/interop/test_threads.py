"""What is read and written in one thread while another steps is of one moment: nothing is torn."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.interop import common, load_keras, load_optax, load_torch, to_torch
from fastopt.optimizers.base import Optimizer
from helpers.variants import CPU_BACKENDS

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
SHAPES = ((2_000,), (7,), (30, 20), ())
NAMES = [str(number) for number in range(len(SHAPES))]
TIMES = 60


class Stepping:
    """An optimizer that a thread steps: buffers are the number of steps, or have stayed 1.

    With gradients of ones, momentum 1 and lr 1 the buffers count the steps, and a parameter is
    -t (t + 1) / 2.
    """

    def __init__(self, backend: str, dtype: Any = np.float64, grad: float = 1.0, lr: Any = 1.0):
        self.params = [np.zeros(shape, dtype) for shape in SHAPES]
        self.grads = [np.full(shape, grad, dtype) for shape in SHAPES]
        self.opt: Optimizer = fastopt.SGD(self.params, lr, momentum=1.0, backend=backend).warmup()
        self.made = 0
        self.step()

    def step(self) -> None:
        self.opt.step(self.grads)
        self.made += 1

    @contextmanager
    def going_on(self) -> Iterator[None]:
        stop = threading.Event()

        def steps() -> None:
            while not stop.is_set():
                self.step()

        usual = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # so that threads meet in the middle of things
        thread = threading.Thread(target=steps)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            sys.setswitchinterval(usual)
            thread.join()
        assert self.made > 2

    def is_of_one_moment(self) -> bool:
        saved = self.opt.state_dict()
        count = saved["step_count"]
        return all(
            entry["step"] == count and (entry["buf"] == count).all()
            for entry in saved["state"].values()
        )


def buffers(value: float, dtype: Any) -> list[Array]:
    return [np.full(shape, value, dtype) for shape in SHAPES]


def from_torch(opt: Optimizer, count: int, value: float, dtype: Any) -> None:
    arrays = buffers(value, np.float32 if dtype == np.float16 else dtype)
    saved = to_torch(fastopt.SGD(arrays, opt.lr, momentum=1.0, backend="numpy"))
    saved["state"] = {k: {"momentum_buffer": array} for k, array in enumerate(arrays)}
    load_torch(opt, saved, step_count=count)


Trace = namedtuple("TraceState", "trace")


def from_optax(opt: Optimizer, count: int, value: float, dtype: Any) -> None:
    arrays = buffers(value, np.float32 if dtype == np.float16 else dtype)
    load_optax(opt, (Trace(arrays),), step_count=count)


def from_keras(opt: Optimizer, count: int, value: float, dtype: Any) -> None:
    lr = opt.lr
    arrays = buffers(-lr * value, np.float32 if dtype == np.float16 else dtype)
    load_keras(opt, [np.array(count), np.array(lr), *arrays])


Load = Callable[[Optimizer, int, float, Any], None]
each_load = pytest.mark.parametrize("load", [from_torch, from_optax, from_keras])


@each_backend
@each_load
def test_what_is_loaded_from_elsewhere_is_whole(load: Load, backend: str) -> None:
    run = Stepping(backend)
    with run.going_on():
        for number in range(TIMES):
            load(run.opt, 1000 * number, 1000.0 * number, np.float64)
            assert run.is_of_one_moment()
    assert run.is_of_one_moment()


@each_backend
@each_load
def test_no_step_is_lost_by_what_is_loaded_from_elsewhere(load: Load, backend: str) -> None:
    """The master weights are not in what is loaded: each step adds lr times a buffer of ones."""
    lr = 2.0**-12
    run = Stepping(backend, np.float16, grad=0.0, lr=lr)
    load(run.opt, 1, 1.0, np.float16)
    run.made = 0
    with run.going_on():
        for _ in range(TIMES):
            load(run.opt, 1, 1.0, np.float16)
    for entry in run.opt.state_dict()["state"].values():
        assert (entry["master"] == -lr * run.made).all()


def step_meanwhile(run: Stepping) -> threading.Thread:
    """Begin a step in another thread, and let it be made if it can."""
    thread = threading.Thread(target=run.step)
    thread.start()
    time.sleep(0.2)
    return thread


@each_load
def test_a_step_in_the_middle_of_a_load_comes_after_it(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr = 2.0**-12
    run = Stepping("numpy", np.float16, grad=0.0, lr=lr)
    load(run.opt, 1, 1.0, np.float16)
    entry, threads = common._entry, []

    def interrupted(*given: Any) -> Any:
        if not threads:
            threads.append(step_meanwhile(run))
        return entry(*given)

    monkeypatch.setattr(common, "_entry", interrupted)
    load(run.opt, 1, 1.0, np.float16)
    threads[0].join()
    for saved in run.opt.state_dict()["state"].values():
        assert (saved["master"] == -lr).all()
        assert saved["step"] == 2


def test_a_step_in_the_middle_of_what_pytorch_gets_comes_after_it() -> None:
    params = [np.zeros(3), np.zeros(4)]
    groups = [{"params": [one], "lr": lambda t: 1.0 + t} for one in params]
    opt, threads = fastopt.SGD(groups, momentum=1.0, backend="numpy"), []
    grads = [[np.ones(3)], [np.ones(4)]]
    opt.step(grads)

    def tensor(array: Array) -> Array:
        thread = threading.Thread(target=opt.step, args=(grads,))
        thread.start()
        time.sleep(0.2)
        threads.append(thread)
        return array

    saved = to_torch(opt, tensor)
    for thread in threads:
        thread.join()
    assert [group["lr"] for group in saved["param_groups"]] == [2.0, 2.0]
    assert [one["momentum_buffer"][0] for one in saved["state"].values()] == [1.0, 1.0]
    assert opt.step_count == 3


@each_backend
def test_what_pytorch_gets_is_of_one_moment(backend: str) -> None:
    run = Stepping(backend, lr=lambda t: 1.0 + t)
    with run.going_on():
        for _ in range(TIMES):
            saved = to_torch(run.opt)
            count = saved["param_groups"][0]["lr"] - 1.0
            for entry in saved["state"].values():
                assert (entry["momentum_buffer"] == count).all()


@each_backend
def test_a_file_is_of_one_moment_and_is_taken_over_in_one(backend: str, tmp_path: Path) -> None:
    run, other = Stepping(backend), Stepping("numpy")
    checkpoints = fastopt.Checkpoints(tmp_path / "numbered")

    def look(params: list[Array], count: int) -> bool:
        return all((param == -count * (count + 1) / 2).all() for param in params)

    run.opt.save(tmp_path / "first")
    with run.going_on(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a run that goes back
        for number in range(TIMES // 3):
            run.opt.save(tmp_path / "now", keep_previous=False)
            numbered = checkpoints.save(run.opt, background=True)
            checkpoints.wait()
            for path in (tmp_path / "now", numbered):
                count = other.opt.load(path).step_count
                assert other.is_of_one_moment()
                assert look(other.params, count)
            if number % 5 == 4:
                run.opt.load(tmp_path / "first")
                assert run.is_of_one_moment()
    assert run.is_of_one_moment()
    assert look(run.params, run.opt.step_count)


def test_a_schedule_must_not_hand_its_optimizer_to_another_library() -> None:
    def lr(step: int) -> float:
        to_torch(opt)
        return 1.0

    opt = fastopt.SGD(np.ones(2), lr, backend="numpy")
    with pytest.raises(RuntimeError, match="in this very thread"):
        opt.step(np.ones(2))


def test_what_is_no_optimizer_is_refused_by_name() -> None:
    for function in (to_torch, load_torch, load_optax, load_keras):
        with pytest.raises(TypeError, match="opt must be an optimizer of fastopt; got dict"):
            function({}, *[{}] * (function is not to_torch))  # type: ignore[operator]  # four
