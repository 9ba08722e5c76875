"""The real CuPy on a CUDA that runs on the CPU: what tests see of it, and set.

``installed`` puts CUDA in place, before CuPy is imported. Work is done when it is handed over, in
the order of the calls, so races between streams do not show; the rules of streams and captures, and
what each call costs the host, are CUDA's. Of cuBLAS there is what ``@`` takes; there is no CUB, and
no time.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, NamedTuple

from helpers.cuda.emulation import build, kernels

_MODULE = "cupy_backends.cuda.api.runtime"


class Launch(NamedTuple):
    """What a kernel was launched with."""

    name: str
    grid: int
    block: int
    device: int
    captured: bool


class Cuda:
    """The emulated CUDA of this process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.emulation_wait.restype = ctypes.c_char_p
        library.emulation_launch.restype = ctypes.c_char_p
        for name in ("calls", "waits", "launches", "memory", "written_after_free"):
            getattr(library, f"emulation_{name}").restype = ctypes.c_long
        self.compiled: list[str] = []
        """The names of all kernels that were compiled so far."""
        self._hook: Any = None

    def clear(self) -> None:
        """Forget what was called so far."""
        self._library.emulation_clear()
        self.compiled.clear()

    @property
    def launches(self) -> list[Launch]:
        """The launches since ``clear``; those of a graph when they are captured, not replayed."""
        found = []
        for k in range(self._library.emulation_launches()):
            numbers = [ctypes.c_int() for _ in range(4)]
            name = self._library.emulation_launch(ctypes.c_long(k), *map(ctypes.byref, numbers))
            grid, block, device, captured = (one.value for one in numbers)
            found.append(Launch(name.decode(), grid, block, device, bool(captured)))
        return found

    @property
    def waits(self) -> list[str]:
        """What made the host wait for a device since ``clear``."""
        count = self._library.emulation_waits()
        return [self._library.emulation_wait(ctypes.c_long(k)).decode() for k in range(count)]

    def calls(self, name: str) -> int:
        """Return how often a function of CUDA's runtime was called since ``clear``."""
        return int(self._library.emulation_calls(name.encode()))

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Let whatever makes the host wait for a device be an error."""
        before = len(self.waits)
        self._library.emulation_refuse_waits(1)
        try:
            yield
        finally:
            self._library.emulation_refuse_waits(-1)
        assert self.waits[before:] == []

    def late(self, queries: int) -> AbstractContextManager[None]:
        """Let events that are recorded from now on be done after so many queries."""
        return self._set("late", queries)

    def idle(self) -> AbstractContextManager[None]:
        """Let launches do nothing, so that the time of a step is the host's."""
        return self._set("idle", 1)

    def devices(self, count: int) -> AbstractContextManager[None]:
        """Let there be so many devices; 2 otherwise."""
        return self._set("devices", count, afterwards=2)

    @contextmanager
    def _set(self, name: str, value: int, afterwards: int = 0) -> Iterator[None]:
        write = getattr(self._library, f"emulation_set_{name}")
        write(value)
        try:
            yield
        finally:
            write(afterwards)

    def fail_allocations(self, count: int) -> None:
        """Let so many of the coming allocations fail."""
        self._library.emulation_fail_allocations(ctypes.c_long(count))

    def memory(self) -> list[tuple[int, int]]:
        """Return the address and the bytes of everything that is allocated."""
        room = self._library.emulation_memory(None, None, ctypes.c_long(0))
        addresses, sizes = (ctypes.c_size_t * room)(), (ctypes.c_size_t * room)()
        self._library.emulation_memory(addresses, sizes, ctypes.c_long(room))
        return list(zip(addresses, sizes, strict=True))

    def written_after_free(self) -> int:
        """Return how many freed pieces of memory were written to since this was asked."""
        return int(self._library.emulation_written_after_free())

    def end_captures(self) -> bool:
        """End captures that were left open; return whether there were any."""
        left = bool(self._library.emulation_capturing())
        self._library.emulation_end_captures()
        return left

    @contextmanager
    def running(
        self, run: Callable[[kernels.Compiled, int, int, list[bytes]], bool]
    ) -> Iterator[None]:
        """Have launches run by ``run(kernel, grid, block, arguments)``; False: as usual.

        The arguments are the bytes that CuPy launches with. What ``run`` raises is raised at the
        end; the launch fails with an error of its own.
        """
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int,
            ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_void_p),
        )  # fmt: skip
        errors: list[BaseException] = []

        def called(path: bytes, grid: int, block: int, count: int, sizes: Any, values: Any) -> int:
            given = [ctypes.string_at(values[k], sizes[k]) for k in range(count)]
            try:
                return int(run(kernels.compiled(path.decode()), grid, block, given))
            except BaseException as error:
                errors.append(error)
                return 2

        before, self._hook = self._hook, kind(called)
        self._library.emulation_set_hook(self._hook)
        try:
            yield
        finally:
            self._hook = before
            self._library.emulation_set_hook(before)
            if errors:
                raise errors[0]


@cache
def installed() -> Cuda:
    """Put the emulated CUDA where CuPy looks for it, once; CuPy must not be imported yet."""
    assert "cupy" not in sys.modules, "CuPy is imported already, on another CUDA"
    os.environ["CUPY_ACCELERATORS"] = ""  # there is no CUB
    folder = build.built()
    library = ctypes.CDLL(str(folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
    for name in ("libcublasLt.so.12", "libcublas.so.12"):  # CuPy takes what is loaded already
        ctypes.CDLL(str(folder / name))
    for compiler_library in build.nvidia("cuda_nvrtc", "lib", "libnvrtc.so.12"):
        ctypes.CDLL(str(compiler_library), ctypes.RTLD_GLOBAL)  # before 14 CuPy looks nowhere else
    sys.meta_path.insert(0, _Finder(str(folder / "runtime.so")))
    cuda = Cuda(library)
    compiler = importlib.import_module("cupy.cuda.compiler")
    function = importlib.import_module("cupy.cuda.function")
    made = kernels.compiler(function.Module, cuda.compiled)
    vars(compiler)["_compile_with_cache_cuda"] = made
    return cuda


class _Finder:
    """Finds CuPy's module for CUDA's runtime as it was built against the emulated one."""

    def __init__(self, path: str) -> None:
        self._path = path

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, self._path)
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)
