"""The CUDA C++ of the passes that sum before an update, and of what is made of the sums.

A block of LANES threads sums a tile, each thread a lane, in the order of ``core.norms``
(``pass.cuh``). Then one block for each array, or one for all of them, adds up the tiles and runs
the function of the memory (``follow.cuh``).
"""

from __future__ import annotations

from collections.abc import Iterator
from string import Template
from typing import Any

from fastopt.backends.cupy.shapes import SHAPES
from fastopt.backends.cupy.source import (
    OPTIONS,
    Addresses,
    before_l2,
    begin,
    constants,
    fixed,
    formats,
    in_namespace,
    lines,
    load_scalars,
    memory,
    memory_value,
    now,
    numbers_of,
    numbers_of_fragment,
    scalars_and_squares,
    scalars_of,
    state_of,
    with_fragment,
)
from fastopt.core.dtypes import UpdateSpec
from fastopt.core.norms import LANES
from fastopt.core.passes import Pass, derived_of
from fastopt_kernels import Rule

_ADD_TERMS = Template("""
__device__ __forceinline__ void add_terms(
    real param, State<1> state, real grad, real $square, const Scalars &numbers, double *sums
) {
    const int k = 0;
    $load_state
    $load_scalars
    $terms
}
""")

_OPERATION = Template("""
    fastopt::sum_tile<$count>(
        $addresses, block, &blocks[0], $memory, {$scalars}, &sums[0], first + blockIdx.x, tiles);
""")


def sums(
    rule: Rule,
    spec: UpdateSpec,
    addresses: Addresses,
    from_table: bool,
    number: int,
) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a pass, to be launched with LANES threads.

    The kernel takes what an update takes, with a block for each tile, then ``first`` (the tiles
    before those of this launch) and ``tiles``, how many there are of each sum in all. It writes
    ``sums`` of the tiles that have a gradient.
    """
    one = derived_of(rule, spec).passes[number]
    assert one.sums is not None
    declared, values, within = scalars_of(rule, spec, from_table)
    text = _OPERATION.substitute(
        count=len(one.sums.names),
        addresses=addresses.pointer,
        memory=memory_value(spec),
        scalars=", ".join(values),
    )
    state = [f"raw {dtype} {name}" for dtype, name in memory(spec)]
    generated = [
        *scalars_and_squares(rule, spec),
        state_of(rule, spec, update=False),
        _ADD_TERMS.substitute(
            square="square" if spec.modulus else "",
            load_state=lines(
                [
                    *(f"real {slot} = state.{now(slot, spec)};" for slot in rule.state),
                    *(f"const real {slot} = state.{slot}.x[k];" for slot in spec.rates),
                ]
            ),
            load_scalars=load_scalars(spec),
            terms=lines(_terms(rule, spec, one)),
        ),
    ]
    preamble = [
        *(formats(spec, addresses, SHAPES["pass"]), in_namespace("\n".join(generated))),
        *(fixed("total"), fixed("modulus"), fixed("pass")),
    ]
    return {
        "in_params": ", ".join(
            [
                *(addresses.declared, "raw int64 blocks", "int64 pitch", *declared),
                *("int64 first", "int64 tiles", *state),
            ]
        ),
        "out_params": "raw float64 sums",
        "operation": within(text),
        "name": f"fastopt_{rule.name}_pass{number}" + ("_from_table" if from_table else ""),
        "preamble": "\n".join(preamble),
        "no_return": True,
        "options": (*OPTIONS, *SHAPES["pass"].options),
    }


def _terms(rule: Rule, spec: UpdateSpec, one: Pass) -> Iterator[str]:
    """Yield the lines that add what is summed of one element."""
    assert one.sums is not None
    fragment, fragments = one.fragment, spec.fragments
    before = fragments if fragment is None else fragments[: fragments.index(fragment)]
    late = fragment is not None and fragment.at == "after"
    if fragment is not None and not late:
        yield from before_l2(spec, before)
    else:
        yield from begin(rule, spec, fragments)
    if late:
        yield f"{{ {numbers_of(rule, spec)} {rule.cupy.strip()} }}"
        for earlier in before:
            if earlier.at == "after" and earlier.on == "param":
                yield with_fragment(spec, earlier, "param")
    numbers = numbers_of(rule, spec, made=False)
    if fragment is not None:
        after = "const real after = param;" * late
        numbers = f"{after} {numbers_of_fragment(spec, fragment, made=False)}"
    yield f"{{ {numbers} real {', '.join(one.sums.names)}; {one.sums.cupy.strip()}"
    for n, name in enumerate(one.sums.names):
        value = f"static_cast<double>({name})"
        yield (
            f"sums[{n}] += {value} * {value};"
            if name in one.sums.squared
            else (f"sums[{n}] += {value};")
        )
    yield "}"


# -------------------------------------------------------------------------------------------------
# What is made of the sums.

_REMEMBER = Template("""
__device__ __forceinline__ void remember(
    const double *sums, double size, const double *inputs, double *remembered, double *made
) {
    $load
    {
        $function
    }
    $store
}
""")


_OVER_ARRAY = Template("""
    const long long array = first_parameter + blockIdx.x;
    if (($addresses)[$capacity + blockIdx.x] == 0 || sizes[array] == 0) return;
    fastopt::follow(
        &sums[0], tiles, starts[array], starts[array + 1] - starts[array], sizes[array],
        &counts[0], &table[0], &remembered[array * $kept], &derived[array * $width + $first]);
    return;
