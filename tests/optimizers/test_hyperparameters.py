"""Counters, tiny and huge numbers, dtypes, and hyperparameters that make no sense.

The ids n1 to n15 are those of the reliability list. Left for the work they belong to: the parts of
n5 and n6 on detecting non-finite numbers, n7 (skipping), n10 (global norm), n12 (float16), n14
(clipping). n4's drift and n9's foreign flush-to-zero are tested against results, not settings.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import families
import fastopt
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import THREE_BETAS
from fastopt.optimizers.base import Optimizer
from helpers.bad_values import (
    FLAG,
    FRACTIONS,
    SEEDS_OUTSIDE,
    Bad,
    Other,
    is_many,
    number,
    pair,
    several,
)
from helpers.variants import (
    APART,
    CPU_BACKENDS,
    ELEMENTWISE,
    HAS_NUMBA,
    SMOOTH,
    VARIANT_OF,
    VARIANTS,
    Variant,
    one_parameter,
    public_optimizers,
    script,
)

ROOT = Path(__file__).parents[2]
DTYPES = (np.float32, np.float64)
each_backend = pytest.mark.parametrize("backend", CPU_BACKENDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_optimizer = pytest.mark.parametrize("optimizer", public_optimizers())


def at_step(opt: Optimizer, step: int) -> None:
    """Set all counters, as a checkpoint of a long run would."""
    saved = opt.state_dict()
    saved["step_count"] = step
    for entry in saved["state"].values():
        entry["step"] = step
    opt.load_state_dict(saved)


# Counters and scalars ----------------------------------------------------------------------------


@each_backend
@each_variant
@pytest.mark.parametrize("step", [2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1])
def test_n1_counters_go_on_where_floats_stop(variant: Variant, step: int, backend: str) -> None:
    asked: list[int] = []

    def lr(t: int) -> float:
        asked.append(t)
        return 0.01

    params = [np.ones(3, np.float32), np.ones(3)]
    group = variant([np.ones(1)]).param_groups[0]
    no_decay = {name: 0.0 for name in ("lr_decay", "lambd") if name in group}
    opt = variant(params, lr=lr, backend=backend, **no_decay)
    at_step(opt, step)
    for grads in ([np.ones(3)] * 2, [np.ones(3), None]):
        opt.step(grads)
    assert opt.step_count == step + 2
    assert {step, step + 1} <= set(asked)
    entries = opt.state_dict()["state"]
    assert (entries["0"]["step"], entries["1"]["step"]) == (step + 2, step + 1)
    assert all(np.isfinite(param).all() and (param != 1).all() for param in params)


@each_backend
@each_dtype
@pytest.mark.parametrize("beta", [0.999, 0.99999, 0.9999999, 0.99999999, 1 - 2.0**-40])
def test_n2_bias_corrections_are_as_exact_as_the_dtype(
    beta: float, dtype: Any, backend: str
) -> None:
    close = 8 * float(np.finfo(dtype).eps)
    for make, options in [
        (fastopt.Adam, {"betas": (beta, beta), "eps": 0.0}),
        (fastopt.RMSprop, {"beta": beta, "bias_correction": True, "eps": 0.0}),
        (fastopt.Momentum, {"beta": beta, "bias_correction": True}),
    ]:
        param = np.zeros(1, dtype)
        opt: Any = make(param, lr=1.0, backend=backend, **options)
        opt.step(np.ones(1, dtype))
        np.testing.assert_allclose(param, [-1], rtol=close)
        opt.step(np.ones(1, dtype))
        np.testing.assert_allclose(param, [-2], rtol=close)


@each_backend
@each_dtype
@pytest.mark.parametrize("step", [10**6, 10**9])
def test_n3_a_power_of_beta_that_underflows_is_harmless(
    step: int, dtype: Any, backend: str
) -> None:
    for make, options, expected in [
        (fastopt.Adam, {"betas": (0.5, 0.75), "eps": 0.0}, 1 / math.sqrt(1.0)),
        (fastopt.RMSprop, {"beta": 0.75, "bias_correction": True, "eps": 0.0}, 2 / math.sqrt(1.0)),
        (fastopt.Momentum, {"beta": 0.5, "bias_correction": True}, 1.0),
    ]:
        param = np.zeros(1, dtype)
        opt: Any = make(param, lr=1.0, backend=backend, **options)
        at_step(opt, step)
        opt.step(np.full(1, 2, dtype))
        np.testing.assert_allclose(param, [-expected], rtol=1e-6 if dtype is np.float32 else 1e-14)


@each_backend
@each_variant
def test_n3_betas_of_zero_are_allowed(variant: Variant, backend: str) -> None:
    given = variant(np.ones(1)).param_groups[0]
    zeros: dict[str, Any] = {name: 0.0 for name in ("beta", "rho") if name in given}
    if "betas" in given:
        zeros["betas"] = (0.0,) * len(given["betas"])
    if variant.optimizer is fastopt.ScheduleFreeAdamW:
        zeros["betas"] = (0.5, 0.0)  # the first says where the average is
    param = np.zeros(3)
    opt = variant(param, backend=backend, **zeros)
    for _ in range(3):
        opt.step(np.ones(3))
    assert np.all(param < 0)
    assert np.isfinite(param).all()


NUMBER_FORMS: dict[str, Callable[[float], Any]] = {
    "float64": np.float64,
    "array_float64": np.array,
    "array_float32": lambda x: np.array(x, np.float32),
    "longdouble": np.longdouble,
}


@each_backend
@each_dtype
@each_variant
@pytest.mark.parametrize("form", NUMBER_FORMS)
def test_n4_numpys_numbers_as_hyperparameters_change_no_dtype(
    variant: Variant, form: str, dtype: Any, backend: str
) -> None:
    plain = {"lr": 0.125, "weight_decay": 0.25}
    numbers = {name: NUMBER_FORMS[form](value) for name, value in plain.items()}
    params = [np.ones(5, dtype), np.ones(5, dtype)]
    opts = [variant(params[0], **numbers), variant(params[1], **plain)]
    for opt, scale in zip(opts, (NUMBER_FORMS[form](0.5), 0.5), strict=True):
        opt.step(np.arange(5, dtype=dtype), grad_scale=scale)
        opt.lr = NUMBER_FORMS[form](0.0625)
        opt.step(np.arange(5, dtype=dtype), grad_scale=scale)
    np.testing.assert_array_equal(*params, strict=True)
    assert params[0].dtype == dtype
    assert all(type(opts[0].param_groups[0][name]) is float for name in plain)
    np.testing.assert_equal(opts[0].state_dict(), opts[1].state_dict())


@each_backend
@each_variant
def test_n4_state_has_the_dtype_and_shape_of_its_parameter(variant: Variant, backend: str) -> None:
    params = [
        np.ones((), np.float32),
        np.ones((2, 3), np.float32, "F"),
        np.ones((4, 4), np.float64)[::2, 1:],
        np.ones((0, 3), np.float64),
    ]
    opt = variant(params, lr=lambda t: np.float64(0.1), backend=backend)
    for _ in range(10):
        opt.step([np.ones(p.shape) for p in params])
        for param, entry in zip(params, opt.state_dict()["state"].values(), strict=True):
            for slot in entry.keys() - {"step"} - variant.remembered:
                assert (entry[slot].dtype, entry[slot].shape) == (param.dtype, param.shape)
            for name in variant.remembered:
                assert (entry[name].dtype, entry[name].shape) == (np.float64, ())
            assert type(entry["step"]) is int


# NaN, infinity, zero -----------------------------------------------------------------------------


@each_backend
@each_dtype
@pytest.mark.parametrize("variant", APART, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_n5_what_is_not_finite_stays_in_its_element(
    variant: Variant, bad: float, dtype: Any, backend: str
) -> None:
    params = [np.ones(50, dtype), np.ones(3, dtype)]
    clean = [np.ones(50, dtype), np.ones(3, dtype)]
    opts = [variant(some, backend=backend) for some in (params, clean)]
    for step in range(4):
        grads = [np.linspace(-1, 1, 50).astype(dtype), np.ones(3, dtype)]
        opts[1].step(grads)
        if step == 1:
            grads[0][17] = bad
        opts[0].step(grads)
    assert np.isnan(bad) <= np.isnan(params[0][17]) or "cautious" in variant.options
    if variant in ELEMENTWISE:  # in the others in its array
        np.testing.assert_array_equal(np.delete(params[0], 17), np.delete(clean[0], 17))
    np.testing.assert_array_equal(params[1], clean[1])


@each_backend
@each_dtype
def test_n13_the_maximum_of_amsgrad_is_nan_where_either_is(dtype: Any, backend: str) -> None:
    param = np.ones(3, dtype)
    opt = VARIANT_OF["adam_amsgrad"](param, backend=backend)
    opt.step(np.array([1, np.nan, 1], dtype))
    saved = opt.state_dict()
    assert np.isnan(saved["state"]["params"]["vmax"]).tolist() == [False, True, False]
    saved["state"]["params"]["vmax"][2] = np.nan  # here v itself is finite
    opt.load_state_dict(saved)
    opt.step(np.ones(3, dtype))
    assert np.isnan(opt.state_dict()["state"]["params"]["vmax"]).tolist() == [False, True, True]
    assert np.isnan(param).tolist() == [False, True, True]


@each_backend
def test_n15_float32_swallows_what_float64_keeps(backend: str) -> None:
    single, double = np.ones(1, np.float32), np.ones(1)
    opt = VARIANT_OF["sgd"]([single, double], lr=2e-8, backend=backend)
    for _ in range(1000):
        opt.step([np.ones(1, np.float32), np.ones(1)])
    assert single[0] == 1
    np.testing.assert_allclose(double, [1 - 1000 * 2e-8], rtol=1e-12)


EPS_ZERO = [v for v in VARIANTS if "eps" in v(np.ones(1)).param_groups[0] and v.name != "adadelta"]


@each_backend
@each_dtype
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("variant", EPS_ZERO, ids=str)
def test_an_eps_of_zero_leaves_parameters_without_gradient_alone(
    variant: Variant, inside: bool, dtype: Any, backend: str
) -> None:
    places = {"eps_inside_sqrt": inside} if "eps_inside_sqrt" in variant.options else {}
    start = "initial_accumulator_value"
    fill = {start: 0.0} if start in variant(np.ones(1)).param_groups[0] else {}
    param = np.array([2, -3, 1], dtype)
    opt = variant(param, weight_decay=0.0, backend=backend, **{"eps": 0.0, **places, **fill})
    for _ in range(12):
        opt.step(np.array([0, -0.0, 1], dtype))
    np.testing.assert_array_equal(param[:2], np.array([2, -3], dtype))
    assert np.isfinite(param[2])
    assert param[2] < 1


@each_backend
@pytest.mark.parametrize("eps", [2e-45, 1e-44, 1e-42, 1e-38, 1e-30])
@pytest.mark.parametrize("inside", [False, True])
def test_an_eps_that_is_accepted_guards_against_zero_over_zero(
    eps: float, inside: bool, backend: str
) -> None:
    for make, options in [
        (fastopt.Adam, {}),
        (fastopt.Adam, {"amsgrad": True, "betas": (0.9, 0.9999999)}),
        (fastopt.RMSprop, {"bias_correction": True, "beta": 0.9999999}),
        (fastopt.RMSprop, {"bias_correction": True, "centered": True, "momentum": 0.5}),
    ]:
        for dtype, value in ((np.float32, eps), (np.float64, eps * 1e-278)):
            param = np.ones(2, dtype)
            given = {"eps": value, "eps_inside_sqrt": inside, **options}
            opt = accepted(lambda g=given, p=param, m=make: m(p, backend=backend, **g))  # type: ignore[misc]
            if opt is not None:
                opt.step(np.zeros(2, dtype))
            np.testing.assert_array_equal(param, np.ones(2), err_msg=f"{make.__name__} {given}")


def accepted(make: Callable[[], Optimizer]) -> Optimizer | None:
    """Return an optimizer, or None if its eps is refused."""
    try:
        return make()
    except ValueError as error:
        if "eps" in str(error):
            return None
        raise


# Denormal numbers --------------------------------------------------------------------------------

LASTING = {"s", "vmax"}
"""State that never decays: it cannot become denormal by waiting."""


def denormal(array: Array) -> Array:
    return (array != 0) & (np.abs(array) < np.finfo(array.dtype).tiny)


def denormals(opt: Optimizer) -> dict[str, int]:
    """Return how many elements of which state are denormal."""
    found = {}
    for entry in opt.state_dict()["state"].values():
        for slot in entry.keys() - LASTING - {"step"}:
            if count := int(denormal(entry[slot]).sum()):
                found[slot] = count
    return found


@each_backend
@each_variant
def test_n8_state_without_gradients_does_not_become_denormal(
    variant: Variant, backend: str
) -> None:
    param, exact = np.ones(40, np.float32), np.ones(40)
    opt, other = variant(param, backend=backend), variant(exact, backend=backend)
    first = np.geomspace(1e-6, 1e3, 40).astype(np.float32)
    zero = np.zeros(40, np.float32)
    for step in range(1100):
        opt.step(zero if step else first)
        other.step(zero if step else first)
        if step >= 900:
            assert denormals(opt) == {}, f"in step {step}"
    # Nothing is flushed in float64 by then: the parameters tell what the flush has changed. Where
    # steps go by signs it ends them; where l1 is taken off in each, its rounding adds up.
    if variant.optimizer not in SMOOTH or "l1" in variant.options:
        return
    np.testing.assert_allclose(param, exact, rtol=1e-5, atol=1e-6)  # they begin at 1


SMALL_EPS = [None, 1e-10, 1e-12, 1e-16, 0.0]


@each_backend
@each_dtype
@each_variant
def test_n8_tiny_state_leaves_the_denormals_whatever_eps_is(
    variant: Variant, dtype: Any, backend: str
) -> None:
    tiny = float(np.finfo(dtype).tiny)
    sizes = np.geomspace(tiny, tiny * 1e12, 60).astype(dtype)
    wrong = {}
    for eps in SMALL_EPS:
        has_eps = "eps" in variant(np.ones(1)).param_groups[0]
        if eps is not None and (not has_eps or (variant.name == "adadelta" and eps == 0)):
            continue
        given = {} if eps is None else {"eps": eps}
        opt = variant(np.ones(60, dtype), backend=backend, **given)
        saved = opt.state_dict()
        for slot in saved["state"]["params"].keys() - {"step"} - variant.remembered:
            saved["state"]["params"][slot] = sizes.copy()
        opt.load_state_dict(saved)
        for _ in range(240):
            opt.step(np.zeros(60, dtype))
        if found := denormals(opt):
            wrong[eps] = found
    assert wrong == {}


FLUSHING: dict[str, tuple[Any, tuple[float, ...]]] = {
    "float32": (np.float32, (1e-3, 1e-6, 1e-8, 1e-10, 1e-14)),
    "float64": (np.float64, (1e-8, 1e-120, 1e-130)),
}


@each_backend
@pytest.mark.parametrize("dtype", FLUSHING)
@pytest.mark.parametrize("name", ["adam", "adam_eps_inside", "adamw", "rmsprop", "lamb"])
def test_n8_state_is_flushed_where_it_is_nothing_beside_the_smallest_denominator(
    name: str, dtype: str, backend: str
) -> None:
    """Signed below floor * 2^-60, positive if its root is below floor * 2^-27 (float64: 2^-56).

    And in any case what is within a factor of 8 of denormal.
    """
    real, every_eps = FLUSHING[dtype]
    highest, root = (2.0**-100, 2.0**-27) if dtype == "float32" else (2.0**-900, 2.0**-56)
    lowest = 8 * float(np.finfo(real).tiny)
    for eps in every_eps:
        floor = math.sqrt(eps) if name == "adam_eps_inside" else eps
        found = {"m": floor * 2.0**-60, "v": (floor * root) ** 2}
        least = {slot: max(min(highest, value), lowest) for slot, value in found.items()}
        opt = VARIANT_OF[name](np.zeros(12, real), eps=eps, backend=backend)
        saved = opt.state_dict()
        entry = saved["state"]["params"]
        slots = [slot for slot in entry if slot in least]
        for slot in slots:  # a step takes at most a fifth of it
            entry[slot] = (2 * least[slot] * 4.0 ** np.arange(-6, 6)).astype(real)
        saved["step_count"], entry["step"] = 6, 6
        opt.load_state_dict(saved)
        opt.step(np.zeros(12, real))
        for slot in slots:
            assert opt.state_dict()["state"]["params"][slot].all(), (slot, eps)  # the seventh step
        opt.step(np.zeros(12, real))
        for slot in slots:
            found = opt.state_dict()["state"]["params"][slot] != 0
            assert found.tolist() == [False] * 6 + [True] * 6, (slot, eps)


FLUSHED = """
import ctypes, ctypes.util, sys
import numpy as np

