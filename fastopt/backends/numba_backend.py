"""The Numba backend: what is compiled, and how; the only importer of numba."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from types import FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite.ir import FloatType, HalfType, IntType
from numba.core import compiler, serialize
from numba.extending import intrinsic, register_jitable

from fastopt.arena import Arena
from fastopt.arrays import Array
from fastopt.backends import array_headers, code_loops, half_floats
from fastopt.backends.code_cache import CodeCache, fingerprint
from fastopt.backends.half_floats import Conversion
from fastopt.backends.loop_source import build_squares, loop_source
from fastopt.backends.numba_driver import NumbaDriver
from fastopt.backends.storage_source import storage_of
from fastopt.errors import BackendUnavailableError
from fastopt.formats import Format
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


@intrinsic  # type: ignore[untyped-decorator]
def _bits(context: Any, value: Any) -> Any:
    """Return the bits of a float32 as a uint32."""
    return _recast(numba.uint32, numba.float32)


@intrinsic  # type: ignore[untyped-decorator]
def _float_of(context: Any, bits: Any) -> Any:
    """Return the float32 that has these bits."""
    return _recast(numba.float32, numba.uint32)


def _recast(result: Any, given: Any) -> Any:
    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], target.get_value_type(result))

    return result(given), generate


@intrinsic  # type: ignore[untyped-decorator]
def _widen_float16(context: Any, stored: Any) -> Any:
    """Return a float16, given by its bits, as a float32: one instruction."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], HalfType()), FloatType())

    return numba.float32(numba.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def _narrow_float16(context: Any, value: Any) -> Any:
    """Return the bits of the float16 that is nearest to a float32: one instruction."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.fptrunc(values[0], HalfType()), IntType(16))

    return numba.uint16(numba.float32), generate


@cache
def _conversion(dtype: np.dtype[Any]) -> Conversion:
    """Return how numbers of a dtype are read and written, as functions to be compiled."""
    if dtype.itemsize > 2:
        return half_floats.EXACT
    if dtype.name == "bfloat16":
        return half_floats.bfloat16(_bits, _float_of)
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    features = codegen.magic_tuple()[-1]
    if "+f16c" in features:  # without it LLVM would call a function that is not there
        return Conversion(
            lambda stored: _widen_float16(stored), lambda value: _narrow_float16(value)
        )
    return half_floats.float16(_bits, _float_of)


def _type_of(dtype: np.dtype[Any]) -> Any:
    return numba.uint16 if dtype.itemsize == 2 else numba.from_dtype(dtype)


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


def _compilable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of ours as one that compiled code can call; another is one already."""
    ours = isinstance(function, FunctionType) and function.__module__ == code_loops.__name__
    return register_jitable(function) if ours else function


@cache
def _step(rule: Rule, format: Format, parallel: bool) -> Callable[..., bool]:
    """Return the compiled step of one rule."""
    text = loop_source(rule, format)
    stored, given = _conversion(format.stored), _conversion(format.given)
    names = storage_of(rule, format).functions
    extra = code_loops.functions(names, format, _bits, _float_of)
    scope: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, f"<fastopt step of {rule.name}>", "exec"), scope)
    function = scope["build"](
        register_jitable(rule.numba),
        numba.from_dtype(format.real),
        *(_type_of(format.stored), _type_of(format.given)),
        *map(register_jitable, (stored.widen, stored.narrow, given.widen)),
        numba.carray,
        _pointer_to,
        register_jitable(_compare),
        numba.prange if parallel else range,
        *map(_compilable, extra),
    )
    name = f"{rule.name}-{format.name}-{'parallel' if parallel else 'serial'}"
    parts = (rule.numba, _compare, *stored, given.widen, *extra)
    identity = text + "".join(map(fingerprint, parts))
    step: Callable[..., bool] = _compile(function, name, identity, parallel)
    return step


@cache
def _squares(dtype: np.dtype[Any], parallel: bool) -> Callable[..., None]:
    """Return the compiled sum of squares of one dtype."""
    loop = numba.prange if parallel else range
    widen = _conversion(dtype).widen
    given = (_type_of(dtype), register_jitable(widen), dtype.itemsize)
    function = build_squares(*given, numba.carray, _pointer_to, loop)
    name = f"squares-{dtype.name}-{'parallel' if parallel else 'serial'}"
    identity = fingerprint(function) + fingerprint(widen)
    squares: Callable[..., None] = _compile(function, name, identity, parallel)
    return squares


@cache
def _header_comparison() -> Callable[..., int] | None:
    """Return the compiled look at a step's arrays; None if memory is not laid out as it expects."""
    compare = _compile(_compare, "headers", fingerprint(_compare), parallel=False)
    return compare if array_headers.layout_is_known(compare) else None


class _Compiled:
    """What a driver of one rule and format needs of this file."""

    def __init__(self, rule: Rule, format: Format) -> None:
        self._steps = [_step(rule, format, parallel) for parallel in (False, True)]
        self.given = format.given
        self._squares = [_squares(format.given, parallel) for parallel in (False, True)]
        self.num_threads: int = numba.config.NUMBA_NUM_THREADS

    def step(self, parallel: bool) -> Callable[..., bool]:
        """Return the step of the rule, for one thread or several."""
        return self._steps[parallel]

    def squares(self, parallel: bool) -> Callable[..., None]:
        """Return the sum of squares of the gradients' dtype, for one thread or several."""
        return self._squares[parallel]

    def threading_layer(self) -> str:
        """Return the name of the threading layer, after a parallel step."""
        return str(numba.threading_layer())


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
        formats = dict.fromkeys([format, format.with_gradients(format.real)])
        compiled = [_Compiled(rule, each) for each in formats]
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
