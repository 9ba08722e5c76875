"""A stand-in for CuPy in tests: its arrays are in host memory, its kernels run through g++.

It has what fastopt uses and nothing else, so that anything new in fastopt fails here until someone
has looked up what CuPy does. Where CuPy refuses something, so does this: arrays of another device
than the current one, NumPy arrays in place of CuPy's, conversion without ``get``. In addition
anything that makes the host wait for a device is refused inside ``no_synchronisation``.
"""

from __future__ import annotations

import ctypes
import operator
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from helpers.cuda import kernel_on_cpu
from helpers.cuda.kernel_on_cpu import Argument

HostArray = np.ndarray[Any, Any]

ALIGNMENT = 512  # of what CuPy's pool gives out


class HiddenSynchronisation(AssertionError):
    """The host would wait for the device here."""


class CUDARuntimeError(RuntimeError):
    """What CuPy raises for an error code of CUDA."""


_here = threading.local()
_waiting_is_refused = threading.Event()


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Refuse everything that makes the host wait for a device."""
    _waiting_is_refused.set()
    try:
        yield
    finally:
        _waiting_is_refused.clear()


waits: list[str] = []
"""Everything so far for which the host has waited for a device."""


def _wait(what: str) -> None:
    _refuse_in_capture(what)
    if _waiting_is_refused.is_set():
        raise HiddenSynchronisation(f"{what} makes the host wait for the device")
    waits.append(what)


class Device:
    """A device, and the context in which it is the current one."""

    def __init__(self, id: int | None = None) -> None:
        self.id = current_device() if id is None else id

    def __enter__(self) -> Device:
        _stack().append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        _stack().pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def synchronize(self) -> None:
        _wait("Device.synchronize")


def _stack() -> list[int]:
    if not hasattr(_here, "devices"):
        _here.devices = [0]
    devices: list[int] = _here.devices
    return devices


def current_device() -> int:
    return _stack()[-1]


class Stream:
    """A stream. What it is told is done at once, or while it is captured goes into a graph."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.captured: list[Callable[[], None]] | None = None

    def __enter__(self) -> Stream:
        _streams().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _streams().pop()

    def synchronize(self) -> None:
        _wait("Stream.synchronize")

    def begin_capture(self) -> None:
        if self is _streams()[0]:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.captured = []

    def end_capture(self) -> Graph:
        assert self.captured is not None
        graph, self.captured = Graph(self.captured), None
        return graph

    def is_capturing(self) -> bool:
        return self.captured is not None


class Graph:
    """What was captured, to be run again."""

    def __init__(self, work: list[Callable[[], None]]) -> None:
        self._work = work

    def launch(self, stream: Stream | None = None) -> None:
        for work in self._work:
            work()


def _streams() -> list[Stream]:
    if not hasattr(_here, "streams"):
        _here.streams = [Stream()]
    streams: list[Stream] = _here.streams
    return streams


def _current_stream() -> Stream:
    return _streams()[-1]


def _do(work: Callable[[], None]) -> None:
    """Do what a stream is told, or capture it."""
    captured = _current_stream().captured
    if captured is None:
        work()
    else:
        captured.append(work)


def _refuse_in_capture(what: str) -> None:
    if any(stream.is_capturing() for stream in _streams()):
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what}")


class Event:
    """An event; what comes before it is done after ``Event.late`` more looks at it."""

    late = 0

    def __init__(self, disable_timing: bool = False) -> None:
        assert disable_timing, "timing costs, and nobody reads it"
        self._looks = 0

    def record(self) -> None:
        _refuse_in_capture("an event that the host looks at")
        self._looks, self._copies = Event.late, [*_copies]
        _copies.clear()

    @property
    def done(self) -> bool:
        _refuse_in_capture("cudaEventQuery")
        self._looks -= 1
        if self._looks < 0:
            for copy in self._copies:
                copy()
            self._copies.clear()
        return self._looks < 0

    def synchronize(self) -> None:
        _wait("Event.synchronize")


_copies: list[Callable[[], None]] = []
"""Copies to the host that are under way: what is there before they are done is not theirs."""


class PinnedMemory(bytearray):
    """Memory of the host that a device can write at any time."""


