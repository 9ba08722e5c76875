"""The CUDA C++ of kernels: what is generated for a rule and a format; imports no CuPy.

What is the same for all stands in the ``.cuh`` files beside this module. The functions that end a
section return the arguments of a ``cupy.ElementwiseKernel``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple, assert_never

import numpy as np

from fastopt.backends.cupy.shapes import SHAPES, Shape, shape_of
from fastopt.backends.interface import COMMON_SCALARS, tiny_names
from fastopt.core.arrays import Array
from fastopt.core.buckets import Parameter
from fastopt.core.dtypes import CODE_DTYPES, LR_SCALE, UpdateSpec
from fastopt.core.norms import LANES
from fastopt.core.passes import derived_of, fragment_names, number_name
from fastopt.core.quantization import BEYOND, BLOCK, CUT_OFF, GOLDEN, MULTIPLIERS, POSITIVE, SIGNED
from fastopt_kernels import Rule
from fastopt_kernels.around import Fragment

CAPACITY, LARGE_CAPACITY = 192, 1_500
"""Parameters per launch: two addresses of each fill 3 of the 4 KB that kernel arguments have, and
24 of the 32 KB that they have from CUDA 12.1 and Volta on."""

OPTIONS = ("--fmad=false",)
"""No fused multiply-add: each operation rounds once, as on the other backends."""

ONCE = "    return;\n"
"""The end of an operation that each thread runs once. CuPy puts a loop around it, and what another
round would need would be kept: a third of the registers."""

# -------------------------------------------------------------------------------------------------
# The table that says of each block of a kernel's threads which elements are its own.

RECORD = np.dtype(
    [(name, "i4") for name in ("parameter", "count", "axes")]
    + [("counter", "u4"), ("start", "i8"), ("offset", "i8")]
)
"""What the table says of each block, in 32 bytes.

Which parameter; how many elements; where the table goes on to say of a parameter with gaps how its
elements stand in memory (in words of 8 bytes: the number of its axes, then the length of each and
its stride in bytes; -1 for one without gaps; 31 bits do for 2**39 elements); the counter of the
random bits of the first element; the first element, and the offset of its state within a slot of
the arena.
"""

MEMBER_FIELDS = ("divisor", "members")
"""What follows the blocks for each parameter where these have members: element k is of member
k / divisor % members."""


def blocks(
    parameters: Sequence[Parameter], length: int, members: bool = False
) -> tuple[Array, int]:
    """Return the table of blocks as int64, and how many there are.

    It is a RECORD for every ``length`` elements, then MEMBER_FIELDS of each parameter if they have
    ``members``, then the axes that blocks refer to.
    """
    sizes = np.array([parameter.size for parameter in parameters], np.int64)
    counts = -(-sizes // length)
    which = np.repeat(np.arange(len(sizes)), counts)
    table = np.zeros(len(which), RECORD)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    streams = np.array([parameter.stream for parameter in parameters], np.int64)
    offsets = np.array([parameter.offset for parameter in parameters], np.int64)
    found = [parameter.member or (1, 1) for parameter in parameters] if members else []
    more = [np.array(found, np.int64).reshape(-1)]
    axes_at = np.full(len(sizes), -1)
    end = table.nbytes // 8 + more[0].size
    for k, parameter in enumerate(parameters):
        if parameter.strided:
            pairs = np.array(parameter.axes(), np.int64)
            axes_at[k] = end
            more.append(np.array([len(pairs), *pairs.reshape(-1)]))
            end += more[-1].size
    table["parameter"], table["axes"] = which, axes_at[which]
    table["start"], table["count"] = start, np.minimum(sizes[which] - start, length)
    table["offset"] = offsets[which] + start
    table["counter"] = (streams[which] + start) % 2**32
    return np.concatenate([table.view(np.int64), *more]), len(which)


class Addresses(NamedTuple):
    """How the addresses of parameters, and of as many gradients (0: none), reach a kernel.

    As a void scalar ``by_value``, which costs no copy to the device; otherwise in an array there.
    """

    capacity: int = CAPACITY
    by_value: bool = True

    @property
    def declared(self) -> str:
        """The declaration, for the first place: a void scalar has no alignment of its own."""
        return f"V{16 * self.capacity} addresses" if self.by_value else "raw int64 addresses"

    @property
    def pointer(self) -> str:
        """The pointer to them in the text of a kernel."""
        return (
            "reinterpret_cast<const long long *>(&addresses)" if self.by_value else "&addresses[0]"
        )


# -------------------------------------------------------------------------------------------------
# Text: the fixed files, constants, types.


@cache
def fixed(name: str) -> str:
    """Return the text of a ``.cuh`` file, by its name without the ending."""
    return files("fastopt.backends.cupy").joinpath(f"{name}.cuh").read_text(encoding="utf-8")


def in_namespace(text: str) -> str:
    """Return generated text in the namespace: CuPy's headers have functions of the same names."""
    return f"namespace fastopt {{\n\n{text.strip()}\n\n}}  // namespace fastopt\n"