libm = ctypes.CDLL(ctypes.util.find_library("m"))
environment = (ctypes.c_uint32 * 8)()  # of glibc on x86-64: 28 bytes of x87, then mxcsr

def mxcsr():
    assert libm.fegetenv(environment) == 0
    return environment[7] & 0x8040  # flush to zero, denormals are zero

import fastopt
from helpers.vectors import VECTORS, run, worst
from helpers.variants import CPU_BACKENDS

for backend in CPU_BACKENDS:
    fastopt.SGD(np.ones(70_000), backend=backend).step(np.ones(70_000))
assert mxcsr() == 0, "the package has set it"
environment[7] |= 0x8040
assert libm.fesetenv(environment) == 0
assert mxcsr() == 0x8040
assert np.float64(5e-324) * np.float64(1.0) == 0.0
for vector in VECTORS[::9]:
    for backend in CPU_BACKENDS:
        assert worst(vector, run(vector, np.float64, backend)) <= 1e-11, (vector, backend)
assert mxcsr() == 0x8040, "the package has reset it"
print("good")
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="the control register is reached through glibc on x86-64",
)
def test_n9_somebody_elses_flush_to_zero_changes_no_result_and_is_left_as_it_is() -> None:
    end = script(FLUSHED)
    assert (end.returncode, end.stdout) == (0, "good\n"), end.stderr


