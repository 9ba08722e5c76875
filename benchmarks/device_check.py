"""Says within seconds whether steps on this device are what they should be.

One step of each kind (plain, clipped, skipped, captured in a graph) against the same on NumPy, to
the bit; what it prints is what to look at first if something is wrong.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

import fastopt

SHAPES = ((1_000, 70), (5,), ())


def main() -> int:
    """Make all steps; return how many were wrong."""
    wrong = 0
    for name, run in CHECKS.items():
        start = time.perf_counter()
        try:
            said = run()
        except Exception as error:  # whatever it is, the other kinds are tried too
            said = f"{type(error).__name__}: {error}"
        wrong += said is not None
        print(f"{name:<24}{said or 'good'}  ({time.perf_counter() - start:.1f} s)", flush=True)
    return wrong


def _arrays(seed: int, bad: bool = False) -> list[Any]:
    rng = np.random.default_rng(seed)
    made = [np.asarray(rng.standard_normal(shape), np.float32) for shape in SHAPES]
    if bad:
        made[0][3, 3] = np.nan
    return made


def _compared(steps: int = 5, bad: int = -1, **options: Any) -> str | None:
    """Return what differs after some steps; None if nothing does."""
    on_host, on_device = _arrays(0), [cupy.asarray(one) for one in _arrays(0)]
    host = fastopt.Adam(on_host, 1e-2, backend="numpy", **options)
    device = fastopt.Adam(on_device, 1e-2, backend="cupy", **options)
    for step in range(steps):
        grads = _arrays(1 + step, bad == step)
        host.step(grads)
        device.step([cupy.asarray(grad) for grad in grads])
    return _difference(on_host, on_device)


def _difference(on_host: list[Any], on_device: list[Any]) -> str | None:
    for one, two in zip(on_host, on_device, strict=True):
        bits, others = np.atleast_1d(one).view("u4"), np.atleast_1d(two.get()).view("u4")
        if count := int((bits != others).sum()):
            return f"{count} of {one.size} elements of shape {one.shape} differ"
    return None


def _captured() -> str | None:
    on_host, on_device = _arrays(0), [cupy.asarray(one) for one in _arrays(0)]
    host = fastopt.Adam(on_host, 1e-2, backend="numpy")
    device = fastopt.Adam(on_device, 1e-2, backend="cupy", capturable=True).warmup()
    buffers = [cupy.asarray(one) for one in _arrays(1)]
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            device.step(buffers)
        finally:
            graph = stream.end_capture()
        for step in range(5):
            grads = _arrays(1 + step)
            for buffer, grad in zip(buffers, grads, strict=True):
                buffer[...] = cupy.asarray(grad)
            graph.launch(stream)
            host.step(grads)
        stream.synchronize()
    return _difference(on_host, on_device)


CHECKS: dict[str, Callable[[], str | None]] = {
    "plain": _compared,
    "clipped": lambda: _compared(max_grad_norm=1.0),
    "skipped": lambda: _compared(bad=2, on_nonfinite="skip"),
    "bfloat16 state": lambda: _compared(state_dtype="bfloat16", seed=3),
    "int8 state": lambda: _compared(state_dtype="int8", seed=3),
    "captured": _captured,
}

if __name__ == "__main__":
    sys.exit(main())
