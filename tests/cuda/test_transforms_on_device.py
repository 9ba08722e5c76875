"""Gradients that are clipped by units and centralized on a device: NumPy's numbers, no waiting."""

from __future__ import annotations

import gc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.engine import tables
from helpers.cuda.device import emulated, no_waiting
from helpers.cuda.runs import on_host
from helpers.cuda.training import Training, end_of, train
from helpers.variants import VARIANT_OF

ON: dict[str, Any] = {"adaptive_clip": 0.05, "centralize": True, "weight_decay": 0.1}
SHAPES = ((5,), (70, 3), (), (0, 4), (4, 3, 5), (4099,))
WAYS = {
    "by_host": {},
    "by_device": {"max_grad_norm": 0.5, "on_nonfinite": "skip"},
    "raising": {"on_nonfinite": "raise"},
}


@pytest.fixture(autouse=True)
def short_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tables that take less time to work out."""
    monkeypatch.setattr(tables, "CAPTURED", 64)


def close(one: dict[str, Any], two: dict[str, Any], eps: float) -> None:
    """Hold two ends to each other; the order in which a device adds differs."""
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values.dtype == two[name].dtype
        if values.dtype.kind in "iu" and values.ndim:
            np.testing.assert_array_equal(values, two[name], err_msg=name)
            continue
        wide = np.complex128 if values.dtype.kind == "c" else np.float64
        size = np.abs(values.astype(wide)).max(initial=0.0)
        np.testing.assert_allclose(
            values.astype(wide), two[name].astype(wide), rtol=eps, atol=eps * size, err_msg=name
        )


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [
        (np.float64, 1e-13),
        (np.float32, 1e-5),
        (np.complex128, 1e-13),
        (np.float16, 1e-2),
        (ml_dtypes.bfloat16, 5e-2),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_steps_end_as_numpys(cupy: Any, dtype: Any, eps: float, way: str) -> None:
    gaps = way != "by_device"  # for which it would wait
    training = Training(12, SHAPES, [dtype], missing=lambda step, k: gaps and (step + k) % 5 == 0)
    here, variant = WAYS[way], VARIANT_OF["sgd_momentum"]
    ends = [train(training, variant, np, **ON, **here)]
    if way == "raising":  # which waits
        params = [cupy.asarray(param) for param in training.params()]
        opt = variant(params, **ON, **here)
        for step in range(12):
            grads = [None if g is None else cupy.asarray(g) for g in training.grads(step)]
            opt.step(grads)
        ends.append(end_of(opt, params))
    else:
        ends.append(train(training, variant, cupy, **ON, **here))
    close(*ends, eps=eps)


@pytest.mark.parametrize("way", ["by_host", "by_device"])
def test_the_scale_on_a_device_counts(cupy: Any, way: str) -> None:
    training = Training(6, SHAPES, [np.float64], scale=lambda step: 2.0 ** (3 - step))
    there = train(training, VARIANT_OF["sgd"], cupy, cupy.asarray, **ON, **WAYS[way])
    close(train(training, VARIANT_OF["sgd"], np, **ON, **WAYS[way]), there, eps=1e-13)


def test_a_scaled_loss_is_clipped_as_one_that_is_not(cupy: Any) -> None:
    training = Training(6, SHAPES, [np.float64])
    params = [cupy.asarray(param) for param in training.params()]
    opt = VARIANT_OF["sgd"](params, **ON)
    scaler = fastopt.LossScaler(init_scale=1024.0).warmup(opt)
    for step in range(6):
        grads = [1024.0 * cupy.asarray(grad) for grad in training.grads(step)]
        with no_waiting():
            scaler.step(opt, grads)
            scaler.update()
    assert opt.step_count == 6
    plain = train(training, VARIANT_OF["sgd"], np, **ON)
    for k, param in enumerate(params):
        np.testing.assert_allclose(on_host(param), plain[f"param {k}"], rtol=1e-12)


def capture(cupy: Any, step: Any) -> Any:
    """Return the graph of what is launched. What it allocates is in a pool that nobody else has."""
    with no_waiting(), cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            step()
        finally:
            graph = stream.end_capture()
    return graph


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_replays_go_by_the_gradients_and_parameters_of_then(cupy: Any, dtype: Any) -> None:
    training = Training(12, SHAPES, [dtype], bad=(3,))
    settings: dict[str, Any] = {**ON, "on_nonfinite": "skip", "lr": lambda t: 0.1 / (1 + t)}
    params = [cupy.asarray(param) for param in training.params()]
    opt = VARIANT_OF["adam"](params, capturable=True, **settings).warmup()
    grads = [cupy.asarray(grad) for grad in training.grads(0)]
    cuda = emulated()
    compiled = cuda and cuda.calls("cuModuleLoadData")
    graph = capture(cupy, lambda: opt.step(grads))
    assert compiled == (cuda and cuda.calls("cuModuleLoadData"))
    for step in range(12):
        for grad, now in zip(grads, training.grads(step), strict=True):
            grad[...] = cupy.asarray(now)
        other = [cupy.full(size, 7.0) for size in (3, 70, 210)]  # what was free is written to
        with no_waiting():
            graph.launch()
        assert all((one.get() == 7.0).all() for one in other)
        gc.collect()
    assert opt.skipped_steps == 1
    here = train(training, VARIANT_OF["adam"], np, **settings)
    close(here, end_of(opt, params), eps=1e-2 if dtype is np.float16 else 1e-5)


def test_replays_read_a_scale_that_is_on_the_device(cupy: Any) -> None:
    param, scale = cupy.zeros((2, 2)), cupy.ones(())
    opt = fastopt.SGD(param, lr=1.0, adaptive_clip=1000.0, capturable=True).warmup()
    grads = cupy.asarray(np.array([[0.6, 0.8], [6.0, 8.0]]))
    graph = capture(cupy, lambda: opt.step(grads, grad_scale=scale))
    expected = np.zeros((2, 2))
    for value in (1.0, 0.25, 2.0):
        scale[...] = value
        graph.launch()
        norms = np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-3)
        rows = value * grads.get()
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        expected = expected - rows * np.minimum(1.0, 1000.0 * norms / lengths)
        np.testing.assert_allclose(param.get(), expected, rtol=1e-14)


def test_a_captured_step_keeps_what_it_does_to_gradients(cupy: Any) -> None:
    param = cupy.ones((2, 3))
    opt = fastopt.SGD(param, lr=1.0, adaptive_clip=0.1, capturable=True).warmup()
    capture(cupy, lambda: opt.step(cupy.ones((2, 3))))
    for change in ({"adaptive_clip": 0.2}, {"adaptive_clip": None}, {"centralize": True}):
        with pytest.raises(ValueError, match=r"captured in a CUDA graph.* construct a new"):
            opt.param_groups[0].update(change)


def test_it_is_not_captured_unless_the_optimizer_can_be(cupy: Any) -> None:
    param = cupy.ones((2, 3))
    opt = fastopt.SGD(param, lr=1.0, adaptive_clip=0.1)
    opt.step(cupy.ones((2, 3)))
    with pytest.raises(RuntimeError, match="capturable=True"):
        capture(cupy, lambda: opt.step(cupy.ones((2, 3))))


def test_rows_and_members_on_a_device(cupy: Any) -> None:
    rng = np.random.default_rng(0)
    table, grads = rng.standard_normal((2, 6, 3))
    ends = []
    for xp in (np, cupy):
        param = xp.array(table)
        opt = fastopt.SGD([param], lr=1.0, adaptive_clip=0.1, centralize=True)
        opt.step([fastopt.RowGrad(np.array([4, 1, 4]), xp.asarray(grads[:3]))])
        fits = xp.array(table.reshape(2, 3, 3))
        clips = np.array([0.1, 0.3])
        opt = fastopt.SGD([fits], lr=1.0, adaptive_clip=clips, centralize=True, members=2)
        opt.step([xp.asarray(grads.reshape(2, 3, 3))])
        ends.append([on_host(param), on_host(fits)])
    for one, two in zip(*ends, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-14)