def constants(**values: bool | int | float | str) -> str:
    """Return definitions of constants; one that is a string is the text of an unsigned int."""
    types = {bool: "bool", int: "int", float: "double", str: "unsigned int"}
    return "\n".join(
        f"constexpr {types[type(value)]} {name} = "
        f"{str(value).lower() if isinstance(value, bool) else value};"
        for name, value in values.items()
    )


def indices(*tables: Sequence[str]) -> str:
    """Return constants for the indices of the fields of some tables, named as the fields."""
    pairs = [pair for table in tables for pair in enumerate(table)]
    return "\n".join(f"enum {{ {name.upper()} = {k} }};" for k, name in pairs)


def block_struct() -> str:
    """Return the definition of a block: an array of them begins at a multiple of 16 bytes."""
    types = {"int32": "int", "uint32": "unsigned int", "int64": "long long"}
    fields = [f"{types[RECORD[name].name]} {name};" for name in RECORD.names or ()]
    size = f'static_assert(sizeof(Block) == {RECORD.itemsize}, "two loads of 16 bytes");'
    return f"struct alignas(16) Block {{ {' '.join(fields)} }};\n{size}\n"


def lines(made: Iterable[str]) -> str:
    """Return the lines of a function's body."""
    return "\n    ".join(made)


TYPE = {
    **{"float32": "float", "float64": "double", "uint16": "unsigned short"},
    **{"uint8": "unsigned char", "float16": "unsigned short", "bfloat16": "unsigned short"},
}
"""The C++ type in which numbers of a dtype stand in memory."""

_HALVES = {"float16": "Float16", "bfloat16": "BFloat16"}


def number_format(dtype: str, real: str) -> str:
    """Return the format (``numbers.cuh``) of a dtype's numbers, for arithmetic in ``real``."""
    if dtype == real:
        return f"Exact<{TYPE[real]}>"
    if real == "float32":
        return _HALVES[dtype]
    return f"HalfInFloat64<{_HALVES[dtype]}>" if dtype in _HALVES else "Float32InFloat64"


def types_of(spec: UpdateSpec) -> str:
    """Return the formats and types of parameters, gradients and state."""
    real = spec.real.name
    types = [
        f"typedef {TYPE[real]} real;",
        f"typedef {CODE.get(spec.state, 'unsigned char')} code;",
        f"typedef {number_format(spec.stored.name, real)} Stored;",
        f"typedef {number_format(spec.gradient.name, real)} Gradient;",
        "typedef Stored::type stored;",
        "typedef Gradient::type gradient;",
    ]
    return "\n".join(types)


CODE = {kind: TYPE[dtype.name] for kind, dtype in CODE_DTYPES.items()}
"""The C++ type of the codes of state."""


def formats(spec: UpdateSpec, addresses: Addresses, shape: Shape) -> str:
    """Return all that reads and writes numbers, and says where they stand."""
    text = [
        in_namespace(block_struct() + indices(MEMBER_FIELDS) * spec.members),
        in_namespace(
            constants(
                CAPACITY=addresses.capacity,
                THREADS=shape.threads,
                LANES=LANES,
                PACK=pack(spec),
                CODES=BLOCK,
                MODULUS=spec.modulus,
                UNIT=2 if spec.modulus else 1,
            )
        ),
        fixed("numbers"),
    ]
    if spec.random_scalars:
        text += [
            in_namespace(
                constants(
                    MIX_FIRST=f"{MULTIPLIERS[0]}u",
                    MIX_SECOND=f"{MULTIPLIERS[1]}u",
                    GOLDEN=f"{GOLDEN}u",
                    SIGNED_LOW=f"{SIGNED.low}u",
                    SIGNED_TOP=f"{SIGNED.top}u",
                    POSITIVE_LOW=f"{POSITIVE.low}u",
                    POSITIVE_TOP=f"{POSITIVE.top}u",
                    BEYOND=f"{BEYOND:#x}u",
                )
            ),
            fixed("codes"),
        ]
    return "\n".join([*text, in_namespace(types_of(spec)), fixed("memory")])


