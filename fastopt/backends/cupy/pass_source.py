"""The CUDA C++ of the passes that sum before an update, and of what is made of the sums: text.

A block of LANES threads sums a tile, each thread a lane, in the order of ``core.norms``. Then one
block for each array, or one for all of them, adds up the tiles and runs the function of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from string import Template
from typing import Any

from fastopt.backends.cupy.source import (
    CAPACITY,
    ELEMENT_OF,
    OPTIONS,
    TYPE,
    TYPE_OF_STATE,
    addresses_of,
    begin,
    code_conversions,
    fields,
    half_conversions,
    lines,
    load_scalars,
    memory,
    number_name,
    numbers_of,
    numbers_of_fragment,
    scalar_names,
    scalars_of,
    square_of,
    with_fragment,
)
from fastopt.core.dtypes import UpdateSpec
from fastopt.core.norms import LANES
from fastopt.core.passes import Pass, derived_of
from fastopt.core.quantization import BLOCK
from fastopt_kernels import Rule

_PREAMBLE = Template("""
namespace fastopt {

typedef $real real;
typedef $stored stored;
typedef $given given_type;
$conversions
struct Scalars { real $scalars; };
$square_of
__device__ __forceinline__ void add_terms(
    real param, real grad, $modulus $slots const Scalars &numbers, double *sums
) {
    $load_scalars
    $terms
}
$element_of
__device__ __forceinline__ real loaded(
    const stored *param_at, const real *master_at, long long k
) {
    const real param = widen(*param_at);
    $load_master
}

__device__ __forceinline__ bool add_block(
    const long long *addresses, const long long *blocks, const long long *block, $memory,
    long long pitch, const Scalars &scalars, double *sums
) {
    const long long param_address = addresses[block[0]];
    const long long grad_address = addresses[$capacity + block[0]];
    if (grad_address == 0) return false;  // no gradient in this step
    const long long start = block[1], count = block[2], place = block[3];
    const given_type *const grad_at = reinterpret_cast<const given_type *>(grad_address) + start;
    const long long *const axes = blocks + block[4];
    const bool gaps = block[4] >= 0;
    stored *const param_at = reinterpret_cast<stored *>(param_address) + start;
    $locate_state
    #pragma unroll 1
    for (long long k = threadIdx.x; k < count; k += $lanes) {
        const stored *const at = gaps ? element_of(param_address, start + k, axes) : param_at + k;
        $modulus_of
        add_terms(loaded(at, $master_at, k), widen(grad_at[k]), $square $elements scalars, sums);
    }
    return true;
}

}  // namespace fastopt
""")

_OPERATION = Template("""
    double sum[$count] = {};
    const bool there = fastopt::add_block(
        $addresses, &blocks[0], &blocks[${fields}ll * blockIdx.x], $memory, pitch, {$scalars}, sum);
    if (there) {
        $store
    }
""")


def sums(
    rule: Rule, spec: UpdateSpec, by_value: bool, from_table: bool, number: int
) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a pass, to be launched with LANES threads.

    The kernel takes what an update takes, with a block for each tile, then ``first`` (the tiles
    before those of this launch) and ``tiles``, how many there are of each sum in all. It writes
    ``lanes``: for each sum those of the tiles that have a gradient.
    """
    one = derived_of(rule, spec).passes[number]
    assert one.sums is not None
    width, count = len(fields(False)), len(one.sums.names)
    declared, values, within = scalars_of(rule, spec, from_table, width)
    addresses_declared, addresses = addresses_of(by_value)
    lane = f"((${{n}} * tiles + first + blockIdx.x) * {LANES} + threadIdx.x)"
    text = _OPERATION.substitute(
        count=count,
        addresses=addresses,
        fields=width,
        memory=", ".join(f"&{name}[0]" for _, name in memory(spec)),
        scalars=", ".join(values),
        store=lines(f"lanes[{lane.replace('${n}', str(n))}] = sum[{n}];" for n in range(count)),
    )
    state = [f"raw {dtype} {name}" for dtype, name in memory(spec)]
    return {
        "in_params": ", ".join(
            [
                *(addresses_declared, "raw int64 blocks", "int64 pitch", *declared),
                *("int64 first", "int64 tiles", *state),
            ]
        ),
        "out_params": "raw float64 lanes",
        "operation": within(text),
        "name": f"fastopt_{rule.name}_pass{number}" + "_from_table" * from_table,
        "preamble": _PREAMBLE.substitute(_of_pass(rule, spec, one)),
        "no_return": True,
        "options": OPTIONS,
    }


