"""A stand-in for CuPy as whole programs use it: arithmetic, times, the pool, the device.

fastopt itself makes do with what ``fake_cupy`` has; benchmarks and the tests of the device need
this. Everything runs at once and in order, and events tell the time of the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np

from helpers.cuda import fake_cupy
from helpers.cuda.fake_cupy import FakeCupy, live_memory

MEMORY = 1 << 30
"""Bytes that a device has."""


class DeviceArray(fake_cupy.ndarray):
    """An array with arithmetic."""

    __module__ = "cupy"
    __slots__ = ()

    def _with(self, other: Any, operation: Callable[[Any, Any], Any]) -> DeviceArray:
        if isinstance(other, np.ndarray) or not (
            isinstance(other, DeviceArray) or np.isscalar(other)
        ):
            raise TypeError(f"Unsupported type {type(other)}")
        theirs = other._host if isinstance(other, DeviceArray) else other
        with np.errstate(all="ignore"):
            made = self._new(np.asarray(operation(self._host, theirs)))
        assert isinstance(made, DeviceArray)
        return made

    def __add__(self, other: Any) -> DeviceArray:
        return self._with(other, np.add)

    def __sub__(self, other: Any) -> DeviceArray:
        return self._with(other, np.subtract)

    def __mul__(self, other: Any) -> DeviceArray:
        return self._with(other, np.multiply)

    def __truediv__(self, other: Any) -> DeviceArray:
        return self._with(other, np.divide)

    __radd__, __rmul__ = __add__, __mul__

    def __iadd__(self, other: Any) -> DeviceArray:
        return self._store(self + other)

    def __isub__(self, other: Any) -> DeviceArray:
        return self._store(self - other)

    def __imul__(self, other: Any) -> DeviceArray:
        return self._store(self * other)

    def _store(self, made: DeviceArray) -> DeviceArray:
        self._host[...] = made._host
        return self

    def __eq__(self, other: object) -> Any:
        return self._with(other, np.equal)

    __hash__ = None  # type: ignore[assignment]  # as CuPy's

    def all(self) -> DeviceArray:
        return self._with(0, lambda host, _: np.asarray(host.all()))


class Stream(fake_cupy.Stream):
    """A stream that may wait for another."""

    def wait_event(self, event: Event) -> None:
        assert event.at is not None, "an event that was never recorded"


class Event(fake_cupy.Event):
    """An event that tells the time, which is the host's."""

    def __init__(self, disable_timing: bool = False) -> None:
        super().__init__(disable_timing=True)
        self.at: float | None = None

    def record(self, stream: Stream | None = None) -> None:
        super().record()
        self.at = time.perf_counter()


def _elapsed(start: Event, end: Event) -> float:
    assert start.at is not None
    assert end.at is not None
    return 1e3 * (end.at - start.at)


class Device(fake_cupy.Device):
    """A device with some memory."""

    @property
    def mem_info(self) -> tuple[int, int]:
        return MEMORY - _used(), MEMORY


def _used() -> int:
    return sum(-(-size // 512) * 512 for _, size in live_memory())


class FakeDevice(FakeCupy):
    """The module ``cupy`` with all of this."""

    def __init__(self, devices: int | str = 1, void_scalars: bool = True) -> None:
        super().__init__(devices, void_scalars)
        self.__spec__ = ModuleSpec("cupy", None)
        self.ndarray = DeviceArray
        pool = SimpleNamespace(used_bytes=_used, total_bytes=_used, free_all_blocks=lambda: None)
        self.get_default_memory_pool = lambda: pool
        cuda = self.cuda
        cuda.Device, cuda.Stream, cuda.Event = Device, Stream, Event
        cuda.get_elapsed_time = _elapsed
        cuda.runtime.driverGetVersion = lambda: 12080
        cuda.runtime.runtimeGetVersion = lambda: 12090
        cuda.runtime.getDeviceProperties = lambda number: {
            "name": b"a stand-in on the CPU",
            "major": 9,
            "minor": 0,
            "totalGlobalMem": MEMORY,
            "multiProcessorCount": 1,
        }

    # CuPy's functions, with NumPy's names and meaning

    def ones(self, shape: Any, dtype: Any = float) -> Any:
        return self.asarray(np.ones(shape, dtype))

    def full(self, shape: Any, value: Any, dtype: Any = None) -> Any:
        return self.asarray(np.full(shape, value, dtype))

    def zeros_like(self, array: Any) -> Any:
        return self.zeros(array.shape, array.dtype)

    def sqrt(self, array: Any) -> Any:
        return array._with(0.5, lambda host, _: np.sqrt(host))

    def isnan(self, array: Any) -> Any:
        return array._with(0.0, lambda host, _: np.isnan(host))

    def copyto(self, target: Any, source: Any) -> None:
        target[...] = source
