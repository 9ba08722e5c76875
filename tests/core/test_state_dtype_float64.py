"""state_dtype="float64": float32, half precision and complex64 parameters, computed in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import families
import fastopt
from fastopt.core.arrays import Array
from fastopt.core.dtypes import UpdateSpec
from helpers.bits import differences, special, threads, values
from helpers.cuda.runs import COMPLEX, DENSE, ODD, difference_of
from helpers.cuda.training import Training, train
from helpers.variants import (
    CLIPPING,
    CPU_BACKENDS,
    HAS_NUMBA,
    SMOOTH,
    VARIANT_OF,
    VARIANTS,
    Variant,
)

FLOAT64 = {"state_dtype": "float64"}
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
STORED = [np.dtype(np.float32), *HALVES, np.dtype(np.complex64)]
STEPS = 12  # more than FLUSH_EVERY
SIZES = (0, 1, 2, 3, 255, 257, 2_047, 2_049, 5_000)

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
each_stored = pytest.mark.parametrize("dtype", STORED, ids=str)
two_backends = pytest.mark.skipif(not HAS_NUMBA, reason="compares with numba")


def host(array: Any) -> Array:
    return np.array(array.get() if hasattr(array, "get") else array)


def raw(array: Any) -> Array:
    """Return an array whose bits can be compared."""
    array = np.ascontiguousarray(host(array))
    if array.dtype.itemsize == 2:
        return array.view(np.uint16)
    return array.view(f"f{array.itemsize // 2}") if array.dtype.kind == "c" else array


def end(opt: Any, params: Sequence[Any]) -> dict[str, Any]:
    """Return everything that a run ends with, by name."""
    found: dict[str, Any] = {f"params[{k}]": raw(param) for k, param in enumerate(params)}
    for name, entry in opt.state_dict()["state"].items():
        found |= {f"{name}.{slot}": raw(np.asarray(value)) for slot, value in entry.items()}
    return found


def numbers(sizes: Sequence[int], dtype: Any, seed: int) -> list[Array]:
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        parts = values([2 * size for size in sizes], f"f{dtype.itemsize // 2}", seed)
        return [part.view(dtype) for part in parts]
    with np.errstate(all="ignore"):
        return [part.astype(dtype) for part in values(sizes, np.float64, seed)]


def run(
    variant: Variant,
    backend: str,
    dtype: Any,
    grad_dtype: Any = None,
    sizes: Sequence[int] = SIZES,
    steps: int = STEPS,
    **options: Any,
) -> dict[str, Any]:
    params = numbers(sizes, dtype, 0)
    opt = variant(params, backend=backend, **FLOAT64, **options)
    for step in range(1, steps + 1):
        grads: list[Array | None] = list(numbers(sizes, grad_dtype or dtype, step))
        if step % 3 == 1:
            grads[step % len(sizes)] = None
        opt.step(grads, grad_scale=0.3)
    return end(opt, params)


# Gradients whose squares float32 does not hold --------------------------------------------------


OF_GRADIENTS_SIZE = (fastopt.SGD, fastopt.Momentum, fastopt.MoMo, fastopt.ScheduleFreeSGD)
"""Optimizers whose steps are as long as the gradient."""

SIZE = {"1e-25": 2.0**-83, "1e-2": 2.0**-7, "1e19": 2.0**63}


# In Adadelta an eps of 0 makes no steps, and one eps is added to squares of gradients and of steps.
@pytest.mark.parametrize(
    "variant",
    [v for v in VARIANTS if v.name != "adadelta" and v.one_unit and v not in CLIPPING],
    ids=str,
)
def test_gradients_of_all_sizes_train_alike(variant: Variant, place: tuple[Any, str]) -> None:
    xp, backend = place
    options: dict[str, Any] = {"weight_decay": 0.0}
    names = variant([np.zeros(1)]).param_groups[0]
    options |= dict.fromkeys({"eps", "eps_root", "initial_accumulator_value"} & names.keys(), 0.0)
    ends = []
    for size in SIZE.values():
        if variant.optimizer in OF_GRADIENTS_SIZE:
            options["lr"] = 2.0**-10 / size
        if variant.optimizer is fastopt.Adagrad:
            options["initial_accumulator_value"] = (0.1 * size) ** 2
        if of_size := families.ALIKE.get(variant.optimizer.__name__):
            options |= of_size(size)
        rng = np.random.default_rng(0)
        params = [xp.asarray(rng.standard_normal(n).astype(np.float32)) for n in (3, 300)]
        opt = variant(params, backend=backend, **FLOAT64, **options)
        start = [host(param) for param in params]
        for _ in range(10):
            grads = [rng.standard_normal(n).astype(np.float32) * np.float32(size) for n in (3, 300)]
            loss = {"value": 2.0 * size} if variant.optimizer._takes_value else {}
            opt.step([xp.asarray(grad) for grad in grads], **loss)
        if variant.optimizer in SMOOTH:  # steps of one length may go back to where they began
            assert all((host(param) != old).all() for param, old in zip(params, start, strict=True))
        ends.append({str(k): host(param) for k, param in enumerate(params)})
    assert differences(ends[0], ends[1]) == {}
    assert differences(ends[2], ends[1]) == {}


def test_without_it_they_do_not() -> None:
    def moved(size: float, **options: Any) -> float:
        param = np.zeros(1, np.float32)
        opt = fastopt.Adam([param], lr=0.1, eps=0.0, **options)
        for _ in range(3):
            opt.step([np.full(1, size, np.float32)])
        return float(-param[0])

    for size in (1e-25, 1e20):
        assert moved(size, **FLOAT64) == pytest.approx(0.3, rel=1e-6)
        assert moved(size) != pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_squares_beyond_float32_are_no_reason_to_refuse_a_step(
    on_nonfinite: Any, place: tuple[Any, str]
) -> None:
    xp, backend = place
    for size in (1e-25, 1e19, 3e38):
        params = [xp.zeros(5, np.float32)]
        opt = fastopt.Adam(
            params, lr=0.1, eps=0.0, on_nonfinite=on_nonfinite, backend=backend, **FLOAT64
        )
        for _ in range(3):
            opt.step([xp.asarray(np.full(5, size, np.float32))])
        assert opt.skipped_steps == 0
        assert host(params[0]) == pytest.approx(np.full(5, -0.3), rel=1e-6)
    opt.on_nonfinite = "skip"
    opt.step([xp.asarray(np.full(5, np.inf, np.float32))])
    assert opt.skipped_steps == 1


def test_norms_of_float64_gradients_are_finite_whenever_they_are(place: tuple[Any, str]) -> None:
    xp, backend = place
    for size in (1e-200, 1e-25, 1e200):
        params = [xp.zeros(4, np.float32)]
        opt = fastopt.SGD(params, lr=0.5, max_grad_norm=2.0 * size, backend=backend, **FLOAT64)
        opt.step([xp.asarray(np.full(4, 2.0 * size))])
        assert opt.grad_norm == pytest.approx(4.0 * size, rel=1e-15)


# The rule in float64 ------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("grad_dtype", [np.float32, np.float64, np.float16, None])
@each_variant
def test_a_step_is_that_of_float64_rounded(variant: Variant, grad_dtype: Any, backend: str) -> None:
    params, sizes = numbers(SIZES, np.float32, 0), SIZES
    whole = [param.astype(np.float64) for param in params]
    options = {"weight_decay": 0.01, "max_grad_norm": 50.0}
    opt = variant(params, backend=backend, **FLOAT64, **options)
    other = variant(whole, backend=backend, **options)
    for step in range(1, STEPS + 1):
        dtypes = [grad_dtype or (np.float32, np.float64, np.float16)[k % 3] for k in range(99)]
        grads = [
            g.astype(d) for g, d in zip(numbers(sizes, np.float16, step), dtypes, strict=False)
        ]
        opt.step(grads)
        other.step([grad.astype(np.float64) for grad in grads])
        for exact in whole:
            exact[...] = exact.astype(np.float32)
    for entry in other.state_dict()["state"].values():
        assert all(np.asarray(x).dtype in (np.float64, np.int64) for x in entry.values())
    rounded = [param.astype(np.float32) for param in whole]
    assert differences(end(opt, params), end(other, rounded)) == {}


@each_backend
@each_half
@each_variant
def test_with_master_weights_a_run_is_that_in_float64_rounded(
    variant: Variant, dtype: Any, backend: str
) -> None:
    params = numbers(SIZES, dtype, 0)
    whole = [param.astype(np.float64) for param in params]
    opt = variant(params, backend=backend, **FLOAT64)
    other = variant(whole, backend=backend)
    for step in range(1, STEPS + 1):
        grads = numbers(SIZES, dtype, step)
        opt.step(grads)
        other.step([grad.astype(np.float64) for grad in grads])
    state, others = opt.state_dict()["state"], other.state_dict()["state"]
    for k, (param, right) in enumerate(zip(params, whole, strict=True)):
        master = {"master": state[str(k)].pop("master")}
        assert differences(master, {"master": right}) == {}
        with np.errstate(over="ignore"):
            assert np.array_equal(raw(param), raw(right.astype(np.float32).astype(dtype)))
        assert differences(state[str(k)], others[str(k)]) == {}


def around_halves(dtype: Any) -> Array:
    """Return float64 on both sides of every half, and of the middle between two, near and far."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    exact = every.astype(np.float64)
    with np.errstate(over="ignore"):
        apart = np.spacing(every).astype(np.float64)
    apart[~np.isfinite(apart)] = 0.0
    middle = exact + apart / 2
    around = [
        base * (1 + off) for base in (exact, middle) for off in (0, 2**-40, -(2**-40), 2**-12)
    ]
    return np.concatenate(around) + 0.0  # a step to 0 ends at that without a sign