def _of_pass(rule: Rule, spec: UpdateSpec, one: Pass) -> dict[str, Any]:
    assert one.sums is not None
    derived = derived_of(rule, spec).names
    names = [*scalar_names(rule, spec), *map(number_name, derived)]
    return {
        "real": TYPE[spec.real.name],
        "stored": TYPE[spec.stored.name],
        "given": TYPE[spec.given.name],
        "conversions": (
            half_conversions(spec.stored.name, spec.real.name) + code_conversions(spec)
        ),
        "scalars": ", ".join(names),
        "square_of": square_of(spec),
        "modulus": "real square," * spec.modulus,
        "slots": " ".join(f"real {slot}," for slot in rule.state),
        "load_scalars": load_scalars(spec),
        "terms": lines(_terms(rule, spec, one)),
        "element_of": ELEMENT_OF,
        "load_master": _load_master(spec),
        "memory": ", ".join(
            f"const {TYPE.get(dtype, dtype)} *{name}" for dtype, name in _memory(spec)
        ),
        "capacity": CAPACITY,
        "locate_state": lines(_locate(rule, spec)),
        "lanes": LANES,
        "modulus_of": _MODULUS if spec.modulus else "",
        "square": "square," * spec.modulus,
        "master_at": "master_at" if spec.master else "nullptr",
        "elements": " ".join(f"{_element(rule, spec, slot)}," for slot in rule.state),
    }


_MODULUS = """const long long even = k & ~1ll;
        real square = real(0);
        for (long long part = even; part < even + 2; ++part) {
            const stored *const one = gaps
                ? element_of(param_address, start + part, axes) : param_at + part;
            const real of_part = square_of(widen(*one), widen(grad_at[part]), scalars);
            square = part == even ? of_part : square + of_part;
        }"""


def _memory(spec: UpdateSpec) -> list[tuple[str, str]]:
    return [("real" if name == "arena" else dtype, name) for dtype, name in memory(spec)]


def _load_master(spec: UpdateSpec) -> str:
    if not spec.master:
        return "return param;"
    # What does not round to the stored parameter is not its master: somebody wrote it since.
    return "return widen(narrow(master_at[k])) == param ? master_at[k] : param;"