class PinnedMemoryPointer(bytearray):
    """A pinned memory and a place in it; what NumPy makes an array of."""

    def __init__(self, memory: PinnedMemory, offset: int) -> None:
        assert offset == 0
        super().__init__(b"\xff" * len(memory))

    @property
    def ptr(self) -> int:
        return np.frombuffer(self, np.uint8).ctypes.data


@dataclass(frozen=True)
class MemoryPointer:
    ptr: int
    device_id: int

    def copy_to_host_async(self, target: int, size: int) -> None:
        _refuse_in_capture("a copy to the host")
        held = ctypes.string_at(self.ptr, size)  # the stream's order: what is there now
        _copies.append(lambda: ctypes.memmove(target, held, size) and None)


@dataclass(frozen=True)
class Flags:
    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


def _waits(name: str) -> Any:
    """Return a method of NumPy's that in CuPy copies to the host first."""

    def method(self: ndarray) -> Any:
        _wait(f"ndarray.{name}")
        return getattr(self._host, name)()

    return method


def _operator(compute: Callable[[Any, Any], Any]) -> Any:
    """Return an operator whose other side is an array of this device, or a number."""

    def method(self: ndarray, other: Any) -> ndarray:
        return self._new(np.asarray(compute(self._host, _operand(other))))

    return method


def _operator_in_place(compute: Callable[[Any, Any], Any]) -> Any:
    """Return the operator that writes the left side."""

    def method(self: ndarray, other: Any) -> ndarray:
        self._check_device()
        operand = _operand(other)

        def work() -> None:
            with np.errstate(all="ignore"):
                self._host[...] = compute(self._host, operand).astype(
                    self._host.dtype, casting="same_kind"
                )

        _do(work)
        return self

    return method


def _operand(other: Any) -> Any:
    if isinstance(other, ndarray):
        other._check_device()
        return other._host
    if not np.isscalar(other):
        raise TypeError(f"Unsupported type {type(other)}")
    return other


class ndarray:
    """An array of a device: a NumPy array that only this class and the kernels look into."""

    __module__ = "cupy"
    __slots__ = ("_device", "_host")

    def __init__(self, host: HostArray, device: int | None = None) -> None:
        self._host = host
        self._device = current_device() if device is None else device

    def _view(self, host: HostArray) -> ndarray:
        return type(self)(host, self._device)

    def _new(self, host: HostArray) -> ndarray:
        """Return a result of work on this array, which runs on the current device."""
        self._check_device()
        return type(self)(_aligned(host))

    def _check_device(self) -> None:
        if self._device != current_device():
            raise ValueError(
                "Array device must be same as the current device: array device = "
                f"{self._device} while current = {current_device()}"
            )

    # What is known on the host ---------------------------------------------------------------

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    device = property(lambda self: Device(self._device))

    @shape.setter
    def shape(self, shape: tuple[int, ...]) -> None:
        self._host = self._host.view()
        self._host.shape = shape

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(self._host.ctypes.data, self._device)

    @property
    def flags(self) -> Flags:
        flags = self._host.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, flags.owndata)

    def __len__(self) -> int:
        return len(self._host)

    # Views and work on the device ------------------------------------------------------------

    def __getitem__(self, index: Any) -> ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if not all(i is None or isinstance(i, int | slice | type(...)) for i in index):
            raise NotImplementedError(f"only basic indices here; got {index}")
        whole = () if ... in index else (...,)  # NumPy makes scalars of elements, CuPy never
        return self._view(self._host[(*index, *whole)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check_device()
        if isinstance(value, ndarray):
            value._check_device()
            value = value._host
        elif not np.isscalar(value):
            raise TypeError(f"CuPy does not assign {type(value).__name__} to elements")
        target = self[index]._host

        def copy() -> None:
            target[...] = value

        _do(copy)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[k] for k in range(len(self)))

    def reshape(self, *shape: Any) -> ndarray:
        host = self._host.reshape(*shape)
        shared = np.shares_memory(host, self._host) or host.size == 0
        return self._view(host) if shared else self._new(host)

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self._host.transpose(*axes))

    T = property(transpose)

    def view(self, dtype: Any) -> ndarray:
        return self._view(self._host.view(dtype))

    def flatten(self, order: str = "C") -> ndarray:
        return self._new(self._host.flatten(order))  # type: ignore[arg-type]

    def copy(self, order: str = "C") -> ndarray:
        return self._new(self._host.copy(order))  # type: ignore[arg-type]

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        return self._new(self._host.astype(dtype, order))  # type: ignore[call-overload]

    real = property(lambda self: self._view(self._host.real))
    imag = property(lambda self: self._view(self._host.imag))

    def __abs__(self) -> ndarray:
        return self._new(np.asarray(abs(self._host)))

    def max(self) -> ndarray:
        return self._new(np.asarray(self._host.max()))

    def clip(self, low: Any, high: Any, out: ndarray) -> ndarray:
        self._check_device()
        out._check_device()
        self._host.clip(low, high, out=out._host)
        return out

    __add__, __iadd__ = _operator(operator.add), _operator_in_place(operator.add)
    __sub__, __isub__ = _operator(operator.sub), _operator_in_place(operator.sub)
    __mul__, __imul__ = _operator(operator.mul), _operator_in_place(operator.mul)
    __ilshift__, __irshift__ = map(_operator_in_place, (operator.lshift, operator.rshift))
    __ge__ = _operator(operator.ge)
    __truediv__, __pow__ = _operator(operator.truediv), _operator(operator.pow)

    # What waits for the device ---------------------------------------------------------------

    def get(self, order: str = "C") -> HostArray:
        _wait("ndarray.get")
        return np.array(self._host, order=order)  # type: ignore[call-overload,no-any-return]

    item, tolist = _waits("item"), _waits("tolist")
    __float__, __int__, __bool__ = _waits("__float__"), _waits("__int__"), _waits("__bool__")

    def __array__(self, *_: Any, **__: Any) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __repr__(self) -> str:
        return f"fake cupy {self._host!r} on device {self._device}"


