"""The text of the loop that Numba compiles for a rule, and where it finds its arrays.

Only the number of state arrays and scalars differs between rules, but a loop over tuples of arrays
is not vectorised (8 times slower), so the names are written out here.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastopt.backends import COMMON_SCALARS, tiny_names
from fastopt.formats import Format
from fastopt_kernels import Rule

LEAF_LINES = ("PARAM", "GRAD", "LENGTH", "OFFSET", "ROW")
"""What the lines of the array ``leaves`` hold: addresses, sizes, places in arena and table."""

JOB = (
    *("FUNCTION", "TOTAL", "LEAVES", "COUNT", "CHUNKS"),
    *("TABLE", "ARENA", "PITCH"),  # of an update
    *("LANES", "SUMS", "FACTOR"),  # of a norm
    *("KNOWN", "AXES", "AXES_COUNT", "EXTENTS", "EXTENTS_COUNT", "STEPS", "CLOCK"),  # of a look
)
"""The words of a job: what does its chunks and how many they are; addresses and sizes of arrays.
Compiled code finds all its arrays there: handing one over as an argument costs as much as updating
100 elements."""

LANES_APART = 4_096
"""Bytes from the lanes of one thread to those of the next: what two threads write all the time must
not share a cache line, nor lie in two that processors fetch together."""


def at(name: str) -> int:
    """Return where a word of a job stands, in bytes from its beginning."""
    return 8 * JOB.index(name)


_SOURCE = """
def work(job, lane, begin, end):
    leaves = carray(pointer_to(word(job + {LEAVES_AT}), int64), ({LINES}, word(job + {COUNT_AT})))
    chunks = carray(pointer_to(word(job + {CHUNKS_AT}), int64), (3, word(job + {TOTAL_AT})))
    table = carray(pointer_to(word(job + {TABLE_AT}), float64), (word(job + {COUNT_AT}), {WIDTH}))
    arena = carray(pointer_to(word(job + {ARENA_AT}), real), ({SLOTS}, word(job + {PITCH_AT})))
    for chunk in range(begin, end):
        leaf, start, count = chunks[0, chunk], chunks[1, chunk], chunks[2, chunk]
        if leaves[{GRAD}, leaf] == 0:  # no gradient in this step
            continue
        first = leaves[{OFFSET}, leaf] + start
        row = table[leaves[{ROW}, leaf]]
        zero = real(0)
        {load_scalars}
        param_at = pointer_to(leaves[{PARAM}, leaf] + start * {param_size}, stored)
        grad_at = pointer_to(leaves[{GRAD}, leaf] + start * {grad_size}, given)
        param_of, grad_of = carray(param_at, count), carray(grad_at, count)
        {slice_state}
        {square_moduli}
        for i in range(count):
            {load_param}
            grad = widen_given(grad_of[i]) * grad_scale
            grad = grad + l2 * param if l2 != zero else grad
            {take_square}
            param = param - decay * param if decay != zero else param
            {outputs} = rule({inputs})
            {keep_bounds}
            {store_param}
            {store_state}
"""


# Of both parts of each complex number, before any parameter of the chunk has changed.
_SQUARE_MODULI = (
    "moduli = carray(pointer_to(word(job + {MODULI_AT}) + lane * {MODULI_APART}, real), count)",
    "for i in range(0, count, 2):",
    "    re, im = widen_given(grad_of[i]) * grad_scale, widen_given(grad_of[i + 1]) * grad_scale",
    "    re = re + l2 * widen(param_of[i]) if l2 != zero else re",
    "    im = im + l2 * widen(param_of[i + 1]) if l2 != zero else im",
    "    moduli[i] = moduli[i + 1] = re * re + im * im",
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


def loop_source(rule: Rule, format: Format) -> str:
    """Return the source of ``work(job, lane, begin, end)``, which does chunks of one rule's step.

    It refers by name to ``rule``, ``real``, ``stored``, ``given`` (types), ``widen``, ``narrow``,
    ``widen_given``, and to ``carray``, ``pointer_to``, ``word``, ``int64`` and ``float64``.
    """
    scalars = [*COMMON_SCALARS, *rule.scalars, *format.limit_scalars]
    tiny = tiny_names(rule)
    slots = [*rule.state, *format.masters, *format.limits]
    in_chunk, in_element = "\n" + " " * 8, "\n" + " " * 12
    return _SOURCE.format(
        param_size=format.stored.itemsize,
        grad_size=format.given.itemsize,
        load_param=in_element.join(
            _LOAD_MASTER if format.master else ["param = widen(param_of[i])"]
        ),
        store_param=in_element.join(
            ["param_of[i] = narrow(param)", *["master_of[i] = param"] * format.master]
        ),
        LINES=len(LEAF_LINES),
        WIDTH=len(scalars),
        SLOTS=len(slots),
        **{name: line for line, name in enumerate(LEAF_LINES)},
        **{f"{name}_AT": at(name) for name in JOB},
        load_scalars=in_chunk.join(
            f"{name} = real(row[{column}])" for column, name in enumerate(scalars)
        ),
        slice_state=in_chunk.join(
            f"{slot}_of = arena[{k}, first : first + count]" for k, slot in enumerate(slots)
        ),
        keep_bounds=in_element.join(_keep_bounds(rule, format)),
        take_square="square = moduli[i]" if format.modulus else "square = grad * grad",
        square_moduli=in_chunk.join(_SQUARE_MODULI) if format.modulus else "",
        inputs=", ".join(
            [
                *("param", "grad", *["square"] * rule.squares),
                *[f"{slot}_of[i]" for slot in rule.state],
                *rule.scalars,
            ]
        ),
        outputs=", ".join(["param", *rule.state]) + ",",
        store_state=in_element.join(
            f"{slot}_of[i] = zero if abs({slot}) < {tiny[slot]} else {slot}" for slot in rule.state
        ),
    )