# -------------------------------------------------------------------------------------------------
# The state of N elements that a thread holds in registers: struct State, as ``update.cuh``,
# ``int8_update.cuh`` and ``pass.cuh`` use it.
#
# The packs of a slot's exact numbers bear its name. State in codes stands in a pack of that name,
# and after ``decode`` as numbers in one with the ending ``_now``.

_STATE = Template("""
template <int N> struct State {
    $members

    __device__ __forceinline__ void load(const ConstMemory &memory, long long offset) {
        $load
    }

    // Make numbers of the codes of element k.
    __device__ __forceinline__ void decode(int k) {
        $decode
    }

    // The parameter of element k, as the arithmetic has it.
    __device__ __forceinline__ real number(int k, stored param) const {
        return $number;
    }
$more};
""")

_STEP = Template("""
    // The parameter of element k after the update; its state is updated here.
    __device__ __forceinline__ real step(
        int k, stored param, real grad, real square, const Scalars &scalars
    ) {
        decode(k);
        real number = this->number(k, param);
        element(number, $arguments grad, square, scalars);
        return number;
    }

    // The parameter of element k as it is stored.
    __device__ __forceinline__ stored narrow(
        int k, real number, unsigned int counter, const Scalars &scalars
    ) {
        $keep
        return $narrowed;
    }

    // Round the state of element k to what is stored of it.
    __device__ __forceinline__ void round(
        int k, unsigned int counter, const Scalars &scalars$largest
    ) {
        $round
    }

    __device__ __forceinline__ void store(const Memory &memory, long long offset$largest) const {
        $store
    }
""")

_COMPARE = Template("""
    // Take the numbers of element k into the largest magnitudes.
    __device__ __forceinline__ void compare(int k, unsigned int (&largest)[$slots]) const {
        $compare
    }
""")

_SCALE_AT = "memory.scales[{} * (memory.pitch / CODES) + offset / CODES]"


def state_of(rule: Rule, spec: UpdateSpec, update: bool = True) -> str:
    """Return ``struct State``; without ``update`` it can be read alone."""
    coded = rule.state if spec.state != "real" else ()
    exact = [
        *(() if coded else rule.state),
        *spec.masters,
        *(spec.constants if update else spec.rates),
    ]
    int8 = spec.state == "int8"
    codes = "Codes<N>" if int8 else "Pack<code, N>"
    members = [f"{codes} {slot}; Pack<real, N> {slot}_now;" for slot in coded]
    members += [f"Pack<real, N> {slot};" for slot in exact]
    codes_at = [f"memory.codes + {n} * memory.pitch + offset" for n in range(len(coded))]
    exact_at = [f"memory.arena + {n} * memory.pitch + offset" for n in range(len(exact))]
    get = "{0}.load({1});" if int8 else "{0} = load_pack<N>({1});"
    put = "{0}.store({1}, largest[{2}]);" if int8 else "store_pack({1}, {0});"
    load = [
        *(get.format(slot, at) for slot, at in zip(coded, codes_at, strict=True)),
        *(f"{slot} = load_pack<N>({at});" for slot, at in zip(exact, exact_at, strict=True)),
    ]
    store = [
        *(put.format(slot, codes_at[n], n) for n, slot in enumerate(coded)),
        *(
            f"store_pack({at}, {slot});"
            for slot, at in zip(exact, exact_at, strict=True)
            if slot not in spec.constants
        ),
    ]
    more = ""
    if int8:
        members += [f"float {slot}_scale;" for slot in coded]
        load += [f"{slot}_scale = {_SCALE_AT.format(n)};" for n, slot in enumerate(coded)]
    if update:
        arguments = [now(slot, spec) for slot in rule.state]
        arguments += [f"{slot}.x[k]" for slot in spec.constants]
        more += _STEP.substitute(
            arguments=" ".join(f"{name}," for name in arguments),
            round=members_lines(_round(rule, spec)),
            keep=members_lines(_keep(rule, spec)),
            narrowed=_narrowed(rule, spec),
            store=members_lines(store),
            largest=f", const unsigned int (&largest)[{len(coded)}]" if int8 else "",
        )
    if update and int8:
        more += _COMPARE.substitute(
            slots=len(coded),
            compare=members_lines(
                f"largest[{n}] = max_of(largest[{n}], bits_of({slot}_now.x[k]) & 0x7fffffffu);"
                for n, slot in enumerate(coded)
            ),
        )
    return _STATE.substitute(
        members=lines(members),
        load=members_lines(load),
        decode=members_lines(_decode(rule, spec)),
        number="number_of(param, master.x[k])" if spec.master else "Stored::widen(param)",
        more=more,
    )


