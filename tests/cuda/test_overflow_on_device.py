"""Gradients whose squares overflow float32 are left out on a device, just where NumPy does so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.engine import tables
from helpers.cuda.device import no_waiting
from helpers.cuda.planted import planted
from helpers.cuda.runs import DTYPES, differences
from helpers.cuda.training import Training, replayed, train
from helpers.variants import CPU_BACKENDS, SQUARING, VARIANT_OF, Variant

each_squaring = pytest.mark.parametrize("variant", SQUARING, ids=str)
ADAM = VARIANT_OF["adam"]
FEW = ((70, 3), (4099,))


LIMIT = 2.0**63


def ends(cupy: Any, training: Training, variant: Variant, **options: Any) -> list[Any]:
    options = {"on_nonfinite": "skip", **options}
    return [train(training, variant, xp, **options) for xp in (np, cupy)]


@each_squaring
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_such_steps_are_left_out_in_the_bits_of_numpy(
    cupy: Any, variant: Variant, dtype: Any
) -> None:
    large = {1: 1.001 * LIMIT, 4: -1.9 * LIMIT, 6: 0.999 * LIMIT}
    on_host, on_device = ends(cupy, Training(9, FEW, [dtype], large=large), variant)
    assert differences(on_host, on_device) == {}
    skipped = 2 if dtype in ("float32", "complex64") else 0
    assert on_device["counts"].tolist() == [9 - skipped, 9 - skipped, skipped]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_counts_is_the_gradient_after_scale_and_clipping(cupy: Any, dtype: Any) -> None:
    """Half precision computes in float32, whose squares overflow after a large scale alone."""
    for limit, skipped in ((1.0, 0), (9e18, 0), (1e20, 2), (None, 2)):
        training = Training(8, FEW, [dtype], scale=lambda step: 1e20 if step in (2, 5) else 1.0)
        on_host, on_device = ends(cupy, training, ADAM, max_grad_norm=limit)
        assert differences(on_host, on_device) == {}
        assert on_device["counts"][2] == (0 if np.dtype(dtype).itemsize == 8 else skipped)


def test_a_limit_that_is_set_between_steps_counts_too(cupy: Any) -> None:
    limits = {4: 1e30, 6: 1.0}
    before = {k: lambda opt, v=v: setattr(opt, "max_grad_norm", v) for k, v in limits.items()}
    training = Training(9, FEW, large=dict.fromkeys(range(3, 7), 1e25), before=before)
    on_host, on_device = ends(cupy, training, ADAM, max_grad_norm=1.0)
    assert differences(on_host, on_device) == {}
    assert on_device["counts"].tolist() == [7, 7, 2]


def test_the_norm_of_all_counts_where_one_bucket_computes_in_float32(cupy: Any) -> None:
    for dtypes in ([np.float32, np.float64], [np.float64, np.float32], [np.float64] * 2):
        training = Training(6, FEW, dtypes, large={2: 1e30})  # of the second array
        on_host, on_device = ends(cupy, training, ADAM)
        assert differences(on_host, on_device) == {}
        assert on_device["counts"][2] == (np.float32 in dtypes)


def test_a_bucket_without_gradients_does_not_count(cupy: Any) -> None:
    counts = []
    for xp in (np, cupy):
        params = [xp.asarray(np.ones(3, np.float32)), xp.asarray(np.ones(3))]
        opt = fastopt.Adam(params, on_nonfinite="skip")
        large = xp.asarray(np.full(3, 1e30))
        for first in (None, xp.asarray(np.ones(3, np.float32)), None):
            opt.step([first, large])
        counts.append((opt.step_count, opt.skipped_steps))
    assert counts == [(2, 1)] * 2


def test_a_frozen_group_does_not_count(cupy: Any) -> None:
    counts = []
    for xp in (np, cupy):
        params = {"single": xp.asarray(np.ones(3, np.float32)), "double": xp.asarray(np.ones(3))}
        opt = fastopt.Adam(fastopt.groups(params, {"single": {}}), on_nonfinite="skip")
        grads = {name: xp.asarray(np.full(3, 1e30, p.dtype)) for name, p in params.items()}
        single = next(group for group in opt.param_groups if "single" in group["params"])
        for trainable in (True, False, True):
            single["trainable"] = trainable
            opt.step(grads)
        counts.append((opt.step_count, opt.skipped_steps))
    assert counts == [(1, 2)] * 2


def test_rules_without_squares_take_them(cupy: Any) -> None:
    for name in ("sgd", "momentum"):
        on_host, on_device = ends(cupy, Training(6, FEW, large={2: 1e30}), VARIANT_OF[name])
        assert differences(on_host, on_device) == {}
        assert on_device["counts"][2] == 0


def test_the_squares_of_moduli_below_the_limit_fit(cupy: Any) -> None:
    below = 0.5**0.5 * (1 + 1j)
    for size, skipped in ((0.999 * LIMIT, 0), (1.001 * LIMIT, 1)):
        training = Training(4, FEW, [np.complex64], large={1: size * below})
        on_host, on_device = ends(cupy, training, ADAM, complex_moment="modulus")
        assert differences(on_host, on_device) == {}
        assert all(np.isfinite(end["param 1"]).all() for end in (on_host, on_device))
        assert on_device["counts"][2] == skipped


def test_replays_of_a_captured_step_leave_them_out(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CAPTURED", 64)
    training = Training(12, FEW, large={3: 1e25, 8: -1e20})
    options: dict[str, Any] = {"on_nonfinite": "skip"}
    on_device = replayed(training, ADAM, cupy, **options)
    assert differences(train(training, ADAM, np, **options), on_device) == {}
    assert on_device["counts"].tolist() == [10, 10, 2]


def test_the_scale_of_a_loss_backs_off(cupy: Any) -> None:
    scales = []
    for xp in (np, cupy):
        params = [xp.asarray(np.ones(300, np.float32))]
        opt = fastopt.Adam(params)
        scaler = fastopt.LossScaler(init_scale=0.5)
        for size in (1.0, 1e18, 1.0):  # 3.5e19 all together, without the scale
            with no_waiting():
                scaler.step(opt, [xp.asarray(np.full(300, size, np.float32))])
                scaler.update()
        scales.append((scaler.scale, opt.step_count, opt.skipped_steps))
    assert scales[0] == scales[1] == (0.25, 2, 1)


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(["float32", "float64", "complex64"]),
    ulps=st.integers(-3, 3),
    power=st.integers(-3, 3),
    scale=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    rest=st.sampled_from([0.0, 2.0**-26, 2.0**-12, 1.0]),
    limited=st.booleans(),
)
def test_every_backend_draws_the_line_at_the_same_number(
    cupy: Any, dtype: str, ulps: int, power: int, scale: float, rest: float, limited: bool
) -> None:
    real = np.dtype("f4" if dtype != "float64" else "f8")
    number = real.type(LIMIT) * real.type(2.0**power)
    for _ in range(abs(ulps)):
        number = np.nextafter(number, real.type(np.inf if ulps > 0 else 0))
    skipped = set()
    for name in (*CPU_BACKENDS, "cupy"):
        xp: Any = cupy if name == "cupy" else np
        grad = np.zeros(70, dtype)
        grad[7], grad[8] = number, number * real.type(rest)
        limit = float(number) * 0.75 if limited else None
        more: Any = {"max_grad_norm": limit, "on_nonfinite": "skip", "backend": name}
        opt = fastopt.Adam([xp.asarray(np.ones(70, dtype))], **more)
        opt.step([xp.asarray(grad)], grad_scale=scale * 2.0**-power)
        skipped.add(opt.skipped_steps)
    assert len(skipped) == 1


FAULTS = {
    "nothing is looked at": ("in_single != 0 && norm", "in_single < 0 && norm"),
    "rules that do not square count too": ("in_single != 0 && norm", "norm"),
    "the norm before it is clipped": ("norm * factor >=", "norm >="),
    "the limit itself fits": ("norm * factor >=", "norm * factor >"),
    "another limit": (">= SQUARES_OVERFLOW", ">= 10 * SQUARES_OVERFLOW"),
    "an overflow is skipped whatever was asked for": (
        "!skips || (finite && !overflows)",
        "(!skips || finite) && !overflows",
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_text_is_noticed(cupy: Any, fault: str) -> None:
    cases: list[tuple[Training, Variant, dict[str, Any]]] = [
        (Training(4, [(4096,), (7,)], large={1: 1.2 * LIMIT}), ADAM, {}),
        (Training(4, [(4096,), (7,)], large={1: 1.2 * LIMIT}), VARIANT_OF["sgd"], {}),
        (Training(4, [(4096,), (7,)], large={1: 1e25}), ADAM, {"max_grad_norm": 1.0}),
        (Training(4, [(4096,), (7,)], large={1: LIMIT}, size=0.0), ADAM, {}),
        (
            Training(4, [(4096,), (7,)], large={1: 1.2 * LIMIT}),
            ADAM,
            {"on_nonfinite": "propagate", "max_grad_norm": 1e30},
        ),
    ]
    with planted(cupy, *FAULTS[fault]):
        assert any(differences(*ends(cupy, one, v, **more)) for one, v, more in cases)
