"""CuPy as the tests have it: on a device, or the real CuPy on a CUDA that runs on the CPU.

With FASTOPT_TEST_GPU set a device must answer, so that a run that was meant to test one cannot
pass without it. Otherwise CUDA is emulated (see ``emulation``), where CuPy is installed and g++ is
there; where they are not, the tests are skipped and say why.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest

from helpers.cuda.emulation import build
from helpers.cuda.emulation import cuda as emulation
from helpers.cuda.emulation.cuda import Cuda

REAL = bool(os.environ.get("FASTOPT_TEST_GPU"))
"""Whether the tests run on a device."""

SPIN = 600_000_000
"""Cycles of a device's clock: a third of a second or so."""


@cache
def emulated() -> Cuda | None:
    """Return the emulated CUDA, which is installed now; None on a device, and where CuPy lacks."""
    return None if REAL or build.reason_to_skip() else emulation.installed()


def cupy_or_skip(devices: int = 1) -> Any:
    """Return CuPy, if so many devices answer; else skip the test, or fail it."""
    if not REAL and (reason := build.reason_to_skip()):
        pytest.skip(reason)
    emulated()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns at import of what it does not find
        cupy = importlib.import_module("cupy")
    if not REAL:
        solve_on_host(cupy)
    found = cupy.cuda.runtime.getDeviceCount()  # raises without any: the test fails
    if found < devices:
        pytest.skip(f"needs {devices} devices; there is {found}")
    return cupy


def solve_on_host(cupy: Any) -> None:
    """Let NumPy decompose and sort for CuPy: the emulated CUDA has no cuSOLVER, and no Thrust."""

    def by_numpy(name: str) -> Callable[[Any], tuple[Any, ...]]:
        def decomposed(matrices: Any) -> tuple[Any, ...]:
            found = getattr(np.linalg, name)(cupy.asnumpy(matrices))
            return tuple(cupy.asarray(part) for part in found)

        return decomposed

    def sorted_by_numpy(values: Any, axis: int | None = -1, kind: Any = None) -> Any:
        return cupy.asarray(np.argsort(cupy.asnumpy(values), axis, kind))

    for name in ("eigh", "qr"):
        setattr(cupy.linalg, name, by_numpy(name))
    cupy.argsort = sorted_by_numpy


def no_waiting() -> AbstractContextManager[None]:
    """Let it be an error if the host waits for the device, where CUDA is emulated."""
    cuda = emulated()
    return nullcontext() if cuda is None else cuda.no_waiting()


def keep_busy(cupy: Any, cycles: int = SPIN) -> None:
    """Give the current stream something that takes a while; what the host does goes on.

    An emulated device has done everything at once, so it has nothing that could take a while.
    """
    if REAL:
        out = cupy.zeros(1, "i8")
        _spin(cupy)(cycles, out, size=1)


def _spin(cupy: Any) -> Any:
    return cupy.ElementwiseKernel(
        "int64 cycles",
        "raw int64 out",
        "const long long begin = clock64(); while (clock64() - begin < cycles) {} out[0] = begin;",
        "keep_busy",
        no_return=True,
    )
