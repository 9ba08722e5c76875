"""Half precision and complex numbers: float32 steps, rounded once; pairs of real numbers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS, HAS_NUMBA, VARIANT_OF, VARIANTS, Variant

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
STEPS = 10  # more than FLUSH_EVERY
SHAPES = [(), (7,), (0, 3), (13, 37), (5_000,)]

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def numbers(seed: int, dtype: Any) -> list[Array]:
    rng = np.random.default_rng(seed)
    made: list[Any] = [rng.standard_normal(shape) for shape in SHAPES]
    if np.dtype(dtype).kind == "c":
        made = [a + 1j * rng.standard_normal(a.shape) for a in made]
    made = [np.array(a, dtype) for a in made]
    return [*made, np.array(made[3][:, ::-2].T), made[3].copy()[1::3, 2:]]


def run(
    variant: Variant, backend: str, dtype: Any, grad_dtype: Any, wide: bool = False, **options: Any
) -> tuple[list[Array], dict[str, Any]]:
    """Return the parameters and the state of a run; ``wide`` makes all of it in float32."""
    params = numbers(0, dtype)
    if wide:
        params = [param.astype(np.float32) for param in params]
    opt = variant(params, backend=backend, **options)
    for step in range(STEPS):
        grads: list[Any] = numbers(step + 1, grad_dtype)
        if wide:
            grads = [grad.astype(np.float32) for grad in grads]
        if step % 3 == 1:
            grads[1] = None
        opt.step(grads, grad_scale=0.5)
    return params, opt.state_dict()["state"]


def as_bytes(arrays: Any) -> list[bytes]:
    return [np.asarray(array).tobytes() for array in arrays]


@each_backend
@each_half
@each_variant
def test_with_master_weights_a_run_is_that_in_float32_rounded(
    variant: Variant, dtype: Any, backend: str
) -> None:
    exact, exact_state = run(variant, backend, dtype, dtype, wide=True)
    params, state = run(variant, backend, dtype, dtype)
    for k, (param, right) in enumerate(zip(params, exact, strict=True)):
        entry = state[str(k)]
        assert as_bytes([entry.pop("master")]) == as_bytes([right])
        assert as_bytes([param]) == as_bytes([right.astype(dtype)])
        assert entry.keys() == exact_state[str(k)].keys()
        assert as_bytes(entry.values()) == as_bytes(exact_state[str(k)].values())


@each_backend
@each_half
@pytest.mark.parametrize("grad_dtype", [np.float32, np.float64, "other half"])
def test_gradients_in_another_precision_are_not_rounded_to_the_parameters(
    dtype: Any, grad_dtype: Any, backend: str
) -> None:
    given = (
        next(half for half in HALVES if half != dtype) if grad_dtype == "other half" else grad_dtype
    )
    for options in ({}, {"max_grad_norm": 3.0}):
        exact, _ = run(VARIANT_OF["adam"], backend, dtype, given, wide=True, **options)
        params, _ = run(VARIANT_OF["adam"], backend, dtype, given, **options)
        assert as_bytes(params) == as_bytes(right.astype(dtype) for right in exact)


@each_backend
@each_half
@each_variant
def test_without_master_weights_every_step_is_rounded(
    variant: Variant, dtype: Any, backend: str
) -> None:
    params = numbers(0, dtype)
    opt = variant(params, backend=backend, master_weights=False)
    wide = [param.astype(np.float32) for param in params]
    other = variant(wide, backend=backend)
    for step in range(STEPS):
        grads = numbers(step + 1, dtype)
        opt.step(grads)
        other.step([grad.astype(np.float32) for grad in grads])
        for param, exact in zip(params, wide, strict=True):
            exact[...] = exact.astype(dtype)
            assert as_bytes([param]) == as_bytes([exact.astype(dtype)])
    assert all("master" not in entry for entry in opt.state_dict()["state"].values())


@each_half
@each_variant
@pytest.mark.skipif(not HAS_NUMBA, reason="compares with numba")
def test_the_backends_agree_to_the_bit(variant: Variant, dtype: Any) -> None:
    for options in ({}, {"master_weights": False, "max_grad_norm": 2.0}):
        ends = [run(variant, backend, dtype, dtype, **options) for backend in ("numpy", "numba")]
        (one, its_state), (two, other_state) = ends
        assert as_bytes(one) == as_bytes(two)
        for entry, other in zip(its_state.values(), other_state.values(), strict=True):
            assert as_bytes(entry.values()) == as_bytes(other.values())


@each_backend
@each_half
def test_updates_too_small_for_the_parameter_add_up(dtype: Any, backend: str) -> None:
    # bfloat16 has 1/128 between 1 and its next number, float16 has 1/1024.
    kept, lost = np.ones(3, dtype), np.ones(3, dtype)
    grads = [np.full(3, -1.0, dtype)]
    with_master = fastopt.SGD([kept], lr=1e-4, backend=backend)
    without = fastopt.SGD([lost], lr=1e-4, backend=backend, master_weights=False)
    for _ in range(1000):
        with_master.step(grads)
        without.step(grads)
    assert kept.astype(float) == pytest.approx([1.1] * 3, abs=0.005)
    assert lost.tolist() == [1.0] * 3


@each_backend
@each_half
def test_what_somebody_writes_into_a_parameter_counts(dtype: Any, backend: str) -> None:
    params = [np.ones(4, dtype), np.ones(90_000, dtype)]
    opt = fastopt.SGD(params, lr=2.0**-14, backend=backend)
    for _ in range(3):
        opt.step([np.ones(param.shape, dtype) for param in params])
    for param in params:
        param[1] = 5.0
        param[2] = 0.0
    opt.step([np.ones(param.shape, dtype) for param in params])
    for entry in opt.state_dict()["state"].values():
        expected = [1 - 4 * 2.0**-14, 5 - 2.0**-14, -(2.0**-14), 1 - 4 * 2.0**-14]
        assert entry["master"][:4].tolist() == expected


@each_half
def test_a_run_with_half_precision_goes_on_in_the_same_bits(dtype: Any) -> None:
    whole, _ = run(VARIANT_OF["adamw"], CPU_BACKENDS[0], dtype, dtype)
    params = numbers(0, dtype)
    saved: Any = None
    for step in range(STEPS):
        params = [param.copy() for param in params]
        opt = VARIANT_OF["adamw"](params, backend=CPU_BACKENDS[step % len(CPU_BACKENDS)])
        if saved is not None:
            opt.load_state_dict(saved)
        grads: list[Any] = numbers(step + 1, dtype)
        if step % 3 == 1:
            grads[1] = None
        opt.step(grads, grad_scale=0.5)
        saved = opt.state_dict()
    assert as_bytes(params) == as_bytes(whole)
    with pytest.raises(fastopt.CheckpointError, match="master"):
        fastopt.AdamW(params, master_weights=False).load_state_dict(saved)


@pytest.mark.skipif(not HAS_NUMBA, reason="the loops are numba's")
@pytest.mark.parametrize("by_bits", [True, False])
@each_half
def test_every_half_is_read_and_rounded_to_as_numpy_does(dtype: Any, by_bits: bool) -> None:
    from numba import njit

    from fastopt.backends.numba import compiled

    widen, narrow = compiled.conversion(dtype, np.dtype(np.float32))
    if by_bits and dtype.name == "float16":  # what a processor without conversions of its own gets
        widen, narrow = compiled.FLOAT16_BY_BITS

    @njit
    def read(stored: Any, values: Any) -> None:
        for i in range(stored.size):
            values[i] = widen(stored[i])

    @njit
    def write(values: Any, stored: Any) -> None:
        for i in range(values.size):
            stored[i] = narrow(values[i])

    every = np.arange(2**16, dtype=np.uint16)
    found = np.empty(2**16, np.float32)
    read(every, found)
    right = every.view(dtype).astype(np.float32)
    real = ~np.isnan(right)
    assert np.array_equal(found[real].view(np.uint32), right[real].view(np.uint32))
    assert np.isnan(found[~real]).all()
    # Every half, the middles to its neighbours, and the numbers around those.
    bits = right.view(np.uint32).astype(np.int64)
    step = 1 << (16 if dtype.name == "bfloat16" else 13)
    offsets = [0, 1, -1, *(step // 2 + k for k in (-1, 0, 1)), step - 1, step // 4, 3 * step // 4]
    near = np.concatenate([bits + offset for offset in offsets])
    tiny = np.random.default_rng(0).integers(0, 2**32, 200_000)
    values = (np.concatenate([near, tiny]) % 2**32).astype(np.uint32).view(np.float32)
    stored = np.empty(values.size, np.uint16)
    write(values, stored)
    with np.errstate(all="ignore"):
        rounded = values.astype(dtype)
    real = ~np.isnan(values)
    assert np.array_equal(stored[real], rounded[real].view(np.uint16))
    assert np.isnan(stored.view(dtype)[~real].astype(np.float32)).all()


@each_backend
@each_variant
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_parameters_are_pairs_of_real_ones(
    variant: Variant, dtype: Any, backend: str
) -> None:
    real = np.dtype(dtype).type(0).real.dtype
    params = numbers(0, dtype)
    pairs = [np.stack([param.real, param.imag], axis=-1) for param in params]
    opt = variant(params, backend=backend, max_grad_norm=50.0)
    other = variant(pairs, backend=backend, max_grad_norm=50.0)
    for step in range(STEPS):
        grads = numbers(step + 1, dtype)
        opt.step(grads)
        other.step([np.stack([grad.real, grad.imag], axis=-1) for grad in grads])
    for param, pair in zip(params, pairs, strict=True):
        assert pair.dtype == real
        assert as_bytes([param.real.copy(), param.imag.copy()]) == as_bytes(
            [pair[..., 0].copy(), pair[..., 1].copy()]
        )
    for entry, its in zip(
        opt.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True
    ):
        for slot in entry.keys() - {"step"}:
            assert entry[slot].dtype == (np.float64 if slot in variant.remembered else dtype)
            assert as_bytes([entry[slot]]) == as_bytes([its[slot]])


@each_backend
def test_a_complex_parameter_takes_complex_gradients(backend: str) -> None:
    param = np.ones(3, np.complex64)
    opt = fastopt.Adam({"W": param}, backend=backend)
    with pytest.raises(TypeError, match=r'grads\["W"\] must be of a complex dtype like params'):
        opt.step({"W": np.ones(3, np.float32)})
    opt.step({"W": np.ones(3, np.complex128)})
    assert param == pytest.approx([0.999 + 0j] * 3)
    half = fastopt.Adam({"W": np.ones(3, np.float16)}, backend=backend)
    with pytest.raises(
        TypeError, match=r"real floating dtype.*complex64\. .* grads\[\"W\"\]\.real"
    ):
        half.step({"W": np.ones(3, np.complex64)})


@each_half
@each_backend
def test_eps_counts_in_the_precision_of_the_arithmetic(dtype: Any, backend: str) -> None:
    params = [np.ones(3, dtype)]
    opt = fastopt.Adam(params, lr=0.5, eps=1e-8, backend=backend)
    opt.step([np.zeros(3, dtype)])
    assert params[0].tolist() == [1.0] * 3  # in float16 eps would be 0, and 0 / 0 NaN
    with pytest.raises(ValueError, match=r"underflow in float32, in which params\[0\]"):
        fastopt.Adam(params, eps=1e-40)


@pytest.mark.parametrize("wrong", [None, 1, "yes"])
def test_master_weights_is_a_flag(wrong: Any) -> None:
    with pytest.raises(TypeError, match="Adam: master_weights must be True or False"):
        fastopt.Adam([np.ones(3, np.float16)], master_weights=wrong)