THREADS = """
import sys
import numpy as np
import fastopt

param = np.ones(200_001, np.float32)
opt = fastopt.Adam(param, backend="numba")
rng = np.random.default_rng(0)
for count in map(int, sys.argv[1].split(",")):
    sys.modules["numba"].set_num_threads(count)
    opt.step(rng.standard_normal(200_001).astype(np.float32))
state = opt.state_dict()["state"]["params"]
print([hash(a.tobytes()) for a in (param, state["m"], state["v"])])
"""


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")
def test_n11_the_number_of_threads_changes_no_bit() -> None:
    fixed = {"NUMBA_NUM_THREADS": "4", "PYTHONHASHSEED": "0"}
    ends = [script(THREADS, counts, **fixed) for counts in ("1,1,1,1", "4,4,4,4", "2,1,4,3")]
    assert [end.returncode for end in ends] == [0, 0, 0], ends[0].stderr
    assert len({end.stdout for end in ends}) == 1


# Hyperparameters that make no sense --------------------------------------------------------------


BAD: dict[str, Bad] = {
    "lr": number(-1e-300, -1, schedule=True),
    "lr_scale": [(bad, kind) for bad, kind in number(-1.0, schedule=True) if not is_many(bad)],
    "weight_decay": number(-1e-300, -1, schedule=True),
    "maximize": FLAG,
    "momentum": number(-1e-300, -1, schedule=True),
    "dampening": number(schedule=True),
    "nesterov": FLAG,
    "beta": number(*FRACTIONS, schedule=True),
    "betas": pair(*FRACTIONS),
    "rho": number(*FRACTIONS, schedule=True),
    "eps": number(-1e-300, -1, schedule=True),
    "lr_decay": number(-1e-300, -1),
    "initial_accumulator_value": number(-1e-300, -1),
    "centered": FLAG,
    "amsgrad": FLAG,
    "eps_inside_sqrt": FLAG,
    "eps_hat": FLAG,
    "lr_inside": FLAG,
    "bias_correction": FLAG,
    "trainable": FLAG,
    "bounds": [(1.0, TypeError), ((1, 2, 3), TypeError), ((2, 1), ValueError), ("ab", TypeError)],
    "reset_at_bounds": FLAG,
    "state_dtype": [(8, TypeError), (np.int8, TypeError), (True, TypeError), ("i8", ValueError)],
    "stochastic_rounding": FLAG,
    "complex_moment": [(None, TypeError), (True, TypeError), ("both", ValueError)],
    "adaptive_clip": [bad for bad in number(0.0, -1) if not (bad[0] is None or bad[0] is math.inf)],
    "centralize": FLAG,
    "decoupled_lr": [
        bad for bad in number(0.0, -1) if not isinstance(bad[0], bool | np.bool_ | None)
    ],
    "clip_value": [bad for bad in number(0.0, -1) if not (bad[0] is None or bad[0] is math.inf)],
    "clip_each": [bad for bad in number(0.0, -1) if not (bad[0] is None or bad[0] is math.inf)],
    "cautious": FLAG,
    "cautious_decay": FLAG,
    "l1": [bad for bad in number(-1e-300, -1) if bad[0] is not None],
    "mask_zero": FLAG,
    "beta3": [bad for bad in number(*FRACTIONS) if bad[0] is not None],
    "d0": number(0.0, -1),
    "d_coef": number(0.0, -1),
    "growth_rate": [bad for bad in number(0.0, -1, 0.5, 1 - 2**-53) if bad[0] is not math.inf],
    "safeguard_warmup": FLAG,
    "decoupled_weight_decay": FLAG,
    "ns_coefficients": [(1.0, TypeError), ((1.0, 2.0), TypeError), (("a", 1.0, 2.0), TypeError)],
    "ns_steps": [(0, ValueError), (2.0, TypeError), (None, TypeError), (True, TypeError)],
    "adjust_lr": [(None, TypeError), (True, TypeError), ("both", ValueError)],
    "seed": [(value, TypeError) for value in (1.0, None, True, "0")] + SEEDS_OUTSIDE,
    **families.BAD,
}
"""Of every hyperparameter of any optimizer: what it must not be, and the error's class."""
OF_THREE = several(3, *FRACTIONS)
"""Of betas that are three."""
BAD_HERE: dict[tuple[str, str], Bad] = {
    ("Adadelta", "eps"): [(0.0, ValueError)],
    ("Muon", "momentum"): [(1.0, ValueError), (1.5, ValueError)],
    **families.BAD_HERE,
}
"""What only one optimizer refuses."""