@each_half
@pytest.mark.parametrize("masters", [True, False])
def test_half_precision_is_narrowed_by_way_of_float32(
    dtype: Any, masters: bool, place: tuple[Any, str]
) -> None:
    xp, backend = place
    wanted = around_halves(dtype)
    params = [xp.asarray(np.zeros(wanted.size, dtype))]
    opt = fastopt.SGD(params, lr=1.0, master_weights=masters, backend=backend, **FLOAT64)
    opt.step([xp.asarray(-wanted)])
    with np.errstate(over="ignore"):
        right = wanted.astype(np.float32).astype(dtype)
    assert np.array_equal(raw(params[0]), raw(right))
    if dtype == np.float16:  # rounding once is something else
        with np.errstate(over="ignore"):
            assert (wanted.astype(dtype) != right).any()
    if masters:  # what is rounded twice is still its master's
        opt.step([xp.zeros(wanted.size)])
        master = opt.state_dict()["state"]["0"]["master"]
        finite = np.isfinite(right.astype(np.float32))
        assert np.array_equal(master[finite], wanted[finite])


def test_what_somebody_writes_into_a_half_counts(place: tuple[Any, str]) -> None:
    xp, backend = place
    for dtype in HALVES:
        params = [xp.asarray(np.ones(4, dtype))]
        opt = fastopt.SGD(params, lr=2.0**-40, backend=backend, **FLOAT64)
        opt.step([xp.asarray(np.ones(4, dtype))])
        params[0][...] = xp.asarray(np.array([1.0, 5.0, 1.0, 0.0], dtype))
        opt.step([xp.asarray(np.ones(4, dtype))])
        master = opt.state_dict()["state"]["0"]["master"]
        assert master.tolist() == [1 - 2.0**-39, 5 - 2.0**-40, 1 - 2.0**-39, -(2.0**-40)]