""")

_OVER_OPTIMIZER = """
    if (size == 0) return;
    fastopt::follow(
        &sums[0], tiles, 0, tiles, size, &counts[0], &table[0], &remembered[0], &derived[0]);
    return;
"""


def follow(rule: Rule, spec: UpdateSpec, number: int, addresses: Addresses) -> dict[str, Any]:
    """Return the arguments of the kernel that runs the function of a pass's memory.

    To be launched with a block of LANES threads for each array or, over the optimizer, with one. It
    takes ``counts`` (the row of this step: -1 changes nothing), ``table``, the rows of what the
    memory is given, ``sums`` of all ``tiles``, and for each array ``starts``, its first tile and
    that of the next, and ``sizes``; ``first_parameter`` of these is that of the first block, whose
    gradient's address stands first among ``addresses``. Over the optimizer ``size`` is that of all
    arrays together. ``remembered`` is brought up to date, and of ``derived`` the columns of what is
    made; over the optimizer that is one row.
    """
    derived = derived_of(rule, spec)
    one = derived.passes[number]
    each = not one.over_optimizer
    kept = one.memory.names
    summed = one.sums.names if one.sums else ()
    width = len(derived.names)
    remember = _REMEMBER.substitute(
        load=lines(
            [
                *(f"const double {name} = sums[{k}];" for k, name in enumerate(summed)),
                *(f"double {name} = remembered[{k}];" for k, name in enumerate(kept)),
                *(
                    f"const double {name} = inputs[{k}];"
                    for k, name in enumerate(one.memory.inputs, one.input_columns.start)
                ),
                f"double {', '.join(one.memory.scalars)};",
            ]
        ),
        function=one.memory.cupy.strip(),
        store=lines(
            [
                *(f"remembered[{k}] = {name};" for k, name in enumerate(kept)),
                *(f"made[{k}] = {name};" for k, name in enumerate(one.memory.scalars)),
            ]
        ),
    )
    numbers = constants(LANES=LANES, SUMS=len(summed), INPUTS=derived.inputs)
    return {
        "in_params": ", ".join(
            [
                *(
                    [addresses.declared, "raw int64 starts", "raw int64 sizes"]
                    if each
                    else ["float64 size"]
                ),
                *("int64 first_parameter", "raw int64 counts", "raw float64 table"),
                *("raw float64 sums", "int64 tiles"),
            ]
        ),
        "out_params": "raw float64 remembered, raw float64 derived",
        "operation": _OVER_ARRAY.substitute(
            addresses=addresses.pointer,
            capacity=addresses.capacity,
            kept=len(kept),
            width=width,
            first=one.derived_columns.start,
        )
        if each
        else _OVER_OPTIMIZER,
        "name": f"fastopt_{rule.name}_follow{number}",
        "preamble": "\n".join(
            [in_namespace(numbers), fixed("total"), in_namespace(remember), fixed("follow")]
        ),
        "no_return": True,
        "options": (*OPTIONS, *SHAPES["follow"].options),
    }


def spread(width: int, columns: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Return the arguments of the kernel that copies numbers into the rows of derived scalars.

    Each of ``columns`` is where a number stands in ``numbers`` and its column of ``derived``, of
    which a row has ``width``; ``stride`` is from the numbers of one parameter to the next one's, 0
    where all have the same. It is launched with a thread for each parameter.
    """
    copies = (f"derived[i * {width}ll + {to}] = numbers[i * stride + {at}];" for at, to in columns)
    return {
        "in_params": "raw float64 numbers, int64 stride",
        "out_params": "raw float64 derived",
        "operation": " ".join(copies),
        "name": "fastopt_spread",
        "no_return": True,
        "options": OPTIONS,
    }
