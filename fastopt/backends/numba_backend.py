"""The Numba backend: what is compiled, and how; the only importer of numba."""

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
from numba.extending import intrinsic, register_jitable

from fastopt.arrays import Array
from fastopt.backends import array_headers
from fastopt.backends.code_cache import CodeCache, fingerprint
from fastopt.backends.loop_source import build_squares, loop_source
from fastopt.backends.numba_driver import NumbaDriver
from fastopt.errors import BackendUnavailableError
from fastopt.parameters import Parameter
from fastopt.version import __version__
from fastopt_kernels import Rule


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _pointer_to(context: Any, address: Any, element: Any) -> Any:
    """Turn an address into a pointer to elements of a type."""
    pointer = numba.types.CPointer(element.instance_type)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], target.get_value_type(pointer))

    return pointer(numba.types.intp, element), generate


@register_jitable  # type: ignore[untyped-decorator]
def _word(address: int) -> int:
    return numba.carray(_pointer_to(address, numba.int64), 1)[0]  # type: ignore[no-any-return]


@register_jitable  # type: ignore[untyped-decorator]
def _half(address: int) -> int:
    return numba.carray(_pointer_to(address, numba.int32), 1)[0]  # type: ignore[no-any-return]


_compare = array_headers.build(_word, _half)


def _compile(function: Callable[..., Any], name: str, identity: str, parallel: bool) -> Any:
    """Return a function that is compiled at its first call, or found on disk."""
    # error_model: divisions by zero give inf as in NumPy. No fastmath: the same bits everywhere.
    compiled = numba.njit(
        function, parallel=parallel, nogil=True, error_model="numpy", fastmath=False
    )
    config = numba.core.config
    compiled._cache = CodeCache(
        name,
        (
            identity,
            parallel,
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
def _step(rule: Rule, dtype: np.dtype[Any], parallel: bool) -> Callable[..., bool]:
    """Return the compiled step of one rule."""
    text = loop_source(rule, dtype.itemsize)
    scope: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, f"<fastopt step of {rule.name}>", "exec"), scope)
    function = scope["build"](
        register_jitable(rule.numba),
        numba.from_dtype(dtype),
        numba.carray,
        _pointer_to,
        register_jitable(_compare),
        numba.prange if parallel else range,
    )
    name = f"{rule.name}-{dtype.name}-{'parallel' if parallel else 'serial'}"
    identity = text + fingerprint(rule.numba) + fingerprint(_compare)
    step: Callable[..., bool] = _compile(function, name, identity, parallel)
    return step


@cache
def _squares(dtype: np.dtype[Any], parallel: bool) -> Callable[..., None]:
    """Return the compiled sum of squares of one dtype."""
    loop = numba.prange if parallel else range
    real = numba.from_dtype(dtype)
    function = build_squares(real, numba.carray, _pointer_to, loop, dtype.itemsize)
    name = f"squares-{dtype.name}-{'parallel' if parallel else 'serial'}"
    squares: Callable[..., None] = _compile(function, name, fingerprint(function), parallel)
    return squares


@cache
def _header_comparison() -> Callable[..., int] | None:
    """Return the compiled look at a step's arrays; None if memory is not laid out as it expects."""
    compare = _compile(_compare, "headers", fingerprint(_compare), parallel=False)
    return compare if array_headers.layout_is_known(compare) else None


class _Compiled:
    """What a driver of one rule and dtype needs of this file."""

    def __init__(self, rule: Rule, dtype: np.dtype[Any]) -> None:
        self._steps = [_step(rule, dtype, parallel) for parallel in (False, True)]
        self._squares = [_squares(dtype, parallel) for parallel in (False, True)]
        self.num_threads: int = numba.config.NUMBA_NUM_THREADS

    def step(self, parallel: bool) -> Callable[..., bool]:
        """Return the step of the rule, for one thread or several."""
        return self._steps[parallel]

    def squares(self, parallel: bool) -> Callable[..., None]:
        """Return the sum of squares of the dtype, for one thread or several."""
        return self._squares[parallel]

    def threading_layer(self) -> str:
        """Return the name of the threading layer, after a parallel step."""
        return str(numba.threading_layer())


class NumbaBackend:
    """Updates NumPy arrays with loops that Numba compiles."""

    name = "numba"
    alignment = 1

    def allocate(self, slots: int, size: int, like: Array) -> Array:
        """Return a zeroed arena in host memory."""
        return np.zeros((slots, size), like.dtype)

    def driver(self, rule: Rule, parameters: Sequence[Parameter], arena: Array) -> NumbaDriver:
        """Return the driver of some parameters."""
        compiled = _Compiled(rule, arena.dtype)
        return NumbaDriver(rule, parameters, arena, compiled, _header_comparison())

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
