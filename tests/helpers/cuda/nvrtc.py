"""What NVRTC makes of the source that the installed CuPy generates; needs no device and no driver.

CuPy builds its source in private functions. Those that are used here are CuPy 14's, in this file
alone; where a CuPy lacks them, the tests that need this are skipped.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Turing, Ampere (data centre, desktop), Ada, Hopper, Blackwell (data centre, desktop)."""

_ARRAY, _INDEXER, _SCALAR = 1, 2, 3  # of an enum that Python does not see


def reason_to_skip() -> str | None:
    """Return why nothing can be compiled here, or None."""
    try:
        version = _of_cupy("cuda.compiler")._get_nvrtc_version()
        _of_cupy("_core._kernel")._get_elementwise_kernel_code  # noqa: B018  # may be missing
        _of_cupy("").ElementwiseKernel("V32 x", "raw int32 y", "y[0] = 1")
    except Exception as error:  # no CuPy, no NVRTC, another CuPy: each says it its own way
        return f"needs CuPy 14.1 or later and NVRTC: {type(error).__name__}: {error}"
    return None if version else "needs NVRTC"


def _of_cupy(module: str) -> Any:
    return importlib.import_module(f"cupy.{module}".rstrip("."))


def source(kernel: Any) -> str:
    """Return the CUDA C++ of a cupy.ElementwiseKernel: raw parameters are flat arrays."""
    private = _of_cupy("_core._kernel")
    array, scalar = _of_cupy("").ndarray, _of_cupy("_core._scalar").CScalar
    about = [
        private._ArgInfo(_ARRAY, array, np.dtype(p.dtype), 1, True, True)
        if p.raw
        else private._ArgInfo(_SCALAR, scalar, np.dtype(p.dtype), 0, True, True)
        for p in kernel.params[:-1]
    ]
    indexer = _of_cupy("_core._carray").Indexer
    about.append(private._ArgInfo(_INDEXER, indexer, None, 1, True, True))
    code: str = private._get_elementwise_kernel_code(
        tuple(about),
        private._TypeMap(()),
        kernel.params,
        kernel.operation,
        kernel.name,
        kernel.preamble,
        **kernel.kwargs,
    )
    headers = _of_cupy("_core.core")._cupy_header_list
    return "".join(f"#include <{header}>\n" for header in headers) + code


def _compile(source: str, options: Sequence[str], method: str, *more: str) -> tuple[bytes, str]:
    """Return what NVRTC makes of a text with these options and CuPy's last, and what it says."""
    program = _of_cupy("cuda.compiler")._NVRTCProgram(source, "kernel.cu", method=method)
    said = io.StringIO()
    last = ("-ftz=true", "--device-as-default-execution-space")
    made, _ = program.compile((*options, *last, *more), said)
    return made if isinstance(made, bytes) else made.encode(), said.getvalue()


def _options(kernel: Any) -> tuple[str, ...]:
    assembled = _of_cupy("_core.core").assemble_cupy_compiler_options(kernel.kwargs["options"])
    return tuple(assembled)


def ptx_of(source: str, options: Sequence[str], architecture: int) -> str:
    """Return a text as CuPy compiles it in the assembly language of CUDA's virtual machine."""
    return _compile(source, options, "ptx", f"-arch=compute_{architecture}")[0].decode()


def ptx(kernel: Any, architecture: int) -> str:
    """Return a cupy.ElementwiseKernel in that language."""
    return ptx_of(source(kernel), _options(kernel), architecture)


def machine_code(kernel: Any, architecture: int) -> bytes:
    """Return the cubin of a cupy.ElementwiseKernel; CuPy drops its last byte, as of a text."""
    made, _ = _compile(source(kernel), _options(kernel), "cubin", f"-arch=sm_{architecture}")
    return made + b"\0"


def said_of_machine_code(kernel: Any, architecture: int) -> str:
    """Return what the assembler says of registers, stack and spills."""
    more = (f"-arch=sm_{architecture}", "--ptxas-options=-v")
    return _compile(source(kernel), _options(kernel), "cubin", *more)[1]