def options_of(optimizer: Any) -> list[str]:
    """Return the names of an optimizer's hyperparameters."""
    return [
        name for name in optimizer(one_parameter(optimizer)).param_groups[0] if name != "params"
    ]


CASES = [
    pytest.param(optimizer, name, id=f"{optimizer.__name__}-{name}")
    for optimizer in public_optimizers()
    for name in options_of(optimizer)
]


def bad_values(optimizer: Any, name: str) -> Bad:
    three = name == "betas" and optimizer._checks[name] == THREE_BETAS
    here = optimizer.__name__, name
    usual = OF_THREE if three else families.BAD_INSTEAD.get(here, BAD[name])
    return usual + BAD_HERE.get(here, [])


def complaint(error: Exception, optimizer: Any, name: str, value: Any) -> str:
    """Return what a message lacks: the optimizer, its option, what was got or is allowed."""
    text = str(error)
    got = value if not isinstance(value, tuple | list) or "pair" in text else None
    lacks = [] if optimizer.__name__ in text else ["the optimizer"]
    lacks += [] if name in text else ["the hyperparameter"]
    lacks += [] if got is None or repr(got) in text else ["the value"]
    lacks += [] if "must be" in text and "got" in text else ["what is allowed"]
    return ", ".join(lacks)


def refused(
    call: Callable[[], Any], kind: type[Exception], optimizer: Any, name: str, value: Any
) -> list[str]:
    """Return what is wrong with how a bad value is refused."""
    try:
        call()
    except Exception as error:
        if type(error) is not kind:
            return [f"{name}={value!r} raised {error!r}, not {kind.__name__}"]
        lacks = complaint(error, optimizer, name, value)
        return [f"{name}={value!r}: the message lacks {lacks}: {error}"] if lacks else []
    return [f"{name}={value!r} was accepted"]


