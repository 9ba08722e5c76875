"""A step runs in the stream that is current, in order with what is before and after it there.

Non-blocking streams do not wait for the default one, so a step that went elsewhere, or memory that
was handed out too early, would show in the results. On a device every stream is kept busy before
the step, so that the step comes late; an emulated one does everything at once.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from helpers.cuda.device import REAL, keep_busy, no_waiting
from helpers.cuda.runs import differences, on_host, some_values
from helpers.variants import VARIANT_OF

SIZE = 100_003
STEPS = 6
SHORT = 30_000_000
"""Cycles of a device's clock: some 20 ms."""


def expected(seed: int, **options: Any) -> dict[str, Array]:
    """Return what Adam on NumPy ends with."""
    param = some_values(SIZE, np.float32, seed)
    opt = fastopt.Adam([param], backend="numpy", **options)
    for step in range(STEPS):
        opt.step([some_values(SIZE, np.float32, seed + step + 1)])
    return {"param": param}


def values_on(cupy: Any, seed: int) -> list[Any]:
    """Return the parameter and the gradients of a run on the device."""
    return [cupy.asarray(some_values(SIZE, np.float32, seed + k)) for k in range(STEPS + 1)]


def test_a_step_may_run_on_another_stream_than_the_construction(cupy: Any) -> None:
    param, grad = cupy.ones(1 << 20, "f4"), cupy.ones(1 << 20, "f4")
    cupy.cuda.Device().synchronize()  # these two are the user's
    opt = fastopt.Momentum([param], lr=0.5, beta=0.5)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        opt.step([grad])
        stream.synchronize()
    assert bool((param == 0.75).all())


def test_a_step_comes_after_what_makes_its_gradients_and_before_what_spoils_them(cupy: Any) -> None:
    with cupy.cuda.Stream(non_blocking=True) as stream:
        param, grad = cupy.zeros(SIZE, "f4"), cupy.zeros(SIZE, "f4")
        opt = fastopt.SGD([param], lr=1.0)
        keep_busy(cupy, SHORT)
        grad[...] = 1.0
        opt.step([grad])
        grad[...] = 100.0
        stream.synchronize()
        assert bool((param == -1.0).all())


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
def test_memory_is_not_handed_out_before_the_step_is_done_with_it(cupy: Any, options: Any) -> None:
    with cupy.cuda.Stream(non_blocking=True) as stream:
        param, *grads = values_on(cupy, 0)
        opt = fastopt.Adam([param], **options)
        for grad in grads:
            keep_busy(cupy, SHORT)
            opt.step([grad.astype("f8")])  # the step converts it, and that copy is gone after it
            junk = [cupy.full(SIZE, np.nan, kind) for kind in ("f4", "f8") * 2]
            del junk
        del opt  # with its state, which the last step may still have to write
        gc.collect()
        junk = [cupy.full(size, np.nan, "f4") for size in (SIZE, 2 * SIZE, 2 * SIZE + 500)]
        stream.synchronize()
        assert len(junk) == 3  # all of it was there at once
        assert differences({"param": on_host(param)}, expected(0, **options)) == {}


def test_two_optimizers_on_two_streams_do_not_meet(cupy: Any) -> None:
    runs = []
    for seed in (0, 100):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            param, *grads = values_on(cupy, seed)
            runs.append((stream, param, grads, fastopt.Adam([param])))
    for step in range(STEPS):
        for stream, _, grads, opt in runs:
            with stream:
                keep_busy(cupy, SHORT)
                opt.step([grads[step].copy()])
    for seed, (stream, param, _, _) in zip((0, 100), runs, strict=True):
        with stream:
            assert differences({"param": on_host(param)}, expected(seed)) == {}


def test_an_optimizer_may_go_from_stream_to_stream(cupy: Any) -> None:
    param, *grads = values_on(cupy, 0)
    opt = fastopt.Adam([param])
    cupy.cuda.Device().synchronize()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for step, grad in enumerate(grads):
        mine, other = streams[step % 2], streams[1 - step % 2]
        with mine:
            keep_busy(cupy, SHORT)
            opt.step([grad])
            done = cupy.cuda.Event()
            done.record(mine)
        other.wait_event(done)  # as any two streams that work on the same arrays
    with streams[STEPS % 2] as last:
        last.synchronize()
        assert differences({"param": on_host(param)}, expected(0)) == {}


def test_two_threads_with_a_stream_each_do_not_meet(cupy: Any) -> None:
    ends: dict[int, Any] = {}
    together = threading.Barrier(2)

    def work(seed: int) -> None:
        with cupy.cuda.Stream(non_blocking=True):
            param, *grads = values_on(cupy, seed)
            opt = fastopt.Adam([param])
            together.wait()
            for grad in grads:
                opt.step([grad])
            ends[seed] = on_host(param)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 100):
        assert differences({"param": ends[seed]}, expected(seed)) == {}


@pytest.mark.parametrize("name", ["sgd_momentum", "adam", "adam_amsgrad"])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "on_nonfinite": "skip"}])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_does_not_wait_for_the_device(
    cupy: Any, name: str, missing: bool, options: Any, scaled: bool
) -> None:
    params = [cupy.ones(n, "f4") for n in (10, 5_000, 3)] + [cupy.ones((6, 8))[:, ::2]]
    grads: list[Any] = [cupy.ones(p.shape, "f8") for p in params]
    if missing:
        grads[1] = None
    opt = VARIANT_OF[name](params, backend="cupy", **options)
    scaler = fastopt.LossScaler()

    def step() -> None:
        if scaled:
            given = [None if grad is None else scaler.multiply(grad) for grad in grads]
            scaler.step(opt, given)
            scaler.update()
        else:
            opt.step(grads)

    with cupy.cuda.Stream(non_blocking=True) as stream:
        cupy.cuda.Device().synchronize()  # all of the above is done
        keep_busy(cupy, 0)
        for _ in range(3):  # what is compiled or taken from the device once: cudaMalloc may wait
            step()
        stream.synchronize()
        keep_busy(cupy)
        busy = cupy.cuda.Event()
        busy.record(stream)
        with no_waiting():
            step()
        returned_before_the_device_was_done = not busy.done
        stream.synchronize()
    assert returned_before_the_device_was_done or not REAL
