"""The Numba backend: one compiled call updates all parameters of a bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic, register_jitable

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.backends import COMMON_SCALARS, array_headers
from fastopt.backends.loop_source import LEAF_LINES, loop_source
from fastopt.parameters import Parameter
from fastopt_kernels import Rule

CHUNK = 4_096
"""Elements that one thread takes at a time: small enough to share out, large enough to stream."""

PARALLEL_FROM = 65_536
"""Elements of a bucket from which threads pay: waking them costs as much as this many updates."""


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _pointer_to(context: Any, address: Any, element: Any) -> Any:
    """Turn an address into a pointer to elements of a type."""
    pointer = numba.types.CPointer(element.instance_type)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], target.get_value_type(pointer))

    return pointer(numba.types.intp, element), generate


@cache
def _step(rule: Rule, dtype: np.dtype[Any], parallel: bool) -> Callable[..., bool]:
    """Return the compiled step of one rule; compilation happens at its first call."""
    scope: dict[str, Any] = {}
    text = loop_source(rule, dtype.itemsize)
    exec(compile(text, f"<fastopt step of {rule.name}>", "exec"), scope)
    function = scope["build"](
        register_jitable(rule.numba),
        numba.from_dtype(dtype),
        numba.carray,
        _pointer_to,
        register_jitable(_compare),
        numba.prange if parallel else range,
    )
    # error_model: divisions by zero give inf as in NumPy. No fastmath: the same bits everywhere.
    jit = numba.njit(parallel=parallel, nogil=True, error_model="numpy", fastmath=False)
    compiled: Callable[..., bool] = jit(function)
    return compiled


@register_jitable  # type: ignore[untyped-decorator]
def _word(address: int) -> int:
    return numba.carray(_pointer_to(address, numba.int64), 1)[0]  # type: ignore[no-any-return]


@register_jitable  # type: ignore[untyped-decorator]
def _half(address: int) -> int:
    return numba.carray(_pointer_to(address, numba.int32), 1)[0]  # type: ignore[no-any-return]


_compare = array_headers.build(_word, _half)


@cache
def _header_comparison() -> Callable[..., int] | None:
    """Return the compiled look at a step's arrays; None if memory is not laid out as it expects."""
    compare: Callable[..., int] = numba.njit(_compare)
    return compare if array_headers.layout_is_known(compare) else None


class NumbaDriver:
    """Runs a rule's Numba form over all parameters of a bucket in one compiled call."""

    def __init__(self, rule: Rule, parameters: Sequence[Parameter], arena: Array) -> None:
        flat = [parameter.flat for parameter in parameters]
        size = sum(param.size for param in flat)
        self._step = _step(rule, arena.dtype, size >= PARALLEL_FROM)
        self._leaves = np.array(
            [
                [arrays.address(param) for param in flat],
                [0] * len(flat),
                [param.size for param in flat],
                [parameter.offset for parameter in parameters],
                [0] * len(flat),
            ],
            np.intp,
        )
        self._grads, self._rows = (self._leaves[LEAF_LINES.index(n)] for n in ("GRAD", "ROW"))
        self._table = np.zeros((1, len(COMMON_SCALARS) + len(rule.scalars)))
        self._places = (self._leaves, _chunks(self._leaves[2]), arena)
        self._params = flat  # their addresses are good as long as these live
        self._held: Sequence[Array | None] = ()
        compare = _header_comparison()
        self._headers = array_headers.HeaderCheck(compare, parameters) if compare else None
        self._expected = self._headers.expected if self._headers else _NOTHING_EXPECTED
        self.at_once = compare is not None and not any(p.copied for p in parameters)

    def step_at_once(
        self,
        params: list[Any],
        grads: list[Any],
        row: Sequence[float],
        steps: Array,
        clock: Array,
    ) -> bool:
        """Check, update and count in one compiled call."""
        self._table[0] = row
        return self._step(
            True, *self._places, self._table, steps, clock, id(params), id(grads), *self._expected
        )

    def accepts(self, params: list[Any], grads: list[Any]) -> int | None:
        """Compare the headers of all arrays with what is expected, in one compiled call."""
        self._held = grads
        return self._headers(params, grads, self._grads) if self._headers else None

    def hold(self, grads: Sequence[Array | None]) -> None:
        """Keep the gradients, and note their addresses."""
        self._held = grads
        self._grads[:] = [0 if grad is None else arrays.address(grad) for grad in grads]

    def update(self, table: Sequence[Sequence[float]], rows: Sequence[int] | None) -> None:
        """Update every parameter whose gradient is not None."""
        self._rows[:] = 0 if rows is None else rows
        scalars = np.array(table, float)
        self._step(False, *self._places, scalars, _UNUSED, _UNUSED, 0, 0, *self._expected)
        self._rows[:] = 0
        self._held = ()


_UNUSED = np.zeros(1, np.int64)
_NOTHING_EXPECTED = (
    np.zeros((1, 5), np.intp),
    np.zeros((0, 2), np.intp),
    np.zeros((2, 0), np.intp),
)


def _chunks(lengths: Array) -> Array:
    """Return of every chunk (a column) the parameter, its first element, its number of elements."""
    counts = -(-lengths // CHUNK)
    leaf = np.repeat(np.arange(len(lengths)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(leaf)) - before) * CHUNK
    return np.array([leaf, start, np.minimum(CHUNK, lengths[leaf] - start)], np.intp)


class NumbaBackend:
    """Updates NumPy arrays with loops that Numba compiles."""

    name = "numba"
    alignment = 1

    def state(self, slots: int, size: int, like: Array) -> Array:
        """Return a zeroed arena in host memory."""
        return np.zeros((slots, size), like.dtype)

    def driver(self, rule: Rule, parameters: Sequence[Parameter], arena: Array) -> NumbaDriver:
        """Return the driver of some parameters."""
        return NumbaDriver(rule, parameters, arena)


def backend() -> NumbaBackend:
    """Return this file's backend."""
    return NumbaBackend()