_allocated: list[tuple[weakref.ref[HostArray], int, int]] = []


def live_memory() -> list[tuple[int, int]]:
    """Return address and size of all memory that arrays still use."""
    _allocated[:] = [one for one in _allocated if one[0]() is not None]
    return [(address, size) for _, address, size in _allocated]


def _aligned(host: HostArray) -> HostArray:
    """Return a copy in memory that is aligned as CuPy's is, in the same order."""
    _refuse_in_capture("an allocation")
    order = "F" if host.flags.f_contiguous and not host.flags.c_contiguous else "C"
    memory = np.empty(host.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    _allocated.append((weakref.ref(memory), memory.ctypes.data + start, host.nbytes))
    flat = memory[start : start + host.nbytes].view(host.dtype)
    made = flat.reshape(host.shape, order=order)  # type: ignore[call-overload]
    made[...] = host
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Launch:
    """What a kernel was launched with."""

    name: str
    size: int
    block: int
    device: int


@dataclass(frozen=True)
class Call:
    """A launch in full."""

    name: str
    text: tuple[str, str, str, str]
    letters: dict[str, np.dtype[Any]]
    arguments: list[Argument]
    values: list[HostArray]
    size: int
    block: int


@dataclass(frozen=True)
class _Parameter:
    """One parameter of a kernel as it is declared: ``raw float32 x``."""

    name: str
    type: str
    raw: bool
    const: bool

    @classmethod
    def of(cls, text: str, const: bool) -> _Parameter:
        *words, kind, name = text.split()
        if name == "i" or not set(words) <= {"raw"}:
            raise ValueError(f"wrong parameter {text!r}")
        return cls(name, kind, "raw" in words, const)


class FakeCupy(ModuleType):
    """The module ``cupy``. Its kernels note their launches in ``launches``."""

    def __init__(self, devices: int | str = 1, void_scalars: bool = True) -> None:
        super().__init__("cupy")
        self.__version__ = "14.2.0" if void_scalars else "13.6.0"
        self.void_scalars = void_scalars
        self.launches: list[Launch] = []
        self.ndarray = ndarray
        self.asnumpy = ndarray.get
        self.cuda = SimpleNamespace(
            Device=Device,
            Event=Event,
            PinnedMemory=lambda size: PinnedMemory(size),
            PinnedMemoryPointer=PinnedMemoryPointer,
            Stream=Stream,
            get_current_stream=_current_stream,
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: _count(devices)
            ),
        )
        module = self

        class ElementwiseKernel(_ElementwiseKernel):
            cupy = module

        self.ElementwiseKernel = ElementwiseKernel

    def execute(self, call: Call) -> None:
        """Run a kernel: its text, compiled by g++."""
        operation, preamble, loop_prep, after_loop = call.text
        types = "".join(
            f"typedef {kernel_on_cpu.C_TYPES[dtype.name]} {letter};\n"
            for letter, dtype in sorted(call.letters.items())
        )
        text = kernel_on_cpu.source(
            call.arguments, operation, types + preamble, loop_prep, after_loop
        )
        if kernel_on_cpu.run(text, call.arguments, call.values, call.size, call.block):
            raise CUDARuntimeError("cudaErrorMisalignedAddress: misaligned address")

    def zeros(self, shape: Any, dtype: Any = float) -> ndarray:
        return self.ndarray(_aligned(np.zeros(shape, dtype)))

    def asarray(self, values: Any, dtype: Any = None) -> ndarray:
        if isinstance(values, ndarray):
            return values if dtype in (None, values.dtype) else values.astype(dtype)
        return self.ndarray(_aligned(np.asarray(values, dtype)))