NUMBERS = [np.float32(0.25), np.float16(0.25), np.array(0.25), np.array([0.25]), np.array([[0.25]])]
NUMBERS += [np.longdouble(0.25), ml_dtypes.bfloat16(0.25), np.array([0.25], ml_dtypes.bfloat16)]
NUMBERS += [Decimal("0.25"), Fraction(1, 4), Other(0.25), Other(0.25, "torch.bfloat16", (1, 1))]
NUMBERS += [Other(0.25, "<dtype: 'float64'>")]


@pytest.mark.parametrize("given", NUMBERS, ids=repr)
@pytest.mark.parametrize("make", [lambda value: value, lambda value: lambda step: value])
def test_a_number_is_whatever_float_takes(given: Any, make: Callable[[Any], Any]) -> None:
    """It may be given, set, or what a function returns, alone or in a pair."""
    params = [np.ones(3), np.ones(3)]
    plain = fastopt.Adam(params[0], 0.25, betas=(0.25, 0.5), eps=0.25, weight_decay=0.25)
    value = make(given)
    opt = fastopt.Adam(params[1], value, betas=(value, 0.5), eps=value)
    opt.param_groups[0]["weight_decay"] = value
    opt.lr = value
    assert opt.lr == 0.25
    for one in (plain, opt):
        one.step(np.ones(3))
    np.testing.assert_array_equal(*params)


@pytest.mark.parametrize("rate", [0, 0.0, np.int64(0), np.array([0])])
def test_a_rate_of_0_is_one(rate: Any) -> None:
    param = np.ones(3, np.float32)
    opt = fastopt.AdamW(param, rate)
    opt.step(np.ones(3, np.float32))
    opt.lr = 1  # as a whole number
    assert (opt.lr, type(opt.param_groups[0]["lr"]), param.tolist()) == (1.0, float, [1.0] * 3)


def test_a_number_on_a_device_is_fetched(cupy: Any) -> None:
    params = [cupy.ones(3), cupy.ones(3)]
    opt = fastopt.Adam(params[0], cupy.asarray(0.25), eps=lambda step: cupy.asarray([0.5]))
    plain = fastopt.Adam(params[1], 0.25, eps=0.5)
    for one in (plain, opt):
        one.step(cupy.ones(3))
    np.testing.assert_array_equal(params[0].get(), params[1].get())


@pytest.mark.parametrize(("optimizer", "name"), CASES)
def test_a_bad_hyperparameter_is_refused_at_construction(optimizer: Any, name: str) -> None:
    one = partial(one_parameter, optimizer)
    wrong = []
    for value, kind in bad_values(optimizer, name):
        wrong += refused(
            lambda bad=value: optimizer(one_parameter(optimizer), **{name: bad}),  # type: ignore[misc]
            kind,
            optimizer,
            name,
            value,
        )
        wrong += refused(
            lambda bad=value: optimizer(  # type: ignore[misc]
                [{"params": one()}, {"params": one(), name: bad}]
            ),
            kind,
            optimizer,
            name,
            value,
        )
    assert wrong == []


