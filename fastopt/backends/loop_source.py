"""The text of the loop that Numba compiles for a rule: look, update, count, in one call.

Only the number of state arrays and scalars differs between rules, but a loop over tuples of arrays
is not vectorised (8 times slower), so the names are written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastopt.backends import COMMON_SCALARS, tiny_names
from fastopt.backends.storage_source import Storage, storage_of
from fastopt.formats import Format
from fastopt.norms import LANES
from fastopt_kernels import Rule

LEAF_LINES = ("PARAM", "GRAD", "LENGTH", "OFFSET", "ROW", "STREAM")
"""What the lines of the array ``leaves`` hold: addresses, sizes, places in the arena, table rows,
where random bits begin.
Few arguments: unpacking an array costs a compiled call as much as updating 100 elements."""

_SOURCE = """
def build(
    rule, real, stored, given, widen, narrow, widen_given, carray, pointer_to, compare, loop,
    {extra}
):
    def step(
        tasks, look, leaves, chunks, {arena}, table, known, axes, extents, steps, clock,
        params, grads
    ):
        if look and compare(params, grads, known, axes, extents, leaves[{GRAD}]) != 0:
            return False
        total = chunks.shape[1]
        for task in loop(tasks):
            {make_rows}
            for chunk in range(total * task // tasks, total * (task + 1) // tasks):
                leaf, start, count = chunks[0, chunk], chunks[1, chunk], chunks[2, chunk]
                if leaves[{GRAD}, leaf] == 0:  # no gradient in this step
                    continue
                first = leaves[{OFFSET}, leaf] + start
                row = table[leaves[{ROW}, leaf]]
                zero = real(0)
                {load_scalars}
                param_at = pointer_to(leaves[{PARAM}, leaf] + start * {param_size}, stored)
                grad_at = pointer_to(leaves[{GRAD}, leaf] + start * {grad_size}, given)
                param_{of} = carray(param_at, count)
                grad_{of} = carray(grad_at, count)
                {slice_state}
                {elements}
        if look:
            for leaf in range(len(steps)):
                steps[leaf] += 1
            clock[0] += 1
        return True
    return step
"""

_ELEMENT = (
    "grad = widen_given(grad_of[i]) * grad_scale",
    "grad = grad + l2 * param if l2 != zero else grad",
    "param = param - decay * param if decay != zero else param",
)

# What does not round to the stored parameter is not its master: somebody wrote the parameter since.
_LOAD_MASTER = (
    "param = widen(param_of[i])",
    "master = master_of[i]",
    "param = master if widen(narrow(master)) == param else param",
)


def _keep_bounds(rule: Rule, format: Format) -> Iterator[str]:
    for name in format.limits:
        yield f"{name} = {name}_of[i]"
    if format.bounds != "none":
        yield "param = lower if param < lower else param"
        yield "param = upper if param > upper else param"
    if format.reset:
        for slot in rule.signed:
            yield f"{slot} = zero if param == lower or param == upper else {slot}"


def build_squares(
    given: Any, widen_given: Any, itemsize: int, carray: Any, pointer_to: Any, loop: Any
) -> Callable[..., None]:
    """Return the loop that sums the squares of all gradients by pieces, to be compiled."""
    grad_line = LEAF_LINES.index("GRAD")

    def squares(tasks: int, leaves: Any, pieces: Any, factor: float, lanes: Any, sums: Any) -> None:
        total = pieces.shape[1]
        for task in loop(tasks):
            lane = lanes[task]
            for piece in range(total * task // tasks, total * (task + 1) // tasks):
                leaf, start, count = pieces[0, piece], pieces[1, piece], pieces[2, piece]
                lane[:] = 0.0
                if leaves[grad_line, leaf] == 0:  # no gradient in this step
                    count = 0
                first = leaves[grad_line, leaf] + start * itemsize
                full, rest = count // LANES, count % LANES
                rows = carray(pointer_to(first, given), (full, LANES))
                tail = carray(pointer_to(first + full * LANES * itemsize, given), rest)
                for r in range(full):
                    row = rows[r]  # a row of its own, or the loop over it is not vectorised
                    for j in range(LANES):
                        value = widen_given(row[j]) * factor
                        lane[j] += value * value
                for j in range(rest):
                    value = widen_given(tail[j]) * factor
                    lane[j] += value * value
                width = LANES // 2
                while width > 0:
                    for j in range(width):
                        lane[j] += lane[j + width]
                    width //= 2
                sums[piece] = lane[0]

    return squares


def loop_source(rule: Rule, format: Format) -> str:
    """Return the source of a function ``build`` that makes the step of one rule."""
    scalars = [*COMMON_SCALARS, *rule.scalars, *format.limit_scalars]
    storage = storage_of(rule, format)
    exact = [*(rule.state if format.state == "real" else ()), *format.masters, *format.limits]
    slices = [
        f"{slot}_{storage.of} = arena[{k}, first : first + count]" for k, slot in enumerate(exact)
    ]
    stream = LEAF_LINES.index("STREAM")
    in_task, in_chunk = ("\n" + " " * depth for depth in (12, 16))
    return _SOURCE.format(
        param_size=format.stored.itemsize,
        grad_size=format.given.itemsize,
        arena=", ".join(storage.arguments),
        of=storage.of,
        extra=", ".join(storage.functions),
        make_rows=in_task.join(storage.in_task),
        **{name: line for line, name in enumerate(LEAF_LINES)},
        load_scalars=in_chunk.join(
            f"{name} = real(row[{column}])" for column, name in enumerate(scalars)
        ),
        slice_state=in_chunk.join([*slices, *storage.in_chunk(len(scalars), stream)]),
        elements=in_chunk.join(storage.loops(list(_element(rule, format, storage)))),
    )


def _element(rule: Rule, format: Format, storage: Storage) -> Iterator[str]:
    """Yield the update of one element."""
    yield from _LOAD_MASTER if format.master else ["param = widen(param_of[i])"]
    yield from _ELEMENT
    inputs = ", ".join(["param", "grad", *map(storage.load, rule.state), *rule.scalars])
    yield f"{', '.join(['param', *rule.state])}, = rule({inputs})"
    yield from _keep_bounds(rule, format)
    yield from storage.draws
    yield f"param_of[i] = {storage.narrow}"
    if format.master:
        yield "master_of[i] = param"
    for slot, least in tiny_names(rule).items():
        yield from storage.store(slot, f"zero if abs({slot}) < {least} else {slot}")
