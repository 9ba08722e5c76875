"""The text of the loop that Numba compiles for a rule.

Only the number of state arrays and scalars differs between rules, but a loop over tuples of arrays
is not vectorised (8 times slower), so the names are written out here.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastopt.backends import COMMON_SCALARS, tiny_names
from fastopt.backends.job import CHUNK, JOB, LEAF_LINES, at
from fastopt.backends.storage_source import Storage, storage_of
from fastopt.formats import Format
from fastopt_kernels import Rule

_SOURCE = """
def work(job, lane, first_chunk, last_chunk):
    leaves = carray(pointer_to(word(job + {LEAVES_AT}), int64), ({LINES}, word(job + {COUNT_AT})))
    chunks = carray(pointer_to(word(job + {CHUNKS_AT}), int64), (3, word(job + {TOTAL_AT})))
    table = carray(pointer_to(word(job + {TABLE_AT}), float64), (word(job + {COUNT_AT}), {WIDTH}))
    exact = carray(pointer_to(word(job + {EXACT_AT}), real), ({SLOTS}, word(job + {PITCH_AT})))
    {find_state}
    for chunk in range(first_chunk, last_chunk):
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
"""

# Of both parts of each complex number, before any parameter of the chunk has changed.
_MODULI = (
    "for i in range(0, count, 2):",
    "    re = widen_given(grad_{of}[i]) * grad_scale",
    "    im = widen_given(grad_{of}[i + 1]) * grad_scale",
    "    re = re + l2 * widen(param_{of}[i]) if l2 != zero else re",
    "    im = im + l2 * widen(param_{of}[i + 1]) if l2 != zero else im",
    "    square = re * re + im * im",
    "    square_{of}[i] = square",
    "    square_{of}[i + 1] = square",
)

# What does not round to the stored parameter is not its master: somebody wrote the parameter since.
_LOAD_MASTER = (
    "param = widen(param_of[i])",
    "master = master_of[i]",
    "param = master if widen(narrow(master)) == param else param",
)


def loop_source(rule: Rule, format: Format) -> str:
    """Return the source of ``work(job, lane, ...)``, which does chunks of one rule's step.

    It refers by name to ``rule``, ``real``, ``stored``, ``given`` (types), ``widen``, ``narrow``,
    ``widen_given``, ``carray``, ``empty``, ``pointer_to``, ``word``, dtypes, and to the functions
    of the format's storage.
    """
    storage = storage_of(rule, format)
    masters = [*format.masters, *format.limits]
    exact = [*(rule.state if format.state == "real" else ()), *masters]
    slices = [
        f"{slot}_{storage.of} = exact[{k}, first : first + count]" for k, slot in enumerate(exact)
    ]
    find, elements = [*storage.find()], []
    if format.modulus:
        find.append(f"square_{storage.of} = empty({CHUNK}, real)")
        elements += [line.format(of=storage.of) for line in _MODULI]
    usual = list(_element(rule, format, storage, usual=True))
    elements += storage.loops(list(_element(rule, format, storage)), usual)
    scalars = [*COMMON_SCALARS, *rule.scalars, *format.limit_scalars]
    in_work, in_chunk = ("\n" + " " * depth for depth in (4, 8))
    return _SOURCE.format(
        param_size=format.stored.itemsize,
        grad_size=format.given.itemsize,
        LINES=len(LEAF_LINES),
        WIDTH=len([*COMMON_SCALARS, *rule.scalars, *format.scalars]),
        SLOTS=len(exact),
        **{name: line for line, name in enumerate(LEAF_LINES)},
        **{f"{name}_AT": at(name) for name in JOB},
        of=storage.of,
        find_state=in_work.join(find),
        load_scalars=in_chunk.join(
            f"{name} = real(row[{column}])" for column, name in enumerate(scalars)
        ),
        slice_state=in_chunk.join([*slices, *storage.in_chunk(len(scalars))]),
        elements=in_chunk.join(elements),
    )


def _element(rule: Rule, format: Format, storage: Storage, usual: bool = False) -> Iterator[str]:
    """Yield the update of one element; a usual one has no L2 term, and nothing is flushed."""
    yield from _LOAD_MASTER if format.master else ["param = widen(param_of[i])"]
    yield "grad = widen_given(grad_of[i]) * grad_scale"
    if not usual:
        yield "grad = grad + l2 * param if l2 != zero else grad"
    if rule.squares:
        yield "square = square_of[i]" if format.modulus else "square = grad * grad"
    yield "param = param - decay * param if decay != zero else param"
    given = ["param", "grad", *["square"] * rule.squares]
    inputs = ", ".join([*given, *map(storage.load, rule.state), *rule.scalars])
    yield f"{', '.join(['param', *rule.state])}, = rule({inputs})"
    yield from _keep_bounds(rule, format)
    yield from storage.draws
    yield f"param_of[i] = {storage.narrow}"
    if format.master:
        yield "master_of[i] = param"
    for slot, least in tiny_names(rule).items():
        kept = f"zero if abs({slot}) < {least} else {slot}"
        yield from storage.store(slot, slot if usual else kept)


def _keep_bounds(rule: Rule, format: Format) -> Iterator[str]:
    for name in format.limits:
        yield f"{name} = {name}_of[i]"
    if format.bounds != "none":
        yield "param = lower if param < lower else param"
        yield "param = upper if param > upper else param"
    if format.reset:
        for slot in rule.signed:
            yield f"{slot} = zero if param == lower or param == upper else {slot}"
