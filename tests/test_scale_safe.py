"""Gradients whose squares float32 does not hold train as ordinary ones do, under scale_safe."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.fake_cupy import FakeCupy
from cuda.runs import installed
from variants import CPU_BACKENDS, VARIANTS, Variant

import fastopt
from fastopt.errors import CheckpointError
from fastopt.optimizer import Optimizer

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)

SHAPES = {"first": (3,), "second": (70, 60), "third": (), "empty": (0, 4)}
STEPS = 17  # state is flushed in two of them


def make(dtype: Any, seed: int = 0, factor: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    drawn = {name: rng.uniform(0.1, 1.0, shape) for name, shape in SHAPES.items()}
    signs = {name: np.sign(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    # Each rounded once, so that a power of two makes no other numbers of them.
    return {
        name: np.array(np.float32(signs[name] * drawn[name]) * np.array(factor, dtype), dtype)
        for name in SHAPES
    }


def slots_of(opt: Optimizer) -> dict[str, dict[str, Any]]:
    entries = opt.state_dict()["state"]
    return {
        name: {k: v for k, v in entry.items() if isinstance(v, np.ndarray)}
        for name, entry in entries.items()
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def in_units(variant: Variant, power: int) -> dict[str, Any]:
    """Return a variant's hyperparameters, for gradients that are 2^power times what they were."""
    options = dict(variant(np.ones(1)).param_groups[0])
    changed = {}
    if options.get("eps"):
        inside = options.get("eps_inside_sqrt", False)
        changed["eps"] = math.ldexp(options["eps"], power * (2 if inside else 1))
    if not options.get("eps", 0) and "eps" not in options:  # nothing is divided: lr has the unit
        changed["lr"] = math.ldexp(options["lr"], -power)
    if "initial_accumulator_value" in options:
        start = options["initial_accumulator_value"]
        changed["initial_accumulator_value"] = math.ldexp(start, 2 * power)
    return changed


# The same steps in other units -------------------------------------------------------------------


@each_backend
@each_variant
@pytest.mark.parametrize("power", [-60, 0, 50])
def test_gradients_of_ordinary_squares_make_the_same_bits_as_without(
    variant: Variant, power: int, backend: str
) -> None:
    """Times 2^power in float64 holds for every formula: its table of units is right."""
    params, plain, weight_decay = make(np.float64), make(np.float64), 0.125
    more = in_units(variant, power) if variant.name != "adadelta" else {}
    power = 0 if variant.name == "adadelta" else power  # its eps is of two units
    decays = fastopt.AdamW is variant.optimizer
    unit = 1.0 if decays else 2.0**power
    one = variant(
        params, backend=backend, scale_safe=True, **{**more, "weight_decay": weight_decay * unit}
    )
    other = variant(plain, backend=backend, weight_decay=weight_decay)
    for step in range(STEPS):
        one.step(make(np.float64, step, 2.0**power))
        other.step(make(np.float64, step))
    same(params, plain)


@each_backend
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.name != "adadelta"], ids=str)
@pytest.mark.parametrize("power", [-110, -83, 83, 110])
def test_gradients_times_a_power_of_two_make_the_same_bits_in_other_units(
    variant: Variant, power: int, backend: str
) -> None:
    if "initial_accumulator_value" in variant.options:
        variant = Variant(variant.name, variant.optimizer, {"lr_decay": 0.1, "eps": 0.0})
    if "eps" in variant.options or fastopt.Adam is variant.optimizer or "rms" in variant.name:
        variant = Variant(variant.name, variant.optimizer, {**variant.options, "eps": 0.0})
    params, plain = make(np.float32), make(np.float32)
    one = variant(params, backend=backend, scale_safe=True, **in_units(variant, power))
    other = variant(plain, backend=backend)
    for step in range(STEPS):
        one.step(make(np.float32, step, 2.0**power))
        other.step(make(np.float32, step))
    same(params, plain)
    exponents = {entry["exponent"] for entry in one.state_dict()["state"].values()}
    assert exponents != {0}


