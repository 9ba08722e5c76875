"""The cube root of MADGRAD and the arctangent of AdamAtan2, which are written out of + - * / sqrt.

The forms of one element are uncompiled here, and so in float64 alone; that all forms have the same
bits in float32 too is tested as of every rule.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastopt_kernels import adam_atan2, madgrad

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
EXTENDED = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant
"""Where the widest floats are float64 the references are off by as much as what they check."""


def spread(dtype: Any, count: int, lowest: float = 1.0) -> Any:
    """Return positive numbers of all sizes, from so many times the smallest normal one."""
    info = np.finfo(dtype)
    ends = math.log2(float(info.smallest_normal) * lowest), math.log2(float(info.max) / 2)
    exponents = np.random.default_rng(0).uniform(*ends, count)
    return np.exp2(exponents.astype(np.longdouble)).astype(dtype)


def ulps(got: Any, exact: Any) -> float:
    """Return the largest difference in units of the last place."""
    wide = np.abs(got.astype(np.longdouble) - exact)
    return float((wide / np.spacing(np.abs(got)).astype(np.longdouble)).max())


def cube_root(form: str, x: Any) -> Any:
    """Return the cube roots, or what the form of one element makes of them: 1 / cbrt(x)."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    if form == "numpy":
        with np.errstate(over="ignore"):
            return madgrad._cube_root(x, *madgrad.CONSTANTS.values())
    # Without gradient, eps and momentum p becomes p0 - s / cbrt(v), here of v = x, s = -1, p0 = 0.
    before, after = (zero, zero, zero, -one), (zero, one, zero, zero, one)
    constants = [x.dtype.type(value) for value in madgrad.CONSTANTS.values()]
    ends = [madgrad.RULE.numba(*before, v, *after, *constants)[0] for v in x]
    return np.array(ends)


@each_dtype
def test_the_cube_root_is_right_to_an_ulp(dtype: Any) -> None:
    small = np.finfo(dtype).smallest_subnormal
    few = [1.0, 8.0, 27.0, 1e-3, np.finfo(dtype).max, np.finfo(dtype).smallest_normal, small]
    x = np.concatenate([spread(dtype, 20_000), np.array(few, dtype)])
    got = cube_root("numpy", x)
    assert got.dtype == dtype
    assert ulps(got, np.cbrt(x.astype(np.longdouble))) <= (1.0 if EXTENDED else 2.0)


@each_dtype
def test_what_has_no_other_cube_root_is_its_own(dtype: Any) -> None:
    with np.errstate(all="ignore"):
        got = cube_root("numpy", np.array([0.0, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(got, [0.0, np.inf, np.nan])


def test_the_form_of_one_element_has_the_same_cube_root() -> None:
    x = spread(np.float64, 500)
    np.testing.assert_array_equal(cube_root("numba", x), 1 / cube_root("numpy", x))


def angle(form: str, y: Any, x: Any) -> Any:
    """Return the angle of arrays; x is not negative."""
    constants = [y.dtype.type(value) for value in adam_atan2.CONSTANTS.values()]
    if form == "numpy":
        return adam_atan2._angle(y, x, *adam_atan2.CONSTANTS.values())
    zero, one = y.dtype.type(0), y.dtype.type(1)
    # Averages that stay as they are, and a root that is x again.
    numbers = zip(y, x * x, strict=True)
    scalars = (zero, zero, one, -one, *constants)
    return np.array(
        [adam_atan2.RULE.numba(zero, zero, zero, m, v, *scalars)[0] for m, v in numbers]
    )


@each_dtype
def test_the_arctangent_is_right_to_a_few_ulp(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    x = spread(dtype, 20_000, 2.0**24)
    ratio = np.exp2(rng.uniform(-20, 20, x.size)).astype(dtype)
    near = np.linspace(0.5, 2.0, 5_001, dtype=dtype)
    y = np.concatenate([(x / 2**21) * ratio, near, -near])
    x = np.concatenate([x / 2**21, np.ones_like(near), np.ones_like(near)])
    got = angle("numpy", y, x)
    assert got.dtype == dtype
    exact = np.arctan2(y.astype(np.longdouble), x.astype(np.longdouble))
    assert ulps(got, exact) <= 3.0


@each_dtype
def test_the_arctangent_of_special_numbers(dtype: Any) -> None:
    info = np.finfo(dtype)
    sizes = [0.0, info.smallest_subnormal, info.smallest_normal, 1.0, info.max, np.inf, np.nan]
    ys, xs = np.array([*sizes, *(-s for s in sizes)], dtype), np.array(sizes, dtype)
    y, x = (np.ravel(values) for values in np.meshgrid(ys, xs))
    with np.errstate(all="ignore"):
        got = angle("numpy", y, x)
    few = float(info.smallest_subnormal)
    np.testing.assert_allclose(got, np.arctan2(y, x), rtol=3 * float(info.eps), atol=few)


def test_the_form_of_one_element_has_the_same_arctangent() -> None:
    rng = np.random.default_rng(2)
    x = np.exp2(rng.integers(-10, 10, 500)).astype(np.float64)  # whose squares have exact roots
    y = (x * rng.uniform(-3, 3, 500)).astype(np.float64)
    np.testing.assert_array_equal(angle("numba", y, x), angle("numpy", y, x))
