"""The driver of the Numba backend: hands a bucket's addresses to one compiled call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from fastopt import arrays
from fastopt.arena import Arena
from fastopt.arrays import Array
from fastopt.backends import COMMON_SCALARS, threads
from fastopt.backends.array_headers import HeaderCheck
from fastopt.backends.loop_source import LEAF_LINES
from fastopt.formats import Format
from fastopt.norms import LANES, PIECE
from fastopt.parameters import Parameter
from fastopt_kernels import Rule

CHUNK = 2_048
"""Elements that are updated in one go: small enough to share out evenly among threads, large enough
that finding the next ones costs nothing."""

PARALLEL_FROM = 65_536
"""Elements of a bucket from which threads pay: waking them costs as much as this many updates."""


class Compiled(Protocol):
    """What the backend compiles for a driver, for gradients of one dtype."""

    num_threads: int
    given: np.dtype[Any]
    """Of the real numbers of the gradients."""

    def step(self, parallel: bool) -> Callable[..., bool]:
        """Return the step of the driver's rule, for one thread or several."""

    def squares(self, parallel: bool) -> Callable[..., None]:
        """Return the sum of squares by pieces, for one thread or several."""

    def threading_layer(self) -> str:
        """Return the name of the threading layer, after a parallel step."""


class _Reading:
    """Gradients of one dtype: what is compiled for them, and what such arrays look like."""

    def __init__(
        self,
        compiled: Compiled,
        compare: Callable[..., int] | None,
        parameters: Sequence[Parameter],
    ) -> None:
        own = compiled.given == parameters[0].flat.dtype
        dtype = parameters[0].dtype if own else compiled.given
        self.compiled = compiled
        self.headers = HeaderCheck(compare, parameters, dtype) if compare else None
        self.expected = self.headers.expected if self.headers else _NOTHING_EXPECTED

    def prepare(self, *places: Array) -> None:
        """Fix the arguments of ``step_at_once`` that never change."""
        self.fixed = (True, *places, *self.expected)
        self.small_step = partial(self.compiled.step(parallel=False), 1, *self.fixed)


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
        flat = [parameter.flat for parameter in parameters]
        lines = {
            "PARAM": [arrays.address(param) for param in flat],
            "GRAD": [0] * len(flat),
            "LENGTH": [param.size for param in flat],
            "OFFSET": [parameter.offset for parameter in parameters],
            "ROW": [0] * len(flat),
            "STREAM": [parameter.stream for parameter in parameters],
        }
        leaves = np.array([lines[name] for name in LEAF_LINES], np.intp)
        self._grads, self._rows = (leaves[LEAF_LINES.index(name)] for name in ("GRAD", "ROW"))
        self._places = (leaves, _chunks(lines["LENGTH"], CHUNK), *arena.parts)
        self._table = np.zeros((1, len([*COMMON_SCALARS, *rule.scalars, *format.scalars])))
        self._params = flat  # their addresses are good as long as these live
        self._held: Sequence[Array | None] = ()
        self._sums: Array | None = None
        self._large = sum(lines["LENGTH"]) >= PARALLEL_FROM
        self._readings = [_Reading(each, compare, parameters) for each in compiled]
        self._reading = self._readings[0]  # that of the gradients at hand
        for reading in self._readings:
            reading.prepare(*self._places, self._table)
        usual = compare is not None and not any(p.copied for p in parameters)
        self.step_at_once = self._step_at_once if usual else None

    def warm_up(self, norm: bool) -> None:
        """Call everything once with nothing to do, which compiles it or finds it on disk."""
        places, self._places = self._places, (self._places[0], _NO_CHUNKS, *self._places[2:])
        self._grads[:] = 0  # none, and not those of the last step
        try:
            for reading in reversed(self._readings):
                self._reading = reading
                self.update(self._table, None)
                if norm:
                    self.squares(1.0)
        finally:
            self._places, self._sums = places, None

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
        reading = self._reading if len(self._readings) == 1 else self._choose(grads)
        if self._large:
            step = reading.compiled.step
            return bool(self._run(step, *reading.fixed, steps, clock, id(params), id(grads)))
        return reading.small_step(steps, clock, id(params), id(grads))

    def _choose(self, grads: Sequence[Any]) -> _Reading:
        """Go over to the reading for these gradients, as far as the first of them tells."""
        dtype = next((getattr(grad, "dtype", None) for grad in grads if grad is not None), None)
        for reading in self._readings:
            if reading.compiled.given == dtype:
                self._reading = reading
        return self._reading

    def _run(self, function: Callable[[bool], Callable[..., Any]], *arguments: Any) -> Any:
        """Call a compiled function with as many threads as pay and are safe."""
        tasks = threads.available(self._reading.compiled.num_threads) if self._large else 1
        if tasks > 1:
            if threads.free():  # felt at 100 000 elements
                return function(True)(tasks, *arguments)
            with threads.guard():
                try:
                    result = function(True)(tasks, *arguments)
                    threads.note_layer(self._reading.compiled.threading_layer)
                    return result
                except ValueError:  # no threading layer; Numba says so before anything runs
                    threads.give_up()
        return function(False)(1, *arguments)

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
        leaves = self._places[0]
        if self._sums is None:
            self._pieces = _chunks([param.size for param in self._params], PIECE)
            self._lanes = np.zeros((self._reading.compiled.num_threads, LANES))
            self._sums = np.zeros(self._pieces.shape[1])
        self._run(
            self._reading.compiled.squares, leaves, self._pieces, factor, self._lanes, self._sums
        )
        return self._sums

    def update(self, table: Sequence[Sequence[float]] | Array, rows: Sequence[int] | None) -> None:
        """Update every parameter whose gradient is not None."""
        if rows is not None:
            self._rows[:] = rows
        rest = (*self._reading.expected, _UNUSED, _UNUSED, 0, 0)
        self._run(self._reading.compiled.step, False, *self._places, np.array(table, float), *rest)
        self._rows[:] = 0  # as step_at_once expects it
        self._held = ()


_NO_CHUNKS = np.zeros((3, 0), np.intp)
_UNUSED = np.zeros(1, np.int64)
_NOTHING_EXPECTED = tuple(np.zeros(shape, np.intp) for shape in [(1, 6), (0, 2), (2, 0)])


def _chunks(lengths: Sequence[int], size: int) -> Array:
    """Cut parameters into chunks; of each (a column) the parameter, first element, and count."""
    length = np.array(lengths, np.intp)
    counts = -(-length // size)
    leaf = np.repeat(np.arange(len(length)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(leaf)) - before) * size
    return np.array([leaf, start, np.minimum(size, length[leaf] - start)], np.intp)
