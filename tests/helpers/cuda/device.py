"""The real CuPy for the tests that are marked gpu, and what only a real device can do.

Without a device they are skipped, and say why. Where FASTOPT_TEST_GPU is set they fail instead, so
that a run that was meant to test a device cannot pass without one.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import pytest

import fastopt
from helpers.cuda.fake_cupy import FakeCupy

ON_DEVICE = (
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:::cupy"),  # CuPy's own; whatever is ours is an error
)

SPIN = 600_000_000
"""Cycles of a device's clock: a third of a second or so."""


def real_cupy(devices: int = 1) -> Any:
    """Return CuPy if so many devices answer; else skip the test, or fail it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns at import of what it does not find
        reason = fastopt.available_backends()["cupy"]
        cupy: Any = None if reason else importlib.import_module("cupy")
    if reason:
        if os.environ.get("FASTOPT_TEST_GPU"):
            pytest.fail(f"FASTOPT_TEST_GPU is set, and there is no device: {reason}")
        pytest.skip(reason.partition(". ")[0])
    if (count := cupy.cuda.runtime.getDeviceCount()) < devices:
        pytest.skip(f"needs {devices} devices; there is {count}")
    return cupy


def is_real(cupy: Any) -> bool:
    return not isinstance(cupy, FakeCupy)


def keep_busy(cupy: Any, cycles: int = SPIN) -> None:
    """Give the current stream something that takes a while; what the host does goes on.

    A stand-in has done everything at once, so it has nothing that could take a while.
    """
    if is_real(cupy):
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
