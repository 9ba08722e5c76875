"""The Numba backend: the kernels, which hand addresses to compiled code; what is compiled."""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from typing import Any, cast

import numba
import numpy as np
from numba.core import compiler, serialize
from numba.extending import register_jitable

from fastopt import backends
from fastopt.backends.interface import COMMON_SCALARS, ScalarRows
from fastopt.backends.numba import compiled as numba_compiled
from fastopt.backends.numba import headers as numba_headers
from fastopt.backends.numba import runtime
from fastopt.backends.numba.cache import CodeCache, fingerprint
from fastopt.backends.numba.codegen import (
    CHUNK,
    JOB,
    LANES_APART,
    LEAF_LINES,
    MEMBER_LINES,
    PASS_LINES,
    PROGRAM,
    PROGRAM_LINES,
    at,
    loop_source,
    memory_source,
    pass_source,
    storage_of,
)
from fastopt.backends.numba.compiled import NO_LIMIT, conversion
from fastopt.backends.numba.headers import HeaderCheck
from fastopt.backends.numba.runtime import Pool
from fastopt.backends.numba.tensors import TensorWindows, function_of, layout_is_known, locate
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Counts, Gradients, Parameter, Remembered
from fastopt.core.dtypes import UpdateSpec, dtype_of, wide
from fastopt.core.norms import LANES, TILE, tile_counts
from fastopt.core.passes import Pass, PassOf, derived_of, in_order
from fastopt.errors import BackendUnavailableError
from fastopt.version import __version__
from fastopt_kernels import ArrayRule, Rule

# -------------------------------------------------------------------------------------------------
# Kernels and fused steps: they hand the addresses of arrays to one compiled call.

EVERY_COLUMN = -1
"""Of which columns of a table of members the numbers differ between these, a bit for each: all."""

PARALLEL_FROM = 65_536
"""Elements of a bucket from which threads pay: waking them costs as much as this many updates."""


_THREE_WORDS, _INDICES = struct.Struct("=3q"), at("INDICES")


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

    def set_given(self, indices: int, given: int, values: int) -> None:
        """Set the words INDICES, GIVEN and VALUES."""
        _THREE_WORDS.pack_into(self._words.data, _INDICES, indices, given, values)

    def get(self, name: str) -> int:
        """Return a word by name."""
        return int(self._words[JOB.index(name)])

    def prepare(self) -> None:
        """Compile what does the chunks, or find it on disk."""
        self.set(FUNCTION=self._function())
        self.ready = True


class _PerDtype:
    """Gradients of one dtype: what is compiled for them, and what such arrays look like."""

    def __init__(
        self,
        compiled: _CompiledRule,
        compare: Callable[..., int] | None,
        bucket: Bucket,
        extents: Extents,
        words: Mapping[str, int | Array],
    ) -> None:
        dtype = dtype_of(compiled.gradient, bucket.parameters[0].dtype)
        self.compiled = compiled
        self.dtypes = (compiled.gradient, dtype)
        self.update = _Job(compiled.update, words)
        self.norm = _Job(compiled.squares, words)
        self.headers = None
        if compare:
            positions = bucket.positions
            self.headers = HeaderCheck(compare, bucket.parameters, extents, dtype, positions)
        if self.headers:
            known, axes, limits = self.headers.expected
            self.update.set(KNOWN=known, AXES=axes, AXES_COUNT=len(axes))
            self.update.set(EXTENTS=limits, EXTENTS_COUNT=limits.shape[1])
        self.update.set(STEPS=bucket.steps, REAL=bucket.spec.real.itemsize)


