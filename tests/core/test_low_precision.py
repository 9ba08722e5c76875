"""What low precision is known to break: averages that stand still, updates that are lost, NaN."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS, VARIANTS, Variant

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [np.dtype(np.float16), BFLOAT16]
COUNT = 8192
"""Copies of each experiment; each element has draws of its own."""

each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
each_state = pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
FAST = CPU_BACKENDS[-1]  # where many steps are made, and the bits are the same on both


def standard_error(values: Array) -> float:
    return float(values.std() / np.sqrt(values.size))


# Parameters --------------------------------------------------------------------------------------


@each_half
@each_backend
def test_updates_of_1e_4_on_1_add_up_in_half_precision(dtype: Any, backend: str) -> None:
    # Nearest rounding leaves 1.0 where it is for ever: its neighbours are 1/256 and 1/2048 away.
    params = np.ones(COUNT, dtype)
    opt = fastopt.SGD(
        [params], lr=1e-4, stochastic_rounding=True, master_weights=False, backend=backend
    )
    for _ in range(1000):
        opt.step([np.ones(COUNT, dtype)])
    got = params.astype(float)
    assert abs(got.mean() - 0.9) < 5 * standard_error(got)
    # A step of 1e-4 between neighbours h apart has the variance 1e-4 * (h - 1e-4).
    h = 2.0**-8 if dtype == BFLOAT16 else 2.0**-11
    assert got.std() == pytest.approx(np.sqrt(1000 * 1e-4 * (h - 1e-4)), rel=0.1)


@each_half
def test_100_000_updates_of_2e_8_add_up(dtype: Any) -> None:
    lr = 5 * 2.0**-28  # 1.9e-8; near 2**-5 float32 has steps of 2**-28
    kept, drawn = np.full(COUNT, 2.0**-5, dtype), np.full(COUNT, 2.0**-5, dtype)
    grads = [np.full(COUNT, -1.0, dtype)]
    masters = fastopt.SGD([kept[:8].copy()], lr=lr, backend=FAST)
    chance = fastopt.SGD(
        [drawn], lr=lr, stochastic_rounding=True, master_weights=False, backend=FAST
    )
    for _ in range(100_000):
        masters.step([grads[0][:8]])
    entry = masters.state_dict()["state"]["0"]
    assert entry["master"].tolist() == [2.0**-5 + 100_000 * lr] * 8
    for _ in range(20_000):
        chance.step(grads)
    got = drawn.astype(float) - 2.0**-5
    assert abs(got.mean() - 20_000 * lr) < 5 * standard_error(got)
    assert got.any()


@each_backend
def test_eps_of_1e_8_keeps_float16_finite(backend: str) -> None:
    params = np.ones(COUNT, np.float16)
    opt = fastopt.Adam(
        [params],
        lr=2.0**-6,
        state_dtype="int8",
        stochastic_rounding=True,
        master_weights=False,
        backend=backend,
    )
    opt.step([np.zeros(COUNT, np.float16)])
    assert (params == 1).all()  # in float16 eps would be 0, and 0 / 0 NaN
    opt.step([np.full(COUNT, 6e-8, np.float16)])  # its square is 0 in float16
    assert np.isfinite(params).all()
    assert (params < 1).any()


# Averages ----------------------------------------------------------------------------------------


@each_state
@each_backend
def test_an_average_that_keeps_0_999_follows_its_input(state_dtype: str, backend: str) -> None:
    # An increment is 1/1000 of the way; half a unit is 1/512 in bfloat16, 1/32 to 1/64 in 8 bits.
    params = [np.zeros(COUNT, np.float32)]
    opt = fastopt.RMSprop(params, lr=0.0, beta=0.999, state_dtype=state_dtype, backend=backend)

    def average() -> Array:
        entry = opt.state_dict()["state"]["0"]
        if state_dtype == "bfloat16":
            return np.asarray(entry["v"].astype(float))
        code = entry["v"].reshape(-1, 256).astype(int)  # all of them are normal numbers here
        assert (code >= 16).all()
        sizes = np.ldexp(1 + code % 16 / 16, code // 16 - 15) * entry["v_scale"][:, None]
        return np.asarray(sizes.reshape(-1).astype(float))

    expected = 0.0
    for value, steps in ((1.0, 1000), (0.25, 1500), (2.0, 500)):
        for _ in range(steps):
            opt.step([np.full(COUNT, value, np.float32)])
        expected = value**2 + (expected - value**2) * 0.999**steps
        got = average()
        assert abs(got.mean() - expected) < 5 * standard_error(got) + 1e-4 * expected
        # Each step rounds to neighbours at most a unit apart: at most 1/4 unit**2 of variance,
        # of which 0.999**2 is left after the next.
        unit = (2.0**-7 if state_dtype == "bfloat16" else 2.0**-4) * max(got.max(), value**2)
        assert got.std() < unit / 2 / np.sqrt(1 - 0.999**2)


@each_state
def test_positive_state_never_becomes_zero(state_dtype: str) -> None:
    # An eighth of a billionth of the largest of its block, and then no more gradients at all.
    params = [np.zeros(COUNT, np.float32)]
    opt = fastopt.Adam(params, lr=0.0, state_dtype=state_dtype, backend=FAST)
    grads = np.ones(COUNT, np.float32)
    grads[::2] = 1e-6
    for step in range(40):
        opt.step([grads if step < 5 else np.zeros(COUNT, np.float32)])
        entry = opt.state_dict()["state"]["0"]
        assert (np.asarray(entry["v"]).view(entry["v"].dtype) != 0).all()


@each_state
@each_backend
def test_what_is_not_finite_stays_in_its_block_and_can_be_kept_out(
    state_dtype: str, backend: str
) -> None:
    grads = np.ones(3 * COUNT, np.float32)
    grads[COUNT + 5], grads[2 * COUNT - 1] = np.nan, np.inf
    params = [np.ones(3 * COUNT, np.float32)]
    opt = fastopt.Adam(
        params, state_dtype=state_dtype, on_nonfinite="skip", max_grad_norm=1e9, backend=backend
    )
    before = opt.state_dict()["state"]
    opt.step([grads])
    assert opt.skipped_steps == 1
    np.testing.assert_equal(opt.state_dict()["state"], before)
    assert (params[0] == 1).all()
    open_to_it = fastopt.Adam(params, state_dtype=state_dtype, backend=backend)
    for _ in range(2):
        open_to_it.step([grads])
    bad = set(np.flatnonzero(~np.isfinite(params[0])).tolist())
    if state_dtype == "bfloat16":
        assert bad == {COUNT + 5, 2 * COUNT - 1}
    else:
        assert bad == {*range(COUNT, COUNT + 256), *range(2 * COUNT - 256, 2 * COUNT)}


@each_state
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_optimizer_still_goes_as_far_downhill(variant: Variant, state_dtype: str) -> None:
    rng = np.random.default_rng(0)
    goal = rng.standard_normal(COUNT).astype(np.float32)
    ends = {}
    if variant.options.get("mask_zero") and state_dtype == "int8":
        with pytest.raises(ValueError, match=r"mask_zero cannot be used with state_dtype='int8'"):
            variant([goal], state_dtype=state_dtype)
        return
    for kept in (None, state_dtype):
        params = [np.zeros(COUNT, np.float32)]
        opt = variant(params, state_dtype=kept, backend=FAST)
        ends[kept] = np.inf  # not all that come there stay there: LARS swings
        for _ in range(60):
            opt.step([params[0] - goal])
            ends[kept] = min(ends[kept], float(np.mean((params[0] - goal) ** 2)))
    start = float(np.mean(goal**2))
    assert (start - ends[state_dtype]) == pytest.approx(start - ends[None], rel=0.02)
