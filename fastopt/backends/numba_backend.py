"""The Numba backend: what is compiled, and how."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numba
import numpy as np
from numba.core import compiler, serialize
from numba.extending import register_jitable

from fastopt.arena import Arena
from fastopt.arrays import Array
from fastopt.backends import (
    array_headers,
    numba_codes,
    numba_intrinsics,
    numba_loops,
)
from fastopt.backends.code_cache import CodeCache, fingerprint
from fastopt.backends.loop_source import loop_source
from fastopt.backends.numba_driver import NumbaDriver
from fastopt.backends.numba_halves import conversion
from fastopt.backends.numba_pool import Pool
from fastopt.backends.storage_source import storage_of
from fastopt.errors import BackendUnavailableError
from fastopt.formats import Format, wide
from fastopt.parameters import Parameter
from fastopt.version import __version__
from fastopt_kernels import Rule


def _type_of(dtype: np.dtype[Any]) -> Any:
    return numba.uint16 if dtype.itemsize == 2 else numba.from_dtype(dtype)


def _compile(function: Callable[..., Any], name: str, identity: str) -> Any:
    """Return a function that is compiled at its first call, or found on disk."""
    # error_model: divisions by zero give inf as in NumPy. No fastmath: the same bits everywhere.
    compiled = numba.njit(function, nogil=True, error_model="numpy", fastmath=False)
    config = numba.core.config
    compiled._cache = CodeCache(
        name,
        (
            identity,
            *(__version__, numba.__version__, version("llvmlite"), np.__version__, sys.version),
            compiled.targetctx.codegen().magic_tuple(),  # the processor and its features
            *(config.OPT, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT, config.LOOP_VECTORIZE),
        ),
        pack=lambda result: serialize.dumps(result._reduce()),
        unpack=_unpack,
    )
    return compiled


def _unpack(context: Any, packed: bytes) -> Any:
    context.refresh()  # the code refers to what this sets up
    return compiler.CompileResult._rebuild(context, *pickle.loads(packed))


@cache
def _compiled(function: Callable[..., Any], name: str) -> Any:
    """Return a function of ours, to be compiled at its first call."""
    return _compile(function, name, fingerprint(function))


def _address(function: Callable[..., Any], name: str, identity: str) -> int:
    """Compile what does chunks, ``function(job, lane, begin, end)``; return its address."""
    compiled = _compile(function, name, identity)
    words = (numba.int64,) * 4
    compiled.compile(words)
    result = compiled.overloads[words]
    _KEPT.append(result)  # its code is in memory as long as this lives
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name))


_KEPT: list[Any] = []


@cache
def _work(rule: Rule, format: Format) -> int:
    """Return the address of what does the chunks of one rule's step."""
    text = loop_source(rule, format)
    stored, given = (conversion(dtype, format.real) for dtype in (format.stored, format.given))
    scope: dict[str, Any] = {
        "__name__": __name__,
        "rule": register_jitable(rule.numba),
        "real": numba.from_dtype(format.real),
        "stored": _type_of(format.stored),
        "given": _type_of(format.given),
        "widen": stored.widen,
        "narrow": stored.narrow,
        "widen_given": given.widen,
        "carray": numba.carray,
        "pointer_to": numba_intrinsics.pointer_to,
        "word": numba_intrinsics.word,
        "int64": numba.int64,
        "float32": numba.float32,
        "uint8": numba.uint8,
        "uint16": numba.uint16,
        "float64": numba.float64,
        "empty": np.empty,
    }
    storage = numba_codes.functions(storage_of(rule, format).functions, format)
    scope |= storage
    exec(compile(text, f"<fastopt step of {rule.name}>", "exec"), scope)
    parts = (rule.numba, *stored, given.widen, *storage.values())
    identity = text + "".join(map(fingerprint, parts))
    return _address(scope["work"], f"{rule.name}-{format.name}", identity)


@cache
def _squares(dtype: np.dtype[Any]) -> int:
    """Return the address of what sums the squares of gradients of one dtype."""
    widen = conversion(dtype, wide(dtype)).widen
    function = numba_loops.squares(_type_of(dtype), widen, dtype.itemsize)
    return _address(function, f"squares-{dtype.name}", fingerprint(function) + fingerprint(widen))


@cache
def _header_comparison() -> Callable[..., int] | None:
    """Return the compiled look at a step's arrays; None if memory is not laid out as it expects."""
    compare: Callable[..., int] = _compiled(numba_loops.compare, "headers")
    return compare if array_headers.layout_is_known(compare) else None


@cache
def _pool() -> Pool:
    return Pool(_compiled)


class _Compiled:
    """What a driver needs of this file, for one rule and format."""

    def __init__(self, rule: Rule, format: Format) -> None:
        self._rule, self._format = rule, format
        self.given = format.given
        self.step: Callable[..., bool] = _compiled(numba_loops.step, "step")
        self.pool = _pool().address
        self.num_threads: int = numba.config.NUMBA_NUM_THREADS

    def update(self) -> int:
        """Return the address of what does chunks of an update."""
        return _work(self._rule, self._format)

    def squares(self) -> int:
        """Return the address of what sums squares of gradients."""
        return _squares(self.given)

    def threads(self, wanted: int) -> int:
        """Return how many threads there are for a step, of so many that are wanted."""
        return _pool().threads(wanted)


class NumbaBackend:
    """Updates NumPy arrays with loops that Numba compiles."""

    name = "numba"
    bridges_gaps = False
    alignment = 1

    def allocate(self, like: Array, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        """Return zeros in host memory."""
        return np.zeros(shape, dtype)

    def driver(
        self, rule: Rule, parameters: Sequence[Parameter], arena: Arena, format: Format
    ) -> NumbaDriver:
        """Return the driver of some parameters."""
        compiled = [_Compiled(rule, format.with_gradients(given)) for given in format.readable]
        return NumbaDriver(rule, parameters, arena, format, compiled, _header_comparison())

    def control(self, like: Array) -> None:
        """Leave decisions to the host."""


def backend() -> NumbaBackend:
    """Return this file's backend."""
    if numba.config.DISABLE_JIT:
        raise BackendUnavailableError(
            "backend 'numba' cannot run here: NUMBA_DISABLE_JIT is set. Unset it, or ask for "
            "backend 'numpy' or 'auto'."
        )
    return NumbaBackend()
