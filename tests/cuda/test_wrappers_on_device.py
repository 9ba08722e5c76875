"""What stands around a step works on CuPy's arrays, in NumPy's bits, and on any device."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from fastopt.core.norms import norm_there
from fastopt.errors import BackendMismatchError
from helpers.around import leaves, mapped
from helpers.cuda.device import no_waiting

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


def duplicate(tree: Any, cupy: Any, number: int) -> Any:
    with cupy.cuda.Device(number):
        return mapped(lambda array: array.copy(), tree)


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


ALL_DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.complex64]


def looked_ahead(params: Any, move: Any, dtype: Any, quiet: Any) -> Any:
    """Run a Lookahead around which parameters are written, frozen, and without gradients."""
    bounds = None if np.dtype(dtype).kind == "c" else (-2, 1.5)
    groups = fastopt.groups(params, {"list.0": {"trainable": False}})
    opt = fastopt.Adam(groups, lr=0.1, bounds=bounds)
    look = fastopt.Lookahead(opt, 3, 0.25)
    ends = []
    for step in range(10):
        grads = move(values(dtype, 10 + step))
        grads["list"][1] = None if step % 4 else grads["list"][1]
        params["list"][0] += 0.5
        if step in (2, 3, 7):
            params["long"][0, 1::7] = step / 4
            params["long"][1, 5] = math.nan
        with quiet():
            look.step(grads)
        if step in (4, 8):
            ends.append(look.state_dict())
    look.load_state_dict(ends[0])
    look.step(move(values(dtype, 30)))
    return [*ends, look.state_dict()]


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_what_is_written_is_followed_in_the_same_bits_and_nothing_waits(
    cupy: Any, dtype: Any
) -> None:
    one, two = values(dtype, 0), values(dtype, 0)
    there = on_device(two, cupy, 0)
    expected = looked_ahead(one, lambda grads: grads, dtype, nullcontext)
    got = looked_ahead(there, lambda grads: on_device(grads, cupy, 0), dtype, no_waiting)
    np.testing.assert_equal(got, expected)
    assert bits(back(there)) == bits(one)


@pytest.mark.parametrize("arrays", [False, True])
def test_bounds_hold_for_the_slow_weights_there(cupy: Any, arrays: bool) -> None:
    param = cupy.asarray(np.array([2.0, 0.5, -3.0]))
    bounds: Any = ([np.zeros(3)], [np.ones(3)]) if arrays else (0, 1)
    look = fastopt.Lookahead(fastopt.SGD([param], lr=1.0, bounds=bounds), 2)
    for _ in range(2):
        look.step([cupy.asarray(np.array([0.0, -1.0, 0.0]))])
    assert param.get().tolist() == look.slow[0].get().tolist() == [1.0, 0.75, 0.0]


def accumulated(params: Any, move: Any, dtype: Any, quiet: Any, bad: Any) -> Any:
    opt = fastopt.Adam(params, lr=0.1, on_nonfinite="skip")
    acc = fastopt.Accumulator(opt, 3)
    saved: dict[str, Any] = {}
    for step in range(15):
        here = values(dtype, 10 + step)
        if step in bad:
            here["long"][1, 7] = math.inf
        here["list"][1] = None if step % 3 else here["list"][1]
        grads = move(here)
        with quiet():
            acc.add(grads, 1.3 + step % 3, grad_scale=0.3)
        if step == 7:
            saved = acc.state_dict()
            acc.load_state_dict(saved)
    counts = acc.dropped, acc.skipped_steps, acc.step_count
    return {"state": opt.state_dict(), "saved": saved, "counts": counts}


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("bad", [(), (1,), (0, 3, 4, 5, 7, 14)], ids=str)
def test_micro_batches_are_dropped_in_the_same_bits_and_nothing_waits(
    cupy: Any, dtype: Any, bad: Any
) -> None:
    one, two = values(dtype, 0), values(dtype, 0)
    there = on_device(two, cupy, 0)
    expected = accumulated(one, lambda grads: grads, dtype, nullcontext, bad)

    def move(grads: Any) -> Any:
        moved = on_device({**grads, "list": [g for g in grads["list"] if g is not None]}, cupy, 0)
        moved["list"] += [None] * (2 - len(moved["list"]))
        return moved

    got = accumulated(there, move, dtype, no_waiting, bad)
    assert got["counts"] == (len(bad), int(len(bad) > 3), 5 - int(len(bad) > 3))
    np.testing.assert_equal(got, expected)
    assert bits(back(there)) == bits(one)


def test_under_raise_a_micro_batch_is_refused_there(cupy: Any) -> None:
    params = {"a": cupy.zeros(2), "b": cupy.zeros(3)}
    acc = fastopt.Accumulator(fastopt.SGD(params, on_nonfinite="raise"), 2)
    bad = {"a": cupy.zeros(2), "b": cupy.asarray(np.array([0.0, math.inf, 0.0]))}
    with pytest.raises(FloatingPointError, match=r'grads\["b"\] holds NaN or infinity'):
        acc.add(bad)
    assert (acc.count, acc.dropped) == (0, 0)


@pytest.mark.parametrize("decay", [0.75, "mean"])
def test_averages_begin_and_carry_counters_there(cupy: Any, decay: Any) -> None:
    ends = []
    for xp in (np, cupy):
        params = {"w": xp.asarray(np.zeros(3, np.float32)), "n": xp.asarray(np.zeros(2, np.int16))}
        ema = fastopt.EMA(params, decay)
        for step in range(5):
            params["w"] += step + 1
            params["n"] += 1
            ema.update()
        params["n"] += 1
        with ema.swap():
            swapped = [np.array(p.tolist()) for p in params.values()]
        ends.append((ema.state_dict(), swapped))
    np.testing.assert_equal(ends[1], ends[0])


def test_kept_rows_go_on_there_through_a_resize(cupy: Any) -> None:
    ends = []
    for xp in (np, cupy):
        params = {"w": xp.asarray(np.arange(6.0).reshape(3, 2)), "h": xp.zeros(3, np.float16)}
        opt = fastopt.Lookahead(fastopt.SGD(params, lr=1.0), k=2)
        follows, given = fastopt.EMA(opt, 0.5), fastopt.EMA(params, 0.5)
        for keep in (xp.asarray(np.array([2, 0])), [1]):
            opt.step({name: xp.ones_like(param) for name, param in params.items()})
            follows.update()
            given.update()
            for name, param in params.items():
                rows = xp.concatenate([param[keep], xp.full_like(param[:2], 9.0)])
                opt.resize(name, rows, keep)
                for ema in (follows, given):
                    ema.resize(name, rows, keep)
        follows.update({**params})
        ends.append([one.state_dict() for one in (opt, follows, given)])
    np.testing.assert_equal(ends[1], ends[0])


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


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("make", [fastopt.SAM, fastopt.ASAM])
def test_the_way_uphill_has_numpys_bits_and_nothing_waits(
    cupy: Any, make: Any, dtype: str, number: int
) -> None:
    ends, ups = [], []
    for there in (False, True):
        params, grads = values(dtype, 0), values(dtype, 1)
        params["long"] = np.ascontiguousarray(params["long"].T).T  # as it lies in memory there
        if there:
            params, grads = (on_device(tree, cupy, number) for tree in (params, grads))
        opt = fastopt.SGD(params, lr=0.1, momentum=0.9, bounds=None if dtype[0] == "c" else (-2, 2))
        sam = make(opt)
        with sam.ascent(grads):
            pass  # which compiles
        with no_waiting() if there else nullcontext(), sam.ascent(grads):
            up = duplicate(params, cupy, number) if there else mapped(np.copy, params)
        sam.step(grads)
        ends.append(bits(back(params) if there else params))
        ups.append(bits(back(up) if there else up))
    assert ups[0] == ups[1] != ends[0]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_a_norm_stays_where_its_arrays_are(cupy: Any, size: float) -> None:
    given = [size * np.arange(1.0, 5001.0), np.array(size), np.zeros(0), np.ones(3, np.float32)]
    there = [cupy.asarray(array) for array in given]
    norm_there(there)
    with no_waiting():
        found = norm_there(there)
    assert found.get() == norm_there(given) == fastopt.global_norm(there)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("state", [None, "bfloat16", "int8"])
def test_schedule_free_evaluates_in_numpys_bits_and_nothing_waits(
    cupy: Any, dtype: str, state: str | None, number: int
) -> None:
    if dtype == "float64":
        state = None
    found: list[Any] = []
    for there in (False, True):
        params, evaluated = values(dtype, 0), []
        params["long"] = np.ascontiguousarray(params["long"].T).T
        if there:
            params = on_device(params, cupy, number)
        limits = {} if dtype[0] == "c" else {"bounds": (-1.5, 1.5)}
        opt = fastopt.ScheduleFreeAdamW(
            params, lr=0.1, state_dtype=state, on_nonfinite="skip", **limits
        )
        for step in range(4):
            grads = values(dtype, 1 + step)
            if step == 2:
                grads["long"][0, 0] = np.nan
            opt.step(on_device(grads, cupy, number) if there else grads)
            with opt.eval():
                pass  # which compiles
            with no_waiting() if there else nullcontext(), opt.eval():
                x = duplicate(params, cupy, number) if there else mapped(np.copy, params)
            evaluated.append(bits(back(x) if there else x))
        found.append((evaluated, bits(back(params) if there else params)))
        saved = opt.state_dict()
        with opt.eval():
            assert repr(opt.state_dict()) == repr(saved)
    assert found[0] == found[1]
    assert found[0][0][-1] != found[0][1]
