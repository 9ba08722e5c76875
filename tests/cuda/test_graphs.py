"""A step that is captured in a CUDA graph and replayed is a step: the same bits, and it counts."""

from __future__ import annotations

import gc
import importlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.backends.cupy.launch import Kernels
from fastopt.core.arrays import address
from fastopt.engine import tables
from helpers.cuda.device import emulated, no_waiting
from helpers.cuda.emulation.cuda import Cuda
from helpers.cuda.runs import DTYPES, differences
from helpers.cuda.training import Training, captured, replayed, train
from helpers.variants import CAPTURED, CPU_BACKENDS, VARIANT_OF, Variant

each_variant = pytest.mark.parametrize("variant", CAPTURED, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
ADAM = VARIANT_OF["adam"]
FEW = ((5,), (70, 3))
EXAMPLE = Path(__file__).parents[2] / "examples" / "cuda_graph.py"


@pytest.fixture(autouse=True)
def short_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tables that take less time to work out, and come to an end."""
    monkeypatch.setattr(tables, "CAPTURED", 64)


def falling(step: int) -> float:
    return 0.1 / (1 + step)


def capture(cupy: Any, step: Callable[[], object]) -> Any:
    """Return the graph of what is launched, which waits for nothing."""
    graph, _ = captured(cupy, step)
    return graph


# The same bits -------------------------------------------------------------------------------


@each_dtype
@each_variant
def test_fifty_replays_are_fifty_steps_of_numpy(cupy: Any, variant: Variant, dtype: Any) -> None:
    training = Training(50, dtypes=[dtype])
    options = {"lr": falling, "weight_decay": 0.01}
    assert (
        differences(
            train(training, variant, np, **options), replayed(training, variant, cupy, **options)
        )
        == {}
    )


@each_dtype
@each_variant
def test_so_they_are_clipped_and_skipped(cupy: Any, variant: Variant, dtype: Any) -> None:
    training = Training(50, dtypes=[dtype], bad=(0, 7, 8, 30, 49))
    options = {"max_grad_norm": 20.0, "on_nonfinite": "skip"}
    assert (
        differences(
            train(training, variant, np, **options), replayed(training, variant, cupy, **options)
        )
        == {}
    )


def test_what_is_set_between_replays_holds_after_refresh(cupy: Any) -> None:
    def change(opt: Any) -> None:
        opt.param_groups[0]["betas"] = (0.5, 0.6)
        opt.max_grad_norm = None
        opt.on_nonfinite = "propagate"

    before = {
        5: lambda opt: setattr(opt, "lr", 0.5),
        6: lambda opt: setattr(opt, "max_grad_norm", 0.1),
        20: lambda opt: opt.load_state_dict(opt.state_dict() | {"step_count": 100}),
        30: lambda opt: setattr(opt, "lr", falling),
        40: change,
    }
    training = Training(50, FEW, bad=(3, 22), before=before)
    options = {"on_nonfinite": "skip", "max_grad_norm": 10.0}
    assert (
        differences(train(training, ADAM, np, **options), replayed(training, ADAM, cupy, **options))
        == {}
    )


def test_replays_follow_the_limit(cupy: Any) -> None:
    limits = {8: 5.0, 9: 0.5, 30: 2.0, 40: 0.01}
    before = {k: lambda opt, v=v: setattr(opt, "max_grad_norm", v) for k, v in limits.items()}
    training = Training(50, FEW, bad=(3, 22), before=before)
    options = {"on_nonfinite": "skip", "max_grad_norm": 30.0}
    assert (
        differences(train(training, ADAM, np, **options), replayed(training, ADAM, cupy, **options))
        == {}
    )


def test_replays_and_steps_take_turns(cupy: Any) -> None:
    def run(xp: Any) -> dict[str, Any]:
        training = Training(60, FEW)
        params = [xp.asarray(param) for param in training.params()]
        grads = [xp.asarray(grad) for grad in training.grads(0)]
        opt = fastopt.Adam(params, lr=falling, capturable=True, on_nonfinite="skip")
        made: list[int] = []

        def step() -> None:
            opt.step(grads)

        step()  # prepares as warmup does
        replay = capture(cupy, step).launch if xp is cupy else step
        for number in range(1, 60):
            for grad, now in zip(grads, training.grads(number), strict=True):
                grad[...] = xp.asarray(now)
            (step if number % 4 else replay)()
            if number == 30:
                opt.lr = 0.2  # the next step is not a replay
            if number % 25 == 0:
                made.append(opt.step_count)
        assert made == [26, 51]
        return {str(k): host(param) for k, param in enumerate(params)}

    assert differences(run(np), run(cupy)) == {}


def host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


def test_a_scale_on_the_device_is_read_in_every_replay(cupy: Any) -> None:
    param, grad = cupy.zeros(3), cupy.asarray(np.ones(3))
    scale = cupy.asarray(np.array(2.0, np.float32))
    opt = fastopt.SGD([param], lr=1.0, capturable=True).warmup()
    graph = capture(cupy, lambda: opt.step([grad], grad_scale=scale))
    graph.launch()
    scale[...] = 0.5
    graph.launch()
    assert param.get().tolist() == [-2.5] * 3
    assert opt.step_count == 2


def test_parameters_at_different_steps_are_captured_too(cupy: Any) -> None:
    ends = []
    for xp in (np, cupy):
        training = Training(30, ((3,), (4,), (5,)))
        params = [xp.asarray(param) for param in training.params()]
        grads = [xp.asarray(grad) for grad in training.grads(0)]
        opt = fastopt.Adam(params, lr=0.1, capturable=True)
        opt.step([grads[0], None, grads[2]])
        late = [grads[0], grads[1], None]
        opt.step(late)
        opt.refresh()
        replay = capture(cupy, lambda o=opt, g=late: o.step(g)).launch if xp is cupy else None
        for _ in range(20):
            replay() if replay else opt.step(late)
        end = {f"{k}": host(param) for k, param in enumerate(params)}
        steps = [entry["step"] for entry in opt.state_dict()["state"].values()]
        assert steps == [22, 21, 1]
        ends.append(end)
    assert differences(*ends) == {}


def test_strided_parameters_are_copied_in_every_replay(cupy: Any) -> None:
    memory, grad = cupy.zeros(6), cupy.asarray(np.ones(3))
    opt = fastopt.SGD([memory[::2]], lr=1.0, capturable=True).warmup()
    graph = capture(cupy, lambda: opt.step([grad]))
    graph.launch()
    memory[...] = 5.0
    graph.launch()
    assert memory.get().tolist() == [4.0, 5.0] * 3


def test_a_graph_goes_on_using_the_memory_that_its_work_took(cupy: Any) -> None:
    ones, total = cupy.ones(1000), cupy.zeros(1000)

    def step() -> None:
        cupy.add(ones * 2, total, out=total)

    step()
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        replay = runpy.run_path(str(EXAMPLE))["Replay"](cupy, step, stream)
        others = [cupy.zeros(1000) for _ in range(10)]
        for _ in range(3):
            replay()
        stream.synchronize()
    assert total.get().tolist() == [8.0] * 1000
    assert not any(other.get().any() for other in others)


def test_two_graphs_of_one_optimizer_count_together(cupy: Any) -> None:
    param, grads = cupy.zeros(2), [cupy.asarray(np.full(2, g)) for g in (1.0, 10.0)]
    opt = fastopt.SGD([param], lr=1.0, capturable=True).warmup()
    graphs = [capture(cupy, lambda g=grad: opt.step([g])) for grad in grads]
    for graph in (*graphs, *graphs, graphs[0]):
        graph.launch()
    assert param.get().tolist() == [-23.0] * 2
    assert opt.step_count == 5


# The end of the table ---------------------------------------------------------------------------


def test_replays_beyond_the_table_do_nothing_and_say_so(cupy: Any) -> None:
    param, grad = cupy.zeros(2), cupy.asarray(np.ones(2))
    opt = fastopt.SGD([param], lr=lambda t: 1.0, capturable=True).warmup()
    graph = capture(cupy, lambda: opt.step([grad]))
    for _ in range(67):
        graph.launch()
    assert param.get().tolist() == [-64.0] * 2
    for read in (lambda: opt.step_count, opt.state_dict, lambda: opt.skipped_steps):
        with pytest.raises(RuntimeError, match=r"3 replays.*did nothing.*opt.refresh\(\)"):
            read()
    opt.refresh()
    assert opt.step_count == 64
    for _ in range(64):
        graph.launch()
    assert opt.step_count == 128
    assert param.get().tolist() == [-128.0] * 2


def test_a_step_after_the_end_of_the_table_finds_out(cupy: Any) -> None:
    grad = cupy.asarray(np.ones(2))
    opt = fastopt.SGD([cupy.zeros(2)], lr=lambda t: 1.0, capturable=True).warmup()
    graph = capture(cupy, lambda: opt.step([grad]))
    for _ in range(65):
        graph.launch()
    with no_waiting():
        opt.step([grad])  # asks for the counts
        with pytest.raises(RuntimeError, match=r"opt.refresh\(\)"):
            opt.step([grad])


def test_a_step_writes_the_coming_rows_too(cupy: Any) -> None:
    param, grad = cupy.zeros(2), cupy.asarray(np.ones(2))
    opt = fastopt.SGD([param], lr=lambda t: 1.0, capturable=True).warmup()
    graph = capture(cupy, lambda: opt.step([grad]))
    with no_waiting():
        for _ in range(20):
            for _ in range(20):
                graph.launch()
            for _ in range(2):  # the first asks for the counts, the second has them
                opt.step([grad])
    assert opt.step_count == 440
    assert param.get().tolist() == [-440.0] * 2


@pytest.mark.parametrize("variant", [VARIANT_OF["rmsprop"], VARIANT_OF["sgd_momentum"]], ids=str)
def test_constant_scalars_serve_for_ever(cupy: Any, variant: Variant) -> None:
    training = Training(300, FEW)
    assert differences(train(training, variant, np), replayed(training, variant, cupy)) == {}


def test_adams_scalars_become_constant(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CAPTURED", 4096)
    variant = Variant("short", fastopt.Adam, {"betas": (0.5, 0.9)})
    training = Training(600, ((3,),))
    assert differences(train(training, variant, np), replayed(training, variant, cupy)) == {}
    opt = variant([cupy.zeros(3, np.float32)], capturable=True).warmup()
    assert opt._engine.device is not None
    rows = opt._engine._tables._prefetched
    assert (rows.length, rows.period) == (256, 8)  # 0.9^t is lost in float32 from t = 165 on


# What cannot be captured ------------------------------------------------------------------------


def refused(cupy: Any, step: Callable[[], object], message: str) -> None:
    cuda = emulated()
    if cuda is not None:
        cuda.clear()
    with pytest.raises(RuntimeError, match=message):
        capture(cupy, step)
    assert cuda is None or cuda.launches == []


def test_without_capturable_it_is_an_error(cupy: Any) -> None:
    for options in ({}, {"max_grad_norm": 1.0}, {"on_nonfinite": "raise"}):
        param, grad = cupy.zeros(2), cupy.asarray(np.ones(2))
        opt = fastopt.SGD([param], **options).warmup()
        refused(cupy, lambda o=opt, g=grad: o.step([g]), "capturable=True")
        assert opt.step_count == 0
        opt.step([grad])
        assert opt.step_count == 1


def test_what_was_not_prepared_is_an_error(cupy: Any) -> None:
    grads = [cupy.asarray(np.ones(2)), cupy.asarray(np.ones(2))]
    opt = fastopt.Adam([cupy.zeros(2), cupy.zeros(2)], capturable=True)
    refused(cupy, lambda: opt.step(grads), r"opt.warmup\(\)")
    opt.warmup()
    refused(cupy, lambda: opt.step([grads[0], None]), r"opt.warmup\(\)")
    opt.max_grad_norm = 1.0
    refused(cupy, lambda: opt.step(grads), r"opt.warmup\(\)")
    opt.step(grads)
    opt.lr = 0.5
    refused(cupy, lambda: opt.step(grads), r"opt.refresh\(\)")
    opt.refresh()
    opt.max_grad_norm = 2.0
    refused(cupy, lambda: opt.step(grads), r"opt.refresh\(\)")
    opt.refresh()
    capture(cupy, lambda: opt.step(grads)).launch()
    assert opt.step_count == 2


def test_most_of_the_table_must_be_left(cupy: Any) -> None:
    grad = cupy.asarray(np.ones(2))
    opt = fastopt.SGD([cupy.zeros(2)], lr=falling, capturable=True)
    for _ in range(40):
        opt.step([grad])
    refused(cupy, lambda: opt.step([grad]), r"opt.refresh\(\)")
    opt.refresh()
    capture(cupy, lambda: opt.step([grad]))


def test_gradients_that_would_be_copied_are_refused(cupy: Any) -> None:
    param = cupy.asarray(np.ones((3, 4)))
    opt = fastopt.SGD([param], capturable=True).warmup()
    for grad in (np.ones((3, 4), np.float32), np.ones((4, 3)).T, np.ones((3, 8))[:, ::2]):
        given = cupy.asarray(grad)
        if not grad.flags.c_contiguous:
            given = cupy.asarray(np.ascontiguousarray(grad.T)).T
        refused(cupy, lambda g=given: opt.step([g]), "captured copies nothing")
    refused(cupy, lambda: opt.step([np.ones((3, 4))]), "captured copies nothing")


def test_an_older_cupy_cannot_capture(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels(cupy)
    vars(kernels)["by_value"] = False
    backend = importlib.import_module("fastopt.backends.cupy.backend")
    monkeypatch.setattr(backend, "_KERNELS", kernels)
    grad = cupy.asarray(np.ones(2))
    opt = fastopt.SGD([cupy.zeros(2)], lr=1.0, capturable=True).warmup()
    refused(cupy, lambda: opt.step([grad]), "CuPy 14.1")
    opt.step([grad])
    assert opt.step_count == 1


def test_while_capturing_nothing_can_be_read_or_refreshed(cupy: Any) -> None:
    grad = cupy.asarray(np.ones(2))
    opt = fastopt.Adam([cupy.zeros(2)], capturable=True, on_nonfinite="skip").warmup()
    opt.step([grad])
    reads: tuple[Callable[[], object], ...] = (
        lambda: opt.step_count,
        lambda: opt.grad_norm,
        opt.state_dict,
        opt.refresh,
        opt.warmup,
    )
    for read in reads:
        refused(cupy, read, "while a stream is captured")
    assert opt.step_count == 1


def test_after_a_capture_some_changes_are_refused(cupy: Any) -> None:
    params = [cupy.zeros(2), cupy.zeros(3)]
    grads = [cupy.asarray(np.ones(2)), cupy.asarray(np.ones(3))]
    opt = fastopt.Adam(params, capturable=True).warmup()
    graph = capture(cupy, lambda: opt.step(grads))
    graph.launch()
    with pytest.raises(ValueError, match="needs another one, so construct a new optimizer"):
        opt.param_groups[0]["eps_inside_sqrt"] = True
    with pytest.raises(RuntimeError, match="other gradients are None"):
        opt.step([grads[0], None])
    saved = opt.state_dict()
    saved["step_count"], saved["state"]["0"]["step"] = 7, 9
    with pytest.raises(RuntimeError, match="would no longer be; construct"):
        opt.load_state_dict(saved)
    assert (opt.step_count, opt.state_dict()["state"]["0"]["step"]) == (1, 1)
    for bad in ({}, {**saved, "state": 5}, {**saved, "state": {"0": 5}}):
        with pytest.raises(fastopt.CheckpointError):
            opt.load_state_dict(bad)
    opt.max_grad_norm = 1.0
    with pytest.raises(RuntimeError, match="does not measure the norm"):
        opt.refresh()
    opt.max_grad_norm = None
    opt.refresh()
    graph.launch()


def test_what_a_graph_reads_stays_in_memory(cupy: Any, cuda: Cuda) -> None:
    param = cupy.zeros(1000)
    held = [cupy.asarray(np.ones(1000)), cupy.asarray(np.array(1.0))]
    opt = fastopt.SGD([param], lr=1.0, capturable=True).warmup()
    graph = capture(cupy, lambda: opt.step(held[:1], grad_scale=held[1]))
    places = {address(array) for array in held}
    held.clear()
    opt.step([cupy.asarray(np.ones(1000))])
    gc.collect()
    assert places <= {start for start, _ in cuda.memory()}
    graph.launch()
    assert opt.step_count == 2


# Everywhere else ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_on_numpy_arrays_capturable_changes_nothing(backend: str) -> None:
    training = Training(10, FEW)
    ends = []
    for capturable in (True, False):
        params = training.params()
        opt = fastopt.Adam(params, backend=backend, capturable=capturable).warmup().refresh()
        assert opt.capturable is capturable
        for step in range(10):
            opt.step(training.grads(step))
        ends.append({str(k): param for k, param in enumerate(params)})
    assert differences(*ends) == {}


@pytest.mark.parametrize("xp", [np, None])
def test_capturable_and_raise_exclude_each_other(cupy: Any, xp: Any) -> None:
    param = (xp or cupy).zeros(2)
    with pytest.raises(ValueError, match=r"on_nonfinite must be propagate or skip .* capturable"):
        fastopt.Adam([param], capturable=True, on_nonfinite="raise")
    opt = fastopt.Adam([param], capturable=True)
    with pytest.raises(ValueError, match="capturable"):
        opt.on_nonfinite = "raise"
    assert opt.on_nonfinite == "propagate"
    for wrong in (1, "yes", None):
        with pytest.raises(TypeError, match="capturable must be True or False"):
            fastopt.Adam([param], capturable=wrong)


def test_cuda_refuses_what_cannot_be_captured(cupy: Any) -> None:
    def synchronize() -> None:
        cupy.cuda.get_current_stream().synchronize()

    for wait in (cupy.cuda.Device().synchronize, synchronize):
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCapture"):
            capture(cupy, wait)
    with pytest.raises(RuntimeError, match="D2H transfers"):
        capture(cupy, cupy.zeros(2).get)
    with pytest.raises(RuntimeError, match="legacy"):
        cupy.cuda.get_current_stream().begin_capture()


# Nothing is compiled while a stream is captured -----------------------------------------------


@pytest.mark.parametrize("limit", [None, 1.0])
@pytest.mark.parametrize("given", [np.float16, np.float32])
def test_a_warm_step_compiles_nothing_in_a_capture(
    cupy: Any, cuda: Cuda, given: Any, limit: float | None
) -> None:
    """Gradients of half precision parameters can be float32: that is another kernel."""
    params = [cupy.zeros(n, np.float16) for n in (5, 70)]
    more = {"capturable": True, "max_grad_norm": limit}
    opt = fastopt.Adam(params, **more).warmup()
    grads = [cupy.ones(param.shape, given) for param in params]
    cuda.clear()
    captured(cupy, lambda: opt.step(grads))
    assert cuda.compiled == []


def test_a_step_whose_kernels_are_not_there_is_not_captured(cupy: Any, cuda: Cuda) -> None:
    opt = fastopt.Adam([cupy.zeros(5, np.float16)], capturable=True)
    opt.step([cupy.ones(5, np.float16)])
    wide = [cupy.ones(5, np.float32)]
    with pytest.raises(RuntimeError, match="nothing is prepared for a step like this"):
        captured(cupy, lambda: opt.step(wide))
    opt.step(wide)
    captured(cupy, lambda: opt.step(wide))


@pytest.mark.parametrize("shape", [(), (7,), (3, 4)])
def test_a_warm_scaler_compiles_nothing_in_a_capture(cupy: Any, cuda: Cuda, shape: Any) -> None:
    params = [cupy.zeros(5, np.float32)]
    opt = fastopt.SGD(params, capturable=True, on_nonfinite="skip")
    scaler = fastopt.LossScaler().warmup(opt)
    loss, grads = cupy.ones(shape, np.float32), [cupy.ones(5, np.float32)]
    scaled = cupy.empty_like(loss)
    cuda.clear()

    def step() -> None:
        scaler.multiply(loss, out=scaled)
        scaler.step(opt, grads)
        scaler.update()

    captured(cupy, step)
    assert cuda.compiled == []


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
def test_a_step_on_the_default_stream_beside_a_capture_says_what_to_do(
    cupy: Any, options: dict[str, Any]
) -> None:
    param, grads = cupy.zeros(3, np.float32), [cupy.ones(3, np.float32)]
    opt = fastopt.SGD([param], 1.0, **options).warmup()
    stream = cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
    try:
        with pytest.raises(RuntimeError, match="non_blocking=True"):
            opt.step(grads)
    finally:
        with stream, pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="Invalidated"):
            stream.end_capture()
    assert opt.step_count == 0
    opt.step(grads)
    assert param.get().max() < 0