@each_half
def test_stochastic_rounding_keeps_the_mean(dtype: Any, place: tuple[Any, str]) -> None:
    xp, backend = place
    options = {"master_weights": False, "stochastic_rounding": True, **FLOAT64}
    param = xp.asarray(np.ones(20_000, dtype))
    opt = fastopt.SGD([param], lr=1.0, backend=backend, **options)
    opt.step([xp.asarray(np.full(20_000, -1e-4))])
    assert host(param).astype(np.float64).mean() == pytest.approx(1.0001, abs=3e-5)
    assert len(np.unique(host(param).astype(np.float32))) == 2


def test_numbers_that_float32_has_as_denormal_are_no_zeros(place: tuple[Any, str]) -> None:
    xp, backend = place
    start = np.array([1e-40, -1e-40, 2.0**-149, -0.0, 2.0**-126], np.float32)
    grad = np.array([3e-41, -5e-42, 2.0**-149, 2.0**-148, 2.0**-149], np.float32)
    params = [xp.asarray(start.copy())]
    opt = fastopt.SGD(params, lr=1.0, backend=backend, **FLOAT64)
    opt.step([xp.asarray(grad)])
    right = start.astype(np.float64) - grad.astype(np.float64)
    assert np.array_equal(raw(params[0]), raw(right.astype(np.float32)))


# The same bits ------------------------------------------------------------------------------------


