"""Faults planted in the storage of state: each of them is caught by a test of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import test_low_precision
import test_quantization
import test_state_dtype
import test_state_dtype_vectors

from fastopt.backends.numpy import backend as numpy_backend
from fastopt.core import quantization
from fastopt.core.arrays import Array
from fastopt.core.buckets import Parameter
from helpers.vectors import VECTORS

Plant = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[], None]

RIGHT_TO_INT8, RIGHT_FROM_INT8 = quantization.to_int8, quantization.from_int8
RIGHT_KEY, RIGHT_OF = quantization.key, numpy_backend.Draws.of


def vector(name: str, state_dtype: str = "int8") -> Check:
    one = next(v for v in VECTORS if str(v) == name)
    return lambda: test_state_dtype_vectors.check(one, state_dtype, "numpy")


def average(state_dtype: str) -> Check:
    test = test_low_precision.test_an_average_that_keeps_0_999_follows_its_input
    return lambda: test(state_dtype, "numpy")


def never_zero() -> None:
    values = np.full(256, 1e-12, np.float32)
    values[0] = 1.0
    code, _ = quantization.to_int8(values, np.zeros(256, np.uint32), signed=False)
    assert code.all()


def beside() -> None:
    test = test_state_dtype.test_draws_do_not_depend_on_what_is_beside_a_parameter
    test("bfloat16", "numpy")


def constant(share: float) -> Plant:
    """Return what draws the same share of all draws for every element of every step."""

    def of(self: Any, slot: int, size: int = 16) -> Array:
        return np.full_like(RIGHT_OF(self, slot, size), int(share * 2**size))

    return lambda patch: patch.setattr(numpy_backend.Draws, "of", of)


def same_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(quantization, "key", lambda seed, t: RIGHT_KEY(seed, 1))


def one_half(patch: pytest.MonkeyPatch) -> None:
    def of(self: Any, slot: int, size: int = 16) -> Array:
        return RIGHT_OF(self, slot // 2 * 2, size)

    patch.setattr(numpy_backend.Draws, "of", of)


def neighbours_scale(patch: pytest.MonkeyPatch) -> None:
    def read(code: Array, scales: Array, signed: bool) -> Array:
        return RIGHT_FROM_INT8(code, np.roll(scales, 1), signed)

    patch.setattr(quantization, "from_int8", read)


def sign_lost(patch: pytest.MonkeyPatch) -> None:
    def write(values: Array, draws: Any, signed: bool) -> tuple[Array, Array]:
        return RIGHT_TO_INT8(np.abs(values), draws, signed)

    patch.setattr(quantization, "to_int8", write)


def zero_allowed(patch: pytest.MonkeyPatch) -> None:
    def write(values: Array, draws: Any, signed: bool) -> tuple[Array, Array]:
        code, scales = RIGHT_TO_INT8(values, draws, signed)
        return np.where(code == 1, np.uint8(0), code), scales

    patch.setattr(quantization, "to_int8", write)


def stream_by_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Parameter, "stream", property(lambda self: self.offset))


def counter_of_the_block(patch: pytest.MonkeyPatch) -> None:
    right = numpy_backend._count
    patch.setattr(numpy_backend, "_count", lambda first, size: right(first, size) // 256 * 256)


def halves_agree() -> None:
    test_quantization.test_draws_are_uniform_and_independent_of_each_other(0, 16)


MUTANTS: dict[str, tuple[Plant, Sequence[Check]]] = {
    "draws do not depend on the step": (same_key, [average("int8"), average("bfloat16")]),
    "rounded down": (constant(0), [average("int8"), vector("adam.default.torch")]),
    "rounded to nearest": (constant(0.5), [average("int8"), average("bfloat16")]),
    "two slots draw alike": (one_half, [halves_agree]),
    "the scale of the block before": (neighbours_scale, [vector("adam.default.torch")]),
    "the sign is lost": (sign_lost, [vector("momentum.default.optax")]),
    "positive state becomes zero": (zero_allowed, [never_zero]),
    "the stream is the place in the arena": (stream_by_place, [beside]),
    "a block draws once": (counter_of_the_block, [halves_agree]),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, checks = MUTANTS[name]
    for check in checks:
        check()  # what is right passes
    plant(monkeypatch)
    for check in checks:
        with pytest.raises(AssertionError):
            check()