@each_backend
@each_variant
@pytest.mark.parametrize("exponent", [-37, 1, 90])
def test_whatever_the_exponent_the_bits_are_the_same(
    variant: Variant, exponent: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, plain = make(np.float64), make(np.float64)
    options: dict[str, Any] = {"weight_decay": 0.125, "maximize": True, "backend": backend}
    one, other = variant(params, scale_safe=True, **options), variant(plain, **options)
    for step in range(STEPS):
        by_turns = exponent if step % 3 else 0
        monkeypatch.setattr("fastopt.exponents.chosen", lambda *_, k=by_turns: k)
        one.step(make(np.float64, step), grad_scale=0.5)
        other.step(make(np.float64, step), grad_scale=0.5)
    same(params, plain)


# Against float64 ---------------------------------------------------------------------------------

PATHS = {
    "1e-2": [1e-2] * 12,
    "1e-25": [1e-25] * 12,
    "1e-30": [1e-30] * 12,
    "1e-37": [1e-37] * 12,
    "1e25": [1e25] * 12,
    "1e36": [1e36] * 12,
    "shrinking": [10.0 ** (-30 * t / 24) for t in range(24)],
    "falling": [1.0] * 3 + [1e-30] * 9,
    "growing": [10.0 ** (-30 + 30 * t / 24) for t in range(24)],
    "rising": [1e-30] * 3 + [1.0] * 9,
    "and_back": [10.0 ** (-abs(30 - 5 * t)) for t in range(13)],
    "jumping": [1e-30, 1e25] * 8,
}
RUNS = [name for name in PATHS if name not in ("1e-2", "1e36")]


def check_path(
    variant: Variant, backend: str, factors: list[float], dtype: Any = np.float32, **options: Any
) -> Optimizer:
    """Hold a scale-safe run to one in float64, from 0 on, where every step can be seen."""
    wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
    params, exact = ({name: np.zeros(s, d) for name, s in SHAPES.items()} for d in (dtype, wide))
    one = variant(params, backend=backend, scale_safe=True, **options)
    other = variant(exact, backend="numpy", **options)
    way: dict[str, Any] = dict.fromkeys(SHAPES, 0.0)
    for step, factor in enumerate(factors):
        grads = {
            name: np.array(grad * np.float32(factor), dtype)
            for name, grad in make(np.float32, step).items()
        }
        if np.dtype(dtype).kind == "c":
            grads = {name: np.array(grad * (1 - 0.5j), dtype) for name, grad in grads.items()}
        before = {name: value.copy() for name, value in exact.items()}
        one.step(grads)
        other.step({name: grad.astype(wide) for name, grad in grads.items()})
        way = {name: way[name] + abs(exact[name] - before[name]) for name in way}
    for name in SHAPES:
        # float32 ends near the second term, and state that is nearly there is flushed.
        close = 4 * float(np.finfo(np.float32).eps) * len(factors) * way[name] + 1e-39
        assert np.all(abs(params[name] - exact[name]) <= close), name
    return one


@each_backend
@each_variant
@pytest.mark.parametrize("path", RUNS)
def test_a_run_in_float32_is_that_in_float64(variant: Variant, path: str, backend: str) -> None:
    check_path(variant, backend, PATHS[path])


@each_backend
@each_variant
@pytest.mark.parametrize("path", ["1e-30", "jumping"])
def test_an_l2_term_counts_as_a_part_of_the_gradient(
    variant: Variant, path: str, backend: str
) -> None:
    if variant.name in ("sgd", "sgd_momentum", "sgd_nesterov", "momentum", "momentum_corrected"):
        check_path(variant, backend, [f for f in PATHS[path] if f < 1], weight_decay=0.01)
    else:
        check_path(variant, backend, PATHS[path], weight_decay=0.01)


@each_backend
@each_variant
@pytest.mark.parametrize("path", ["1e-25", "jumping"])
def test_complex_parameters_too(variant: Variant, path: str, backend: str) -> None:
    check_path(variant, backend, PATHS[path], np.complex64)


@each_backend
@each_variant
@pytest.mark.parametrize("path", ["1e-25", "and_back"])
def test_clipped_gradients_are_looked_at_as_they_are_then(
    variant: Variant, path: str, backend: str
) -> None:
    opt = check_path(variant, backend, PATHS[path], max_grad_norm=1e-3)
    norm = opt.grad_norm
    assert norm is not None
    assert 1 < norm / PATHS[path][-1] < 100


@each_backend
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.name != "sgd"], ids=str)
@pytest.mark.parametrize("factor", [1e-250, 1e200])
def test_float64_has_its_own_limits(variant: Variant, factor: float, backend: str) -> None:
    params, plain = make(np.float64), make(np.float64)
    power = round(math.log2(factor))
    if "adadelta" in variant.name:
        return  # no plain run has its eps: float128 is not everywhere
    if "initial_accumulator_value" in variant.options:
        variant = Variant(variant.name, variant.optimizer, {"lr_decay": 0.1})
    zero = {"eps": 0.0} if "eps" in variant(np.ones(1)).param_groups[0] else {}
    plain_variant = Variant(variant.name, variant.optimizer, {**variant.options, **zero})
    more = {} if zero else in_units(variant, power)
    one = plain_variant(params, backend=backend, scale_safe=True, **more)
    other = plain_variant(plain, backend=backend)
    for step in range(STEPS):
        one.step(make(np.float64, step, 2.0**power))
        other.step(make(np.float64, step))
    same(params, plain)