def now(slot: str, spec: UpdateSpec) -> str:
    """Return the number of a slot of state, as a rule works on it."""
    return f"{slot}.x[k]" if spec.state == "real" else f"{slot}_now.x[k]"


def members_lines(made: Iterable[str]) -> str:
    """Return the lines of a member function's body."""
    return "\n        ".join(made)


def _decode(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    for slot in rule.state:
        if spec.state == "bfloat16":
            yield f"{slot}_now.x[k] = from_bfloat16({slot}.x[k]);"
        elif spec.state == "int8":
            yield f"{slot}_now.x[k] = from_int8<{_sign(rule, slot)}>({slot}, k, {slot}_scale);"
        elif spec.state != "real":
            assert_never(spec.state)


def _round(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    """Yield the lines that round the state of element k."""
    if spec.state == "real":
        return
    yield from _bits(spec, range(len(rule.state)))
    for n, slot in enumerate(rule.state):
        if spec.state == "bfloat16":
            yield f"{slot}.x[k] = to_bfloat16({slot}_now.x[k], {_draw_of(n)});"
        elif spec.state == "int8":
            about = f"{slot}_now.x[k], largest[{n}], {_draw_of(n, CUT_OFF)}"
            yield f"{slot}.set(k, to_int8<{_sign(rule, slot)}>({about}));"
        else:
            assert_never(spec.state)


def _keep(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    """Yield the lines that stand before the parameter as it is stored."""
    if spec.master:
        yield "master.x[k] = number;"
    if spec.stochastic:
        yield from _bits(spec, [len(rule.state)])


def _narrowed(rule: Rule, spec: UpdateSpec) -> str:
    """Return the parameter as it is stored."""
    if not spec.stochastic:
        return "Stored::narrow(number)"
    number = "Float32InFloat64::narrow(number)" if spec.widened else "number"
    return f"to_{spec.stored.name}({number}, {_draw_of(len(rule.state))})"


def _bits(spec: UpdateSpec, slots: Iterable[int]) -> Iterator[str]:
    """Yield the lines that draw random bits for element k: 32 for two slots."""
    high, low = (f"(unsigned int)scalars.{name}" for name in spec.random_scalars)
    yield f"const unsigned int key = {high} << 16 | {low};"
    for word in sorted({slot // 2 for slot in slots}):
        yield f"const unsigned int bits{word} = random_bits(counter + k, key, {word}u);"


def _draw_of(slot: int, size: int = 16) -> str:
    word = f"bits{slot // 2}"
    return f"{word} >> {32 - size}" if slot % 2 else f"{word} & {(1 << size) - 1:#x}u"


def _sign(rule: Rule, slot: str) -> str:
    return "true" if slot in rule.signed else "false"


# -------------------------------------------------------------------------------------------------
# The update of one element: its gradient, the rule, the fragments around it.

_ELEMENT = Template("""
__device__ __forceinline__ void element(
    $references, $constants real grad, real $square, const Scalars &numbers
) {
    $load_scalars
    $begin
    {
        $rule
    }
    $after_param
    $keep_bounds
    $after_all
    $flush
}
""")

_SQUARE_OF = Template("""
__device__ __forceinline__ real square_of(real param, real grad, const Scalars &numbers) {
    $load_scalars
    $gradient
    return grad * grad;
}
""")


# What the scalars of an element are: those of all others, or looked up in the rows of a step.

_OF_ALL = """
typedef Scalars AllScalars;

__device__ __forceinline__ const Scalars &scalars_of(const AllScalars &all, long long element) {
    return all;
}
"""

_OF_MEMBERS = Template("""
struct Members {
    const real *rows;
    real scale;
    long long divisor, members;
};

typedef Members AllScalars;

__device__ __forceinline__ Scalars scalars_of(const AllScalars &all, long long element) {
    const real *const row = all.rows + element / all.divisor % all.members * ${width}ll;
    return {$values};
}
""")


def scalars_and_squares(rule: Rule, spec: UpdateSpec) -> tuple[str, str]:
    """Return the scalars, and the function that squares a part of a complex gradient.

    The scalars are ``struct Scalars``, ``AllScalars``, which is handed to a kernel, and
    ``scalars_of`` an element. The function works on the gradient as the rule sees it.
    """
    names = [*scalar_names(rule, spec), *map(number_name, derived_of(rule, spec).names)]
    square = _SQUARE_OF.substitute(
        load_scalars=load_scalars(spec, scaled=False),
        gradient=lines(gradient(spec, spec.fragments)),
    )
    of_element = _OF_ALL
    if spec.members:
        values = ["row[0] * all.scale", *(f"row[{k}]" for k in range(1, len(names)))]
        of_element = _OF_MEMBERS.substitute(width=len(names), values=", ".join(values))
    return f"struct Scalars {{ real {', '.join(names)}; }};\n{of_element}", square


def _element(rule: Rule, spec: UpdateSpec) -> str:
    tiny = tiny_names(rule)
    return _ELEMENT.substitute(
        references=", ".join(f"real &{name}" for name in ("param", *rule.state)),
        constants=" ".join(f"real {name}," for name in spec.constants),
        square="square" if spec.modulus else "",
        load_scalars=load_scalars(spec),
        begin=lines(
            [
                *begin(rule, spec, spec.fragments),
                *(f"const real {s}_before = {s};" for s in rule.kept if spec.on_all),
            ]
        ),
        rule=f"{numbers_of(rule, spec)} {rule.cupy.strip()}",
        after_param=lines(with_fragment(spec, fragment, "param") for fragment in spec.on_param),
        keep_bounds=lines(_keep_bounds(rule, spec)),
        after_all=lines(
            with_fragment(spec, fragment, slot)
            for fragment in spec.on_all
            for slot in ("param", *rule.kept)
        ),
        flush=lines(f"{s} = fabs({s}) < {tiny[s]} ? real(0) : {s};" for s in rule.state),
    )


def load_scalars(spec: UpdateSpec, scaled: bool = True) -> str:
    """Return the text that names the scalars which are not those of the rule or of a fragment.

    ``scaled``: the decay is each element's own, where its learning rate is.
    """
    own = ("decay", *spec.scaled) if spec.rates and scaled else ()
    names = (*COMMON_SCALARS, *spec.limit_scalars)
    return lines(f"const real {name} = {_number_of(name, name, own)};" for name in names)


def _number_of(name: str, field: str, scaled: Sequence[str]) -> str:
    """Return a scalar as an element has it."""
    return f"numbers.{field} * {LR_SCALE}" if name in scaled else f"numbers.{field}"


def gradient(spec: UpdateSpec, fragments: Sequence[Fragment]) -> Iterator[str]:
    """Yield the lines that make of an element's gradient what the rule sees."""
    yield from before_l2(spec, fragments)
    yield "grad = l2 != real(0) ? grad + l2 * param : grad;"


def before_l2(spec: UpdateSpec, fragments: Sequence[Fragment]) -> Iterator[str]:
    """Yield the same without the L2 term."""
    yield "const real plain_grad = grad_scale * grad;"
    yield "grad = plain_grad;"
    for fragment in fragments:
        if fragment.at == "gradient":
            yield with_fragment(spec, fragment, "grad")


def begin(rule: Rule, spec: UpdateSpec, fragments: Sequence[Fragment]) -> Iterator[str]:
    """Yield the lines that make of an element what the rule begins with."""
    yield from gradient(spec, fragments)
    if rule.takes_square and not spec.modulus:
        yield "const real square = grad * grad;"
    late = bool(spec.on_param or spec.on_all)
    yield from ["const real before = param;"] * late
    yield "param = decay != real(0) ? param - decay * param : param;"
    yield from ["const real decayed = param;"] * late


def with_fragment(spec: UpdateSpec, fragment: Fragment, name: str) -> str:
    """Return the text that lets a fragment act on the variable of this name."""
    values = {"after": name}
    if name not in ("param", "grad"):
        values |= {"before": f"{name}_before", "decayed": f"{name}_before"}
    wanted = [f"const real {v} = {values[v]};" for v in fragment.values if v in values]
    numbers = numbers_of_fragment(spec, fragment)
    return f"{{ {' '.join(wanted)} {numbers} real kept; {fragment.cupy.strip()} {name} = kept; }}"


def numbers_of(rule: Rule, spec: UpdateSpec, made: bool = True) -> str:
    """Return the text that gives the scalars of a rule the names that its forms use.

    Without ``made`` those that are made of sums are not among them.
    """
    handed = rule.memory.handed if rule.memory else ()
    last = rule.memory.scalars if rule.memory and made else ()
    names = (*rule.scalars, *handed, *last)
    numbers = [_number_of(name, number_name(name), spec.scaled) for name in names]
    return " ".join(f"const real {n} = {own};" for n, own in zip(names, numbers, strict=True))


def numbers_of_fragment(spec: UpdateSpec, fragment: Fragment, made: bool = True) -> str:
    """Return the same for a fragment."""
    own = len(fragment.scalars)
    names = fragment_names(fragment)[: None if made else own]
    short = [name.removeprefix(f"{fragment.name}_") for name in names]
    fields = [*names[:own], *map(number_name, names[own:])]
    numbers = [_number_of(*both, spec.scaled) for both in zip(names, fields, strict=True)]
    return " ".join(f"const real {n} = {own};" for n, own in zip(short, numbers, strict=True))


def _keep_bounds(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    if spec.bounds != "none":
        yield "param = param < lower ? lower : param;"
        yield "param = param > upper ? upper : param;"
    if spec.reset:
        for slot in rule.reset:
            yield f"{slot} = param == lower || param == upper ? real(0) : {slot};"


# -------------------------------------------------------------------------------------------------
# The kernel of an update.

_UPDATE_OPERATION = Template("""
    fastopt::update_block($addresses, block, &blocks[0], $memory, {$scalars});
""")

# The whole block at once, by two loads of 16 bytes.
_BLOCK = """
    const fastopt::Block block = reinterpret_cast<const fastopt::Block *>(&blocks[0])[blockIdx.x];
"""

# A row of scalars that was chosen on the device, or none: see decide.cuh.
_FROM_TABLE = Template("""
    if (counts[0] >= 0) {
        const fastopt::real *const row = &table[counts[0] * ${width}ll];
        $update
    }
""")

# The rows of the members in such a step.
_FROM_MEMBERS = Template("""
    if (counts[0] >= 0) {
        const long long *const own = &blocks[4ll * gridDim.x + 2ll * block.parameter];
        const long long members = own[fastopt::MEMBERS];
        const fastopt::real *const rows = &table[counts[0] * members * ${width}ll];
        $update
    }
""")


def pack(spec: UpdateSpec) -> int:
    """Return how many elements one thread takes at once, by the table of shapes.

    In float64 with fragments it is half of that: two elements at once would take more registers
    than leave room for two blocks of threads.
    """
    elements = SHAPES["update"].load // spec.real.itemsize
    half = spec.real.itemsize == 8 and spec.fragments and not spec.modulus
    return elements // 2 if half else elements


def block_length(spec: UpdateSpec, threads: int) -> int:
    """Return how many elements so many threads take; a warp takes a whole block of int8 codes."""
    return threads // 32 * BLOCK if spec.state == "int8" else threads * pack(spec)


def memory(spec: UpdateSpec) -> list[tuple[str, str]]:
    """Return the arrays of state that a kernel takes: the dtype and the name of each."""
    arena = [(spec.real.name, "arena")]
    if spec.state == "real":
        return arena
    arena.append((CODE_DTYPES[spec.state].name, "codes"))
    if spec.state == "bfloat16":
        return arena
    if spec.state == "int8":
        return [*arena, ("float32", "scales")]
    assert_never(spec.state)


def memory_value(spec: UpdateSpec) -> str:
    """Return the value of a ``Memory`` or ``ConstMemory`` in the text of a kernel."""
    there = [name for _, name in memory(spec)]
    pointers = [
        f"&{name}[0]" if name in there else "nullptr" for name in ("arena", "codes", "scales")
    ]
    return f"{{{', '.join(pointers)}, pitch}}"


def scalar_names(rule: Rule, spec: UpdateSpec) -> list[str]:
    """Return the names of an update's scalars, in the order of a row."""
    return [*COMMON_SCALARS, *map(number_name, rule.scalars), *spec.scalars]


def kernel(
    rule: Rule,
    spec: UpdateSpec,
    addresses: Addresses,
    from_table: bool = False,
) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a rule and a format of parameters.

    The kernel takes ``addresses``, ``blocks``, ``pitch`` (elements of a slot), the scalars, and
    ``arena``; where state is in codes also ``codes`` and, for 8 bits, ``scales``.
    ``from_table`` the scalars are in device memory: it takes ``counts``, whose first element is the
    row of this step (-1: do nothing), ``scale``, which that row's gradient scale is multiplied by,
    and ``table``; with members always, and the rows of a step are then as many as they are. Derived
    scalars, if there are any, are in a row of ``derived`` for each parameter; that of the first
    address is row ``first_parameter``.
    """
    from_table, shape = from_table or spec.members, shape_of(rule, spec)
    declared, values, operation = scalars_of(rule, spec, from_table)
    text = _UPDATE_OPERATION.substitute(
        addresses=addresses.pointer, memory=memory_value(spec), scalars=", ".join(values)
    )
    return {
        "in_params": ", ".join([addresses.declared, "raw int64 blocks", "int64 pitch", *declared]),
        "out_params": ", ".join(f"raw {dtype} {name}" for dtype, name in memory(spec)),
        "operation": operation(text),
        "name": f"fastopt_{rule.name}" + "_from_table" * from_table,
        "preamble": _preamble(rule, spec, addresses, shape),
        "no_return": True,
        "options": (*OPTIONS, *shape.options),
    }


def _preamble(rule: Rule, spec: UpdateSpec, addresses: Addresses, shape: Shape) -> str:
    generated = [*scalars_and_squares(rule, spec), _element(rule, spec), state_of(rule, spec)]
    last = "update"
    if spec.state == "int8":
        generated.append(constants(SLOTS=len(rule.state)))
        last = "int8_update"
    numbers = formats(spec, addresses, shape)
    return "\n".join([numbers, in_namespace("\n".join(generated)), fixed("modulus"), fixed(last)])


def scalars_of(
    rule: Rule, spec: UpdateSpec, from_table: bool
) -> tuple[list[str], list[str], Callable[[str], str]]:
    """Return how a kernel takes its scalars.

    These are their declarations, their values in the kernel's text, and a function that puts the
    text of the kernel into what looks these values up.
    """
    names, derived = scalar_names(rule, spec), derived_of(rule, spec).names
    declared, values = [f"{spec.real} {name}" for name in names], names
    if from_table:
        declared = ["raw int64 counts", f"raw {spec.real} scale", f"raw {spec.real} table"]
        values = ["row[0] * scale[0]", *[f"row[{k}]" for k in range(1, len(names))]]
    if spec.members:
        values = ["rows", "scale[0]", "own[fastopt::DIVISOR]", "members"]
    before = _BLOCK
    if derived:
        declared = [*declared, "raw float64 derived", "int64 first_parameter"]
        at = f"(first_parameter + block.parameter) * {len(derived)}ll"
        before = f"{before}\nconst double *const made = &derived[{at}];"
        real = "static_cast<fastopt::real>"
        values = [*values, *(f"{real}(made[{k}])" for k in range(len(derived)))]

    def within(text: str) -> str:
        text = text.strip()
        if from_table:
            look_up = _FROM_MEMBERS if spec.members else _FROM_TABLE
            text = look_up.substitute(width=len(names), update=text)
        return f"{before}\n{text}\n{ONCE}"

    return declared, values, within
