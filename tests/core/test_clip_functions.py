"""Clipping in place: PyTorch's values, an optimizer's norm in its bits, checks before any write."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS

VECTORS = Path(__file__).parents[1] / "golden" / "around" / "clipping.npz"
fixed = settings(max_examples=40)

with np.load(VECTORS, allow_pickle=False) as file:
    RECORDED = dict(file)
CASES = json.loads(str(RECORDED["cases"]))
VALUE_CASES = json.loads(str(RECORDED["value_cases"]))
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6, "complex64": 1e-6}
"""PyTorch takes the norm of half precision in half precision; the others are a few eps."""


def recorded(key: str, dtype: str) -> list[Array]:
    arrays = [RECORDED[f"{key}{k}"] for k in range(3)]
    return [a.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else a for a in arrays]


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda n: "-".join(map(str, CASES[n].values()))
)
def test_the_norm_and_the_clipped_gradients_are_those_of_pytorch(number: int) -> None:
    case = CASES[number]
    dtype, order = case["dtype"], float(case["norm_type"])
    grads = [grad.copy() for grad in recorded(f"{number}/g", dtype)]
    norm = fastopt.clip_grad_norm_(grads, case["max_norm"], order)
    near = TOLERANCE.get(dtype, 1e-13)
    assert norm == pytest.approx(float(RECORDED[f"{number}/norm"]), rel=near, nan_ok=True)
    for got, expected in zip(grads, recorded(f"{number}/clipped", dtype), strict=True):
        assert got.dtype == expected.dtype
        wide = complex if dtype.startswith("complex") else float
        np.testing.assert_allclose(got.astype(wide), expected.astype(wide), rtol=near, atol=0.0)


@pytest.mark.parametrize(
    "number", range(len(VALUE_CASES)), ids=lambda n: "-".join(map(str, VALUE_CASES[n].values()))
)
def test_clipped_values_are_those_of_pytorch(number: int) -> None:
    case = VALUE_CASES[number]
    grads = [grad.copy() for grad in recorded(f"value{number}/g", case["dtype"])]
    fastopt.clip_grad_value_(grads, case["value"])
    for got, expected in zip(grads, recorded(f"value{number}/clipped", case["dtype"]), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got.astype(float), expected.astype(float))


# The norm ----------------------------------------------------------------------------------------

SIZES = st.lists(
    st.one_of(st.integers(0, 70), st.sampled_from([4095, 4096, 4097, 66_000])), max_size=6
)


@fixed
@given(SIZES, st.sampled_from(["float32", "float64"]), st.randoms(use_true_random=False))
def test_the_norm_has_the_bits_of_an_optimizers(sizes: list[int], dtype: str, random: Any) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    grads = {str(k): (100 * rng.standard_normal(n)).astype(dtype) for k, n in enumerate(sizes)}
    grads["zero_d"] = np.array(3.0, dtype)
    norms = {fastopt.global_norm(grads)}
    for backend in CPU_BACKENDS:
        params = {name: np.zeros_like(grad) for name, grad in grads.items()}
        opt = fastopt.SGD(params, lr=0.0, max_grad_norm=math.inf, backend=backend)
        opt.step(grads)
        norms.add(opt.grad_norm or 0.0)
    assert len(norms) == 1
    expected = math.sqrt(math.fsum(float(x) ** 2 for grad in grads.values() for x in grad.flat))
    assert norms.pop() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "complex64", "complex128"])
def test_so_it_has_in_half_precision_and_of_complex_numbers(dtype: Any, backend: str) -> None:
    rng = np.random.default_rng(2)
    kind = np.dtype(dtype)
    grads = [np.array(rng.standard_normal(n), kind) for n in [(), (70, 90), (5000,), (0,)]]
    if kind.kind == "c":
        grads = [np.array(g * (1 + 2j), kind) for g in grads]
    params = [np.zeros_like(grad) for grad in grads]
    opt = fastopt.SGD(params, lr=0.0, max_grad_norm=math.inf, backend=backend)
    opt.step(grads)
    assert opt.grad_norm == fastopt.global_norm(grads)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("seed", range(8))  # another order gives other bits now and then
def test_so_it_has_with_two_dtypes_and_turned_arrays(seed: int, backend: str) -> None:
    rng = np.random.default_rng(seed)
    grads = {
        "a": rng.standard_normal((70, 90)),
        "b": rng.standard_normal((70, 90)).astype(np.float32).T,
        "c": rng.standard_normal((3, 700)),
        "d": rng.standard_normal(9000).astype(np.float32)[::-1],
        "e": rng.standard_normal(500).astype(np.float32)[::2],
    }
    params = {name: np.copy(grad, order="K") for name, grad in grads.items()}
    params["d"] = params["d"][::-1]
    opt = fastopt.SGD(params, lr=0.0, max_grad_norm=math.inf, backend=backend)
    opt.step(grads)
    assert opt.grad_norm == fastopt.global_norm(grads)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.3, 1e6])
def test_clipping_and_a_step_are_a_step_with_max_grad_norm(
    backend: str, dtype: str, max_norm: float
) -> None:
    rng = np.random.default_rng(1)
    one = {"W": np.ones((50, 70), dtype), "b": np.ones((), dtype)}
    two = {name: param.copy() for name, param in one.items()}
    inside = fastopt.Adam(one, max_grad_norm=max_norm, backend=backend)
    outside = fastopt.Adam(two, backend=backend)
    for _ in range(3):
        grads = {k: np.array(rng.standard_normal(p.shape), dtype) for k, p in one.items()}
        inside.step(grads)
        assert fastopt.clip_grad_norm_(grads, max_norm) == inside.grad_norm
        outside.step(grads)
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("float32", 1e25),
        ("float32", 1e-30),
        ("float64", 1e200),
        ("float64", 1e-160),
        ("float64", 1e-310),
    ],
)
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 3.0, 40.0, math.inf])
def test_a_norm_does_not_overflow_or_underflow_where_it_is_a_number(
    dtype: str, size: float, order: float
) -> None:
    grads = [np.full(600, size, dtype), None, np.full((20, 20), -size, dtype)]
    expected = float(np.array(size, dtype)) * 1000 ** (1 / order)
    kept = [None if grad is None else grad.copy() for grad in grads]
    near = pytest.approx(expected, rel=1e-12, abs=0.0)
    assert fastopt.clip_grad_norm_(grads, math.inf, order) == near
    if order == 2.0:
        assert fastopt.global_norm(grads) == near
    np.testing.assert_equal(grads, kept)


@pytest.mark.parametrize("order", [1.0, 3.0, math.inf])
def test_magnitudes_of_complex64_are_taken_in_double(order: float) -> None:
    grads = [np.full(600, 3e38 * (1 + 1j), np.complex64), np.full(400, 3e38 * (1j - 1), "F")]
    expected = math.sqrt(2) * float(np.float32(3e38)) * 1000 ** (1 / order)  # beyond float32
    assert fastopt.clip_grad_norm_(grads, math.inf, order) == pytest.approx(expected, rel=1e-14)


def test_float16_gradients_are_scaled_by_factors_that_float16_cannot_hold() -> None:
    grad = np.full(4096, 6e4, np.float16)  # its norm is 3.8e6: beyond float16
    norm = fastopt.clip_grad_norm_({"g": grad}, 1e-3)
    assert norm == pytest.approx(6e4 * 64, rel=1e-3)
    np.testing.assert_allclose(grad.astype(float), 1e-3 / 64, rtol=2e-3)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
@pytest.mark.parametrize(
    "cut", ["plain", "gaps", "turned", "backwards", "stride", "scalar", "empty"]
)
def test_every_layout_and_dtype_is_clipped_in_place_and_nothing_beside_it(
    dtype: str, cut: str
) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    memory = (np.arange(1, 241) / 16).reshape(12, 20).astype(kind)
    if dtype.startswith("complex"):
        memory = memory * kind.type(1 - 2j)
    cuts = {
        "plain": lambda m: m,
        "gaps": lambda m: m[1::3, 2:9],
        "turned": lambda m: m.T,
        "backwards": lambda m: m[::-1, ::-1],
        "stride": lambda m: m.reshape(-1)[1::2],
        "scalar": lambda m: m[3, 4:5].reshape(()),
        "empty": lambda m: m[3:3],
    }
    before, wide = memory.copy(), np.dtype("complex128" if dtype[0] == "c" else "float64")
    grad = cuts[cut](memory)
    inside = np.zeros(memory.shape, bool)
    cuts[cut](inside)[...] = True
    expected = np.where(inside, before.astype(wide), 0.0)
    norm = fastopt.clip_grad_norm_([grad], 0.5)
    assert norm == pytest.approx(np.linalg.norm(expected), rel=1e-12)
    factor = min(1.0, 0.5 / (norm + 1e-6))
    near = 0.02 if memory.itemsize == 2 else 1e-6
    np.testing.assert_allclose(
        memory.astype(wide), np.where(inside, factor, 1.0) * before.astype(wide), rtol=near
    )
    assert (memory == before)[~inside].all()
    if dtype[0] != "c":
        memory[...] = before
        fastopt.clip_grad_value_([grad], 3.0)
        limited = np.where(inside, before.astype(wide).clip(None, 3.0), before.astype(wide))
        np.testing.assert_array_equal(memory.astype(wide), limited)


def test_trees_of_all_kinds_and_nothing_at_all() -> None:
    tree = {"a": [np.array([3.0]), None], "b": (np.array([4.0], np.float32), {"c": np.array(0.0)})}
    assert fastopt.global_norm(tree) == 5.0
    assert fastopt.clip_grad_norm_(tree, 1.0) == 5.0
    assert fastopt.global_norm(tree) == pytest.approx(1.0, rel=1e-6)
    fastopt.clip_grad_value_(tree, 0.5)
    assert [tree["a"][0][0], tree["b"][0][0]] == [0.5, 0.5]
    assert fastopt.global_norm(np.float32(2.0)) == 2.0  # a 0-d result of NumPy's
    assert fastopt.global_norm([np.complex64(3 - 4j)]) == 5.0
    for nothing in (None, [], {}, [None], np.zeros((0, 3))):
        assert fastopt.global_norm(nothing) == 0.0
        assert fastopt.clip_grad_norm_(nothing, 1.0) == 0.0
        assert fastopt.clip_grad_norm_(nothing, 1.0, math.inf) == 0.0
        fastopt.clip_grad_value_(nothing, 1.0)


def test_other_codes_error_state_changes_nothing() -> None:
    grads = [np.array([1e30, math.inf], np.float32), np.full(3, 1e-44, np.float32)]
    halves = np.array([math.nan, 6e4], np.float16)
    with np.errstate(all="raise"):
        assert fastopt.clip_grad_norm_(grads, 1.0) == math.inf
        assert fastopt.clip_grad_norm_([np.full(3, 1e-320)], 1e-322, 3.0) > 0.0
        fastopt.clip_grad_value_(halves, 1e6)  # beyond float16: limits nothing
    assert halves[1] == 6e4
    assert grads[0][0] == 0.0
    assert math.isnan(grads[0][1])


# What is refused ---------------------------------------------------------------------------------

READ_ONLY = np.ones(2)
READ_ONLY.flags.writeable = False
SAME = np.ones(4)
FOLDED = np.lib.stride_tricks.as_strided(np.ones(4), (3, 2), (8, 8), writeable=True)
BAD_LEAVES: dict[str, tuple[Any, type[Exception], str]] = {
    "number": (1.0, TypeError, r'grads\["z"\] must be a numpy.ndarray'),
    "numpy_scalar": (np.float32(1.0), TypeError, r'grads\["z"\] must be'),
    "list_of_text": (["x"], TypeError, r'grads\["z"\]\[0\] must be .* got str'),
    "integers": (np.ones(2, int), TypeError, "floating or complex dtype; got int64"),
    "bools": (np.ones(2, bool), TypeError, "got bool"),
    "objects": (np.ones(2, object), TypeError, "got object"),
    "masked": (np.ma.ones(2), TypeError, "got MaskedArray"),
    "read_only": (READ_ONLY, ValueError, "is read-only"),
    "twice": ([SAME, SAME[1:3]], ValueError, r"\[0\] and .*\[1\] share memory"),
    "folded": (FOLDED, ValueError, "elements that share memory"),
}


@pytest.mark.parametrize("name", BAD_LEAVES)
def test_a_bad_leaf_is_named_and_nothing_is_written(name: str) -> None:
    bad, kind, message = BAD_LEAVES[name]
    first = np.full(3, 100.0)
    for clip in (fastopt.clip_grad_norm_, fastopt.clip_grad_value_):
        with pytest.raises(kind, match=message):
            clip({"a": first, "z": bad}, 1.0)
        assert (first == 100.0).all()


def test_what_is_only_measured_may_be_read_only_and_come_twice() -> None:
    assert fastopt.global_norm([READ_ONLY, SAME, SAME]) == math.sqrt(10.0)
    with pytest.raises(TypeError, match=r"grads\[1\] must be"):
        fastopt.global_norm([READ_ONLY, 2.0])


def test_complex_values_have_no_order() -> None:
    first = np.full(3, 100.0)
    with pytest.raises(TypeError, match=r"grads\[1\] is complex64"):
        fastopt.clip_grad_value_([first, np.ones(2, np.complex64)], 1.0)
    assert (first == 100.0).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, -math.inf, True, "1", None, 1j])
def test_bad_arguments_are_refused(bad: Any) -> None:
    grad = np.full(3, 100.0)
    for call in (
        lambda: fastopt.clip_grad_norm_(grad, bad),
        lambda: fastopt.clip_grad_norm_(grad, 1.0, bad),
        lambda: fastopt.clip_grad_value_(grad, bad),
    ):
        with pytest.raises((ValueError, TypeError), match="must be a number in"):
            call()
    assert (grad == 100.0).all()