@each_backend
@pytest.mark.parametrize("name", ["adam", "rmsprop_momentum", "adagrad", "adadelta"])
@pytest.mark.parametrize("master_weights", [True, False])
def test_half_precision_parameters_take_gradients_in_float32(
    name: str, master_weights: bool, backend: str
) -> None:
    variant = next(v for v in VARIANTS if v.name == name)
    more = {} if name == "adadelta" else {"eps": 0.0}
    options: dict[str, Any] = {**more, "master_weights": master_weights, "backend": backend}
    options |= {"initial_accumulator_value": 0.0} if name == "adagrad" else {}
    params, plain = make(np.float16), make(np.float16)
    one, other = variant(params, scale_safe=True, **options), variant(plain, **options)
    for step in range(STEPS):
        one.step(make(np.float32, step, 2.0**-83))
        other.step(make(np.float32, step, 2.0**-83 if name == "adadelta" else 1.0))
    if name != "adadelta":  # whose eps makes the steps tiny, with and without
        assert any((params[k] != make(np.float16)[k]).any() for k in params)
    same(params, plain)


# Around it ---------------------------------------------------------------------------------------


@each_backend
@each_variant
def test_parameters_without_gradients_keep_their_exponents(variant: Variant, backend: str) -> None:
    """Each has its own: what one misses makes no difference to another."""
    together = make(np.float32)
    opt = variant(together, backend=backend, scale_safe=True)
    apart = {name: value.copy() for name, value in together.items()}
    alone = {
        name: variant({name: value}, backend=backend, scale_safe=True)
        for name, value in apart.items()
    }
    for step in range(9):
        grads: dict[str, Any] = make(np.float32, step, PATHS["jumping"][step])
        grads["first" if step % 3 else "second"] = None
        grads["third"] = None if step % 4 == 1 else np.zeros((), np.float32)
        opt.step(grads)
        for name, one in alone.items():
            one.step({name: grads[name]})
    same(together, apart)
    entries = opt.state_dict()["state"]
    assert entries["third"]["exponent"] == 0
    for name, one in alone.items():
        assert one.state_dict()["state"][name]["exponent"] == entries[name]["exponent"]


@each_backend
@each_variant
@pytest.mark.parametrize("state_dtype", [None, "bfloat16", "int8"])
def test_resuming_ends_in_the_bits_of_going_on(
    variant: Variant, state_dtype: str | None, backend: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"scale_safe": True, "state_dtype": state_dtype, "seed": 3}
    params, again = make(np.float32), make(np.float32, 5)
    opt = variant(params, backend=backend, **options)
    resumed = variant(again, backend=CPU_BACKENDS[-1], **options)
    for step, factor in enumerate(PATHS["and_back"]):
        if step == 6:
            opt.save(tmp_path / "run.safetensors")
            resumed.load(tmp_path / "run.safetensors")
        grads = make(np.float32, step, factor)
        opt.step(grads)
        if step >= 6:
            resumed.step(grads)
    same(params, again)
    one, other = opt.state_dict()["state"], resumed.state_dict()["state"]
    assert [e["exponent"] for e in one.values()] == [e["exponent"] for e in other.values()]
    for name, slots in slots_of(opt).items():
        same(slots, slots_of(resumed)[name])


