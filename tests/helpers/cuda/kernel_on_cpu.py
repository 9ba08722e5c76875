"""A CuPy ElementwiseKernel's text as a shared library for the CPU, built by g++.

The text is taken as it is. Around it stand the names that CUDA and CuPy's headers give it, and a
loop over all threads; where there are barriers, the threads of a block take turns from one to the
next. Single-precision kernels flush denormals to zero, since CuPy compiles with ``-ftz=true``; a
load or store at an address that is no multiple of its width is an error, as on a device (g++'s
alignment sanitizer calls ``__ubsan_handle_type_mismatch_v1``).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FLAGS = (
    *("-O2", "-std=c++17", "-shared", "-fPIC", "-w", "-fno-strict-aliasing"),
    *("-ffp-contract=off", "-fsanitize=alignment"),
)

C_TYPES = {
    "float64": "double",
    "float32": "float",
    "int64": "long long",
    "int32": "int",
    "uint64": "unsigned long long",
    "uint16": "unsigned short",
    "uint8": "unsigned char",
    "bool": "bool",
}

_AROUND = r"""
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <ucontext.h>
#include <vector>
#define __device__
#define __host__
#define __forceinline__ inline
using std::sqrt; using std::fabs; using std::isnan; using std::isinf; using std::isfinite;

struct Dim { unsigned x, y, z; };
static thread_local Dim threadIdx, blockIdx, blockDim, gridDim;
static thread_local jmp_buf leave;

#define __shared__ static
static thread_local ucontext_t between, *running;
static void __syncthreads() { swapcontext(running, &between); }

extern "C" void __ubsan_handle_type_mismatch_v1(void *, void *) { longjmp(leave, 1); }

#if defined(__x86_64__)
#include <xmmintrin.h>
struct Flush {
    unsigned before = _mm_getcsr();
    explicit Flush(bool on) { if (on) _mm_setcsr(before | 0x8040); }
    ~Flush() { _mm_setcsr(before); }
};
#elif defined(__aarch64__)
struct Flush {
    uint64_t before;
    explicit Flush(bool on) {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        if (on) asm volatile("msr fpcr, %0" : : "r"(before | (1u << 24)));
    }
    ~Flush() { asm volatile("msr fpcr, %0" : : "r"(before)); }
};
#endif

template <int N> struct Bytes { char data[N]; };  // a void scalar

template <class T> struct Array {
    T *data; ptrdiff_t length, ndim; const ptrdiff_t *lengths, *strides;
    explicit Array(const int64_t *about)
        : data((T *)about[0]), length(about[1]), ndim(about[2]),
          lengths((const ptrdiff_t *)about + 3), strides((const ptrdiff_t *)about + 3 + about[2]) {}
    ptrdiff_t size() const { return length; }
    T &operator[](ptrdiff_t i) const {
        ptrdiff_t offset = 0;
        for (ptrdiff_t k = ndim - 1; k >= 0; --k) {
            offset += strides[k] * (i % lengths[k]);
            i /= lengths[k];
        }
        return *(T *)((char *)data + offset);
    }
};

struct Indices { ptrdiff_t n; ptrdiff_t size() const { return n; } };
"""

_RUN = """
static void one_thread(void **args, const Indices &_ind, ptrdiff_t i) {{
    {unpack}
    {loop_prep};
    for (; i < _ind.size(); i += (ptrdiff_t)blockDim.x * gridDim.x) {{
        {references}
        {operation};
    }}
    {after_loop};
}}

struct Thread {{ ucontext_t at; std::vector<char> stack; bool done; }};
static thread_local void **all_args;
static thread_local int64_t size;
static thread_local std::vector<Thread> threads;

