"""Adam with other shapes of its kernels than those of ``fastopt/backends/cupy/shapes.py``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import gpu_bandwidth
import gpu_timing
from gpu_contenders import cupy

import fastopt
from fastopt.backends.cupy import launch
from fastopt.backends.cupy.shapes import SHAPES, Shape
from fastopt.cli.timing import Effort, Turn

THREADS = (128, 256, 512)
TRIED: Mapping[str, tuple[Mapping[str, Any], list[Shape]]] = {
    "update": ({}, [Shape(threads, load) for load in (16, 32) for threads in THREADS]),
    "int8_update": (
        {"state_dtype": "int8"},
        [Shape(threads, registers=most) for most in (64, None) for threads in THREADS],
    ),
}
"""By kernel the options of the optimizer that has it, and the shapes that are tried."""


def name_of(kernel: str, shape: Shape) -> str:
    """Return what a kernel of a shape is called in the results."""
    registers = f", {shape.registers} registers" if shape.registers else ""
    return f"{kernel}: {shape.load} bytes, {shape.threads} threads{registers}"


def measure(sizes: Sequence[tuple[int, int]], effort: Effort) -> list[dict[str, Any]]:
    """Return ``{"arrays": ..., "elements": ..., "device": {shape: times}}`` of each size."""
    return [_row(*size, effort) for size in sizes]


def _row(arrays: int, elements: int, effort: Effort) -> dict[str, Any]:
    turns = {
        name_of(kernel, shape): _turn(kernel, shape, arrays, elements, options)
        for kernel, (options, shapes) in TRIED.items()
        for shape in shapes
    }
    if arrays == 1:
        turns |= gpu_bandwidth.turns(elements)
    times = gpu_timing.device_times(turns, effort)
    found = {name: asdict(measured) for name, measured in times.items()}
    return {"arrays": arrays, "elements": elements, "device": found}


def _turn(
    kernel: str, shape: Shape, arrays: int, elements: int, options: Mapping[str, Any]
) -> Turn:
    """Return Adam's steps with a kernel of this shape."""
    params = [cupy().ones(elements, "f4") for _ in range(arrays)]
    grads = [cupy().ones(elements, "f4") for _ in range(arrays)]
    with shaped(kernel, shape):
        opt = fastopt.Adam(params, backend="cupy", **options)
        opt.step(grads)
    return Turn(partial(opt.step, grads))


@contextmanager
def shaped(kernel: str, shape: Shape) -> Iterator[None]:
    """Give the kernels of optimizers that are made meanwhile another shape; they keep it."""
    backend: Any = importlib.import_module("fastopt.backends.cupy.backend")
    before, kernels = SHAPES[kernel], backend._KERNELS
    SHAPES[kernel], backend._KERNELS = shape, launch.Kernels(cupy())
    try:
        yield
    finally:
        SHAPES[kernel], backend._KERNELS = before, kernels