def test_without_it_nothing_is_saved_and_such_state_is_refused() -> None:
    params = make(np.float32)
    plain, safe = fastopt.Adam(params), fastopt.Adam(make(np.float32), scale_safe=True)
    assert all("exponent" not in entry for entry in plain.state_dict()["state"].values())
    safe.load_state_dict(plain.state_dict())
    plain.load_state_dict(safe.state_dict())  # all of them 0
    safe.step(make(np.float32, 1, 2.0**-80))
    before = slots_of(plain)
    with pytest.raises(CheckpointError, match=r"2\^\d+.*scale_safe=True"):
        plain.load_state_dict(safe.state_dict())
    same({k: e["m"] for k, e in before.items()}, {k: e["m"] for k, e in slots_of(plain).items()})
    for wrong in (1.5, True, "1", 10**6):
        saved = safe.state_dict()
        saved["state"]["first"]["exponent"] = wrong
        with pytest.raises(CheckpointError, match="exponent must be a whole number"):
            safe.load_state_dict(saved)


def test_what_cannot_be_is_refused() -> None:
    params = make(np.float32)
    with pytest.raises(ValueError, match=r"scale_safe must be False .* capturable"):
        fastopt.Adam(params, scale_safe=True, capturable=True)
    with pytest.raises(TypeError, match="scale_safe must be True or False; got 1"):
        fastopt.Adam(params, scale_safe=1)  # type: ignore[arg-type]  # that is tested

    class Other(fastopt.SGD):
        _units = None

    with pytest.raises(TypeError, match="Other: scale_safe needs _units"):
        Other(params, scale_safe=True)


@each_backend
@each_variant
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_do_what_they_do_without(
    variant: Variant, bad: float, backend: str
) -> None:
    params, plain = make(np.float32), make(np.float32)
    one = variant(params, backend=backend, scale_safe=True)
    other = variant(plain, backend=backend)
    for step in range(6):
        grads = make(np.float32, step)
        if step == 2:
            grads["second"][1, 2] = bad
        one.step(grads)
        other.step(grads)
    same(params, plain)


def test_a_step_that_fails_has_carried_no_state() -> None:
    params = make(np.float32)

    def lr(step: int) -> float:
        return -1.0 if step == 2 else 0.1

    opt = fastopt.Adam(params, lr, scale_safe=True)
    opt.step(make(np.float32, 0, 1e-25))
    opt.step(make(np.float32, 1, 1e-25))
    before, values = opt.state_dict()["state"], {k: v.copy() for k, v in params.items()}
    with pytest.raises(ValueError, match="lr at step 2"):
        opt.step(make(np.float32, 2, 1e25))
    after = opt.state_dict()["state"]
    for name, entry in before.items():
        same(entry, after[name])
    same(values, params)


@pytest.fixture
def cupy() -> Iterator[FakeCupy]:
    with installed(FakeCupy()) as module:
        yield module


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which runs the CUDA text")
@pytest.mark.parametrize("name", ["adam", "rmsprop_centered_momentum", "adadelta", "sgd_nesterov"])
def test_cupy_makes_the_same_bits(cupy: Any, name: str) -> None:
    variant = next(v for v in VARIANTS if v.name == name)
    plain = make(np.float32)
    params = {name: cupy.asarray(value) for name, value in plain.items()}
    one = variant(params, scale_safe=True, max_grad_norm=1e20, on_nonfinite="skip")
    other = variant(plain, scale_safe=True, max_grad_norm=1e20, on_nonfinite="skip")
    for step, factor in enumerate([1e-30, 1e-3, 1e25, 1e25, 1e-12, 1e-30, 1e-35, 1.0, 1.0]):
        grads = make(np.float32, step, factor)
        one.step({name: cupy.asarray(grad) for name, grad in grads.items()})
        other.step(grads)
    assert one.backend == "cupy"
    same({name: value.get() for name, value in params.items()}, plain)
