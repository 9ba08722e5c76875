"""Bounds: a bounded step is a step that is cut off, and nothing is ever outside."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastopt
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS, VARIANT_OF, VARIANTS, Variant

SHAPES = {"a": (300,), "b": (40, 30), "c": (), "d": (0, 2)}
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
STEPS = 12

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def make(seed: int, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made = {name: np.array(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}
    return made | {"b": made["b"][::3, ::-1]}


def limits(kind: str) -> tuple[Any, Any]:
    """Return bounds that many parameters come to, in each of the forms that they may have."""
    if kind == "numbers":
        return (-0.1, 0.3)
    if kind == "one side":
        return (None, 0.2)
    lower = {"a": np.linspace(-1, 0, 300), "b": -0.25, "c": None, "d": np.zeros((0, 2))}
    return (
        lower,
        {"a": 0.1, "b": np.full((14, 30), 0.2, np.float32), "c": np.array(0.4), "d": None},
    )


def cut_by_hand(params: dict[str, Any], bounds: tuple[Any, Any]) -> None:
    for name, param in params.items():
        for side, cut in zip(bounds, (np.maximum, np.minimum), strict=True):
            bound = side[name] if isinstance(side, dict) else side
            if bound is not None:
                exact = np.asarray(bound, float)  # an array, or NumPy would round it in comparing
                inside = exact.astype(param.dtype)
                wide = inside.astype(float)
                beyond = (wide < exact) if cut is np.maximum else (wide > exact)
                towards = np.array(math.inf if cut is np.maximum else -math.inf, param.dtype)
                inside = np.where(beyond, np.nextafter(inside, towards), inside)
                param[...] = cut(param, inside.astype(param.dtype))


def as_bytes(arrays: Any) -> list[bytes]:
    return [np.asarray(array).tobytes() for array in arrays]


@each_backend
@each_variant
@pytest.mark.parametrize("kind", ["numbers", "one side", "arrays"])
def test_a_bounded_step_is_a_step_cut_off(variant: Variant, kind: str, backend: str) -> None:
    dtype = np.float32 if kind == "numbers" else np.float64
    bounded, free = make(0, dtype), make(0, dtype)
    opt = variant(bounded, backend=backend, bounds=limits(kind))
    other = variant(free, backend=backend)
    for seed in range(1, STEPS):
        grads: dict[str, Any] = make(seed, dtype)
        if seed % 4 == 0:  # all have been cut before
            grads["a"] = None
        opt.step(grads)
        other.step(grads)
        cut_by_hand(free, limits(kind))
        assert as_bytes(bounded.values()) == as_bytes(free.values())
    for entry, its in zip(
        opt.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True
    ):
        assert as_bytes(entry.values()) == as_bytes(its.values())


@each_backend
@each_dtype
@pytest.mark.parametrize("kind", ["numbers", "arrays"])
@pytest.mark.parametrize("master_weights", [True, False])
def test_in_every_dtype_nothing_is_outside(
    dtype: Any, kind: str, backend: str, master_weights: bool
) -> None:
    bounded, free = make(0, dtype), make(0, dtype)
    more: dict[str, Any] = {"lr": 0.1, "backend": backend, "master_weights": master_weights}
    opt = fastopt.Adam(bounded, bounds=limits(kind), **more)
    other = fastopt.Adam(free, **more)
    for seed in range(1, STEPS):
        opt.step(make(seed, dtype))
        other.step(make(seed, dtype))
        cut_by_hand(free, limits(kind))
        # A master weight beyond the bound may round to it; by hand that cannot be cut off.
        if not master_weights or np.dtype(dtype).itemsize > 2:
            assert as_bytes(bounded.values()) == as_bytes(free.values())
        for name, param in bounded.items():
            lower, upper = (b[name] if isinstance(b, dict) else b for b in limits(kind))
            wide = np.asarray(param, np.float64)
            assert lower is None or (wide >= lower).all()
            assert upper is None or (wide <= upper).all()


@each_backend
@each_variant
def test_averages_of_gradients_at_active_bounds_are_forgotten_if_asked(
    variant: Variant, backend: str
) -> None:
    bounded, free = make(0, np.float32), make(0, np.float32)
    opt = variant(bounded, backend=backend, bounds=(-0.1, 0.3), reset_at_bounds=True)
    other = variant(free, backend=backend)
    for seed in range(1, STEPS):
        opt.step(make(seed, np.float32))
        other.step(make(seed, np.float32))
        cut_by_hand(free, (-0.1, 0.3))
        low, high = (np.float32(x) for x in (-0.1, 0.3))
        saved = other.state_dict()
        for name, entry in saved["state"].items():
            at_bound = (free[name] <= np.nextafter(low, np.float32(0))) | (
                free[name] >= np.nextafter(high, np.float32(0))
            )
            for slot in forgotten_slots(opt) & entry.keys():
                entry[slot][at_bound] = 0
        other.load_state_dict(saved)
        assert as_bytes(bounded.values()) == as_bytes(free.values())


def forgotten_slots(opt: Any) -> set[str]:
    """Return the state that can be negative, but what holds values of parameters."""
    return set(opt._rule(opt.param_groups[0]).signed) - {"p0", "mean", "z"}


def test_some_rules_have_something_to_forget() -> None:
    made = [variant(make(0, np.float32)) for variant in VARIANTS]
    assert sum(bool(forgotten_slots(opt)) for opt in made) >= 8


@given(st.data())
def test_whatever_the_gradients_parameters_stay_inside(data: Any) -> None:
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    finite = {"allow_nan": False, "allow_infinity": False, "width": np.dtype(dtype).itemsize * 8}
    low, high = sorted(data.draw(st.tuples(*[st.floats(**finite)] * 2)))
    params = data.draw(hnp.arrays(dtype, st.integers(1, 40), elements=st.floats(-10, 10, width=32)))
    opt = VARIANT_OF[data.draw(st.sampled_from(["sgd_momentum", "adam", "adagrad"]))](
        params, backend=data.draw(st.sampled_from(CPU_BACKENDS)), bounds=(low, high)
    )
    for _ in range(3):
        grad = data.draw(hnp.arrays(dtype, params.shape, elements=st.floats(-1e6, 1e6, width=32)))
        opt.step(grad)
        assert ((params >= low) & (params <= high)).all()


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_numbers_are_bounds(dtype: Any, backend: str) -> None:
    largest = float(np.finfo(dtype).max)
    param = np.zeros(2, dtype)
    fastopt.SGD(param, lr=0.1, bounds=(largest, largest), backend=backend).step(np.ones(2, dtype))
    assert param.tolist() == [largest, largest]
    lowest = np.array([-largest, 0])
    with np.errstate(all="raise"):
        opt = fastopt.SGD(param, lr=0.1, bounds=(lowest, -lowest), backend=backend)
    opt.step(np.array([math.inf, 1], dtype))
    assert param.tolist() == [-largest, 0]


@each_backend
def test_nan_is_not_hidden_by_a_bound(backend: str) -> None:
    param = np.ones(3, np.float32)
    opt = fastopt.SGD(param, lr=0.1, bounds=(-2, 2), backend=backend)
    opt.step(np.array([math.nan, 1, -math.inf], np.float32))
    assert np.isnan(param[0])
    assert param[1:].tolist() == pytest.approx([0.9, 2.0])


@each_backend
def test_numbers_can_be_set_to_others_and_differ_between_groups(backend: str) -> None:
    first, second = np.ones(2), np.ones(2)
    groups = [{"params": first, "bounds": (0.5, None)}, {"params": second}]
    opt = fastopt.SGD(groups, lr=1.0, bounds=(None, 0.75), backend=backend)
    opt.step([np.full(2, 3.0), np.full(2, 0.0)])
    assert [first[0], second[0]] == [0.5, 0.75]
    opt.param_groups[0]["bounds"] = (-1.0, 2)
    opt.step([np.full(2, 3.0), np.full(2, -9.0)])
    assert [first[0], second[0]] == [-1.0, 0.75]
    for change in (None, (np.zeros(2), 1.0)):
        with pytest.raises(
            ValueError, match=r"bounds that are numbers can be set to other numbers"
        ):
            opt.param_groups[0]["bounds"] = change
    with pytest.raises(ValueError, match=r"construct a new optimizer"):
        opt.param_groups[0]["reset_at_bounds"] = True


@each_backend
def test_bounds_that_are_arrays_are_kept_or_refused_and_never_without_effect(backend: str) -> None:
    first, second = np.zeros(3), np.zeros(2)
    own, others = [np.full(3, -0.5), None], [np.full(3, -2.0), None]
    groups = [{"params": [first, second], "bounds": (own, 1.0)}, {"params": np.zeros(2)}]
    opt = fastopt.SGD(groups, lr=1.0, backend=backend)
    group = opt.param_groups[0]
    kept = group["bounds"]
    for change in (
        (others, 1.0),
        (own, 2.0),
        ([own[0].copy(), None], 1.0),
        (None, [np.ones(3), np.ones(2)]),
        (-2.0, 1.0),
        None,
    ):
        for set_to in (
            lambda one: group.__setitem__("bounds", one),
            lambda one: group.update(bounds=one, lr=0.5),
        ):
            with pytest.raises(ValueError, match=r"construct a new optimizer"):
                set_to(change)
            assert group["bounds"] is kept
            assert group["lr"] == 1.0
    with pytest.raises(ValueError, match=r"construct a new optimizer"):
        opt.param_groups[1]["bounds"] = (np.zeros(2), 1.0)
    opt.step([[np.full(3, 9.0), np.full(2, -9.0)], np.full(2, 9.0)])
    assert [*first, *second, *opt.param_groups[1]["params"]] == [-0.5] * 3 + [1.0] * 2 + [-9.0] * 2


def test_bounds_by_pattern() -> None:
    params = {"layer": {"w": np.ones(2), "b": np.ones(2)}}
    patterns = {"**/b": {"bounds": (0, 0.5)}}
    opt = fastopt.SGD(fastopt.groups(params, patterns), lr=0.1)
    opt.step({"layer": {"w": np.zeros(2), "b": np.zeros(2)}})
    assert params["layer"]["w"].tolist() == [1.0, 1.0]
    assert params["layer"]["b"].tolist() == [0.5, 0.5]
    lower: dict[str, Any] = {"layer": {"w": None, "b": np.array([0.1, 0.2])}}
    again = fastopt.SGD(fastopt.groups(params, {"**/b": {"bounds": (lower, None)}}), lr=1.0)
    again.step({"layer": {"w": np.ones(2), "b": np.ones(2)}})
    assert params["layer"]["w"].tolist() == [0.0, 0.0]
    assert params["layer"]["b"].tolist() == [0.1, 0.2]


@each_backend
def test_a_state_dict_holds_bounds_that_are_numbers(backend: str) -> None:
    params = make(0, np.float32)
    opt = fastopt.Adam(params, backend=backend, bounds=(-1, 1.5))
    saved = opt.state_dict()
    assert saved["groups"][0]["bounds"] == (-1.0, 1.5)
    other = fastopt.Adam(params, backend=backend, bounds=(0, 1))
    other.load_state_dict(saved)
    assert other.param_groups[0]["bounds"] == (-1.0, 1.5)
    with_arrays = fastopt.Adam(params, backend=backend, bounds=limits("arrays"))
    assert with_arrays.state_dict()["groups"][0]["bounds"] is None
    with_arrays.load_state_dict(with_arrays.state_dict())
    (kept,) = with_arrays.load_state_dict(saved).settings
    assert (kept.name, kept.saved, kept.holds) == ("groups[0].bounds", (-1.0, 1.5), "here")


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        (1.0, TypeError, r"Adam: bounds must be None or a pair \(lower, upper\)"),
        ((1, 2, 3), TypeError, "must be None or a pair"),
        ((2, 1), ValueError, "the lower must be at most the upper"),
        ((math.nan, 1), ValueError, r"bounds\[0\] must not be NaN"),
        (("low", 1), (TypeError, ValueError), "lower"),
        (({"a": 0}, 1), ValueError, r"bounds, lower must be nested as the parameters"),
        (
            ({"a": np.zeros(3), "b": 0, "c": 0, "d": 0}, 1),
            ValueError,
            r'lower\["a"\] must have the shape',
        ),
        (
            ({"a": np.zeros(300, int), "b": 0, "c": 0, "d": 0}, 1),
            TypeError,
            r'lower\["a"\] must be a num',
        ),
        ((0, {"a": np.full(300, math.nan), "b": 1, "c": 1, "d": 1}), ValueError, "not hold NaN"),
        (
            (0, {"a": 1, "b": -1, "c": 1, "d": 1}),
            ValueError,
            r'lower bound of params\["b"\] exceeds',
        ),
    ],
)
def test_what_no_bounds_are(bounds: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fastopt.Adam(make(0, np.float32), bounds=bounds)


def test_complex_numbers_have_no_order() -> None:
    with pytest.raises(TypeError, match=r"bounds need real parameters.*params\[0\] is complex64"):
        fastopt.Adam([np.ones(3, np.complex64)], bounds=(0, 1))
    with pytest.raises(TypeError, match="reset_at_bounds must be True or False"):
        fastopt.Adam([np.ones(3)], bounds=(0, 1), reset_at_bounds=1)  # type: ignore[arg-type]


def test_infinite_bounds_are_none() -> None:
    param: Array = np.array([-1e300, 1e300])
    opt = fastopt.SGD(param, lr=1.0, bounds=(-math.inf, math.inf))
    opt.step(np.ones(2))
    assert param.tolist() == [-1e300, 1e300]
