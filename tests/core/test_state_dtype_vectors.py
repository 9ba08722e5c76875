"""Fewer bits meet the recorded vectors: state in the mean exactly, and spread as it must be.

Of each element of a vector there are hundreds of copies, side by side, which differ in their draws
alone. With u the largest distance of two neighbours on the grid, relative to the number:

* a store is wrong by less than u, either way, so its standard deviation is at most u/2; that of T
  independent ones together sqrt(T) times as much. A step is as wrong as the average above the bar,
  and half as wrong as the one below the root: by 3/4 of u * sqrt(T) at most, in units of the
  largest step, and all T steps together T times as much;
* rounding has no bias, so the copies' mean is the recorded number within 5 standard errors, but for
  the curvature of 1 / sqrt(v): 3/8 of the variance of v, which is at most T * (u/2)**2. Where
  noise does not cancel there is more: the maximum of noisy averages (AMSGrad) is too large, and so
  is the magnitude of a noisy difference (centred RMSprop), by a few standard deviations; and an
  accumulator that begins at a number off the grid begins up to u/2 beside it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.core.arrays import Array
from helpers.variants import CPU_BACKENDS, SMOOTH
from helpers.vectors import ELEMENTWISE, FULL, Vector, run

NAMES = {optimizer.__name__ for optimizer in SMOOTH}
CORNERS = ("cautious_decay", "l1")
"""Options that look at signs: the mean of many steps is not the step of their mean."""
CLOSELY = {"SGD", "Momentum", "Adagrad", "RMSprop", "Adadelta", "Adam", "AdamW"}
"""Optimizers of which all cases are looked at, and not the default alone: rounding does not know
which rule it is in."""
STEADY = [
    v
    for v in ELEMENTWISE
    if v.info["optimizer"] in NAMES
    if v.path.stem not in CORNERS
    if v.info["optimizer"] in CLOSELY or v.case == "default"
]

ROUNDED = {np.dtype(np.float16): 2.0**-11, np.dtype(ml_dtypes.bfloat16): 2.0**-8}
"""By how much a parameter is off that is rounded to nearest, relative to itself."""

UNITS = {"bfloat16": 2.0**-7, "int8": 2.0**-4}
COPIES = (4096, 1024, 512)
"""Of each element of a parameter: whole blocks of 8 bits, and enough elements for them."""


class Copies(Vector):
    """A vector with copies of each element."""

    def inputs(self, letter: str, dtype: Any) -> list[Array]:
        pairs = zip(super().inputs(letter, dtype), COPIES, strict=True)
        return [np.ascontiguousarray(np.repeat(a[..., None], n, axis=-1)) for a, n in pairs]


def settings_of(vector: Vector, name: str) -> bool:
    return any(some.get(name) for some in [vector.info["kwargs"], *vector.info["groups"]])


def check(vector: Vector, state_dtype: str, backend: str) -> None:
    """Hold a run with state in fewer bits to a vector."""
    unit, steps = UNITS[state_dtype], vector.info["steps"]
    make = partial(getattr(fastopt, vector.info["optimizer"]), state_dtype=state_dtype)
    got = run(Copies(vector.path, vector.info), np.float32, backend, make)
    noisy = settings_of(vector, "amsgrad") or settings_of(vector, "centered")
    begun = settings_of(vector, "initial_accumulator_value")
    for k in range(3):
        start = vector.inputs("p", np.float64)[k]
        path = np.concatenate([start[None], vector[f"p{k}"]])
        way = steps * np.abs(np.diff(path, axis=0)).max(axis=0)  # at most, with every step so long
        float32 = 4 * np.finfo(np.float32).eps * steps * np.abs(path).max(axis=0)
        ends = got[f"p{k}"][-1].astype(float)
        spread = ends.std(axis=-1)
        assert (spread <= 0.75 * unit * np.sqrt(steps) * way + float32).all()
        error = 5 * spread / np.sqrt(COPIES[k]) + float32 + 3 * spread * noisy
        error += unit / 4 * way * begun
        if vector.info["optimizer"] not in ("SGD", "Momentum"):
            error += 3 / 8 * steps * (unit / 2) ** 2 * way
        assert (np.abs(ends.mean(axis=-1) - path[-1]) <= error).all()


@pytest.mark.covering(1)
@pytest.mark.parametrize("state_dtype", UNITS)
@pytest.mark.parametrize("vector", STEADY, ids=str)
def test_state_in_fewer_bits_meets_the_oracle_in_the_mean(vector: Vector, state_dtype: str) -> None:
    if settings_of(vector, "mask_zero") and state_dtype == "int8":
        with pytest.raises(ValueError, match="mask_zero cannot be used with state_dtype='int8'"):
            check(vector, state_dtype, CPU_BACKENDS[-1])
        return
    check(vector, state_dtype, CPU_BACKENDS[-1])  # the bits are the same on both


ROUNDED_AS_THEY_ARE = [
    *STEADY,
    *(v for v in FULL if v.path.stem in ("lamb", "muon", "l1") and v.info["inputs"] != "huge"),
]
"""All but what does not fit float16, what goes by the difference of two near parameters (Prodigy),
what counts the elements that move (cautious), and what asks whether one does (cautious_decay)."""


class OfHalf(Vector):
    """A vector whose parameters are rounded, and whose gradients come in float32."""

    def inputs(self, letter: str, dtype: Any) -> list[Array]:
        return super().inputs(letter, dtype if letter == "p" else np.float32)


@pytest.mark.covering(1)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
@pytest.mark.parametrize("vector", ROUNDED_AS_THEY_ARE, ids=str)
def test_half_precision_is_off_by_its_own_rounding_alone(
    vector: Vector, dtype: Any, backend: str
) -> None:
    """Once at the beginning and once at the end; weight decay makes steps of the first, too."""
    got = run(OfHalf(vector.path, vector.info), dtype, backend)
    steps, decayed = vector.info["steps"], settings_of(vector, "weight_decay")
    for k in range(3):
        start = vector.inputs("p", np.float64)[k]
        path = np.concatenate([start[None], vector[f"p{k}"]])
        way = np.abs(np.diff(path, axis=0)).sum(axis=0)
        close = ROUNDED[dtype] * (np.abs(path[0]) + np.abs(path[-1])) + 2.0**-24
        close += 4 * np.finfo(np.float32).eps * steps * np.abs(path).max(axis=0)
        close += ROUNDED[dtype] * way * decayed
        assert (np.abs(got[f"p{k}"][-1].astype(float) - path[-1]) <= close).all()