def ways_to_set(opt: Optimizer, name: str) -> dict[str, Callable[[Any], Any]]:
    group = opt.param_groups[1]
    ways: dict[str, Callable[[Any], Any]] = {
        "item": lambda value: group.__setitem__(name, value),
        "update": lambda value: group.update({name: value}),
        "update_by_name": lambda value: group.update(**{name: value}),
        "or": lambda value: group.__ior__({name: value}),
        "or_pairs": lambda value: group.__ior__([(name, value)]),
    }
    if name == "lr":
        ways["property"] = lambda value: setattr(opt, "lr", value)
    return ways


@pytest.mark.parametrize(("optimizer", "name"), CASES)
def test_a_bad_hyperparameter_is_refused_when_it_is_set_and_nothing_changes(
    optimizer: Any, name: str
) -> None:
    one = partial(one_parameter, optimizer)
    opt = optimizer([{"params": one()}, {"params": one()}])
    before = [dict(group) for group in opt.param_groups]
    wrong = []
    for way in ways_to_set(opt, name).values():
        for value, kind in bad_values(optimizer, name):
            wrong += refused(lambda: way(value), kind, optimizer, name, value)  # noqa: B023 - now
    assert wrong == []
    assert [dict(group) for group in opt.param_groups] == before


def test_several_hyperparameters_are_set_together_or_not_at_all() -> None:
    opt = fastopt.Adam(np.ones(1))
    group = opt.param_groups[0]
    before = dict(group)
    with pytest.raises(ValueError, match="eps"):
        group.update(lr=0.5, eps=-1.0)
    with pytest.raises(TypeError, match="amsgard"):
        group |= {"lr": 0.5, "amsgard": False}
    assert dict(group) == before
    group.update({"lr": 0.5}, eps=0.1)
    assert (group["lr"], group["eps"]) == (0.5, 0.1)