@pytest.mark.covering(1)
@two_backends
@each_stored
@each_variant
def test_both_backends_end_in_the_same_bits(variant: Variant, dtype: Any) -> None:
    wide = {"c": np.complex128, "f": np.float64}.get(dtype.kind, np.float64)
    for options in ({}, {"weight_decay": 0.02, "max_grad_norm": 5.0, "grad_dtype": wide}):
        ends = [run(variant, backend, dtype, **options) for backend in CPU_BACKENDS]
        assert differences(*ends) == {}


@pytest.mark.covering(1)
@two_backends
@pytest.mark.parametrize("chance", [False, True])
@pytest.mark.parametrize("grad_dtype", [None, np.float32, np.float64])
@each_half
@each_variant
def test_halves_without_masters_end_in_the_same_bits(
    variant: Variant, dtype: Any, grad_dtype: Any, chance: bool
) -> None:
    options = {"master_weights": False, "stochastic_rounding": chance}
    given = dtype if grad_dtype is None else grad_dtype
    ends = [run(variant, b, dtype, given, steps=3, **options) for b in CPU_BACKENDS]
    assert differences(*ends) == {}


@two_backends
def test_threads_change_no_bit() -> None:
    sizes = (70_001, 300, 131_073)
    for dtype in STORED:
        expected = run(VARIANT_OF["adam"], "numpy", dtype, sizes=sizes, steps=2)
        for count in (1, 2):
            with threads(count):
                got = run(VARIANT_OF["adam"], "numba", dtype, sizes=sizes, steps=2)
            assert differences(expected, got) == {}


@two_backends
@each_variant
def test_zeros_infinities_and_nan_end_in_the_same_bits(variant: Variant) -> None:
    ends = []
    for backend in CPU_BACKENDS:
        params = [special(300, np.float32, 0), special(1, np.float32, 5)]
        opt = variant(params, backend=backend, weight_decay=0.125, **FLOAT64)
        for step in range(1, 6):
            opt.step([special(300, np.float32, step), special(1, np.float64, step + 9)])
        ends.append(end(opt, params))
    assert differences(*ends) == {}


CUDA: list[tuple[str, Any, Any, dict[str, Any]]] = [
    ("adam", np.float32, None, {"max_grad_norm": 3.0}),
    ("adam", np.float32, np.float64, {"weight_decay": 0.03}),
    ("adam_amsgrad", np.float16, None, {}),
    ("adam", np.float16, np.float32, {"master_weights": False}),
    ("adam", ml_dtypes.bfloat16, np.float64, {"max_grad_norm": 3.0}),
    (
        "rmsprop_centered_momentum",
        ml_dtypes.bfloat16,
        None,
        {"master_weights": False, "stochastic_rounding": True},
    ),
    ("adam", np.float16, None, {"master_weights": False, "stochastic_rounding": True}),
    ("adadelta", np.complex64, None, {}),
    ("adam", np.complex64, np.complex128, {"complex_moment": "modulus"}),
    ("rmsprop", np.float32, None, {"bounds": (-0.5, 0.3), "reset_at_bounds": True}),
    ("sgd", np.float32, np.float64, {"max_grad_norm": 3.0}),
    ("adam", np.float64, None, {}),
]


@pytest.mark.parametrize(("name", "dtype", "grad_dtype", "options"), CUDA)
def test_cuda_ends_in_the_bits_of_numpy(
    name: str, dtype: Any, grad_dtype: Any, options: dict[str, Any], cupy: Any
) -> None:
    more = {"cuts": [*DENSE[::5], *ODD], "missing": True, "grad_dtype": grad_dtype, **FLOAT64}
    assert difference_of(VARIANT_OF[name], cupy, dtype, **more, **options) == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_steps_that_are_left_out_on_a_device_are_those_of_numpy(dtype: str, cupy: Any) -> None:
    training = Training(11, ((5,), (70, 3), (0, 4), (4099,)), [dtype], bad=(1, 6))
    options = {"max_grad_norm": 20.0, "on_nonfinite": "skip", **FLOAT64}
    ends = [train(training, VARIANT_OF["adam"], xp, **options) for xp in (np, cupy)]
    assert differences(*ends) == {}


@each_variant
def test_every_rule_in_cuda_ends_in_the_bits_of_numpy(variant: Variant, cupy: Any) -> None:
    more = {"cuts": DENSE[::9], "missing": True, "grad_scale": 0.37, **FLOAT64}
    for dtype in (np.float32, *COMPLEX[:1]):
        assert difference_of(variant, cupy, dtype, **more) == {}


