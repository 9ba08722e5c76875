"""The runs that tests make with CuPy and with NumPy, to compare what they end with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

import fastopt
from fastopt.core.arrays import Array
from helpers.cuda.device import no_waiting
from helpers.variants import Variant

DTYPES = (np.float32, np.float64)
SIZES = (0, 1, 2, 3, 4, 5, 7, 63, 64, 65, 511, 513, *range(1023, 1028), 2049)
STEPS = 12  # more than FLUSH_EVERY
HALVES = (np.float16, ml_dtypes.bfloat16)
COMPLEX = (np.complex64, np.complex128)
# Gradients whose averages are flushed; float16 has none so small.
TINY = {
    np.float32: 1e-30,
    np.float64: 1e-275,
    np.float16: 0.0,
    ml_dtypes.bfloat16: 1e-30,
    np.complex64: 1e-30,
    np.complex128: 1e-275,
}


Cut = Callable[[Any], Any]
Cuts = Sequence[tuple[Cut, Cut]]  # of each parameter and its gradient, out of a buffer


def run_of(size: int, start: int = 0) -> Cut:
    return lambda buffer: buffer[start : start + size]


def transposed(buffer: Any) -> Any:
    return buffer[:77].reshape(11, 7).T


def backwards(buffer: Any) -> Any:
    return buffer[:1026][::-1]


# What is looked at quickly: dense, and the gradient in the parameter's order.
DENSE: Cuts = (
    *((run_of(n, a), run_of(n, b)) for n in SIZES for a, b in ((0, 0), (1, 0), (0, 3), (2, 2))),
    (lambda buffer: buffer[:1].reshape(()), lambda buffer: buffer[5:6].reshape(())),
    (transposed, transposed),
    (lambda buffer: buffer[:0].reshape(3, 0), lambda buffer: buffer[:0].reshape(3, 0)),
)
# What needs copies, or a turned view.
ODD: Cuts = (
    (lambda buffer: buffer[:70:2], run_of(35)),
    (run_of(35), lambda buffer: buffer[:70:2]),
    (lambda buffer: buffer[:66].reshape(6, 11)[:, 4:], lambda buffer: buffer[:42].reshape(6, 7)),
    (backwards, run_of(1026)),
    (run_of(1026), backwards),
    (backwards, backwards),
    (transposed, lambda buffer: buffer[:77].reshape(7, 11)),
    (
        lambda buffer: buffer[:12].reshape(3, 1, 4).transpose(2, 1, 0),
        lambda buffer: buffer[:12].reshape(4, 1, 3),
    ),
)
ROOM = 20_000  # more than any cut needs


def some_values(size: int, dtype: Any, seed: int) -> Array:
    """Return usual numbers, zeros, and numbers that are flushed; no product of two is denormal."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal(size) * 10.0 ** rng.uniform(-4, 2, size)
    made[rng.random(size) < 0.05] = 0.0
    made[5::16] = TINY[dtype]  # in the same places in every step
    if dtype in COMPLEX:
        made = made + 1j * np.roll(made, 16)
    return made.astype(dtype)


def cut_out(xp: Any, cuts: Sequence[Cut], dtype: Any, seed: int) -> tuple[list[Any], list[Any]]:
    """Return arrays, and the memory that they are cut out of, which ends where they do."""
    memory, made = [], []
    for k, cut in enumerate(cuts):
        end = int(cut(np.arange(1, ROOM + 1)).max(initial=0))
        memory.append(xp.asarray(some_values(end, dtype, 1000 * seed + k)))
        made.append(cut(memory[-1]))
    return made, memory


def on_host(array: Any) -> Array:
    return np.array(array.get() if hasattr(array, "get") else array)


def run(
    variant: Variant,
    xp: Any,
    dtype: Any,
    *,
    cuts: Cuts = DENSE,
    missing: bool = False,
    grad_scale: float = 1.0,
    grad_dtype: Any = None,
    **options: Any,
) -> dict[str, Array]:
    """Return what a run ends with: all memory that the parameters are cut out of, and the state."""
    params, memory = cut_out(xp, [cut for cut, _ in cuts], dtype, 0)
    opt = variant(params, backend=_backend(xp), **options)
    for step in range(1, STEPS + 1):
        grads, _ = cut_out(xp, [cut for _, cut in cuts], grad_dtype or dtype, step)
        if missing:
            grads = [None if step % 4 == k % 7 else grad for k, grad in enumerate(grads)]
        with no_waiting():
            opt.step(grads, grad_scale=grad_scale)
    end = {f"memory of {k}": on_host(buffer) for k, buffer in enumerate(memory)}
    end["grad_norm"] = np.array(opt.grad_norm or 0.0)
    state = opt.state_dict()["state"]
    return end | {f"{n}.{slot}": x for n, entry in state.items() for slot, x in entry.items()}


def halves_of(xp: Any, dtype: Any) -> dict[str, Array]:
    """Return what steps make of every half, and of numbers around the middle between two halves."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    size = np.abs(every.astype(np.float32))
    # A GPU takes denormal numbers of float32 for 0, which bfloat16's are.
    every = every[(size == 0) | (size >= np.finfo(np.float32).tiny) & np.isfinite(size)]
    with np.errstate(over="ignore"):
        numbers = np.concatenate(
            [
                factor * np.nextafter(every.astype(np.float32), towards, dtype=np.float32)
                for towards in (-np.inf, np.inf, 0)
                for factor in (1, 1 + 2.0**-12, 1 + 2.0**-9)
            ]
            + [every.astype(np.float32) + np.spacing(every).astype(np.float32) / 2]
        ).astype(np.float32)
    numbers[np.abs(numbers) < np.finfo(np.float32).tiny] = 0.0  # denormal, or nothing
    params = [xp.asarray(every.copy()), xp.asarray(np.zeros(numbers.size, dtype))]
    opt = fastopt.SGD(params, lr=1.0, master_weights=False, backend=_backend(xp))
    opt.step([xp.asarray(np.zeros(every.size, np.float32)), xp.asarray(-numbers)])
    with np.errstate(all="ignore"):
        expected = [every, numbers.astype(dtype)]
    for found, right in zip(params, expected, strict=True):
        assert xp is not np or np.array_equal(found, right)
    return {str(k): on_host(param) for k, param in enumerate(params)}


def _backend(xp: Any) -> str:
    return "numpy" if xp is np else "cupy"


def differences(one: dict[str, Array], two: dict[str, Array]) -> dict[str, int]:
    """Return how many elements of which array differ in a bit."""
    assert one.keys() == two.keys()
    pairs = {name: (np.asarray(one[name]), np.asarray(two[name])) for name in one}
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs.values())
    counts = {name: _differing(a, b) for name, (a, b) in pairs.items()}
    return {name: count for name, count in counts.items() if count}


def _differing(one: Array, two: Array) -> int:
    bits = f"u{min(one.itemsize, 8)}"
    return int((one.reshape(-1).view(bits) != two.reshape(-1).view(bits)).sum())


def difference_of(variant: Variant, cupy: Any, dtype: Any, **more: Any) -> dict[str, int]:
    return differences(run(variant, np, dtype, **more), run(variant, cupy, dtype, **more))