def _locate(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    coded = () if spec.state == "real" else rule.state
    for n, slot in enumerate(coded):
        kind = TYPE_OF_STATE[spec.state]
        yield f"const {kind} *const {slot}_at = codes + {n} * pitch + place;"
        if spec.state == "int8":
            at = f"{n} * (pitch / {BLOCK}) + place / {BLOCK}"
            yield f"const float *const {slot}_scale_at = scales + {at};"
    exact = [*(rule.state if not coded else ()), *spec.masters]
    for n, slot in enumerate(exact):
        yield f"const real *const {slot}_at = arena + {n} * pitch + place;"


def _element(rule: Rule, spec: UpdateSpec, slot: str) -> str:
    if spec.state == "real":
        return f"{slot}_at[k]"
    if spec.state == "bfloat16":
        return f"from_bfloat16({slot}_at[k])"
    sign = "true" if slot in rule.signed else "false"
    return f"from_int8<{sign}>({slot}_at[k], {slot}_scale_at[k / {BLOCK}])"


def _terms(rule: Rule, spec: UpdateSpec, one: Pass) -> Iterator[str]:
    """Yield the lines that add what is summed of one element."""
    assert one.sums is not None
    fragment, fragments = one.fragment, spec.fragments
    before = fragments if fragment is None else fragments[: fragments.index(fragment)]
    late = fragment is not None and fragment.at == "after"
    yield from begin(rule, spec, fragments if late else before)
    if late:
        yield f"{{ {numbers_of(rule)} {rule.cupy.strip()} }}"
        for earlier in before:
            if earlier.at == "after" and earlier.on == "param":
                yield with_fragment(earlier, "param")
    numbers = numbers_of(rule, made=False)
    if fragment is not None:
        after = "const real after = param;" * late
        numbers = f"{after} {numbers_of_fragment(fragment, made=False)}"
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

_TOTAL = Template("""
namespace fastopt {

// The sum of the sums of some tiles, in every thread of a block of ${lanes}.
__device__ __forceinline__ double total(const double *sums, long long count, double *lane) {
    double sum = 0;
    #pragma unroll 8
    for (long long k = threadIdx.x; k < count; k += $lanes) {
        sum += sums[k];
    }
    lane[threadIdx.x] = sum;
    __syncthreads();
    #pragma unroll 1
    for (int width = $lanes / 2; width != 0; width /= 2) {
        if (threadIdx.x < width) lane[threadIdx.x] += lane[threadIdx.x + width];
        __syncthreads();
    }
    return lane[0];
}

}  // namespace fastopt
""")

_FOLLOW = Template("""
    __shared__ double lane[$lanes];
    const long long array = first_parameter + blockIdx.x;
    $skip
    $totals
    if (threadIdx.x == 0 && counts[0] >= 0) {
        $load
        {
            $function
        }
        $store
    }
""")


def follow(rule: Rule, spec: UpdateSpec, number: int, by_value: bool) -> dict[str, Any]:
    """Return the arguments of the kernel that runs the function of a pass's memory.

    To be launched with a block of LANES threads for each array or, over the optimizer, with one. It
    takes ``counts`` (the row of this step: -1 changes nothing), ``table``, the rows of what the
    memory is given, ``sums`` of all ``tiles``, and for each array ``starts``, its first tile and
    that of the next, and ``sizes``; ``first_parameter`` of these is that of the first block, whose
    gradient's address stands first among ``addresses``. Over the optimizer ``size`` is that of all
    arrays together. ``remembered`` is brought up to date, and of ``derived`` the columns of what is
    made; over the optimizer that is one row.
    """
    one = derived_of(rule, spec).passes[number]
    each, names = not one.over_optimizer, one.memory.names if one.fragment is None else ()
    declared, addresses = addresses_of(by_value)
    width = len(derived_of(rule, spec).names) if each else len(one.memory.scalars)
    first = one.made.start if each else 0
    summed = one.sums.names if one.sums else ()
    index = "array" if each else "0ll"
    given = f"counts[0] * {len(one.memory.given)}ll"
    at = "sums[{n} * tiles + starts[array]], starts[array + 1] - starts[array]"
    if not each:
        at = "sums[{n} * tiles], tiles"
    kept = [f"remembered[{index} * {len(names)}ll + {k}]" for k in range(len(names))]
    made = [f"derived[{index} * {width}ll + {first + k}]" for k in range(len(one.memory.scalars))]
    arrays = [declared, "raw int64 starts", "raw int64 sizes"] if each else ["float64 size"]
    return {
        "in_params": ", ".join(
            [
                *(*arrays, "int64 first_parameter", "raw int64 counts", "raw float64 table"),
                *("raw float64 sums", "int64 tiles"),
            ]
        ),
        "out_params": "raw float64 remembered, raw float64 derived",
        "operation": _FOLLOW.substitute(
            lanes=LANES,
            skip=f"if (({addresses})[{CAPACITY} + blockIdx.x] == 0 || sizes[array] == 0) return;"
            if each
            else "if (size == 0) return;",
            totals=lines(
                f"const double {name} = fastopt::total(&{at.format(n=n)}, lane); __syncthreads();"
                for n, name in enumerate(summed)
            ),
            load=lines(
                [
                    *["const double size = sizes[array];"] * each,
                    *(f"double {name} = {at};" for name, at in zip(names, kept, strict=True)),
                    *(
                        f"const double {name} = table[{given} + {k}];"
                        for k, name in enumerate(one.memory.given)
                    ),
                    f"double {', '.join(one.memory.scalars)};",
                ]
            ),
            function=one.memory.cupy.strip(),
            store=lines(
                f"{at} = {name};"
                for at, name in zip([*kept, *made], [*names, *one.memory.scalars], strict=True)
            ),
        ),
        "name": f"fastopt_{rule.name}_follow{number}",
        "preamble": _TOTAL.substitute(lanes=LANES),
        "no_return": True,
        "options": OPTIONS,
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
