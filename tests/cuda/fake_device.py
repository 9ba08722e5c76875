"""A stand-in for CuPy as whole programs use it: arithmetic, streams, events, graphs, the pool.

fastopt itself makes do with what ``fake_cupy`` has; benchmarks and the tests of the device need
this. Everything runs at once and in order, so a stream's name is all that is left of it, and events
tell the time of the host. A graph records the kernels that are launched while it is captured, with
the scalars as they are then; whatever CUDA refuses in a capture is refused here too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda import fake_cupy
from cuda.fake_cupy import Call, CUDARuntimeError, FakeCupy, live_memory

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
        _refuse_in_capture("arithmetic, which allocates")
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
        _refuse_in_capture("a reduction, which allocates")
        return type(self)(np.asarray(self._host.all()))

    def get(self, order: str = "C") -> Any:
        _refuse_in_capture("a copy to the host")
        return super().get(order)


class Stream(fake_cupy.Stream):
    """A stream, and the context in which it is the current one."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.captured: list[Callable[[], None]] | None = None

    def __enter__(self) -> Stream:
        _streams().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _streams().pop()

    def wait_event(self, event: Event) -> None:
        assert event.at is not None, "an event that was never recorded"

    def begin_capture(self) -> None:
        if self is _streams()[0]:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the default stream")
        self.captured = []

    def end_capture(self) -> Graph:
        assert self.captured is not None
        launches, self.captured = self.captured, None
        return Graph(launches)

    def synchronize(self) -> None:
        _refuse_in_capture("waiting")
        super().synchronize()


_here = threading.local()


def _streams() -> list[Stream]:
    """Return the streams that are current in this thread, the default one first."""
    if not hasattr(_here, "streams"):
        _here.streams = [Stream()]
    streams: list[Stream] = _here.streams
    return streams


def current_stream() -> Stream:
    return _streams()[-1]


def _refuse_in_capture(what: str) -> None:
    if current_stream().captured is not None:
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} in a capture")


class Graph:
    """What was launched while a stream was captured."""

    def __init__(self, launches: list[Callable[[], None]]) -> None:
        self._launches = launches

    def launch(self, stream: Stream | None = None) -> None:
        for launch in self._launches:
            launch()


class Event:
    """A moment of the host's time."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.done = True

    def record(self, stream: Stream | None = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at is not None, "an event that was never recorded"


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
        cuda.Device, cuda.Stream, cuda.Event, cuda.Graph = Device, Stream, Event, Graph
        cuda.get_current_stream, cuda.get_elapsed_time = current_stream, _elapsed
        cuda.runtime.driverGetVersion = lambda: 12080
        cuda.runtime.runtimeGetVersion = lambda: 12090
        cuda.runtime.getDeviceProperties = lambda number: {
            "name": b"a stand-in on the CPU",
            "major": 9,
            "minor": 0,
            "totalGlobalMem": MEMORY,
            "multiProcessorCount": 1,
        }

    def execute(self, call: Call) -> None:
        captured = current_stream().captured
        if captured is not None:
            captured.append(lambda: super(FakeDevice, self).execute(call))
        else:
            super().execute(call)

    # CuPy's functions, with NumPy's names and meaning

    def asarray(self, values: Any, dtype: Any = None) -> Any:
        if not isinstance(values, DeviceArray):
            _refuse_in_capture("a copy from the host")
        return super().asarray(values, dtype)

    def zeros(self, shape: Any, dtype: Any = float) -> Any:
        _refuse_in_capture("an allocation")
        return super().zeros(shape, dtype)

    def ones(self, shape: Any, dtype: Any = float) -> Any:
        return self.asarray(np.ones(shape, dtype))

    def full(self, shape: Any, value: Any, dtype: Any = None) -> Any:
        return self.asarray(np.full(shape, value, dtype))

    empty = zeros

    def zeros_like(self, array: Any) -> Any:
        return self.zeros(array.shape, array.dtype)

    def sqrt(self, array: Any) -> Any:
        return array._with(0.5, lambda host, _: np.sqrt(host))

    def isnan(self, array: Any) -> Any:
        return array._with(0.0, lambda host, _: np.isnan(host))

    def copyto(self, target: Any, source: Any) -> None:
        target._host[...] = source._host


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Let libraries look as if they were not installed: find_spec returns None for them."""
    import sys
    from unittest.mock import patch

    with patch.dict(sys.modules):
        for name in names:
            sys.modules[name] = None  # type: ignore[assignment]
        yield
