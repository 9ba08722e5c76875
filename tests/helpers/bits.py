"""Numbers of all sizes, and in how many bits the ends of two runs differ."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

import fastopt
from fastopt.core.arrays import Array

SPECIAL = (0.0, -0.0, 1e30, -1e30, 1e-12, -1e-12, np.inf, -np.inf, np.nan)


def values(sizes: Sequence[int], dtype: Any, seed: int) -> list[Array]:
    """Return numbers of all sizes that are usual, both signs, some of them zero."""
    rng = np.random.default_rng(seed)
    made = []
    for size in sizes:
        some = rng.standard_normal(size) * 10.0 ** rng.uniform(-6, 3, size)
        some[rng.random(size) < 0.05] = 0.0
        some[rng.random(size) < 0.05] = -0.0
        made.append(some.astype(dtype))
    return made


def special(size: int, dtype: Any, seed: int) -> Array:
    """Return numbers among which the special ones are frequent."""
    rng = np.random.default_rng(seed)
    some = rng.standard_normal(size).astype(dtype)
    where = rng.random(size) < 0.5
    some[where] = rng.choice(np.array(SPECIAL, dtype), size)[where]
    return some


def bits(array: Any) -> Array:
    """Return an array's bits, with one pattern for all NaN."""
    plain = np.array(array)
    if plain.dtype.kind == "f":
        plain[np.isnan(plain)] = np.nan
        plain = plain.view(f"u{plain.itemsize}")
    return plain


def differences(one: dict[str, Any], two: dict[str, Any]) -> dict[str, int]:
    """Return how many elements of which array differ in a bit."""
    assert one.keys() == two.keys()
    off = {}
    for name in one:
        first, second = np.asarray(one[name]), np.asarray(two[name])
        assert (first.shape, first.dtype) == (second.shape, second.dtype), name
        if count := int((bits(first) != bits(second)).sum()):
            off[name] = count
    return off


@contextmanager
def threads(count: int) -> Iterator[None]:
    numba: Any = importlib.import_module("numba")
    before = numba.get_num_threads()
    fastopt.set_num_threads(None)
    numba.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)