@two_backends
def test_every_memory_layout_ends_in_the_same_bits() -> None:
    def layouts(seed: int) -> list[Array]:
        whole = values((90 * 120,), np.float32, seed)[0].reshape(90, 120)
        pairs = values((2 * 70 * 60,), np.float32, seed + 2)[0].view(np.complex64).reshape(70, 60)
        return [
            np.asfortranarray(whole[:, :60]),
            whole[::-1].copy()[::-1],
            np.concatenate([whole, whole])[::2, ::2].copy()[:, ::-1],
            np.concatenate([whole, whole])[::2][:, :70],
            pairs,
            pairs.T.copy().T[:, ::-1],
            np.array(whole[0, 0]),
            np.zeros((0, 5), np.float32),
        ]

    ends = []
    for backend in CPU_BACKENDS:
        params = layouts(0)
        opt = fastopt.Adam(params, lr=0.1, complex_moment="modulus", backend=backend, **FLOAT64)
        for step in range(1, 4):
            opt.step(layouts(step))
        ends.append(end(opt, params))
    assert differences(*ends) == {}


# Bounds, and what can be asked for ----------------------------------------------------------------


def test_parameters_end_within_bounds_that_their_dtype_does_not_have(
    place: tuple[Any, str],
) -> None:
    xp, backend = place
    low, high = -0.1, 1 / 3
    for dtype in (np.float32, *HALVES):
        for bounds in ((low, high), ([np.full(6, low)], [np.full(6, high)])):
            params = [xp.asarray(np.zeros(6, dtype))]
            opt = fastopt.Adam(params, lr=0.2, bounds=bounds, backend=backend, **FLOAT64)
            for _ in range(3):
                opt.step([xp.asarray(np.array([1, -1] * 3, dtype))])
            found = host(params[0]).astype(np.float64)
            assert found.min() >= low
            assert found.max() <= high
            step = float(np.spacing(np.asarray(0.3, dtype)))
            assert found.max() >= high - step


def test_it_says_what_the_state_takes() -> None:
    for dtype, size in ((np.float32, 16), (np.float16, 24), (np.complex64, 32), (np.float64, 16)):
        opt = fastopt.Adam([np.zeros(100, dtype)], **FLOAT64)
        assert opt.state_bytes == 100 * size
    assert "state_dtype='float64'" in repr(opt)


@each_backend
def test_parameters_of_float64_have_it_anyway(backend: str) -> None:
    ends = []
    for options in ({}, FLOAT64):
        params = numbers((5, 3000), np.float64, 0)
        opt = fastopt.Adam(params, backend=backend, **options)
        opt.step(numbers((5, 3000), np.float64, 1))
        ends.append(end(opt, params))
    assert differences(*ends) == {}


def test_an_eps_and_an_lr_are_judged_in_float64() -> None:
    param = [np.zeros(3, np.float32)]
    with pytest.raises(ValueError, match="eps must be 0 or at least"):
        fastopt.Adam(param, eps=1e-40)
    fastopt.Adam(param, eps=1e-40, **FLOAT64)
    fastopt.SGD(param, lr=1e-60, **FLOAT64)
    with pytest.raises(ValueError, match="eps must be 0 or at least"):
        fastopt.Adam(param, eps=1e-305, **FLOAT64)


def test_it_differs_between_groups_and_does_not_change() -> None:
    params = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
    opt = fastopt.Adam([{"params": params[:1], **FLOAT64}, {"params": params[1:]}])
    state = opt.state_dict()["state"]
    assert [state[name]["m"].dtype for name in ("0.0", "1.0")] == [np.float64, np.float32]
    with pytest.raises(ValueError, match="state_dtype"):
        opt.param_groups[1]["state_dtype"] = "float64"


def test_a_format_names_what_it_computes_in() -> None:
    single, half, double = (UpdateSpec.of(d, True) for d in [*STORED[:2], np.dtype(np.float64)])
    assert not single.widened
    assert not half.widened
    assert half.readable == (np.dtype(np.float16), np.dtype(np.float32))
    assert UpdateSpec.of(np.dtype(np.float64), True, state_dtype="float64") == double
    wide = UpdateSpec.of(np.dtype(np.float32), True, state_dtype="float64")
    assert wide.widened
    assert not wide.computes_as_stored
    assert not wide.master
    assert wide.readable == (np.dtype(np.float32), np.dtype(np.float64))
    assert wide.name != single.name


# Saving -------------------------------------------------------------------------------------------


