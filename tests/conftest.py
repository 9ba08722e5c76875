"""The fixtures of the tests that run on a GPU, and on stand-ins where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.cuda.device import ON_DEVICE, real_cupy
from helpers.cuda.fake_device import FakeDevice
from helpers.cuda.runs import installed

BOTH = ["stand-in", pytest.param("device", marks=ON_DEVICE)]


def either(kind: str, devices: int = 1) -> Iterator[Any]:
    """Yield CuPy with so many devices, real or not."""
    if kind == "device":
        yield real_cupy(devices)
        return
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which runs the CUDA text on the CPU")
    with installed(FakeDevice(devices)) as module:
        yield module


@pytest.fixture(params=BOTH)
def xp(request: pytest.FixtureRequest) -> Iterator[Any]:
    """CuPy on a device (marked gpu), and a stand-in for it."""
    yield from either(request.param)


@pytest.fixture(params=BOTH)
def xp2(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The same with two devices."""
    yield from either(request.param, devices=2)


@pytest.fixture(params=[pytest.param("device", marks=ON_DEVICE)])
def gpu_only(request: pytest.FixtureRequest) -> Iterator[Any]:
    """CuPy on a device, and no stand-in."""
    yield from either(request.param)
