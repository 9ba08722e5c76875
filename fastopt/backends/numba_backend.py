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
from fastopt.parameters import Parameter
from fastopt_kernels import Rule

CHUNK = 16_384
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


# One loop for every rule: only the number of state arrays and scalars differs, and a loop over
# tuples of arrays is not vectorised (8 times slower), so the names are written out.
_LOOP = """
def build(rule, real, carray, pointer_to, loop):
    def update(params, grads, lengths, offsets, chunk_leaf, chunk_start, arena, table, rows):
        for chunk in loop(len(chunk_leaf)):
            leaf = chunk_leaf[chunk]
            if grads[leaf] == 0:  # no gradient in this step
                continue
            start = chunk_start[chunk]
            count = min({chunk}, lengths[leaf] - start)
            first = offsets[leaf] + start
            row = table[rows[leaf]]
            zero = real(0)
            {load_scalars}
            param_of = carray(pointer_to(params[leaf] + start * {itemsize}, real), count)
            grad_of = carray(pointer_to(grads[leaf] + start * {itemsize}, real), count)
            {slice_state}
            for i in range(count):
                param = param_of[i]
                grad = grad_of[i] * grad_scale
                grad = grad + l2 * param if l2 != zero else grad
                param = param - decay * param if decay != zero else param
                {outputs} = rule({inputs})
                param_of[i] = param
                {store_state}
    return update
"""


def _loop_source(rule: Rule, itemsize: int) -> str:
    scalars = [*COMMON_SCALARS, *rule.scalars]
    tiny = {slot: "tiny_signed" if slot in rule.signed else "tiny_positive" for slot in rule.state}
    indented = "\n" + " " * 12
    return _LOOP.format(
        chunk=CHUNK,
        itemsize=itemsize,
        load_scalars=indented.join(
            f"{name} = real(row[{column}])" for column, name in enumerate(scalars)
        ),
        slice_state=indented.join(
            f"{slot}_of = arena[{k}, first : first + count]" for k, slot in enumerate(rule.state)
        ),
        inputs=", ".join(["param", "grad", *[f"{s}_of[i]" for s in rule.state], *rule.scalars]),
        outputs=", ".join(["param", *rule.state]) + ",",
        store_state=("\n" + " " * 16).join(
            f"{slot}_of[i] = zero if abs({slot}) < {tiny[slot]} else {slot}" for slot in rule.state
        ),
    )


@cache
def _compiled(rule: Rule, dtype: np.dtype[Any], parallel: bool) -> Callable[..., None]:
    """Return the compiled loop of one rule; compilation happens at its first call."""
    scope: dict[str, Any] = {}
    exec(compile(_loop_source(rule, dtype.itemsize), f"<fastopt {rule.name} loop>", "exec"), scope)
    loop = numba.prange if parallel else range
    real = numba.from_dtype(dtype)
    build = scope["build"]
    function = build(register_jitable(rule.numba), real, numba.carray, _pointer_to, loop)
    # error_model: divisions by zero give inf as in NumPy. No fastmath: the same bits everywhere.
    jit = numba.njit(parallel=parallel, nogil=True, error_model="numpy", fastmath=False)
    compiled: Callable[..., None] = jit(function)
    return compiled


@cache
def _header_comparison() -> Callable[..., int] | None:
    """Return the compiled look at a step's arrays; None if memory is not laid out as it expects."""

    def word(address: int) -> int:
        return numba.carray(_pointer_to(address, numba.int64), 1)[0]  # type: ignore[no-any-return]

    def half(address: int) -> int:
        return numba.carray(_pointer_to(address, numba.int32), 1)[0]  # type: ignore[no-any-return]

    compare: Callable[..., int] = numba.njit(
        array_headers.build(register_jitable(word), register_jitable(half))
    )
    return compare if array_headers.layout_is_known(compare) else None


class NumbaDriver:
    """Runs a rule's Numba form over all parameters of a bucket in one compiled call."""

    def __init__(self, rule: Rule, parameters: Sequence[Parameter], arena: Array) -> None:
        flat = [parameter.flat for parameter in parameters]
        lengths = np.array([param.size for param in flat], np.intp)
        self._update = _compiled(rule, arena.dtype, bool(lengths.sum() >= PARALLEL_FROM))
        compare = _header_comparison()
        self._check = array_headers.HeaderCheck(compare, parameters) if compare else None
        self._grads = np.zeros(len(flat), np.intp)
        self._held: Sequence[Array | None] = ()
        self._params = flat  # the addresses below are good as long as these live
        self._table = np.zeros((1, len(COMMON_SCALARS) + len(rule.scalars)))
        self._first_row = np.zeros(len(flat), np.intp)
        self._places = (
            np.array([arrays.address(param) for param in flat], np.intp),
            self._grads,
            lengths,
            np.array([parameter.offset for parameter in parameters], np.intp),
            *_chunks(lengths),
            arena,
        )

    def accepts(self, params: list[Any], grads: list[Any]) -> int | None:
        """Compare the headers of all arrays with what is expected, in one compiled call."""
        if self._check is None:
            return None
        self._held = grads
        return self._check(params, grads, self._grads)

    def hold(self, grads: Sequence[Array | None]) -> None:
        """Keep the gradients, and note their addresses."""
        self._held = grads
        self._grads[:] = [0 if grad is None else arrays.address(grad) for grad in grads]

    def update(self, table: Sequence[Sequence[float]], rows: Sequence[int] | None) -> None:
        """Update every parameter whose gradient is not None."""
        if rows is None:
            self._table[0] = table[0]
            self._update(*self._places, self._table, self._first_row)
        else:
            self._update(*self._places, np.array(table, float), np.array(rows, np.intp))
        self._held = ()


def _chunks(lengths: Array) -> tuple[Array, Array]:
    """Return of every chunk the parameter, and the element of it that the chunk begins at."""
    counts = -(-lengths // CHUNK)
    leaf = np.repeat(np.arange(len(lengths)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return leaf, (np.arange(len(leaf)) - before) * CHUNK


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