static void to_the_end() {{
    one_thread(all_args, Indices{{size}}, (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x);
    threads[threadIdx.x].done = true;
}}

// The threads of a block take turns; whoever comes to a barrier waits for the next round.
static bool one_block(int64_t block) {{
    threads.resize(block);
    for (Thread &thread : threads) {{
        thread.done = false;
        thread.stack.resize(1 << 16);
        getcontext(&thread.at);
        thread.at.uc_stack.ss_sp = thread.stack.data();
        thread.at.uc_stack.ss_size = thread.stack.size();
        thread.at.uc_link = &between;
        makecontext(&thread.at, to_the_end, 0);
    }}
    for (int64_t done = 0; done == 0; ) {{
        for (int64_t t = 0; t < block; ++t) {{
            threadIdx.x = t;
            running = &threads[t].at;
            swapcontext(&between, running);
            done += threads[t].done;
        }}
        if (done != 0) return done == block;  // else some wait for others that have left
    }}
    return true;
}}

extern "C" int run(void **args, int64_t n, int64_t grid, int64_t block, int flush) {{
    Flush flushing(flush);
    if (setjmp(leave)) return 1;
    blockDim = {{(unsigned)block, 1, 1}};
    gridDim = {{(unsigned)grid, 1, 1}};
    all_args = args;
    size = n;
    for (int64_t b = 0; b < grid; ++b) {{
        blockIdx.x = b;
        if ({together}) {{
            if (!one_block(block)) return 2;
            continue;
        }}
        for (int64_t t = 0; t < block; ++t) {{
            threadIdx.x = t;
            one_thread(args, Indices{{n}}, b * block + t);
        }}
    }}
    return 0;
}}
"""


class Stuck(AssertionError):
    """A kernel waits for ever."""


@dataclass(frozen=True)
class Argument:
    """What the generated code has to know of an argument."""

    name: str
    dtype: np.dtype[Any]
    is_array: bool
    raw: bool
    const: bool

    @property
    def c_type(self) -> str:
        if self.dtype.kind == "V":
            return f"Bytes<{self.dtype.itemsize}>"
        return C_TYPES[self.dtype.name]

    def unpack(self, position: int) -> str:
        qualified = "const " * self.const + self.c_type
        if not self.is_array:
            return f"const {self.c_type} &{self.name} = *(const {self.c_type} *)args[{position}];"
        return f"const Array<{qualified}> {self._variable}((const int64_t *)args[{position}]);"

    @property
    def reference(self) -> str:
        if not self.is_array or self.raw:
            return ""
        return f"{'const ' * self.const}{self.c_type} &{self.name} = {self._variable}[i];"

    @property
    def _variable(self) -> str:
        return self.name if self.raw else f"_raw_{self.name}"


def source(
    arguments: Sequence[Argument], operation: str, preamble: str, loop_prep: str, after_loop: str
) -> str:
    """Return the C++ text of a kernel."""
    run = _RUN.format(
        unpack=" ".join(argument.unpack(k) for k, argument in enumerate(arguments)),
        references=" ".join(argument.reference for argument in arguments),
        operation=operation,
        loop_prep=loop_prep,
        after_loop=after_loop,
        together=int("__syncthreads" in preamble + operation),
    )
    return _AROUND + preamble + run


def run(
    text: str,
    arguments: Sequence[Argument],
    values: Sequence[np.ndarray[Any, Any]],
    size: int,
    block: int,
) -> bool:
    """Run all threads of a kernel; returns whether one of them met a misaligned address.

    Raises Stuck if some wait at a barrier that others of their block never come to.
    """
    memory = [
        np.array([x.ctypes.data, x.size, x.ndim, *x.shape, *x.strides], np.int64)
        if argument.is_array
        else x
        for argument, x in zip(arguments, values, strict=True)
    ]
    pointers = (ctypes.c_void_p * len(memory))(*[part.ctypes.data for part in memory])
    flush = all(argument.dtype != np.float64 for argument in arguments)
    ended = _compiled(text)(pointers, size, -(-size // block), min(block, size), flush)
    if ended == 2:
        raise Stuck("some threads wait at a barrier that others never come to")
    return bool(ended)


@cache
def _compiled(text: str) -> Any:
    """Return the function ``run`` of a text; built once per text and user."""
    name = hashlib.sha256(repr((text, FLAGS, platform.machine())).encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"fastopt-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's, and code would be loaded from it")
    library = folder / f"{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as building:
            unit = Path(building) / "kernel.cpp"
            unit.write_text(text)
            command = ["g++", *FLAGS, str(unit), "-o", f"{building}/kernel.so"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"g++ refuses the kernel:\n{done.stderr[:3000]}")
            os.replace(f"{building}/kernel.so", library)
    run = ctypes.CDLL(str(library)).run
    run.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_int]
    return run
