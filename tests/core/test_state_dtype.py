"""State in 16 and 8 bits: the same bits on every backend, in every grouping, and after a resume."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core import arrays, quantization
from fastopt.core.arrays import Array
from helpers.bits import differences, special, threads, values
from helpers.variants import CPU_BACKENDS, HAS_NUMBA, VARIANT_OF, VARIANTS, Variant

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STATE_DTYPES = ("bfloat16", "int8")
SIZES = (0, 1, 255, 256, 257, 4095, 4096, 4097, 5000, 7_000)

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_state = pytest.mark.parametrize("state_dtype", STATE_DTYPES)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
two_backends = pytest.mark.skipif(not HAS_NUMBA, reason="compares with numba")


def end(opt: Any, params: Sequence[Array]) -> dict[str, Any]:
    """Return everything that a run ends with, by name."""
    found: dict[str, Any] = {f"params[{k}]": param for k, param in enumerate(params)}
    for name, entry in opt.state_dict()["state"].items():
        found |= {f"{name}.{slot}": plain(value) for slot, value in entry.items()}
    return found


def plain(value: Any) -> Any:
    """Return codes as integers, so that bits are compared."""
    value = np.asarray(value)
    return value.view(np.uint16) if value.dtype == BFLOAT16 else value


def run(
    variant: Variant,
    backend: str,
    params: Sequence[Array],
    steps: Sequence[Sequence[Array | None]],
    **options: Any,
) -> dict[str, Any]:
    params = [param.copy() for param in params]
    opt = variant(params, backend=backend, **options)
    for grads in steps:
        opt.step(list(grads))
    return end(opt, [plain(param) for param in params])


def cast(arrays: Sequence[Array], dtype: Any) -> list[Array]:
    with np.errstate(all="ignore"):
        return [array.astype(dtype) for array in arrays]


# The same bits -----------------------------------------------------------------------------------


@two_backends
@each_state
@each_variant
def test_both_backends_end_in_the_same_bits(variant: Variant, state_dtype: str) -> None:
    params = values(SIZES, np.float32, 0)
    steps: list[list[Array | None]] = [list(values(SIZES, np.float32, s)) for s in range(1, 10)]
    steps[2][-1] = steps[3][1] = steps[3][-2] = None
    options = {"state_dtype": state_dtype, "weight_decay": 0.01, "max_grad_norm": 100.0}
    if variant.options.get("mask_zero") and state_dtype == "int8":
        with pytest.raises(ValueError, match=r"mask_zero cannot be used with state_dtype='int8'"):
            variant(params, **options)
        return
    ends = [run(variant, backend, params, steps, **options) for backend in CPU_BACKENDS]
    assert differences(*ends) == {}
    assert differences(ends[0], run(variant, "numpy", params, steps, seed=1, **options)) or (
        not variant([np.ones(1)]).state_dict()["state"]["0"].keys() - {"step"}
    )


# Random bits -------------------------------------------------------------------------------------

LENGTHS = (70, 300_000, 1_000, 140_000)
"""More than any backend updates at a time, between some that are updated together."""


def draws(name: str, size: int) -> Array:
    """Return the 32 random bits of each element in a first step with seed 7, by the definition."""
    bits = np.arange(size, dtype=np.uint64) + quantization.stream(name) & 0xFFFFFFFF
    bits ^= np.uint64(quantization.key(7, 1))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ bits >> np.uint64(shift)) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return bits ^ bits >> np.uint64(16)


def rounded_up(value: float, bits: Array, cut_off: int) -> Array:
    """Return 1 where the lowest of these random bits make a float32 carry, and 0 elsewhere."""
    below = int(np.float32(value).view(np.uint32)) & (1 << cut_off) - 1
    draw = bits & np.uint64((1 << cut_off) - 1)
    return (draw + np.uint64(below)) >> np.uint64(cut_off)


def test_the_random_bits_of_elements_far_apart_are_others() -> None:
    found = draws("1", LENGTHS[1])
    assert len(np.unique(found)) == LENGTHS[1]  # a bijection of counters that do not come again
    assert not (set(found[:2048].tolist()) & set(draws("3", 2048).tolist()))


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "state in 16 bits", "state in 8 bits"])
def test_every_element_is_rounded_by_random_bits_of_its_own(
    place: tuple[Any, str], kind: str
) -> None:
    xp, backend = place
    of_param = kind in ("bfloat16", "float16")
    dtype: Any = {"bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}.get(kind, np.float32)
    params = [xp.asarray(np.ones(size, dtype)) for size in LENGTHS]
    grads = [xp.asarray(np.full(size, 1.03, np.float32)) for size in LENGTHS]
    if of_param:
        opt: Any = fastopt.SGD(params, 0.0012, maximize=True, seed=7, backend=backend, **CHANCE)
        value, cut_off = float(np.float32(1) + np.float32(0.0012) * np.float32(1.03)), 16
        cut_off -= 3 * (kind == "float16")
    else:
        stored = {"state in 16 bits": "bfloat16", "state in 8 bits": "int8"}[kind]
        opt = fastopt.SGD(params, lr=0.1, momentum=0.9, state_dtype=stored, seed=7, backend=backend)
        value, cut_off = 1.03, 16 if stored == "bfloat16" else quantization.CUT_OFF
    opt.step(grads)
    saved = opt.state_dict()["state"]
    for name, param in enumerate(params):
        entry = {slot: value for slot, value in saved[str(name)].items() if slot != "step"}
        codes = arrays.on_host(param) if of_param else next(iter(entry.values()))
        if codes.dtype == np.float32:
            assert param.size < 4096  # in 8 bits alone: state that is kept as it is
            continue
        codes = codes.view(np.uint16) if codes.dtype.itemsize == 2 else codes
        found = codes.astype(np.int64) - int(codes.min())
        bits = draws(str(name), LENGTHS[name])
        if kind == "float16":
            bits >>= np.uint64(3)  # the highest 13 of the 16 that a slot draws
        np.testing.assert_array_equal(found, rounded_up(value, bits, cut_off))
        assert 0.005 < found.mean() < 0.995


# Half precision ----------------------------------------------------------------------------------

CHANCE = {"master_weights": False, "stochastic_rounding": True}
HALVES: list[tuple[str, Any, str, dict[str, Any]]] = [
    ("adam", np.float16, "int8", {}),
    ("adam", BFLOAT16, "int8", CHANCE),
    ("adam_amsgrad", np.float16, "bfloat16", CHANCE),
    ("adam_amsgrad", BFLOAT16, "bfloat16", {}),
    ("rmsprop_centered_momentum", BFLOAT16, "int8", CHANCE),
]


@two_backends
@pytest.mark.parametrize(("name", "dtype", "state_dtype", "options"), HALVES)
def test_half_precision_parameters_end_in_the_same_bits(
    name: str, dtype: Any, state_dtype: str, options: dict[str, Any]
) -> None:
    params = cast(values(SIZES, np.float32, 0), dtype)
    steps = [cast(values(SIZES, np.float32, s), dtype) for s in (1, 2, 3)]
    options = {"state_dtype": state_dtype, **options}
    ends = [run(VARIANT_OF[name], backend, params, steps, **options) for backend in CPU_BACKENDS]
    assert differences(*ends) == {}


@two_backends
@each_variant
def test_parameters_rounded_by_chance_end_in_the_same_bits(variant: Variant) -> None:
    dtype = (np.float16, BFLOAT16)[VARIANTS.index(variant) % 2]

    def numbers(seed: int) -> list[Array]:
        return cast([*values(SIZES, np.float32, seed), special(900, np.float32, seed)], dtype)

    steps = [numbers(seed) for seed in (1, 2, 3)]
    ends = [run(variant, backend, numbers(0), steps, **CHANCE) for backend in CPU_BACKENDS]
    assert differences(*ends) == {}


@two_backends
@each_state
def test_what_is_not_finite_ends_in_the_same_bits(state_dtype: str) -> None:
    params = [special(5000, np.float32, 0)]
    grads = values((5000,), np.float32, 1)[0]
    grads[[300, 301, 2000]] = np.nan, np.inf, -np.inf
    for name in ("adam", "sgd_momentum", "rmsprop_centered"):
        ends = [
            run(VARIANT_OF[name], backend, params, [[grads]] * 3, state_dtype=state_dtype)
            for backend in CPU_BACKENDS
        ]
        assert differences(*ends) == {}


@two_backends
@each_state
def test_bounds_and_their_arrays_end_in_the_same_bits(state_dtype: str) -> None:
    params = values((5000, 3), np.float32, 0)
    steps = [values((5000, 3), np.float32, s) for s in (1, 2, 3)]
    low, high = ([np.full(p.shape, bound, np.float32) for p in params] for bound in (-0.1, 0.1))
    for bounds in ((-0.1, 0.1), (low, high)):
        options = {"state_dtype": state_dtype, "bounds": bounds, "reset_at_bounds": True}
        ends = [run(VARIANT_OF["adam"], b, params, steps, **options) for b in CPU_BACKENDS]
        assert differences(*ends) == {}


def layouts(seed: int) -> list[Array]:
    """Return arrays in many orders, with gaps, complex, 0-d and empty."""
    whole = values((90 * 120,), np.float32, seed)[0].reshape(90, 120)
    cube = values((20 * 30 * 11,), np.float32, seed + 1)[0].reshape(20, 30, 11)
    pairs = values((2 * 70 * 60,), np.float32, seed + 2)[0].view(np.complex64).reshape(70, 60)
    return [
        np.asfortranarray(whole[:, :60]),
        whole[::-1].copy()[::-1],
        np.concatenate([whole, whole])[::2, ::2].copy()[:, ::-1],
        np.concatenate([whole, whole])[::2][:, :70],
        cube.transpose(1, 2, 0),
        pairs,
        pairs.T.copy().T[:, ::-1],
        np.array(whole[0, 0]),
        np.zeros((0, 5), np.float32),
    ]


def layout_run(backend: str, state_dtype: str) -> dict[str, Any]:
    params = layouts(0)
    opt = fastopt.Adam(params, lr=0.1, state_dtype=state_dtype, backend=backend)
    for step in range(3):
        opt.step(layouts(step + 1))
    return end(opt, [np.ascontiguousarray(param).view(np.float32) for param in params])


@two_backends
@each_state
def test_every_memory_layout_ends_in_the_same_bits(state_dtype: str) -> None:
    assert differences(*[layout_run(b, state_dtype) for b in CPU_BACKENDS]) == {}


@two_backends
@each_state
@pytest.mark.parametrize("name", ["adam", "sgd_momentum"])
def test_threads_change_no_bit(name: str, state_dtype: str) -> None:
    sizes = (70_001, 300, 131_073)
    params = values(sizes, np.float32, 0)
    steps = [values(sizes, np.float32, s) for s in (1, 2)]
    expected = run(VARIANT_OF[name], "numpy", params, steps, state_dtype=state_dtype)
    for count in (1, 2):
        with threads(count):
            got = run(VARIANT_OF[name], "numba", params, steps, state_dtype=state_dtype)
        assert differences(expected, got) == {}


@each_backend
@each_state
def test_draws_do_not_depend_on_what_is_beside_a_parameter(state_dtype: str, backend: str) -> None:
    def make(names: str, **options: Any) -> dict[str, Any]:
        own = {name: k for k, name in enumerate("abcd")}
        sizes = (5000, 4100, 3, 300)
        params = {name: values(sizes, np.float32, 0)[own[name]] for name in names}
        given: Any = params if not options else fastopt.groups(params, options["groups"])
        opt = fastopt.Adam(given, state_dtype=state_dtype, backend=backend)
        for step in (1, 2, 3):
            grads = values(sizes, np.float32, step)
            opt.step({name: grads[own[name]] for name in names})
        return {
            f"{n}.{s}": plain(x) for n, e in opt.state_dict()["state"].items() for s, x in e.items()
        }

    together = make("abcd")
    apart = make("a") | make("bd") | make("c")
    grouped = make("dcba", groups={"a": {"lr": 1e-3}, "[bc]": {"lr": 1e-3}})
    assert differences(together, {name: apart[name] for name in together}) == {}
    assert differences(together, {name: grouped[name] for name in together}) == {}


@each_backend
@each_state
def test_draws_differ_between_elements_names_steps_and_seeds(
    state_dtype: str, backend: str
) -> None:
    def codes_after(steps: int, name: str = "W", seed: int = 0) -> Array:
        params = {name: np.zeros(8192, np.float32)}
        opt = fastopt.Momentum(params, lr=0.0, seed=seed, state_dtype=state_dtype, backend=backend)
        for _ in range(steps):
            opt.step({name: np.full(8192, 0.3, np.float32)})
        return plain(opt.state_dict()["state"][name]["v"])

    first = codes_after(1)
    assert len(set(first.tolist())) == 2  # the two neighbours of 0.03
    up = first == first.max()
    for other in (codes_after(1, name="V"), codes_after(1, seed=1), codes_after(1, seed=2**40)):
        agree = float((up == (other == other.max())).mean())
        share = float(up.mean())
        expected = share**2 + (1 - share) ** 2
        assert abs(agree - expected) < 5 * np.sqrt(expected * (1 - expected) / 8192)
    assert (codes_after(1) == first).all()


# What is stored ----------------------------------------------------------------------------------


def test_state_takes_half_and_a_quarter_of_the_memory() -> None:
    sizes = (4096, 100_000, 3 * 256, 65_536)
    count = sum(sizes)

    def bytes_of(**options: Any) -> int:
        return fastopt.Adam(values(sizes, np.float32, 0), **options).state_bytes

    assert bytes_of() == 8 * count
    assert bytes_of(state_dtype="bfloat16") == 4 * count
    large = [size for size in sizes if size >= 4096]
    padded = sum(-(-size // 256) * 256 for size in large)
    assert bytes_of(state_dtype="int8") == 2 * padded + 2 * 4 * padded // 256 + 8 * 3 * 256
    one = fastopt.Adam(np.ones(2**20, np.float32), state_dtype="int8").state_bytes
    assert 8 * 2**20 / one > 3.9
    masters = fastopt.Adam(np.ones(2**20, np.float16), state_dtype="int8").state_bytes
    assert masters == one + 4 * 2**20


@each_state
def test_a_state_dict_says_what_is_stored(state_dtype: str) -> None:
    params = {"a": np.ones((64, 100), np.float32), "c": np.ones((64, 100), np.complex64), "s": 0}
    params["s"] = np.ones(5, np.float32)
    opt = fastopt.Adam(params, state_dtype=state_dtype, seed=7)
    opt.step({name: np.ones_like(param) for name, param in params.items()})
    saved = opt.state_dict()
    assert saved["groups"][0]["state_dtype"] == state_dtype
    assert saved["groups"][0]["seed"] == 7
    entries = saved["state"]
    if state_dtype == "bfloat16":
        assert all(entry["m"].dtype == BFLOAT16 for entry in entries.values())
        assert entries["c"]["v"].shape == (64, 100, 2)
        # The two neighbours of 0.1 in bfloat16.
        assert set(entries["a"]["m"].astype(float).ravel().tolist()) <= {0.099609375, 0.10009765625}
    else:
        assert entries["a"]["m"].dtype == np.uint8
        assert entries["a"]["m"].shape == (64, 100)
        assert entries["a"]["v_scale"].shape == (25,)
        assert entries["c"]["m"].shape == (64, 100, 2)
        assert entries["c"]["m_scale"].shape == (50,)
        assert entries["s"]["m"].dtype == np.float32
    assert repr(opt).count(f"state_dtype={state_dtype!r}") == 1
    assert "seed=7" in repr(opt)


@each_state
def test_initial_state_is_the_nearest_that_can_be_stored(state_dtype: str) -> None:
    opt = fastopt.Adagrad(
        [np.ones(5000, np.float32)], initial_accumulator_value=0.1, state_dtype=state_dtype
    )
    entry = opt.state_dict()["state"]["0"]
    if state_dtype == "bfloat16":
        assert set(entry["s"].astype(float).tolist()) == {0.10009765625}
    else:
        assert set(entry["s_scale"].tolist()) == {0.0625}
        assert set(entry["s"].tolist()) == {15 * 16 + 10}  # (1 + 10 / 16) * 2**-4 is 0.1016


# Saved and loaded --------------------------------------------------------------------------------


def resumed(state_dtype: str | None, name: str, dtype: Any, path: Path, **options: Any) -> None:
    """Compare a run that is saved after every step, on the backends in turns, with a whole one."""
    sizes = (5000, 3, 4096)
    make = VARIANT_OF[name]
    start = cast(values(sizes, np.float32, 0), dtype)
    steps = [cast(values(sizes, np.float32, s), dtype) for s in range(1, 6)]
    options = {"state_dtype": state_dtype, "seed": 2**63 + 1, **options}
    whole = run(make, CPU_BACKENDS[0], start, steps, **options)
    params = [param.copy() for param in start]
    opt: Any = None
    for number, grads in enumerate(steps):
        others = {**options, "seed": 0}  # the seed comes back
        if number:
            opt.save(path)
            params = [np.zeros_like(param) for param in start]
        opt = make(
            params,
            backend=CPU_BACKENDS[number % len(CPU_BACKENDS)],
            **(others if number else options),
        )
        if number:
            opt.load(path)
        opt.step(grads)
    assert differences(whole, end(opt, [plain(param) for param in params])) == {}


@each_state
@pytest.mark.parametrize("name", ["adam", "sgd_nesterov", "adadelta"])
def test_a_run_goes_on_in_the_same_bits(name: str, state_dtype: str, tmp_path: Path) -> None:
    resumed(state_dtype, name, np.float32, tmp_path / "run.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_a_run_that_rounds_by_chance_goes_on_in_the_same_bits(dtype: Any, tmp_path: Path) -> None:
    for state_dtype in (None, "int8"):
        resumed(state_dtype, "adam", dtype, tmp_path / f"{state_dtype}.safetensors", **CHANCE)


@each_state
def test_every_layout_is_taken_over_by_the_same_layout(state_dtype: str) -> None:
    params = layouts(0)
    opt = fastopt.Adam(params, lr=0.1, state_dtype=state_dtype)
    opt.step(layouts(1))
    others = layouts(0)
    for there, here in zip(others, params, strict=True):
        there[...] = here
    again = fastopt.Adam(others, state_dtype=state_dtype)
    again.load_state_dict(opt.state_dict())
    for one, its in ((opt, params), (again, others)):
        one.step(layouts(2))
        one.step(layouts(3))
        assert its
    flat = [[np.ascontiguousarray(p).view(np.float32) for p in some] for some in (params, others)]
    assert differences(end(opt, flat[0]), end(again, flat[1])) == {}


def test_another_order_in_memory_is_refused_where_it_moves_elements_to_other_blocks() -> None:
    param = np.ones((70, 80), np.float32)
    grads = values((5600,), np.float32, 1)[0].reshape(70, 80)
    opt = fastopt.Adam({"W": param}, state_dtype="int8")
    opt.step({"W": grads})
    saved = opt.state_dict()
    turned = fastopt.Adam({"W": np.asfortranarray(param)}, state_dtype="int8")
    with pytest.raises(
        fastopt.CheckpointError, match=r"W: expected axes .*\[1, 0\]; got in C order"
    ):
        turned.load_state_dict(saved)
    with pytest.raises(fastopt.CheckpointError, match=r"expected axes .* in C order; got \[1, 0\]"):
        opt.load_state_dict(turned.state_dict())
    backwards = fastopt.Adam({"W": param.copy()[:, ::-1]}, state_dtype="int8")
    assert backwards.state_dict()["state"]["W"]["order"] == [0, -2]
    assert turned.load_state_dict(saved, strict=False).mismatched
    exact = fastopt.Adam({"W": np.asfortranarray(param)}, state_dtype="bfloat16")
    plain_order = fastopt.Adam({"W": param}, state_dtype="bfloat16")
    plain_order.step({"W": grads})
    exact.load_state_dict(plain_order.state_dict())
    for one in (exact, plain_order):
        got = plain(one.state_dict()["state"]["W"]["m"])
        assert (got == plain(plain_order.state_dict()["state"]["W"]["m"])).all()


@pytest.mark.parametrize("there", [None, *STATE_DTYPES])
@pytest.mark.parametrize("here", [None, *STATE_DTYPES])
def test_state_stored_otherwise_is_refused_by_both_names(here: Any, there: Any) -> None:
    if here == there:
        return
    saved = fastopt.Adam(np.ones(5000, np.float32), state_dtype=there).state_dict()
    opt = fastopt.Adam(np.ones(5000, np.float32), state_dtype=here)
    before = opt.state_dict()
    with pytest.raises(fastopt.CheckpointError, match=f"expected {here!r}; got {there!r}"):
        opt.load_state_dict(saved)
    report = opt.load_state_dict(saved, strict=False)
    names = {None: "float32", "bfloat16": "bfloat16", "int8": "int8"}
    assert any(names[here] in line and names[there] in line for line in report.mismatched)
    np.testing.assert_equal(opt.state_dict()["state"], before["state"])
    old = {**saved, "fastopt": "0.0.1", "groups": [{"lr": 1e-3}]}  # said nothing of it
    with pytest.raises(
        fastopt.CheckpointError, match=f"expected {names[here]}; got {names[there]}"
    ):
        opt.load_state_dict(old)


@each_state
def test_damaged_codes_are_refused(state_dtype: str) -> None:
    opt = fastopt.Adam({"W": np.ones(5000, np.float32)}, state_dtype=state_dtype)
    for change in (
        {"m": np.zeros(4999, np.uint8)},
        {"m": np.zeros((5000, 1), BFLOAT16)},
        {"m": [0] * 5000},
        {"m_scale": np.zeros(19, np.float32)},
        {"m_scale": np.zeros(20, np.float64)},
        {"m_scale": None},
        {"order": [0]},
        {"order": "C"},
        {"master": np.zeros(5000, np.float32)},
    ):
        saved = opt.state_dict()
        saved["state"]["W"].update(change)
        with pytest.raises(fastopt.CheckpointError, match="W"):
            opt.load_state_dict(saved)


# What is refused ---------------------------------------------------------------------------------


@each_state
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_state_of_double_precision_is_not_kept_in_fewer_bits(dtype: Any, state_dtype: str) -> None:
    params = {"W": np.ones(3, np.float32), "x": np.ones(5000, dtype)}
    with pytest.raises(ValueError, match=rf'state_dtype={state_dtype!r}.*params\["x"\] is'):
        fastopt.Adam(params, state_dtype=state_dtype)
    fastopt.Adam(fastopt.groups(params, {"W": {"state_dtype": state_dtype}}))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_rounding_by_chance_needs_parameters_without_master_weights(dtype: Any) -> None:
    with pytest.raises(ValueError, match="set master_weights=False"):
        fastopt.Adam([np.ones(3, dtype)], stochastic_rounding=True)
    fastopt.Adam([np.ones(3, dtype)], stochastic_rounding=True, master_weights=False)


def test_what_is_fixed_at_construction_cannot_be_set_later() -> None:
    opt = fastopt.Adam([np.ones(5000, np.float32)], state_dtype="int8")
    group = opt.param_groups[0]
    for change in (
        {"state_dtype": None},
        {"state_dtype": "bfloat16"},
        {"stochastic_rounding": True},
    ):
        with pytest.raises(ValueError, match="construct a new one"):
            group.update(change)
    group["seed"] = 2**64 - 1
    assert (group["state_dtype"], group["seed"]) == ("int8", 2**64 - 1)


def test_bfloat16_state_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = fastopt.Adam([np.ones(5, np.float32)], state_dtype="bfloat16", backend="numpy")
    opt.step([np.ones(5, np.float32)])
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        opt.state_dict()


@each_state
def test_state_in_fewer_bits_is_not_moved_from_and_to_other_libraries(state_dtype: str) -> None:
    opt = fastopt.Adam([np.ones(5000, np.float32)], state_dtype=state_dtype)
    with pytest.raises(ValueError, match=f"state_dtype={state_dtype!r}.*state_dtype=None"):
        fastopt.interop.to_torch(opt)
    with pytest.raises(ValueError, match="state_dtype=None"):
        fastopt.interop.load_torch(opt, {"state": {}, "param_groups": []})


def test_groups_can_store_their_state_in_different_ways() -> None:
    params = {k: np.ones(5000, np.float32) for k in "abc"}
    ways = {"a": {"state_dtype": "int8"}, "b": {"state_dtype": "bfloat16"}}
    opt = fastopt.Adam(fastopt.groups(params, ways))
    opt.step({k: np.ones(5000, np.float32) for k in "abc"})
    entries = opt.state_dict()["state"]
    assert [entries[k]["m"].dtype.name for k in "abc"] == ["uint8", "bfloat16", "float32"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_by_chance_changes_nothing_where_nothing_is_rounded(dtype: Any) -> None:
    params, steps = values((300, 5000), dtype, 0), [values((300, 5000), dtype, s) for s in (1, 2)]
    ends = [
        run(VARIANT_OF["adam"], CPU_BACKENDS[-1], params, steps, stochastic_rounding=chance, seed=k)
        for k, chance in enumerate([False, True])
    ]
    assert differences(*ends) == {}


@two_backends
@pytest.mark.parametrize("by_bits", [True, False])
@pytest.mark.parametrize("signed", [False, True])
def test_8_bits_are_read_alike_with_and_without_float16_in_the_processor(
    signed: bool, by_bits: bool
) -> None:
    from numba import njit

    from fastopt.backends.numba import compiled

    if by_bits:
        decode = compiled._decoder(signed)
    elif compiled.READS_HALVES:
        decode = compiled._signed_by_half if signed else compiled._positive_by_half
    else:
        return  # this processor has the other way alone

    @njit  # type: ignore[untyped-decorator]  # numba has no types
    def read(stored: Array, numbers: Array) -> None:
        for i in range(stored.size):
            numbers[i] = decode(stored[i])

    every, found = np.arange(256, dtype=np.uint8), np.empty(256, np.float32)
    read(every, found)
    right = quantization.from_int8(every, np.ones(1, np.float32), signed)
    assert np.array_equal(found.view(np.uint32), right.view(np.uint32))