def _count(devices: int | str) -> int:
    if isinstance(devices, str):
        raise CUDARuntimeError(devices)
    return devices


class _ElementwiseKernel:
    """Executes a kernel's text on the CPU, by CuPy's rules for arguments."""

    cupy: FakeCupy

    def __init__(
        self,
        in_params: str,
        out_params: str,
        operation: str,
        name: str = "kernel",
        preamble: str = "",
        no_return: bool = False,
        loop_prep: str = "",
        after_loop: str = "",
        options: Sequence[str] = (),
    ) -> None:
        assert no_return, "outputs are handed in here, in-place as they are"
        inputs = [_Parameter.of(text, True) for text in in_params.split(",")]
        outputs = [_Parameter.of(text, False) for text in out_params.split(",")]
        self._parameters = inputs + outputs
        for parameter in self._parameters:
            if parameter.type[0] == "V" and not self.cupy.void_scalars:
                raise ValueError(f"Wrong type {parameter.type}")
        self._name = name
        self._text = (operation, preamble, loop_prep, after_loop)

    def __call__(self, *given: Any, size: int | None = None, block_size: int = 128) -> None:
        pairs = [*zip(self._parameters, given, strict=True)]
        self._check(pairs)
        shapes = [x.shape for p, x in pairs if isinstance(x, ndarray) and not p.raw]
        if (size is None) != bool(shapes):
            raise ValueError("size belongs to kernels whose arrays are all raw, and to them alone")
        shape = np.broadcast_shapes(*shapes) if shapes else (size,)
        if (n := int(np.prod(shape))) == 0:
            return
        letters = {p.type: x.dtype for p, x in pairs if len(p.type) == 1 and hasattr(x, "dtype")}
        arguments = [
            Argument(
                p.name,
                np.dtype(letters.get(p.type, p.type)),
                isinstance(x, ndarray),
                p.raw,
                p.const,
            )
            for p, x in pairs
        ]
        values = [
            _on_host(argument, x, shape) for argument, (_, x) in zip(arguments, pairs, strict=True)
        ]
        launch = Launch(self._name, n, block_size, current_device())
        call = Call(self._name, self._text, letters, arguments, values, n, block_size)

        def run() -> None:
            self.cupy.launches.append(launch)
            self.cupy.execute(call)

        _do(run)

    def _check(self, pairs: Sequence[tuple[_Parameter, Any]]) -> None:
        for parameter, value in pairs:
            if not isinstance(value, ndarray):
                if not parameter.const or not (np.isscalar(value) or isinstance(value, np.void)):
                    raise TypeError(f"Unsupported type {type(value)} for {parameter.name}")
                continue
            value._check_device()
            if len(parameter.type) > 1 and np.dtype(parameter.type) != value.dtype:
                raise TypeError(f"Type is mismatched. {parameter.name} {value.dtype}")


def _on_host(argument: Argument, value: Any, shape: tuple[int, ...]) -> HostArray:
    """Return what a kernel is given for an argument: a scalar of its dtype, or an array."""
    if not isinstance(value, ndarray):
        with np.errstate(all="ignore"):
            return np.array(value, argument.dtype)
    return value._host if argument.raw else np.broadcast_to(value._host, shape)