@each_backend
@each_stored
def test_a_run_goes_on_in_the_same_bits(dtype: Any, backend: str, tmp_path: Path) -> None:
    def fresh() -> tuple[list[Array], Any]:
        params = numbers((5, 3000), dtype, 0)
        return params, fastopt.Adam(params, backend=backend, max_grad_norm=5.0, **FLOAT64)

    params, opt = fresh()
    others, other = fresh()
    for step in range(1, 12):
        if step == 5:
            opt.save(tmp_path / "run")
            params, opt = fresh()
            report = opt.load(tmp_path / "run")
            assert not report.mismatched
        for each in (opt, other):
            each.step(numbers((5, 3000), dtype, step))
    assert differences(end(opt, params), end(other, others)) == {}


def test_state_in_another_dtype_is_refused_and_reported() -> None:
    def adam(state_dtype: str | None) -> fastopt.Adam:
        return fastopt.Adam([np.zeros(5000, np.float32)], state_dtype=state_dtype)

    saved = adam(None).state_dict()
    with pytest.raises(fastopt.CheckpointError, match="expected 'float64'; got None"):
        adam("float64").load_state_dict(saved)
    report = adam("float64").load_state_dict(saved, strict=False)
    assert any("float64" in line for line in report.mismatched)
    with pytest.raises(fastopt.CheckpointError, match="expected None; got 'float64'"):
        adam(None).load_state_dict(adam("float64").state_dict())


@pytest.mark.parametrize("there", [None, "float64", "bfloat16", "int8"])
@pytest.mark.parametrize("here", [None, "float64", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.complex64])
def test_every_storage_is_converted_to_every_other(
    dtype: Any, here: str | None, there: str | None, tmp_path: Path
) -> None:
    params = numbers((5000,), dtype, 0)
    opt = fastopt.Adam(params, lr=0.1, state_dtype=there)
    for step in (1, 2, 3):
        opt.step(numbers((5000,), dtype, step))
    opt.save(tmp_path / "run")
    others = numbers((5000,), dtype, 0)
    other = fastopt.Adam(others, lr=0.1, state_dtype=here)
    report = other.load(tmp_path / "run", convert=True)
    assert bool(report.converted) == (here != there)
    assert np.array_equal(raw(params[0]), raw(others[0]))
    saved, found = (each.state_dict()["state"]["0"] for each in (opt, other))
    if {here, there} <= {None, "float64"}:
        wide = np.complex64 if dtype is np.complex64 else np.float32
        for slot in ("m", "v", *["master"] * (dtype is np.float16)):
            assert np.array_equal(saved[slot].astype(wide), found[slot].astype(wide))
    for each in (opt, other):
        each.step(numbers((5000,), dtype, 4))
    assert np.isfinite(others[0].astype(np.complex64)).all()


def test_what_float32_does_not_hold_is_not_converted() -> None:
    opt = fastopt.Adam([np.zeros(5000, np.float32)], **FLOAT64)
    opt.step([np.full(5000, 1e25)])
    saved = opt.state_dict()
    for state_dtype in (None, "bfloat16", "int8"):
        other = fastopt.Adam([np.zeros(5000, np.float32)], state_dtype=state_dtype)
        with pytest.raises(fastopt.CheckpointError, match=r"0\.v.*infinite in float32"):
            other.load_state_dict(saved, convert=True)


@each_half
def test_a_converted_master_is_that_of_its_parameter(dtype: Any) -> None:
    wanted = around_halves(dtype)
    wanted = wanted[np.abs(wanted) < 1e4]
    params = [np.zeros(wanted.size, dtype)]
    opt = fastopt.SGD(params, lr=1.0, **FLOAT64)
    opt.step([-wanted])
    for state_dtype in (None, "float64"):
        others = [params[0].copy()]
        other = fastopt.SGD(others, lr=1.0, state_dtype=state_dtype)
        other.load_state_dict(opt.state_dict(), convert=True)
        other.step([np.zeros(wanted.size)])  # where they disagree the parameter counts
        master = other.state_dict()["state"]["0"]["master"]
        assert np.array_equal(master, wanted.astype(master.dtype))


def test_other_libraries_have_no_such_state() -> None:
    from fastopt.interop.common import groups_of

    opt = fastopt.Adam([np.zeros(3, np.float32)], **FLOAT64)
    with pytest.raises(ValueError, match="state_dtype='float64' here, which other libraries"):
        groups_of(opt)
    groups_of(fastopt.Adam([np.zeros(3)], **FLOAT64))
