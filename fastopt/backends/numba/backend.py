"""The Numba backend: what is compiled for a rule, and the driver that hands addresses to it."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol

import numba
import numpy as np
from numba.core import compiler, serialize
from numba.extending import register_jitable

from fastopt import backends
from fastopt.backends.interface import COMMON_SCALARS
from fastopt.backends.numba import compiled as numba_compiled
from fastopt.backends.numba import headers as numba_headers
from fastopt.backends.numba import runtime
from fastopt.backends.numba.cache import CodeCache, fingerprint
from fastopt.backends.numba.codegen import (
    CHUNK,
    JOB,
    LANES_APART,
    LEAF_LINES,
    loop_source,
    storage_of,
)
from fastopt.backends.numba.compiled import conversion
from fastopt.backends.numba.headers import HeaderCheck
from fastopt.backends.numba.runtime import Pool
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import Arena, Parameter
from fastopt.core.dtypes import Format, dtype_of, wide
from fastopt.core.norms import PIECE
from fastopt.errors import BackendUnavailableError
from fastopt.version import __version__
from fastopt_kernels import Rule

# -------------------------------------------------------------------------------------------------
# The driver of the Numba backend: hands a bucket's addresses to one compiled call.

PARALLEL_FROM = 65_536
"""Elements of a bucket from which threads pay: waking them costs as much as this many updates."""


class Compiled(Protocol):
    """What the backend compiles for a driver, for gradients of one dtype."""

    num_threads: int
    given: np.dtype[Any]
    """Of the real numbers of the gradients."""
    pool: int
    step: Callable[..., bool]
    """``step(pool, threads, job, params, grads)``, see ``numba_loops``."""

    def update(self) -> int:
        """Return the address of what does chunks of an update."""

    def squares(self) -> int:
        """Return the address of what sums squares of gradients."""

    def threads(self, wanted: int) -> int:
        """Return how many threads there are for a step, of so many that are wanted."""


class _Job:
    """The words by which compiled code finds its arrays, and those arrays."""

    def __init__(self, function: Callable[[], int], words: Mapping[str, int | Array]) -> None:
        self._words = np.zeros(len(JOB), np.int64)
        self._referred: dict[str, Array] = {}
        self._function = function
        self.ready = False
        self.address = arrays.address(self._words)
        self.set(**words)

    def set(self, **words: int | Array) -> None:
        """Set words by name; an array stands for its address, and is kept."""
        for name, value in words.items():
            if isinstance(value, np.ndarray):
                self._referred[name] = value
                value = arrays.address(value)
            self._words[JOB.index(name)] = value

    def prepare(self) -> None:
        """Compile what does the chunks, or find it on disk."""
        self.set(FUNCTION=self._function())
        self.ready = True


class _Reading:
    """Gradients of one dtype: what is compiled for them, and what such arrays look like."""

    def __init__(
        self,
        compiled: Compiled,
        compare: Callable[..., int] | None,
        parameters: Sequence[Parameter],
        words: Mapping[str, int | Array],
    ) -> None:
        dtype = dtype_of(compiled.given, parameters[0].dtype)
        self.compiled = compiled
        self.dtypes = (compiled.given, dtype)
        self.update = _Job(compiled.update, words)
        self.norm = _Job(compiled.squares, words)
        self.headers = HeaderCheck(compare, parameters, dtype) if compare else None
        if self.headers:
            known, axes, extents = self.headers.expected
            self.update.set(KNOWN=known, AXES=axes, AXES_COUNT=len(axes))
            self.update.set(EXTENTS=extents, EXTENTS_COUNT=extents.shape[1])


class NumbaDriver:
    """Runs a rule's Numba form over all parameters of a bucket in one compiled call."""

    device_side = None

    def __init__(
        self,
        rule: Rule,
        parameters: Sequence[Parameter],
        arena: Arena,
        format: Format,
        compiled: Sequence[Compiled],
        compare: Callable[..., int] | None,
    ) -> None:
        self._params = [parameter.flat for parameter in parameters]  # keeps their addresses good
        self._sizes = [param.size for param in self._params]
        lines = {
            "PARAM": [arrays.address(param) for param in self._params],
            "GRAD": [0] * len(self._params),
            "OFFSET": [parameter.offset for parameter in parameters],
            "ROW": [0] * len(self._params),
            "STREAM": [parameter.stream for parameter in parameters],
        }
        leaves = np.array([lines[name] for name in LEAF_LINES], np.int64)
        self._grads, self._rows = (leaves[LEAF_LINES.index(name)] for name in ("GRAD", "ROW"))
        chunks = _chunks(self._sizes, CHUNK)
        self._table = np.zeros((1, len([*COMMON_SCALARS, *rule.scalars, *format.scalars])))
        words = {
            **{"LEAVES": leaves, "COUNT": len(self._params), "TABLE": self._table},
            **{"CHUNKS": chunks, "TOTAL": chunks.shape[1]},
            **{"EXACT": arena.exact, "PITCH": arena.exact.shape[1]},
        }
        if arena.codes is not None:
            words["CODES"] = arena.codes
        if arena.scales is not None:
            words["SCALES"] = arena.scales
        self._readings = [_Reading(each, compare, parameters, words) for each in compiled]
        self._reading = self._readings[0]  # that of the gradients at hand
        self._held: Sequence[Array | None] = ()
        self._norm: tuple[Array, Array] | None = None
        self._counts: tuple[Array, Array] | None = None
        self._large = sum(self._sizes) >= PARALLEL_FROM
        usual = compare is not None and not any(p.copied for p in parameters)
        self.step_at_once = self._step_at_once if usual else None

    def warm_up(self, norm: bool) -> None:
        """Call everything once with nothing to do, which compiles it or finds it on disk."""
        self._grads[:] = 0  # none, and not those of the last step
        for reading in reversed(self._readings):
            self._reading = reading
            self.update(self._table, None)
            if norm:
                self.squares(1.0)

    def _step_at_once(
        self,
        params: list[Any],
        grads: list[Any],
        row: Sequence[float],
        steps: Array,
        clock: Array,
    ) -> bool:
        """Check, update and count in one compiled call."""
        self._table[0] = row
        if self._counts is None or self._counts[0] is not steps:
            self._count_in(steps, clock)
        reading = self._reading if len(self._readings) == 1 else self._choose(grads)
        return self._run(reading.compiled, reading.update, id(params), id(grads))

    def _count_in(self, steps: Array, clock: Array) -> None:
        self._counts = steps, clock
        for reading in self._readings:
            reading.update.set(STEPS=steps, CLOCK=clock)

    def _run(self, compiled: Compiled, job: _Job, params: int = 0, grads: int = 0) -> bool:
        """Do the chunks of a job, with as many threads as pay."""
        if not job.ready:
            job.prepare()
        number = (
            compiled.threads(backends.available_threads(compiled.num_threads)) if self._large else 1
        )
        return compiled.step(compiled.pool, number, job.address, params, grads)

    def _choose(self, grads: Sequence[Any]) -> _Reading:
        """Go over to the reading for these gradients, as far as the first of them tells."""
        dtype = next((getattr(grad, "dtype", None) for grad in grads if grad is not None), None)
        for reading in self._readings:
            if dtype in reading.dtypes:
                self._reading = reading
        return self._reading

    def take_usual(self, params: list[Any], grads: list[Any]) -> int | None:
        """Compare the headers of all arrays with what is expected, in one compiled call."""
        self._held = grads
        headers = self._choose(grads).headers
        return headers(params, grads, self._grads) if headers else None

    def take_flat(self, grads: Sequence[Array | None]) -> None:
        """Keep the gradients, and note their addresses."""
        self._held = grads
        self._choose(grads)
        self._grads[:] = [0 if grad is None else arrays.address(grad) for grad in grads]

    def squares(self, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient), by pieces."""
        if self._norm is None:
            self._norm = self._set_up_norm()
        sums, factors = self._norm
        factors[0] = factor
        self._run(self._reading.compiled, self._reading.norm)
        return sums

    def _set_up_norm(self) -> tuple[Array, Array]:
        """Return the arrays of the sums and of the factor."""
        pieces = _chunks(self._sizes, PIECE)
        sums, factors = np.zeros(pieces.shape[1]), np.zeros(1)
        lanes = np.zeros((self._reading.compiled.num_threads, LANES_APART // 8))
        for reading in self._readings:
            reading.norm.set(CHUNKS=pieces, TOTAL=pieces.shape[1])
            reading.norm.set(LANES=lanes, SUMS=sums, FACTOR=factors)
        return sums, factors

    def update(self, table: Sequence[Sequence[float]] | Array, rows: Sequence[int] | None) -> None:
        """Update every parameter whose gradient is not None."""
        if rows is not None:
            self._rows[:] = rows
        job = self._reading.update
        job.set(TABLE=np.array(table, float))
        self._run(self._reading.compiled, job)
        job.set(TABLE=self._table)
        self._rows[:] = 0  # as step_at_once expects it
        self._held = ()


def _chunks(lengths: Sequence[int], size: int) -> Array:
    """Cut parameters into chunks; of each (a column) the parameter, first element, and count."""
    length = np.array(lengths, np.intp)
    counts = -(-length // size)
    leaf = np.repeat(np.arange(len(length)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(leaf)) - before) * size
    return np.array([leaf, start, np.minimum(size, length[leaf] - start)], np.int64)


# -------------------------------------------------------------------------------------------------
# The Numba backend: what is compiled, and how.


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
        "pointer_to": runtime.pointer_to,
        "word": runtime.word,
        "int64": numba.int64,
        "float32": numba.float32,
        "uint8": numba.uint8,
        "uint16": numba.uint16,
        "float64": numba.float64,
        "empty": np.empty,
    }
    storage = numba_compiled.functions(storage_of(rule, format).functions, format)
    scope |= storage
    exec(compile(text, f"<fastopt step of {rule.name}>", "exec"), scope)
    parts = (rule.numba, *stored, given.widen, *storage.values())
    identity = text + "".join(map(fingerprint, parts))
    return _address(scope["work"], f"{rule.name}-{format.name}", identity)


@cache
def _squares(dtype: np.dtype[Any]) -> int:
    """Return the address of what sums the squares of gradients of one dtype."""
    widen = conversion(dtype, wide(dtype)).widen
    function = numba_compiled.squares(_type_of(dtype), widen, dtype.itemsize)
    return _address(function, f"squares-{dtype.name}", fingerprint(function) + fingerprint(widen))


@cache
def _header_comparison() -> Callable[..., int] | None:
    """Return the compiled look at a step's arrays; None if memory is not laid out as it expects."""
    compare: Callable[..., int] = _compiled(numba_compiled.compare, "headers")
    return compare if numba_headers.layout_is_known(compare) else None


@cache
def _pool() -> Pool:
    return Pool(_compiled)


class _Compiled:
    """What a driver needs of this file, for one rule and format."""

    def __init__(self, rule: Rule, format: Format) -> None:
        self._rule, self._format = rule, format
        self.given = format.given
        self.step: Callable[..., bool] = _compiled(numba_compiled.step, "step")
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
