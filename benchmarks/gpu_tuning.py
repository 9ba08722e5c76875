"""Adam with other shapes of its kernel: how many elements a thread takes, how many threads."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import gpu_bandwidth
import gpu_timing
from gpu_contenders import cupy

import fastopt
from fastopt.backends.cupy import launch
from fastopt.backends.cupy import source as cupy_source
from fastopt.cli.timing import Effort, Turn

PACKS = (4, 8)
THREADS = (128, 256, 512)


@dataclass(frozen=True)
class Shape:
    """Elements per thread, and threads per block."""

    pack: int
    threads: int

    def __str__(self) -> str:
        return f"packs of {self.pack}, {self.threads} threads"

    def set(self) -> None:
        """Give the kernels that are built and launched from now on this shape."""
        # The launcher has a name of its own for the number.
        cupy_source.THREADS = launch.THREADS = self.threads
        cupy_source.pack = lambda *about: self.pack


SHAPES = [Shape(pack, threads) for pack in PACKS for threads in THREADS]


def measure(sizes: Sequence[tuple[int, int]], effort: Effort) -> list[dict[str, Any]]:
    """Return ``{"arrays": ..., "elements": ..., "device": {shape: times}}`` of each size."""
    with _restored():
        return [_row(*size, effort) for size in sizes]


def _row(arrays: int, elements: int, effort: Effort) -> dict[str, Any]:
    turns: dict[str, Turn] = {str(shape): _turn(shape, arrays, elements) for shape in SHAPES}
    if arrays == 1:
        turns |= gpu_bandwidth.turns(elements)
    times = gpu_timing.device_times(turns, effort)
    found = {name: asdict(measured) for name, measured in times.items()}
    return {"arrays": arrays, "elements": elements, "device": found}


def _turn(shape: Shape, arrays: int, elements: int) -> Turn:
    """Return Adam's steps with kernels of a shape, which it compiles for itself."""
    _backend()._KERNELS = launch.Kernels(cupy())
    shape.set()
    params = [cupy().ones(elements, "f4") for _ in range(arrays)]
    grads = [cupy().ones(elements, "f4") for _ in range(arrays)]
    opt = fastopt.Adam(params, backend="cupy")
    return Turn(partial(opt.step, grads), shape.set)


def _backend() -> Any:
    return importlib.import_module("fastopt.backends.cupy.backend")


@contextmanager
def _restored() -> Iterator[None]:
    """Put everything back in the end."""
    changed: Mapping[Any, tuple[str, ...]] = {
        cupy_source: ("THREADS", "pack"),
        launch: ("THREADS",),
        _backend(): ("_KERNELS",),
    }
    before = {module: {n: getattr(module, n) for n in names} for module, names in changed.items()}
    try:
        yield
    finally:
        for module, values in before.items():
            vars(module).update(values)