def test_no_hyperparameter_is_taken_away_or_added() -> None:
    group = fastopt.Adam(np.ones(1)).param_groups[0]
    before = dict(group)
    calls: list[Callable[[], Any]] = [
        lambda: group.pop("lr"),
        lambda: group.popitem(),
        lambda: group.clear(),
        lambda: group.__delitem__("lr"),
        lambda: group.__setitem__("params", [np.ones(1)]),
        lambda: group.update(params=np.ones(1)),
        lambda: group.__setitem__("weight_decy", 0.1),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    assert group.setdefault("lr", 7.0) == before["lr"]
    assert dict(group) == before


@each_optimizer
def test_an_unknown_option_is_refused_with_the_name_that_was_meant(optimizer: Any) -> None:
    one = partial(one_parameter, optimizer)
    opt = optimizer(one())
    for wrong, meant in [("weight_decy", "weight_decay"), ("maximise", "maximize"), ("LR", None)]:
        hint = re.escape(f"did you mean {meant!r}") if meant else "lr"
        with pytest.raises(TypeError, match=wrong):
            optimizer(one(), **{wrong: 0.1})
        with pytest.raises(TypeError, match=f"{optimizer.__name__}.*{wrong}.*{hint}"):
            optimizer([{"params": one(), wrong: 0.1}])
        with pytest.raises(TypeError, match=f"{optimizer.__name__}.*{wrong}.*{hint}"):
            opt.param_groups[0][wrong] = 0.1
    with pytest.raises(TypeError, match="backend"):
        optimizer([{"params": one(), "backend": "numpy"}])


@each_optimizer
def test_all_but_parameters_and_learning_rate_are_given_by_name(optimizer: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        optimizer(one_parameter(optimizer), 0.1, 0.9)
    assert optimizer(one_parameter(optimizer), 0.25).lr == 0.25


@pytest.mark.parametrize("eps", [1e-50, 1e-200, 1e-46])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad", "Adadelta"])
def test_an_eps_that_is_zero_in_the_states_dtype_is_refused(name: str, eps: float) -> None:
    optimizer: Any = getattr(fastopt, name)
    single = {"W": np.ones(1), "b": np.ones(1, np.float32)}
    parts = r"eps.*underflow.*float32.*got"
    with np.errstate(all="raise"):
        with pytest.raises(ValueError, match=parts):
            optimizer(single, eps=eps)
        opt = optimizer([{"params": np.ones(1)}, {"params": single}])
        with pytest.raises(ValueError, match=parts):
            opt.param_groups[1]["eps"] = eps
        opt.param_groups[0]["eps"] = eps  # its parameters are float64
        optimizer(np.ones(1), eps=eps)


def test_nesterov_needs_momentum_and_no_dampening() -> None:
    for options in [{}, {"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}]:
        with pytest.raises(ValueError, match="nesterov=True needs momentum > 0 and dampening = 0"):
            fastopt.SGD(np.ones(1), nesterov=True, **options)  # type: ignore[arg-type]  # mixed
    opt = fastopt.SGD(np.ones(1), momentum=0.9, dampening=0.1)
    with pytest.raises(ValueError, match="nesterov"):
        opt.param_groups[0]["nesterov"] = True
    opt.param_groups[0].update(nesterov=True, dampening=0.0)
    with pytest.raises(ValueError, match="nesterov"):
        opt.param_groups[0]["dampening"] = 0.5
    assert opt.param_groups[0]["dampening"] == 0.0


@pytest.mark.parametrize(
    ("make", "options", "change"),
    [
        (fastopt.SGD, {}, {"momentum": 0.9}),
        (fastopt.SGD, {"momentum": 0.9}, {"momentum": 0.0}),
        (fastopt.Adam, {}, {"amsgrad": True}),
        (fastopt.AdamW, {"amsgrad": True}, {"amsgrad": False}),
        (fastopt.RMSprop, {}, {"centered": True}),
        (fastopt.RMSprop, {}, {"momentum": 0.5}),
        (fastopt.RMSprop, {"momentum": 0.5, "centered": True}, {"centered": False}),
    ],
)
def test_a_change_that_needs_other_state_is_refused(
    make: Any, options: dict[str, Any], change: dict[str, Any]
) -> None:
    opt = make([{"params": np.ones(1)}, {"params": np.ones(1)}], **options)
    before = [dict(group) for group in opt.param_groups]
    for group in opt.param_groups:
        with pytest.raises(ValueError, match=r"needs other state.*construct a new optimizer"):
            group.update(change)
    assert [dict(group) for group in opt.param_groups] == before
    opt.step([np.ones(1), np.ones(1)])


# What is set between steps -----------------------------------------------------------------------


@each_backend
def test_every_change_between_steps_counts_in_the_next_one(backend: str) -> None:
    param = np.zeros(2)
    opt = fastopt.SGD(param, 1.0, backend=backend)
    group = opt.param_groups[0]

    def step(grad_scale: float = 1.0) -> float:
        param[:] = 8.0
        opt.step(np.ones(2), grad_scale=grad_scale)
        return 8.0 - float(param[0])

    assert step() == step() == 1.0
    opt.lr = 0.5
    assert step() == step() == 0.5
    assert step(4.0) == 2.0
    assert step() == 0.5
    group["weight_decay"] = 0.25
    assert step() == 1.5
    group["maximize"] = True
    assert step() == 0.5 * (-1 + 2)
    group.update(maximize=False, weight_decay=0.0)
    assert step() == 0.5
    saved = opt.state_dict()
    opt.lr = 2.0
    assert step() == 2.0
    opt.load_state_dict(saved)
    assert step() == opt.lr == 0.5
    opt.lr = lambda t: 0.25 * t
    assert step() == 0.25 * (opt.step_count - 1)
    assert step() == 0.25 * (opt.step_count - 1)
    group["weight_decay"] = lambda t: 1.0 * (t % 2)
    group["lr"] = 1.0
    assert step() + step() == 1.0 + 9.0
    group["weight_decay"] = 0.0
    assert step() == step() == 1.0


@each_backend
def test_momentum_and_betas_that_are_set_count_in_the_next_step(backend: str) -> None:
    params = [np.zeros(1), np.zeros(1)]
    opts = [fastopt.SGD(p, 1.0, momentum=0.5, backend=backend) for p in params]
    opts[1].param_groups[0]["momentum"] = 0.25
    for opt in opts:
        opt.step(np.ones(1))
        opt.param_groups[0]["momentum"] = 0.75
        opt.step(np.zeros(1))
    np.testing.assert_array_equal(params, [[-1.75], [-1.75]])


@each_backend
def test_lr_is_the_value_of_the_next_step_and_is_set_for_all_groups(backend: str) -> None:
    groups = [{"params": np.ones(1)}, {"params": np.ones(1)}]
    opt = fastopt.SGD(groups, lr=lambda t: 1.0 / (1 + t), backend=backend)
    for t in range(3):
        assert opt.lr == 1.0 / (1 + t)
        opt.step([np.ones(1), None])
    opt.lr = 0.125
    assert [group["lr"] for group in opt.param_groups] == [0.125, 0.125]
    assert type(opt.lr) is float
    for bad in (True, -1, math.nan, "0.1"):
        with pytest.raises((ValueError, TypeError), match=r"SGD, params\[0\]: lr must be a number"):
            opt.lr = bad  # type: ignore[assignment]
    assert [group["lr"] for group in opt.param_groups] == [0.125, 0.125]


@each_backend
def test_schedules_are_asked_for_the_step_number_from_zero_on(backend: str) -> None:
    asked: dict[str, list[int]] = {"lr": [], "weight_decay": []}

    def schedule(name: str, value: Any) -> Callable[[int], Any]:
        def of(t: int) -> Any:
            asked[name].append(t)
            return value(t)

        return of

    params = [np.full(2, 4.0), np.full(2, 4.0)]
    scheduled = fastopt.AdamW(
        params[0],
        lr=schedule("lr", lambda t: np.float32(0.5 / (1 + t))),
        weight_decay=schedule("weight_decay", lambda t: np.array(0.25 * t)),
        backend=backend,
    )
    by_hand = fastopt.AdamW(params[1], weight_decay=0.0, backend=backend)
    for t in range(4):
        scheduled.step(np.ones(2))
        by_hand.param_groups[0].update(lr=float(np.float32(0.5 / (1 + t))), weight_decay=0.25 * t)
        by_hand.step(np.ones(2))
        np.testing.assert_array_equal(*params)
    for name in asked:
        assert sorted(set(asked[name])) == [0, 1, 2, 3]


@each_backend
def test_a_group_without_arrays_can_be_set_and_stepped(backend: str) -> None:
    param = np.zeros(2)
    opt = fastopt.SGD([{"params": param}, {"params": []}], 1.0, backend=backend)
    opt.lr = 0.5
    opt.param_groups[1]["weight_decay"] = 0.1
    opt.step([np.ones(2), []])
    np.testing.assert_array_equal(param, [-0.5, -0.5])
    opt.load_state_dict(opt.state_dict())


@each_variant
def test_the_representation_says_what_it_is(variant: Variant) -> None:
    opt = variant({"W": np.ones((3, 4)), "b": np.ones(4)}, backend="numpy")
    opt.step({"W": np.ones((3, 4)), "b": None})
    text = repr(opt)
    for part in (
        type(opt).__name__,
        f"lr={opt.lr}",
        "2 arrays",
        "16 parameters",
        "step 1",
        "numpy",
    ):
        assert part in text


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_an_eps_inside_the_root_that_the_correction_underflows_guards_all_the_same(
    backend: str,
) -> None:
    param = np.ones(1, np.float32)
    options = {"eps": 1e-29, "eps_inside_sqrt": True, "betas": (0.9, 1 - 1e-15)}
    fastopt.Adam(param, backend=backend, **options).step(np.zeros(1, np.float32))
    assert param[0] == 1.0


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_schedule_is_asked_once_per_step_whatever_the_way_through_it(backend: str) -> None:
    asked: list[int] = []

    def lr(t: int) -> float:
        asked.append(t)
        return 0.1

    opt = fastopt.SGD([np.ones(2), np.ones(3)], lr=lr, backend=backend)
    opt.step([np.ones(2), np.ones(3)])
    opt.step([None, np.ones(3)])
    opt.step([np.ones(2, np.float32), np.ones(3)])
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    "params",
    [
        [{"params": np.ones(1), "lr": 0.1}, {"param": np.ones(1)}],
        {"params": np.ones(1), "lr": 0.1},
        ({"params": np.ones(1)}, {"params": np.ones(2)}),
    ],
)
def test_what_is_nearly_a_list_of_groups_is_refused_as_that(params: Any) -> None:
    with pytest.raises(TypeError, match=r"looks like parameter groups, .* list of dicts"):
        fastopt.Adam(params)


def test_a_bad_value_in_a_group_names_the_group() -> None:
    with pytest.raises(ValueError, match=r"Adam, params\[1\]: lr must be"):
        fastopt.Adam([{"params": np.ones(1)}, {"params": np.ones(2), "lr": -1}])


# A learning rate is not reviewed if a higher one has been -----------------------------------------


@each_variant
def test_nothing_but_what_is_proportional_to_it_depends_on_the_learning_rate(
    variant: Variant,
) -> None:
    opt = variant({"w": np.ones((4, 3))})
    group, formula = opt._state.groups[0], type(opt)
    rule = formula._rule(group)
    of_two = formula._rule({**group.plain, "lr": 2.0})
    assert of_two is rule
    assert formula._decay(group) == formula._decay({**group.plain, "lr": 2.0})
    floors = [formula._smallest_denominator(group.plain | {"lr": lr}) for lr in (0.5, 1.0)]
    assert floors[0] == floors[1]
    for t in (1, 7, 1_000_000):
        once, twice = (
            formula._scalars(group.plain | {"lr": lr}, lr, t, 1e-20) for lr in (0.5, 1.0)
        )
        shared = rule.memory is not None and rule.memory.over == "optimizer"
        for name in (*rule.scalars, *(rule.memory.inputs if shared else ())):
            factor = 2.0 if name in formula._lr_scalars else 1.0
            if "lambd" in group and t > 1:  # a higher rate falls faster: it is highest at first
                assert 0.0 <= twice[name] <= factor * once[name], name
            else:
                assert twice[name] == factor * once[name], name


def test_a_rate_that_float32_does_not_hold_is_refused_whatever_was_reviewed_before() -> None:
    opt = fastopt.AdamW(np.ones(3, np.float32), lr=0.1, weight_decay=0.1)
    for rate in (0.2, 5.0, 0.0, np.float64(0.3), 2_000.0, 1e20):
        opt.lr = rate
        assert opt.lr == rate
        assert type(opt.param_groups[0]["lr"]) is float
    with pytest.raises(ValueError, match="infinite in float32"):
        opt.lr = 1e40
    opt.lr = 100.0
    opt.param_groups[0]["weight_decay"] = 1e36
    with pytest.raises(ValueError, match="infinite in float32"):
        opt.lr = 900.0
    assert opt.lr == 100.0
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="lr"):
            opt.lr = wrong
    assert opt.lr == 100.0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_rate_that_one_group_refuses_is_set_in_none(order: tuple[int, ...]) -> None:
    made = [
        {"params": np.ones(2)},
        {"params": np.ones(2, np.float32), "weight_decay": 1e36},
        {"params": np.ones(2, np.float32)},
    ]
    opt = fastopt.AdamW([made[k] for k in order], lr=0.5)
    for start in (0.5, 100.0):  # a rate for the first time, and one below others that passed
        opt.lr = start
        # Infinite in float32: all but the first; with the decay of one; nowhere, and no rates.
        for wrong in (1e40, 900.0, -1.0, math.nan, "fast"):
            revisions = [group.revision for group in opt.param_groups]
            with pytest.raises((ValueError, TypeError), match="lr"):
                opt.lr = wrong  # type: ignore[assignment]
            assert [group["lr"] for group in opt.param_groups] == [start] * 3
            assert [group.revision for group in opt.param_groups] == revisions
    opt.step([np.ones(2, group["params"].dtype) for group in opt.param_groups])


def test_a_schedule_that_float32_does_not_hold_is_refused_in_its_step() -> None:
    param = np.ones(3, np.float32)
    opt = fastopt.Adam(param, lr=lambda t: 0.1 if t < 3 else 1e40)
    for _ in range(3):
        opt.step(np.ones(3, np.float32))
    before = param.copy()
    with pytest.raises(ValueError, match=r"at step 3.*infinite in float32"):
        opt.step(np.ones(3, np.float32))
    assert (param == before).all()
