"""What stands around a step works on CuPy's arrays, in NumPy's bits, and on any device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.errors import BackendMismatchError
from helpers.around import leaves, mapped

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(params=[0, 1])
def number(request: pytest.FixtureRequest, cupy: Any) -> int:
    """The number of a device."""
    if request.param >= cupy.cuda.runtime.getDeviceCount():
        pytest.skip("needs 2 devices")
    return int(request.param)


def values(dtype: Any, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, Any] = {"long": (3, 5000), "list": [(70,), ()], "none": (0, 2)}

    def drawn(shape: tuple[int, ...]) -> Array:
        made = rng.standard_normal(shape)
        kind = np.dtype(dtype).kind
        return np.array(made + 1j * np.cos(made) if kind == "c" else made, dtype)

    return {
        "long": drawn(shapes["long"]),
        "list": [drawn(shape) for shape in shapes["list"]],
        "none": drawn(shapes["none"]),
    }


def on_device(tree: Any, cupy: Any, number: int) -> Any:
    """Return a tree on a device; its longest array as a turned view with gaps."""

    def moved(array: Array) -> Any:
        with cupy.cuda.Device(number):
            if array.ndim < 2:
                return cupy.asarray(array)
            room = np.zeros((array.shape[1], 2 * array.shape[0]), array.dtype)
            room[:, ::2] = array.T
            return cupy.asarray(room)[:, ::2].T

    return mapped(moved, tree)


def back(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: back(part) for name, part in tree.items()}
    return [back(part) for part in tree] if isinstance(tree, list) else tree.get()


def bits(tree: Any) -> list[bytes]:
    return [leaf.tobytes() for leaf in leaves(tree)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_gradients_are_clipped(cupy: Any, dtype: str, number: int) -> None:
    here = values(dtype, 0)
    there = on_device(here, cupy, number)
    here["long"] = np.ascontiguousarray(here["long"].T).T  # as it lies in memory there
    assert fastopt.global_norm(there) == fastopt.global_norm(here)
    for order in (1.0, 3.0, math.inf):
        norms = [fastopt.clip_grad_norm_(tree, math.inf, order) for tree in (here, there)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-14)
    assert fastopt.clip_grad_norm_(there, 0.5) == fastopt.clip_grad_norm_(here, 0.5)
    assert bits(back(there)) == bits(here)
    if dtype != "complex64":
        fastopt.clip_grad_value_(here, 1e-3)
        fastopt.clip_grad_value_(there, 1e-3)
        assert bits(back(there)) == bits(here)


def test_arrays_of_several_places_have_one_norm(cupy2: Any) -> None:
    with cupy2.cuda.Device(1):
        far = cupy2.asarray(np.array([4.0]))
    grads = [cupy2.asarray(np.array([2.0], np.float32)), far, np.array([5.0]), None]
    assert fastopt.clip_grad_norm_(grads, 1.0) == math.sqrt(45.0)
    assert fastopt.global_norm(grads) == pytest.approx(1.0, rel=1e-6)
    assert fastopt.global_norm(grads[:1]) == pytest.approx(2 / math.sqrt(45.0), rel=1e-6)


@each_dtype
def test_the_norm_has_the_bits_of_a_step_there(cupy: Any, dtype: Any) -> None:
    grads = on_device(values(dtype, 1), cupy, 0)
    params = on_device(values(dtype, 2), cupy, 0)
    opt = fastopt.SGD(params, max_grad_norm=math.inf)
    opt.step(grads)
    assert opt.backend == "cupy"
    assert fastopt.global_norm(grads) == opt.grad_norm


def trained(params: Any, move: Any, dtype: Any) -> dict[str, Any]:
    """Run everything together, and return what it ends with."""
    opt = fastopt.Adam(params, lr=0.01)
    ema = fastopt.EMA(params, 0.75)
    look = fastopt.Lookahead(opt, 3, 0.25)
    acc = fastopt.Accumulator(look, 2)
    saved: dict[str, Any] = {}
    for step in range(15):
        acc.step(move(values(dtype, 10 + step)), grad_scale=0.3)
        ema.update()
        if step == 8:
            saved = {"acc": acc.state_dict(), "look": look.state_dict(), "ema": ema.state_dict()}
    with ema.swap():
        swapped = mapped(lambda p: (p.get() if hasattr(p, "get") else p).copy(), params)
    ends = {"acc": acc.state_dict(), "look": look.state_dict(), "ema": ema.state_dict()}
    for name, one in (("acc", acc), ("look", look), ("ema", ema)):
        one.load_state_dict(saved[name])
        np.testing.assert_equal(one.state_dict(), saved[name])
    return {"ends": ends, "saved": saved, "swapped": swapped}


@each_dtype
def test_averages_sums_and_slow_weights_end_in_the_same_bits(
    cupy: Any, dtype: Any, number: int
) -> None:
    one, two = values(dtype, 0), values(dtype, 0)
    there = on_device(two, cupy, number)
    expected = trained(one, lambda grads: grads, dtype)
    got = trained(there, lambda grads: on_device(grads, cupy, number), dtype)
    np.testing.assert_equal(got, expected)
    assert bits(back(there)) == bits(one)


def test_gradients_of_another_place_are_refused(cupy2: Any) -> None:
    acc = fastopt.Accumulator(fastopt.SGD(cupy2.asarray(np.ones(2))), 2)
    with pytest.raises(BackendMismatchError, match="same device"):
        acc.step(np.ones(2))
    with cupy2.cuda.Device(1):
        far = cupy2.asarray(np.ones(2))
    with pytest.raises(BackendMismatchError, match="same device"):
        acc.step(far)
    assert acc.count == 0


def test_a_loss_scaler_skips_there_too(cupy: Any) -> None:
    param = cupy.asarray(np.ones(2))
    scaler, opt = fastopt.LossScaler(8.0), fastopt.SGD(param, lr=1.0)
    assert not scaler.step(opt, cupy.asarray(np.array([1.0, math.inf])))
    scaler.update()
    assert scaler.step(opt, cupy.asarray(np.array([4.0, 8.0])))
    scaler.update()
    assert param.get().tolist() == [0.0, -1.0]
    assert scaler.scale == 4.0
