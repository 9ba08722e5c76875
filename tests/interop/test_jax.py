"""Gradients of JAX are read where they are; what JAX is handed does not change behind its back."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.interop import from_jax, to_jax

jax: Any = pytest.importorskip("jax")
jnp: Any = jax.numpy


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16, "complex64"])
def test_gradients_are_read_without_a_copy(dtype: Any) -> None:
    given = {"W": jnp.arange(6.0).reshape(2, 3).astype(dtype), "none": None, "b": (jnp.ones(4),)}
    got = from_jax(given)
    assert type(got["W"]) is np.ndarray
    assert got["W"].dtype == dtype
    assert got["W"].ctypes.data == given["W"].unsafe_buffer_pointer()
    assert got["b"][0].ctypes.data == given["b"][0].unsafe_buffer_pointer()
    assert got["none"] is None
    np.testing.assert_array_equal(got["W"], np.arange(6).reshape(2, 3).astype(dtype))


def test_a_copy_can_be_trained_and_jax_sees_nothing_of_it() -> None:
    first = {"w": jnp.ones(1 << 14)}
    params = from_jax(first, copy=True)
    seen = to_jax(params)
    fastopt.SGD(params, lr=0.5).step(from_jax({"w": jnp.ones(1 << 14)}))
    np.testing.assert_array_equal(params["w"], 0.5)
    np.testing.assert_array_equal(np.asarray(seen["w"]), 1)
    np.testing.assert_array_equal(np.asarray(first["w"]), 1)


def test_memory_that_jax_would_share_is_copied() -> None:
    room = np.zeros((1 << 14) + 16, np.float32)  # 64 bytes more, so that it can begin at such a one
    begin = -room.ctypes.data % 64 // 4
    aligned = room[begin : begin + (1 << 14)]
    seen = to_jax(aligned)
    aligned += 1
    assert not np.asarray(seen).any()


def test_a_run_is_the_one_without_jax() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 4)).astype("f"), rng.standard_normal(30).astype("f")

    @jax.jit
    def gradients(params: Any) -> Any:
        return jax.grad(lambda p: jnp.mean((X @ p["w"] + p["b"] - y) ** 2))(params)

    params = from_jax({"w": jnp.zeros(4), "b": jnp.zeros(())}, copy=True)
    opt = fastopt.Adam(params, lr=0.05)
    w, b = np.zeros(4, np.float32), np.zeros((), np.float32)
    by_hand = fastopt.Adam({"w": w, "b": b}, lr=0.05)
    for _ in range(50):
        opt.step(from_jax(gradients(to_jax(params))))
        error = 2 * (X @ w + b - y) / 30
        by_hand.step({"w": X.T @ error, "b": np.asarray(error.sum())})
    np.testing.assert_allclose(params["w"], w, atol=1e-4)
    np.testing.assert_allclose(params["b"], b, atol=1e-4)


def test_float64_is_not_narrowed_in_silence() -> None:
    with pytest.raises(TypeError, match="jax_enable_x64"):
        to_jax(np.zeros(3))
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        assert to_jax(np.zeros(3)).dtype == np.float64
    finally:
        jax.config.update("jax_enable_x64", before)


def test_other_leaves_stay() -> None:
    assert to_jax({"n": 3, "name": "x"}) == {"n": 3, "name": "x"}


def test_without_jax_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['jax'] = None; import fastopt; fastopt.interop.to_jax({})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "pip install jax" in ended.stderr
