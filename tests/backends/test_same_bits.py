"""NumPy and Numba end in the same bits, parameters and state, whatever the sizes and threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.core.arrays import Array
from helpers.bits import SPECIAL, differences, special, threads, values
from helpers.variants import HAS_NUMBA, VARIANT_OF, VARIANTS, Variant

os.environ.setdefault("NUMBA_NUM_THREADS", "2")  # two threads also run on one core

if not HAS_NUMBA:
    pytest.skip("there is no second CPU backend without numba", allow_module_level=True)

DTYPES = (np.float32, np.float64)
SMALL = (0, 1, 2, 3, 7, 8, 31, 1000, 16_383, 16_384, 16_385)
BELOW_PARALLEL = ((65_535,), (32_767, 32_768), (40_000, 5, 16_384, 1), (32_769, 3))
PARALLEL = ((65_536,), (65_537, 1), (131_073,), (16_383, 16_384, 16_385, 32_767, 32_768, 32_769))

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def run(
    variant: Variant,
    backend: str,
    params: Sequence[Array],
    steps: Sequence[Sequence[Array | None]],
    grad_scale: float = 1.0,
    **options: Any,
) -> dict[str, Any]:
    """Return everything that a run ends with: parameters, state and step counts, by name."""
    params = [param.copy() for param in params]
    opt = variant(params, backend=backend, **options)
    for grads in steps:
        opt.step(list(grads), grad_scale=grad_scale)
    state = opt.state_dict()["state"]
    end: dict[str, Any] = {f"params[{k}]": param for k, param in enumerate(params)}
    return end | {f"{n}.{slot}": x for n, entry in state.items() for slot, x in entry.items()}


def assert_same(
    variant: Variant,
    params: Sequence[Array],
    steps: Sequence[Sequence[Array | None]],
    **options: Any,
) -> None:
    ends = [run(variant, backend, params, steps, **options) for backend in ("numpy", "numba")]
    assert differences(*ends) == {}


def test_two_ends_that_differ_are_told_apart() -> None:
    one = {"a": np.array([0.0, np.nan, 1.0])}
    assert differences(one, {"a": np.array([0.0, -np.nan, 1.0])}) == {}
    assert differences(one, {"a": np.array([-0.0, np.nan, 1.0])}) == {"a": 1}
    assert differences(one, {"a": np.array([0.0, 1.0, np.nan])}) == {"a": 2}
    assert differences(one, {"a": np.array([0.0, np.nan, np.nextafter(1.0, 2.0)])}) == {"a": 1}


@each_dtype
@each_variant
def test_small_arrays_end_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    assert_same(variant, values(SMALL, dtype, 0), [values(SMALL, dtype, s) for s in range(1, 6)])


@each_dtype
@each_variant
def test_many_small_arrays_end_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    sizes = [*range(21)] * 12
    assert_same(variant, values(sizes, dtype, 0), [values(sizes, dtype, s) for s in range(1, 5)])


@each_dtype
@each_variant
def test_sizes_around_block_and_chunk_end_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    for sizes in BELOW_PARALLEL:
        assert_same(variant, values(sizes, dtype, 0), [values(sizes, dtype, s) for s in (1, 2)])


@each_dtype
@each_variant
def test_parallel_sizes_end_in_the_same_bits_on_one_and_two_threads(
    variant: Variant, dtype: Any
) -> None:
    for sizes in PARALLEL:
        params = values(sizes, dtype, 0)
        steps: list[list[Array | None]] = [list(values(sizes, dtype, s)) for s in (1, 2)]
        steps[1][0] = None if len(sizes) > 2 else steps[1][0]
        expected = run(variant, "numpy", params, steps, weight_decay=0.01)
        for count in (1, 2):
            with threads(count):
                got = run(variant, "numba", params, steps, weight_decay=0.01)
            assert differences(expected, got) == {}, f"{count} threads, sizes {sizes}"


COMMON: list[dict[str, Any]] = [
    {"weight_decay": 0.125},
    {"weight_decay": 0.1, "maximize": True},
    {"maximize": True},
    {"grad_scale": 1 / 65_536},
    {"grad_scale": -0.3, "weight_decay": 1e-4},
    {"grad_scale": 0.0},
    {"lr": lambda t: 0.1 / (1 + t), "weight_decay": lambda t: 0.01 * t},
    {"lr": 0.0},
    {"weight_decay": 1e-40},
]


@each_dtype
@each_variant
def test_what_is_common_to_all_rules_ends_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    sizes = (33, 1, 500)
    steps = [values(sizes, dtype, s) for s in range(1, 5)]
    for options in COMMON:
        assert_same(variant, values(sizes, dtype, 0), steps, **options)


@each_dtype
@each_variant
def test_missing_gradients_end_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    sizes = (5, 40_000, 3, 9, 1)
    steps: list[list[Array | None]] = [list(values(sizes, dtype, s)) for s in range(1, 7)]
    for step, leaf in [(0, 0), (1, 1), (1, 4), (2, 2), (3, 0), (3, 2), (3, 3)]:
        steps[step][leaf] = None
    steps[4] = [None] * len(sizes)
    assert_same(variant, values(sizes, dtype, 0), steps, weight_decay=0.01)


@each_dtype
@each_variant
@pytest.mark.parametrize("by_pattern", [False, True])
def test_group_settings_end_in_the_same_bits(
    variant: Variant, dtype: Any, by_pattern: bool
) -> None:
    def end(backend: str) -> dict[str, Any]:
        params = values((7, 100, 3), dtype, 0)
        first, second = {"lr": 0.5}, {"weight_decay": 0.25, "maximize": True}
        groups: Any = [{"params": params[:1], **first}, {"params": params[1:], **second}]
        if by_pattern:
            groups = fastopt.groups(params, {"0": first, "[12]": second})
        opt = variant(groups, backend=backend)
        for seed in range(1, 6):
            grads = values((7, 100, 3), dtype, seed)
            opt.param_groups[1]["lr"] = 0.01 * seed
            opt.step(grads if by_pattern else [grads[:1], grads[1:]])
        entries = opt.state_dict()["state"].items()
        found = {f"{n}.{slot}": x for n, entry in entries for slot, x in entry.items()}
        return found | {f"p{k}": param for k, param in enumerate(params)}

    assert differences(end("numpy"), end("numba")) == {}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@each_dtype
@each_variant
def test_zeros_infinities_and_nan_end_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    params = [special(300, dtype, 0), special(1, dtype, 5)]
    steps = [[special(300, dtype, s), special(1, dtype, s + 9)] for s in range(1, 6)]
    for decay in (0.0, 0.125):
        assert_same(variant, params, steps, weight_decay=decay)


@each_dtype
@each_variant
def test_one_kind_of_gradient_ends_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    params = values((64,), dtype, 0)
    for size in SPECIAL:
        grad = np.full(64, size, dtype)
        assert_same(variant, params, [[grad], [grad], values((64,), dtype, 1), [-grad]])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_tiny_weight_decay_leaves_infinite_parameters_alike(name: str) -> None:
    params = [np.array([np.inf, -np.inf, 1.0, 0.0, -0.0], np.float32)]
    grads = [np.array([0.0, 1.0, 0.0, -0.0, 0.0], np.float32)]
    assert_same(VARIANT_OF[name], params, [grads, grads], weight_decay=1e-41)


@each_dtype
@each_variant
def test_strided_and_fortran_parameters_end_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    def end(backend: str) -> dict[str, Any]:
        grid = values((60 * 50,), dtype, 0)[0].reshape(60, 50)
        views = [grid[:30:2], grid[30:, 10:20].T, grid[30:, ::-1][:, 5:9]]
        opt = variant(views, backend=backend)
        for seed in range(1, 4):
            whole = values((60 * 50,), dtype, seed)[0].reshape(60, 50)
            opt.step([whole[1:30:2], whole[30:, 10:20].T, np.asfortranarray(whole[30:, 5:9])])
        return {"grid": grid}

    assert differences(end("numpy"), end("numba")) == {}


sizes_drawn = st.lists(st.integers(0, 70), min_size=1, max_size=6)


@settings(max_examples=60)
@given(
    variant=st.sampled_from(VARIANTS),
    dtype=st.sampled_from(DTYPES),
    sizes=sizes_drawn,
    present=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5),
    exponent=st.integers(-18, 18),
    decay=st.sampled_from([0.0, 1e-3, 0.5]),
    scale=st.sampled_from([1.0, -2.0, 2.0**-20]),
)
def test_any_run_ends_in_the_same_bits(
    variant: Variant,
    dtype: Any,
    sizes: list[int],
    present: list[list[bool]],
    exponent: int,
    decay: float,
    scale: float,
) -> None:
    steps = []
    for seed, here in enumerate(present, 1):
        grads = [grad * dtype(10.0**exponent) for grad in values(sizes, dtype, seed)]
        steps.append(
            [grad if is_here else None for grad, is_here in zip(grads, here, strict=False)]
        )
    assert_same(variant, values(sizes, dtype, 0), steps, weight_decay=decay, grad_scale=scale)
