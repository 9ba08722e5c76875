"""What NVRTC makes of every rule gives NumPy's bits, and touches no memory but what it should.

The instructions run in an interpreter (tests/cuda/ptx_interpreter.py); no GPU is needed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from cuda import nvrtc
from cuda.fake_cupy import Call, FakeCupy, live_memory
from cuda.ptx_interpreter import Fault, Memory, Program
from cuda.runs import (
    DENSE,
    DTYPES,
    HALVES,
    ODD,
    difference_of,
    differences,
    halves_of,
    installed,
    run_of,
)
from variants import VARIANT_OF, VARIANTS, Variant

from fastopt.backends import cupy_norm_source, cupy_source
from fastopt.formats import Format
from fastopt.norms import PIECE

if reason := nvrtc.reason_to_skip():
    pytest.skip(reason, allow_module_level=True)

CUPY = sys.modules["cupy"]  # the real one, which is hidden while the stand-in is installed
ARCHITECTURE = 90


@cache
def ptx_of(name: str, format: Format, changes: tuple[tuple[str, str], ...] = ()) -> str:
    """Return the PTX of a kernel, after changes of its text."""
    if name == "fastopt_squares":
        text = cupy_norm_source.squares(format.given, by_value=True)
    elif name == "fastopt_halves":
        text = cupy_norm_source.halves()
    else:
        rule = importlib.import_module(f"fastopt_kernels.{name.removeprefix('fastopt_')}").RULE
        text = cupy_source.kernel(rule, format, by_value=True)
    for right, wrong in changes:
        assert right in text["preamble"]
        text["preamble"] = text["preamble"].replace(right, wrong)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", CUPY)
        return nvrtc.ptx(CUPY.ElementwiseKernel(**text), ARCHITECTURE)


class PtxCupy(FakeCupy):
    """The stand-in for CuPy, with kernels that run as NVRTC compiled them."""

    format = Format.of(np.dtype(np.float32), True)
    changes: tuple[tuple[str, str], ...] = ()

    def execute(self, call: Call) -> None:
        program = Program(ptx_of(call.name, self.format, self.changes), call.name)
        arguments = [
            np.array([x.ctypes.data, x.size, *x.shape, *x.strides]).tobytes()  # CuPy's CArray
            if argument.is_array
            else x.tobytes()
            for argument, x in zip(call.arguments, call.values, strict=True)
        ]
        indices = np.array([call.size, call.size, 0]).tobytes()  # CuPy's CIndexer
        grid = -(-call.size // call.block)
        program.run(Memory(live_memory()), [*arguments, indices], grid, call.block)


@pytest.fixture
def cupy() -> Iterator[PtxCupy]:
    with installed(PtxCupy()) as module:
        assert isinstance(module, PtxCupy)
        yield module


FEW = DENSE[4::9]
"""Some of every kind: the interpreter takes its time."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_rule_ends_in_the_bits_of_numpy(cupy: PtxCupy, variant: Variant, dtype: Any) -> None:
    cupy.format = Format.of(np.dtype(dtype), True)
    more = {"weight_decay": 0.03, "grad_scale": 0.37, "missing": True}
    assert difference_of(variant, cupy, dtype, cuts=[*FEW, *ODD[:3]], **more) == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_by_the_global_norm_does_so_too(cupy: PtxCupy, dtype: Any) -> None:
    cupy.format = Format.of(np.dtype(dtype), True)
    sizes = (1, 63, 64, 65, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 100)
    cuts = [(run_of(n), run_of(n, 1)) for n in sizes]
    more = {"missing": True, "max_grad_norm": 100.0}
    assert difference_of(VARIANT_OF["sgd"], cupy, dtype, cuts=cuts, **more) == {}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("variant", [VARIANT_OF["adam"], VARIANT_OF["sgd"]], ids=str)
def test_halves_with_master_weights_do_so_too(cupy: PtxCupy, variant: Variant, dtype: Any) -> None:
    cupy.format = Format.of(np.dtype(dtype), True)
    more = {"missing": True, "max_grad_norm": 100.0}
    assert difference_of(variant, cupy, dtype, cuts=[*FEW, *ODD], **more) == {}


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_read_and_rounded_to_as_numpy_does(cupy: PtxCupy, dtype: Any) -> None:
    cupy.format = Format.of(np.dtype(dtype), False).with_gradients(np.dtype(np.float32))
    assert differences(halves_of(np, dtype), halves_of(cupy, dtype)) == {}


FAULTS = {
    "a tail too long": (
        "packed + threadIdx.x; k < count;",
        "packed + threadIdx.x; k < count + 1;",
        "outside of all arrays",
    ),
    "a pack too long": ("(first < packed)", "(packed && first < count)", "outside of all"),
    "packs of unaligned arrays": ("(4 * sizeof(stored))", "4", "misaligned"),
    "threads that overlap": ("threadIdx.x * 4ll", "threadIdx.x / 2 * 4ll", "one thread writes"),
    "a tail twice": ("long long k = packed", "long long k = 0", "one thread writes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_text_is_noticed(cupy: PtxCupy, fault: str) -> None:
    right, wrong, noticed = FAULTS[fault]
    cupy.changes = ((right, wrong),)
    with pytest.raises(Fault, match=noticed):
        difference_of(VARIANT_OF["adam"], cupy, np.float32, cuts=DENSE)
