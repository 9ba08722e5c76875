"""What a step takes of the device's memory, how much it can reach there, and CuPy's own cache."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from helpers.cuda.device import REAL
from helpers.variants import VARIANT_OF, Variant, script


@pytest.fixture
def pool(cupy: Any) -> Iterator[Any]:
    """What arrays are allocated from."""
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        yield pool


def used(pool: Any) -> int:
    gc.collect()
    found: int = pool.used_bytes()
    return found


def test_ten_thousand_steps_take_no_more_memory_than_two(cupy: Any, pool: Any) -> None:
    steps = 10_000 if REAL else 500
    wide = cupy.ones((60, 80), "f4")
    params = [cupy.ones(5_000, "f4"), wide[:, ::2], cupy.ones((), "f4"), cupy.ones((30, 20), "f8")]
    grads = [cupy.full(param.shape, 0.1, "f8") for param in params]  # three are converted
    opts = [fastopt.Adam(params), fastopt.SGD(params, max_grad_norm=1.0)]

    def two_steps() -> None:
        for opt in opts:
            opt.step(grads)
            opt.step([grads[0], None, *grads[2:]])

    rounds = 25
    for _ in range(rounds):  # until CuPy's pool has what it needs
        two_steps()
    before = used(pool), pool.total_bytes()
    for _ in range(steps // 2):
        two_steps()
    assert (used(pool), pool.total_bytes()) == before
    assert opts[0].step_count == steps + 2 * rounds


def test_an_optimizer_that_is_gone_has_given_its_memory_back(cupy: Any, pool: Any) -> None:
    params = [cupy.ones(5_000, "f4") for _ in range(200)]
    grads = [cupy.ones(5_000, "f4") for _ in range(200)]

    def train() -> None:
        opt = fastopt.Adam(params, max_grad_norm=1.0)
        opt.step(grads)
        opt.load_state_dict(opt.state_dict())
        opt.step(grads)

    train()
    before = used(pool)
    for _ in range(5):
        train()
    assert used(pool) == before


# More elements than 32 bits count ----------------------------------------------------------------


def skip_without_memory(cupy: Any, needed: int) -> None:
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    free, _ = cupy.cuda.Device().mem_info
    if free < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB on the device; {free / 1e9:.0f} GB are free")


@pytest.mark.parametrize("name", ["sgd", "sgd_momentum", "adam"])
def test_more_elements_than_32_bits_count_are_all_updated(cupy: Any, name: str) -> None:
    bound = 2**31 if REAL else 2**15
    size = bound + 7
    variant = VARIANT_OF[name]
    arrays = 2 + slots(variant)
    needed = 4 * size * arrays + (2 << 30 if REAL else 0)
    skip_without_memory(cupy, needed)
    # The first, the last, and those around the bound are others than the rest.
    places = (0, bound - 2, bound - 1, bound, size - 1)
    param, grad = cupy.full(size, 1.0, "f4"), cupy.full(size, 0.5, "f4")
    for place in places:
        grad[place : place + 1] = -2.0
    small = [np.ones(2, np.float32)]
    opt = variant([param], backend="cupy", max_grad_norm=1e9)
    sure = variant(small, backend="numpy")
    for _ in range(2):
        opt.step([grad])
        sure.step([np.array([0.5, -2.0], np.float32)])
    # Multiples of 1/4 below 2^53 of them: the sum is exact in any order.
    assert opt.grad_norm == np.sqrt(0.25 * (size - len(places)) + 4.0 * len(places))
    plain, other = small[0]
    for place in places:
        assert param[place : place + 1].get()[0] == other
        param[place : place + 1] = float(plain)
    chunk = 1 << 28
    for start in range(0, size, chunk):
        assert bool((param[start : start + chunk] == plain).all()), start


def slots(variant: Variant) -> int:
    """Return how many arrays of state a variant keeps."""
    (entry,) = variant([np.ones(1, np.float32)], backend="numpy").state_dict()["state"].values()
    return sum(isinstance(value, np.ndarray) for value in entry.values())


def test_the_arena_counts_beyond_32_bits_too(cupy: Any) -> None:
    """State of many arrays lies in one piece: its end, not any array's, is beyond the bound."""
    bound = 2**31 if REAL else 2**15
    count, size = 5, bound // 4
    needed = 4 * 4 * count * size + (2 << 30 if REAL else 0)
    skip_without_memory(cupy, needed)
    params = [cupy.full(size, 1.0, "f4") for _ in range(count)]
    grads = [cupy.full(size, float(k - 2), "f4") for k in range(count)]
    small = [np.ones(1, np.float32) for _ in range(count)]
    opt, sure = fastopt.Adam(params), fastopt.Adam(small, backend="numpy")
    for _ in range(2):
        opt.step(grads)
        sure.step([np.full(1, k - 2, np.float32) for k in range(count)])
    for param, right in zip(params, small, strict=True):
        assert bool((param == right[0]).all())


# CuPy's cache of compiled kernels ----------------------------------------------------------------

TRAIN = """
import sys, hashlib
import cupy
import numpy as np
import fastopt
from helpers.variants import VARIANT_OF
found = hashlib.sha256()
for name in sys.argv[1:]:
    param = cupy.asarray(np.linspace(-1, 1, 5_000, dtype=np.float32))
    opt = VARIANT_OF[name]([param], max_grad_norm=1.0)
    for k in range(3):
        opt.step([param * k + 1])
    found.update(param.get().tobytes())
print(found.hexdigest())
"""


NAMES = ("sgd", "adam", "adadelta", "rmsprop_centered_momentum")


def trained(cache: Path, **environment: str) -> str:
    done = script(TRAIN, *NAMES, CUPY_CACHE_DIR=str(cache), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.hardware  # what is emulated is not compiled by CuPy
def test_kernels_come_from_cupys_cache_and_a_damaged_one_is_made_anew(
    cupy: Any, tmp_path: Path
) -> None:
    first = trained(tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(made) > len(NAMES)
    assert trained(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made
    for number, path in enumerate(sorted(made)):
        content = path.read_bytes()
        damaged = (content[: len(content) // 2], b"", content[:-1] + bytes([content[-1] ^ 1]))
        path.write_bytes(damaged[number % 3])
    assert trained(tmp_path) == first
    assert trained(tmp_path / "new", CUPY_CACHE_IN_MEMORY="1") == first