class _RowTables:
    """The tables by which compiled code finds some rows of one parameter, and their gradients.

    They grow with the rows, and stay. ``update`` is the job of the rows that were laid out last, by
    the ``scalars`` of a table of one row.
    """

    def __init__(
        self,
        compiled: _CompiledRule,
        parameter: Parameter,
        words: Mapping[str, int | Array],
        width: int,
    ) -> None:
        height = parameter.layout.shape[0]
        self.width = parameter.size // height
        self.scalars = np.zeros((1, width))
        self.update = _Job(compiled.update, words)
        self.update.set(TABLE=self.scalars, ROWS=1)
        self._layout = _Job(partial(_rows, compiled.gradient, parameter.flat.dtype.itemsize), {})
        self._layout.set(TOTAL=1, HEIGHT=height, WIDTH=self.width)
        self._layout.set(PARAM=parameter.flat, OFFSET=parameter.offset)
        self._pieces = -(-self.width // CHUNK)
        self._compiled = compiled
        self._most = 0

    def lay_out(self, indices: Array, values: Array) -> int:
        """Write the tables; return how many rows there are, or -1 if an index names none.

        The values have to stay where they are until the update.
        """
        given = len(indices)
        if given > self._most:
            self._make_room(given)
        layout, update = self._layout, self.update
        indices = np.ascontiguousarray(indices, np.int64)
        self._layout.set_given(arrays.address(indices), given, arrays.address(values))
        if not (layout.ready and update.ready):
            layout.prepare()
            update.prepare()
        self._compiled.run(self._compiled.pool, 1, layout.address)
        found = layout.get("FOUND")
        if found > 0:
            update.set(COUNT=found, TOTAL=found * self._pieces)
        return found

    def _make_room(self, given: int) -> None:
        """Make tables for so many rows."""
        leaves = np.empty(len(LEAF_LINES) * given, np.int64)
        chunks = np.empty(3 * given * self._pieces, np.int64)
        self._layout.set(ROOM=np.empty(numba_compiled.row_words(given), np.int64))
        self._layout.set(SUMS=np.empty((given // 2, self.width), self._compiled.gradient))
        for job in (self._layout, self.update):
            job.set(LEAVES=leaves, CHUNKS=chunks)
        self._most = given


class NumbaKernel:
    """Runs a rule's Numba form over all parameters of a bucket in one compiled call.

    The jobs are what compiled code is handed: memory of this kernel's own, into which each call
    writes first all that it goes by.
    """

    def __init__(self, bucket: Bucket, extents: Extents) -> None:
        compare = _header_comparison()
        parameters, spec, arena = bucket.parameters, bucket.spec, bucket.arena
        self._real = spec.real
        self._parameters = parameters
        self._params = [parameter.flat for parameter in parameters]  # keeps their addresses good
        self._sizes = [param.size for param in self._params]
        lines = {
            "PARAM": [arrays.address(param) for param in self._params],
            "GRAD": [0] * len(self._params),
            "OFFSET": [parameter.offset for parameter in parameters],
            "ROW": [0] * len(self._params),
            "STREAM": [parameter.stream for parameter in parameters],
        }
        if spec.members:
            pairs = [parameter.member or (1, 1) for parameter in parameters]
            lines["DIVISOR"], lines["MODULUS"] = (list(side) for side in zip(*pairs, strict=True))
        kept = MEMBER_LINES if spec.members else LEAF_LINES
        leaves = np.array([lines[name] for name in kept], np.int64)
        self._grads, self._rows = (leaves[LEAF_LINES.index(name)] for name in ("GRAD", "ROW"))
        chunks = _chunks(self._sizes, CHUNK)
        width = len([*COMMON_SCALARS, *bucket.rule.scalars, *spec.scalars])
        self._members, self._varies = bucket.members, EVERY_COLUMN
        derived = derived_of(bucket.rule, spec)
        # The inputs of memories follow, and the loss.
        self._table = np.zeros((1, width + derived.inputs + bucket.formula._takes_value))
        if self._members is not None:
            self._table = np.zeros((width, self._members), spec.real)
        self._passes = derived.passes
        self._sums = [self._room_for_sums(one) for one in derived.passes]
        self.derived: Array = np.zeros((len(parameters), len(derived.names)))
        """The derived scalars of a fused step: a row for each parameter."""
        self._width = width
        words: dict[str, int | Array] = {
            **{"LEAVES": leaves, "COUNT": len(self._params), "TABLE": self._table},
            **{"CHUNKS": chunks, "TOTAL": chunks.shape[1]},
            **{"ARENA": arena.numbers, "PITCH": arena.numbers.shape[1]},
            **{"ROWS": self._members or 1, "VARIES": EVERY_COLUMN, "DERIVED": self.derived},
        }
        if arena.codes is not None:
            words["CODES"] = arena.codes
        if arena.scales is not None:
            words["SCALES"] = arena.scales
        self._per_dtype = [
            _PerDtype(
                _CompiledRule(cast(Rule, bucket.rule), spec.with_gradients(given)),
                compare,
                bucket,
                extents,
                words,
            )
            for given in spec.readable
        ]
        self._only = self._per_dtype[0] if len(self._per_dtype) == 1 else None
        self._norm: tuple[Array, Array] | None = None
        self._sum_jobs: dict[tuple[int, np.dtype[Any]], _Job] = {}
        self._row_tables: dict[tuple[int, np.dtype[Any]], _RowTables] = {}
        self._extents = extents
        self._words = words
        self.large: bool = sum(self._sizes) >= PARALLEL_FROM
        """Whether more than one thread may pay."""
        self._usual = compare is not None and not any(p.copied for p in parameters)
        self._updates = not isinstance(bucket.rule, ArrayRule)

    def warm_up(self, norm: bool) -> None:
        """Call everything once with nothing to do, which compiles it or finds it on disk."""
        nothing: list[Array | None] = [None] * len(self._params)
        for own in self._per_dtype:
            gradients = Gradients(nothing, own.compiled.gradient, [])
            derived = np.zeros_like(self.derived)
            if self._updates:
                table: ScalarRows = (
                    self._table.T if self._members is not None else self._table.tolist()
                )
                self.update(gradients, table, None, 1.0, derived)
            for number, one in enumerate(self._passes):
                if one.sums is not None:
                    self.sums(number, gradients, self._table.tolist(), None, 1.0, derived)
                if self.can_be_fused:
                    self.made(number)
            if norm:
                self.squares(gradients, 1.0)

    def bind(self, params: list[Any], grads: list[Any]) -> Gradients | None:
        """Compare the headers of all arrays with what is expected, in one compiled call."""
        own = self._for_gradients(grads)
        if own.headers is None:
            return None
        addresses = np.empty(len(self._params), np.int64)
        missing = own.headers(params, grads, addresses)
        if missing is None:
            return None
        return Gradients.of(grads, own.compiled.gradient, addresses, complete=missing == 0)

    def _for_gradients(self, grads: Sequence[Any]) -> _PerDtype:
        """Return what reads these gradients, as far as the first of them tells."""
        if self._only is not None:
            return self._only
        dtype = next((getattr(grad, "dtype", None) for grad in grads if grad is not None), None)
        return self._for_dtype(dtype)

    def _for_dtype(self, dtype: object) -> _PerDtype:
        return next((r for r in self._per_dtype if dtype in r.dtypes), self._per_dtype[0])

    def squares(self, gradients: Gradients, factor: float) -> Array:
        """Return the sums of squares of (factor * gradient), by tiles."""
        if self._norm is None:
            self._norm = self._set_up_norm()
        sums, factors = self._norm
        factors[0] = factor
        self._grads[:] = gradients.located()
        own = self._for_dtype(gradients.dtype)
        self._run(own, own.norm)
        return sums.copy()

    def _set_up_norm(self) -> tuple[Array, Array]:
        """Return the arrays of the sums and of the factor."""
        tiles = _chunks(self._sizes, TILE)
        sums, factors = np.zeros(tiles.shape[1]), np.zeros(1)
        lanes = np.zeros((self._per_dtype[0].compiled.num_threads, LANES_APART // 8))
        for own in self._per_dtype:
            own.norm.set(CHUNKS=tiles, TOTAL=tiles.shape[1])
            own.norm.set(LANES=lanes, SUMS=sums, FACTOR=factors)
        return sums, factors

    def update(
        self,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array | None = None,
    ) -> None:
        """Update every parameter that has a gradient."""
        own = self._for_dtype(gradients.dtype)
        self._run_with(own, own.update, gradients, table, rows, scale, derived)

    def sums(
        self,
        number: int,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array,
    ) -> Array:
        """Return the sums of a pass, by tiles."""
        own = self._for_dtype(gradients.dtype)
        job = self._sum_job(number, own)
        self._run_with(own, job, gradients, table, rows, scale, derived)
        return self._sums[number].copy()

    def _room_for_sums(self, one: Pass) -> Array:
        """Return the array of a pass's sums, by tiles."""
        names = one.sums.names if one.sums else ()
        return np.zeros((len(names), sum(tile_counts(self._sizes))))

    def _sum_job(self, number: int, own: _PerDtype) -> _Job:
        """Return the job that sums in a pass."""
        key = (number, own.compiled.gradient)
        if key not in self._sum_jobs:
            tiles = _chunks(self._sizes, TILE)
            lanes = np.zeros((own.compiled.num_threads, LANES_APART // 8))
            job = _Job(partial(own.compiled.sums, number), self._words)
            job.set(CHUNKS=tiles, TOTAL=tiles.shape[1], LANES=lanes, SUMS=self._sums[number])
            self._sum_jobs[key] = job
        return self._sum_jobs[key]

    def _run_with(
        self,
        own: _PerDtype,
        job: _Job,
        gradients: Gradients,
        table: ScalarRows,
        rows: Sequence[int] | None,
        scale: float,
        derived: Array | None,
    ) -> None:
        """Do a job's chunks with these gradients and numbers."""
        self._grads[:] = gradients.located()
        if rows is not None:
            self._rows[:] = rows
        job.set(TABLE=self._scaled(table, scale), ROWS=len(table), VARIES=EVERY_COLUMN)
        if derived is not None:
            job.set(DERIVED=derived)
        try:
            self._run(own, job)
        finally:  # as a fused step expects it, also if the compiler has failed
            job.set(TABLE=self._table, ROWS=self._members or 1, VARIES=self._varies)
            job.set(DERIVED=self.derived)
            self._rows[:] = 0

    def of_rows(
        self,
        place: int,
        indices: Array,
        values: Array,
        scalars: Sequence[float],
        scale: float,
    ) -> Callable[[], None] | None:
        """Return what updates some rows where they stand, as so many parameters of another job."""
        own = next((own for own in self._per_dtype if own.dtypes[1] == values.dtype), None)
        parameter = self._parameters[place]
        in_rows = parameter.layout.plain and self._members is None and not parameter.copied
        if own is None or not in_rows or not self._reads_rows(indices, values):
            return None
        key = (place, own.compiled.gradient)
        if key not in self._row_tables:
            self._row_tables[key] = _RowTables(own.compiled, parameter, self._words, self._width)
        tables = self._row_tables[key]
        found = tables.lay_out(indices, values)
        if found < 0:
            return None
        tables.scalars[0] = scalars
        if scale != 1.0:
            tables.scalars[:] = self._scaled([scalars], scale)
        compiled, job = own.compiled, tables.update.address
        threads = self.threads() if found * tables.width >= PARALLEL_FROM // 4 else 1
        return partial(compiled.run, compiled.pool, threads, job)

    def _reads_rows(self, indices: Array, values: Array) -> bool:
        """Return whether compiled code reads gradients of rows as they stand."""
        flags = values.flags
        return (
            type(values) is np.ndarray
            and indices.dtype != np.uint64  # what int64 does not hold is no row
            and flags.c_contiguous
            and flags.aligned
            and values.size > 0
            and self._extents.apart([values])
        )

    def _scaled(self, table: ScalarRows, scale: float) -> Array:
        """Return a table as compiled code reads it: where there are members, by columns."""
        if self._members is not None:
            columns = np.empty((self._table.shape[0], len(table)), self._real)
            _round_into(columns, cast(Array, table), scale)
            return columns
        scaled_table = np.array(table, float)
        with np.errstate(all="ignore"):
            scaled_table[:, 0] *= float(self._real.type(scale))
        return scaled_table

    def _run(self, own: _PerDtype, job: _Job) -> None:
        """Do the chunks of a job, with as many threads as pay."""
        if not job.ready:
            job.prepare()
        compiled = own.compiled
        compiled.run(compiled.pool, self.threads(), job.address)

    # What a fused step needs ---------------------------------------------------------------------

    @property
    def can_be_fused(self) -> bool:
        """Whether compiled code can look at this bucket's arrays, and make its whole update."""
        return self._usual and all(memory_source(one) is not None for one in self._passes)

    def made(self, number: int) -> int:
        """Return the address of what makes the scalars of a pass, compiled."""
        address: int = self._per_dtype[0].compiled.made(number)
        return address

    def threads(self) -> int:
        """Return how many threads pay."""
        if not self.large:
            return 1
        compiled = self._per_dtype[0].compiled
        return compiled.threads(backends.available_threads(compiled.num_threads))

    @property
    def several_dtypes(self) -> bool:
        """Whether gradients of more than one dtype are read as they are."""
        return self._only is None

    def ready(self, grads: Sequence[Any], measures: bool) -> tuple[int, int]:
        """Return the addresses of the two jobs of a step with these gradients, compiled."""
        own = self._only or self._for_gradients(grads)
        jobs = [own.update]
        if measures:
            if self._norm is None:
                self._norm = self._set_up_norm()
            jobs.append(own.norm)
        for job in jobs:
            if not job.ready:
                job.prepare()
        return own.update.address, own.norm.address

    def ready_to_sum(self, number: int, grads: Sequence[Any]) -> int:
        """Return the address of the job that sums in a pass with these gradients, compiled."""
        job = self._sum_job(number, self._only or self._for_gradients(grads))
        if not job.ready:
            job.prepare()
        return job.address

    def parts(self, number: int) -> list[tuple[int, ...]]:
        """Return the words (``PART``) of each parameter in a pass."""
        sums, made = self._sums[number], self.derived[:, self._passes[number].derived_columns]
        counts = tile_counts(self._sizes) if len(sums) else [0] * len(self._sizes)
        first, to = arrays.address(sums), arrays.address(made)
        starts = np.cumsum([0, *counts]).tolist()
        return [
            (first + 8 * starts[k], sums.shape[1], count, to + made.strides[0] * k)
            for k, count in enumerate(counts)
        ]

    def inputs_at(self, number: int) -> int:
        """Return the address of the inputs of a pass's memory, in the table."""
        first = self._width + self._passes[number].input_columns.start
        return arrays.address(self._table) + 8 * int(first)

    @property
    def value_at(self) -> int:
        """The address of the loss, in the table, where the rule takes it."""
        return arrays.address(self._table) + 8 * (self._table.size - 1)

    def columns_vary(self, varies: int) -> None:
        """Say which columns of the table of members differ between them: a bit for each."""
        if varies != self._varies:
            self._varies = varies
            for own in self._per_dtype:
                own.update.set(VARIES=varies)

    @property
    def table(self) -> Array:
        """What a fused step takes its scalars from: one row; with members their rows as columns."""
        return self._table


_THREADS = PROGRAM_LINES.index("THREADS")
_Words = list[tuple[int, ...]]
_SUM, _SUM_THREADS = PASS_LINES.index("SUM"), PASS_LINES.index("THREADS")


class _FusedPasses:
    """The passes of a fused step: the lines by which compiled code finds them."""

    def __init__(
        self, kernels: Sequence[NumbaKernel], buckets: Sequence[Bucket], memory: Remembered
    ) -> None:
        self._kernels = kernels
        self._buckets = buckets
        self._memory = memory
        self._referred: list[Array] = []  # keeps the addresses good
        self._sums: list[tuple[int, int, int]] = []  # line, kernel and number of what sums
        lines: list[list[int]] = []
        for together in in_order([derived_of(b.rule, b.spec) for b in buckets]):
            for kernel, number, one in together:
                if one.sums is not None:
                    self._sums.append((len(lines), kernel, number))
                copies = [*self._copies(kernel, one)]
                lines.append([0, 1, len(copies), self._table(copies), 0, 0, 0, 0])
            units, parts = self._units(together)
            function = kernels[together[0][0]].made(together[0][1])
            lines[-1][4:] = [function, len(units), self._table(units), self._table(parts)]
        self.lines = np.array(lines, np.int64).reshape(-1, len(PASS_LINES))

    def _table(self, rows: Sequence[tuple[int, ...]]) -> int:
        """Return the address of an array of these words."""
        self._referred.append(np.array(rows, np.int64))
        return arrays.address(self._referred[-1])

    def _remembered(self, kernel: int, one: Pass) -> tuple[Array, int]:
        """Return the numbers that a pass's memory remembers, a row for each of what has its own."""
        if one.over_optimizer:
            return self._memory.numbers.reshape(1, -1), 0
        return self._buckets[kernel].memory, 1

    def _copies(self, kernel: int, one: Pass) -> Iterator[tuple[int, int]]:
        """Yield from where and to where the memory is copied that updates take as it was."""
        numbers, step = self._remembered(kernel, one)
        derived = self._kernels[kernel].derived
        for column, name in enumerate(one.memory.handed, one.memory_columns.start):
            own = one.memory.names.index(name)
            for row in range(len(derived)):
                source, target = numbers[step * row, own:], derived[row, column:]
                yield arrays.address(source), arrays.address(target)

    def _units(self, together: Sequence[PassOf]) -> tuple[_Words, _Words]:
        """Return the words of what has sums of its own in a pass, and those of its parts."""
        kernel, number, one = together[0]
        numbers, _ = self._remembered(kernel, one)
        sizes = [p.size for k, _, _ in together for p in self._buckets[k].parameters]
        parts = [part for k, n, _ in together for part in self._kernels[k].parts(n)]
        first, own = arrays.address(numbers), self._kernels[kernel]
        inputs, value = own.inputs_at(number), own.value_at
        if one.over_optimizer:
            return [(sum(sizes), first, inputs, value, 0, len(parts))], parts
        step = numbers.strides[0]
        return [(n, first + step * k, inputs, value, k, k + 1) for k, n in enumerate(sizes)], parts

    def set_jobs(self, grads: Sequence[Sequence[Any]]) -> None:
        """Write which jobs sum, for the gradients of each bucket."""
        for line, kernel, number in self._sums:
            self.lines[line, _SUM] = self._kernels[kernel].ready_to_sum(number, grads[kernel])

    def set_threads(self, kernel: int, threads: int) -> None:
        """Write how many threads sum over a bucket."""
        for line, own, _ in self._sums:
            if own == kernel:
                self.lines[line, _SUM_THREADS] = threads


class _FusedStep:
    """Whole steps of some buckets in one compiled call each."""

    def __init__(
        self,
        kernels: Sequence[NumbaKernel],
        buckets: Sequence[Bucket],
        counts: Counts,
        memory: Remembered,
    ) -> None:
        self._kernels = kernels
        self._passes = _FusedPasses(kernels, buckets, memory)
        self._tables = [kernel.table for kernel in kernels]
        # Half a microsecond less than an assignment to the array.
        self._packed = [
            (struct.Struct(f"={table.size}d").pack_into, table.data.cast("B"))
            for table in self._tables
        ]
        by_member = buckets[0].members is not None
        self._columns = [*map(_MemberColumns, kernels)] if by_member else []
        self._positions = [bucket.positions for bucket in buckets]
        in_single = any(b.rule.averages_squares and b.spec.real.itemsize == 4 for b in buckets)
        self._lanes = np.zeros(LANES)
        self._counts = counts  # keeps the addresses good
        words = {
            "BUCKETS": len(buckets),
            "SQUARES_IN_SINGLE": int(in_single),
            "LANES": arrays.address(self._lanes),
            "STEP_COUNT": arrays.address(counts.steps),
            "NORM": arrays.address(counts.norm),
            "PASSES": len(self._passes.lines),
            "PASSES_AT": arrays.address(self._passes.lines),
        }
        head = [words[name] for name in PROGRAM]
        self._program = np.zeros(len(PROGRAM) + len(PROGRAM_LINES) * len(kernels), np.int64)
        self._program[: len(head)] = head
        self._lines = self._program[len(head) :].reshape(-1, len(PROGRAM_LINES))
        self._threads = [1] * len(kernels)
        self._lines[:, _THREADS] = 1
        self._address = arrays.address(self._program)
        self._step: Callable[..., bool] = _cached_function(numba_compiled.step, "step")
        self._pool = _pool().address
        self._by_dtype = [k for k, kernel in enumerate(kernels) if kernel.several_dtypes]
        self._large = [k for k, kernel in enumerate(kernels) if kernel.large]
        self._prepared = [False, False]  # without the norm, and with it

    def __call__(
        self,
        params: list[Any],
        grads: list[Any],
        rows: Sequence[Sequence[Any]],
        scale: float,
        limit: float | None,
    ) -> bool:
        """Look, measure, update and count."""
        if self._large:
            self._set_threads()
        if self._by_dtype or not self._prepared[limit is not None]:
            self._set_jobs(grads, limit is not None)
        if self._columns:
            for columns, row in zip(self._columns, rows, strict=True):
                columns.write(row, scale)
            scale = 1.0
        else:
            for (pack, row_bytes), row in zip(self._packed, rows, strict=True):
                pack(row_bytes, 0, *row)
        limit = NO_LIMIT if limit is None else limit
        return self._step(self._pool, self._address, id(params), id(grads), scale, limit)

    def _set_threads(self) -> None:
        """Write how many threads do the jobs of large buckets: that can be set at any time."""
        for number in self._large:
            threads = self._kernels[number].threads()
            if threads != self._threads[number]:
                self._threads[number] = threads
                self._lines[number, _THREADS] = threads
                self._passes.set_threads(number, threads)

    def _set_jobs(self, grads: list[Any], measures: bool) -> None:
        """Write which jobs are done, as far as that may have changed."""
        everything = not self._prepared[measures]
        own = [[grads[position] for position in positions] for positions in self._positions]
        for number in range(len(self._kernels)) if everything else self._by_dtype:
            self._lines[number, :_THREADS] = self._kernels[number].ready(own[number], measures)
        self._passes.set_jobs(own)
        self._prepared[measures] = True


class _MemberColumns:
    """The table of a kernel with members, of which only what has changed is written anew."""

    def __init__(self, kernel: NumbaKernel) -> None:
        self._kernel = kernel
        self._written: list[Any] = [None] * len(kernel.table)

    def write(self, row: Sequence[Any], scale: float) -> None:
        """Write the scalars of a step, numbers or arrays of one for each member."""
        table, written, varies = self._kernel.table, self._written, 0
        values = [row[0] * float(table.dtype.type(scale)), *row[1:]]  # what stands there is 1 or -1
        with np.errstate(all="ignore"):
            for k, value in enumerate(values):
                if isinstance(value, np.ndarray):
                    varies |= 1 << k
                    if value is written[k]:
                        continue
                elif type(written[k]) is float and value == written[k]:
                    continue
                table[k] = written[k] = value
        self._kernel.columns_vary(varies)


def _round_into(columns: Array, table: Array, scale: float) -> None:
    """Write a table of members into its columns, in their dtype, for gradients that are scaled."""
    with np.errstate(all="ignore"):
        np.copyto(columns, table.T, casting="same_kind")
        columns[0] *= columns.dtype.type(scale)  # what stands there is 1 or -1


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


def _jit(function: Callable[..., Any], name: str, identity: str, nogil: bool = True) -> Any:
    """Return a function that is compiled at its first call, or found on disk."""
    # error_model: divisions by zero give inf as in NumPy. No fastmath: the same bits everywhere.
    compiled = numba.njit(function, nogil=nogil, error_model="numpy", fastmath=False)
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
def _cached_function(function: Callable[..., Any], name: str, nogil: bool = True) -> Any:
    """Return a function of ours, to be compiled at its first call."""
    return _jit(function, name, fingerprint(function), nogil)


def tensor_windows(kind: type, params: Sequence[Array]) -> TensorWindows | None:
    """Return what sees gradients that are tensors of a class; None where that cannot be.

    It is for real parameters: of a complex tensor a sign may be noted, and not carried out.
    """
    function = function_of(getattr(kind, "__dlpack_c_exchange_api__", None))
    if function is None or not layout_is_known() or any(p.dtype.kind != "f" for p in params):
        return None
    look = _cached_function(locate, "tensors", nogil=False)  # it calls what needs the GIL
    return TensorWindows(look, function, kind, params)


def _compiled_address(function: Callable[..., Any], name: str, identity: str) -> int:
    """Compile what does chunks, ``function(job, thread, begin, end)``; return its address."""
    compiled = _jit(function, name, identity)
    words = (numba.int64,) * 4
    compiled.compile(words)
    result = compiled.overloads[words]
    _KEPT.append(result)  # its code is in memory as long as this lives
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name))


_KEPT: list[Any] = []


@cache
def _work(rule: Rule, spec: UpdateSpec) -> int:
    """Return the address of what does the chunks of one rule's step."""
    return _built(loop_source(rule, spec), rule, spec, f"{rule.name}-{spec.name}")


@cache
def _pass(rule: Rule, spec: UpdateSpec, number: int) -> int:
    """Return the address of what sums tiles in one pass of a rule's step."""
    one = derived_of(rule, spec).passes[number]
    assert one.sums is not None
    name = f"{rule.name}-{spec.name}-pass{number}"
    return _built(pass_source(rule, spec, one), rule, spec, name, terms=one.sums.numba)


@cache
def _made(rule: Rule, spec: UpdateSpec, number: int) -> int:
    """Return the address of what makes the scalars of one pass of its sums."""
    one = derived_of(rule, spec).passes[number]
    text, host = memory_source(one), one.memory.host
    assert text is not None
    scope: dict[str, Any] = {
        "__name__": __name__,  # in which Numba looks for what it finds on disk
        **{n: host.__globals__[n] for n in host.__code__.co_names if n in host.__globals__},
        "total_of": numba_compiled.total_of,
        "carray": numba.carray,
        "pointer_to": runtime.pointer_to,
        "int64_at": runtime.int64_at,
        "int64": numba.int64,
        "float64": numba.float64,
        "empty": np.empty,
    }
    exec(compile(text, f"<fastopt memory of {rule.name}>", "exec"), scope)
    scope["host"] = register_jitable(scope["host"])
    identity = text + fingerprint(numba_compiled.total_of) + fingerprint(host)
    return _compiled_address(scope["work"], f"{rule.name}-made{number}", identity)


def _built(text: str, rule: Rule, spec: UpdateSpec, name: str, **forms: Callable[..., Any]) -> int:
    """Compile a loop's text, with the forms that it calls; return its address."""
    stored, gradient = (conversion(dtype, spec.real) for dtype in (spec.stored, spec.gradient))
    forms |= {"rule": rule.numba} if isinstance(rule, Rule) else {}
    forms |= {f"{fragment.name}_form": fragment.numba for fragment in spec.fragments}
    scope: dict[str, Any] = {
        "__name__": __name__,
        **{name: register_jitable(form) for name, form in forms.items()},
        "real": numba.from_dtype(spec.real),
        "stored": _type_of(spec.stored),
        "gradient_type": _type_of(spec.gradient),
        "widen": stored.widen,
        "narrow": stored.narrow,
        "widen_gradient": gradient.widen,
        "carray": numba.carray,
        "pointer_to": runtime.pointer_to,
        "int64_at": runtime.int64_at,
        "int64": numba.int64,
        "float32": numba.float32,
        "uint8": numba.uint8,
        "uint16": numba.uint16,
        "uint32": numba.uint32,
        "float64": numba.float64,
        "empty": np.empty,
    }
    storage = numba_compiled.functions(storage_of(rule, spec).functions, spec)
    scope |= storage
    exec(compile(text, f"<fastopt step of {rule.name}>", "exec"), scope)
    parts = (*forms.values(), *stored, gradient.widen, *storage.values())
    identity = text + "".join(map(fingerprint, parts))
    return _compiled_address(scope["work"], name, identity)


@cache
def _squares(dtype: np.dtype[Any]) -> int:
    """Return the address of what sums the squares of gradients of one dtype."""
    widen = conversion(dtype, wide(dtype)).widen
    function = numba_compiled.squares(_type_of(dtype), widen, dtype.itemsize)
    return _compiled_address(
        function, f"squares-{dtype.name}", fingerprint(function) + fingerprint(widen)
    )


@cache
def _rows(dtype: np.dtype[Any], size: int) -> int:
    """Return the address of what lays out gradients of rows, of one dtype.

    ``size`` are the bytes of a real number of the parameter.
    """
    widen, narrow = conversion(dtype, wide(dtype))
    function = numba_compiled.row_layout(_type_of(dtype), widen, narrow, dtype.itemsize, size)
    identity = f"{size}" + "".join(map(fingerprint, (function, widen, narrow)))
    return _compiled_address(function, f"rows-{dtype.name}", identity)


@cache
def _header_comparison() -> Callable[..., int] | None:
    """Return the compiled look at a step's arrays; None if memory is not laid out as it expects."""
    compare: Callable[..., int] = _cached_function(numba_compiled.compare, "headers")
    return compare if numba_headers.layout_is_known(compare) else None


@cache
def _pool() -> Pool:
    return Pool(_cached_function)


class _CompiledRule:
    """What is compiled for one rule and spec."""

    def __init__(self, rule: Rule, spec: UpdateSpec) -> None:
        self._rule, self._spec = rule, spec
        self.gradient = spec.gradient
        self.run: Callable[..., None] = _cached_function(numba_compiled.run, "run")
        self.pool = _pool().address
        self.num_threads: int = numba.config.NUMBA_NUM_THREADS

    def update(self) -> int:
        """Return the address of what does chunks of an update."""
        return _work(self._rule, self._spec)

    def sums(self, number: int) -> int:
        """Return the address of what sums tiles in a pass of the update."""
        return _pass(self._rule, self._spec, number)

    def made(self, number: int) -> int:
        """Return the address of what makes the scalars of a pass."""
        return _made(self._rule, self._spec, number)

    def squares(self) -> int:
        """Return the address of what sums squares of gradients."""
        return _squares(self.gradient)

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

    def kernel(self, bucket: Bucket, extents: Extents) -> NumbaKernel:
        """Return the kernel of a bucket."""
        return NumbaKernel(bucket, extents)

    def fused(
        self,
        kernels: Sequence[Any],
        buckets: Sequence[Bucket],
        counts: Counts,
        memory: Remembered,
    ) -> _FusedStep | None:
        """Return what makes whole steps of these buckets, if all of their arrays are usual."""
        if not kernels or not all(kernel.can_be_fused for kernel in kernels):
            return None
        return _FusedStep(kernels, buckets, counts, memory)

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
