"""The CUDA C++ that runs the CuPy form of a rule, and its table of blocks; imports no CuPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import Template
from typing import Any

from fastopt.backends import COMMON_SCALARS, tiny_names
from fastopt.backends.cupy_blocks import BLOCK_FIELDS
from fastopt.backends.cupy_half_source import TYPE, conversions
from fastopt.formats import Format
from fastopt_kernels import Rule

CAPACITY = 192
"""Parameters per launch: two addresses of each fill 3 of the 4 KB that kernel arguments have."""

THREADS = 256
"""Threads per block. Each takes the 16 bytes of every array that one instruction can load."""

OPTIONS = ("--fmad=false",)
"""No fused multiply-add: each operation rounds once, as on the other backends."""

# In a namespace, because CuPy's headers have a function that is called `real`.
_PREAMBLE = Template("""
namespace fastopt {

typedef $real real;
typedef $stored stored;
typedef $given given;
$conversions
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T x[N]; };

struct Scalars { real $scalars; };

__device__ __forceinline__ void element($references, $limits real grad, const Scalars &given) {
    $load_scalars
    grad = grad_scale * grad;
    grad = l2 != real(0) ? grad + l2 * param : grad;
    $square
    param = decay != real(0) ? param - decay * param : param;
    {
        $rule
    }
    $keep_bounds
    $flush
}

template <int N>
__device__ __forceinline__ void update($pointers, const given *grad_at, const Scalars &scalars) {
    const Pack<given, N> grad = *reinterpret_cast<const Pack<given, N> *>(grad_at);
    $load_packs
    #pragma unroll
    for (int k = 0; k < N; ++k) {
        $load_param
        element(number, $elements, scalars);
        $store_param
    }
    $store_packs
}

__device__ __forceinline__ stored *element_of(
    long long address, long long number, const long long *axes
) {
    #pragma unroll 1
    for (long long axis = axes[0]; axis > 0; --axis) {
        address += number % axes[2 * axis - 1] * axes[2 * axis];
        number /= axes[2 * axis - 1];
    }
    return reinterpret_cast<stored *>(address);
}

__device__ __forceinline__ void update_block(
    const long long *addresses, const long long *blocks, const long long *block, real *arena,
    long long pitch, const Scalars &scalars
) {
    const long long param_address = addresses[block[0]];
    const long long grad_address = addresses[$capacity + block[0]];
    if (grad_address == 0) return;  // no gradient in this step
    const long long start = block[1], count = block[2], place = block[3];
    const given *const grad_at = reinterpret_cast<const given *>(grad_address) + start;
    $locate_state
    if (block[4] >= 0) {  // there are gaps: one element at a time, wherever it is
        const long long *const axes = blocks + block[4];
        #pragma unroll 1
        for (long long k = threadIdx.x; k < count; k += $threads) {
            stored *const param_at = element_of(param_address, start + k, axes);
            update<1>(param_at, $state_k grad_at + k, scalars);
        }
        return;
    }
    stored *const param_at = reinterpret_cast<stored *>(param_address) + start;
    // State is aligned by its places in the arena; the user's arrays begin where they like.
    const bool aligned = param_address % (${pack} * sizeof(stored)) == 0
        && grad_address % (${pack} * sizeof(given)) == 0;
    const long long packed = aligned ? count - count % $pack : 0;
    const long long first = threadIdx.x * ${pack}ll;
    if (first < packed) {
        update<$pack>(param_at + first, $state_first grad_at + first, scalars);
    }
    #pragma unroll 1
    for (long long k = packed + threadIdx.x; k < count; k += $threads) {
        update<1>(param_at + k, $state_k grad_at + k, scalars);
    }
}

}  // namespace fastopt
""")

_OPERATION = Template("""
    fastopt::update_block(
        $addresses, &blocks[0], &blocks[${fields}ll * blockIdx.x], &arena[0], pitch, {$scalars});
""")

# A row of scalars that was chosen on the device, or none: see cupy_control_source.
_FROM_TABLE = Template("""
    if (counts[0] >= 0) {
        const fastopt::real *const row = &table[counts[0] * ${width}ll];
        $update
    }
""")


def pack(format: Format) -> int:
    """Return how many elements one thread takes at once: 16 bytes of each slot of state."""
    return 16 // format.real.itemsize


def kernel(rule: Rule, format: Format, by_value: bool, from_table: bool = False) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a rule and a format of parameters.

    The kernel takes ``addresses`` (CAPACITY of parameters, then CAPACITY of gradients, 0 where
    there is none), ``blocks``, ``pitch`` (elements of a slot), the scalars, and ``arena``. The
    addresses travel as a void scalar ``by_value``, which costs no copy to the device; otherwise in
    an array there. ``from_table`` the scalars are in device memory: it takes ``counts``, whose
    first element is the row of this step (-1: do nothing), ``scale``, which that row's gradient
    scale is multiplied by, and ``table``.
    """
    scalars = [*COMMON_SCALARS, *rule.scalars, *format.limit_scalars]
    given, values = [f"{format.real} {name}" for name in scalars], scalars
    if from_table:
        given = ["raw int64 counts", f"raw {format.real} scale", f"raw {format.real} table"]
        values = ["row[0] * scale[0]", *[f"row[{k}]" for k in range(1, len(scalars))]]
    declared, addresses = addresses_of(by_value)
    operation = _OPERATION.substitute(
        addresses=addresses, fields=len(BLOCK_FIELDS), scalars=", ".join(values)
    )
    if from_table:
        operation = _FROM_TABLE.substitute(width=len(scalars), update=operation.strip())
    return {
        "in_params": ", ".join([declared, "raw int64 blocks", "int64 pitch", *given]),
        "out_params": f"raw {format.real} arena",
        "operation": operation,
        "name": f"fastopt_{rule.name}" + "_from_table" * from_table,
        "preamble": _preamble(rule, format, scalars),
        "no_return": True,
        "options": OPTIONS,
    }


def addresses_of(by_value: bool) -> tuple[str, str]:
    """Return the declaration of a kernel's ``addresses``, and the pointer to them in its text.

    They are declared first, so that they are aligned: a void scalar has no alignment of its own.
    """
    if by_value:
        return f"V{16 * CAPACITY} addresses", "reinterpret_cast<const long long *>(&addresses)"
    return "raw int64 addresses", "&addresses[0]"


def _preamble(rule: Rule, format: Format, scalars: list[str]) -> str:
    written = ("param", *rule.state, *format.masters)
    slots = (*written[1:], *format.limits)
    all_names = ("param", *slots)
    tiny = tiny_names(rule)
    stored = "widen(param.x[k])"
    return _PREAMBLE.substitute(
        real=TYPE[format.real.name],
        stored=TYPE[format.stored.name],
        given=TYPE[format.given.name],
        conversions=conversions(format.stored.name),
        scalars=", ".join(scalars),
        references=", ".join(f"real &{name}" for name in ("param", *rule.state)),
        load_scalars=_lines(f"const real {name} = given.{name};" for name in scalars),
        square="const real square = grad * grad;" * rule.squares,
        rule=rule.cupy.strip(),
        flush=_lines(f"{s} = fabs({s}) < {tiny[s]} ? real(0) : {s};" for s in rule.state),
        limits=" ".join(f"real {name}," for name in format.limits),
        keep_bounds=_lines(_keep_bounds(rule, format)),
        pointers=", ".join(f"{_type(name)} *{name}_at" for name in all_names),
        load_packs=_lines(
            f"Pack<{_type(name)}, N> {name} = "
            f"*reinterpret_cast<Pack<{_type(name)}, N> *>({name}_at);"
            for name in all_names
        ),
        # What does not round to the stored parameter is not its master: somebody wrote it since.
        load_param=f"real number = master.x[k];\n"
        f"        if (widen(narrow(number)) != {stored}) number = {stored};"
        if format.master
        else f"real number = {stored};",
        elements=", ".join(
            [*(f"{slot}.x[k]" for slot in (*rule.state, *format.limits)), "widen(grad.x[k])"]
        ),
        store_param="param.x[k] = narrow(number);" + " master.x[k] = number;" * format.master,
        store_packs=_lines(
            f"*reinterpret_cast<Pack<{_type(name)}, N> *>({name}_at) = {name};" for name in written
        ),
        locate_state=_lines(
            f"real *const {slot}_at = arena + {k} * pitch + place;" for k, slot in enumerate(slots)
        ),
        state_first=" ".join(f"{slot}_at + first," for slot in slots),
        state_k=" ".join(f"{slot}_at + k," for slot in slots),
        capacity=CAPACITY,
        pack=pack(format),
        threads=THREADS,
    )


def _keep_bounds(rule: Rule, format: Format) -> Iterator[str]:
    if format.bounds != "none":
        yield "param = param < lower ? lower : param;"
        yield "param = param > upper ? upper : param;"
    if format.reset:
        for slot in rule.signed:
            yield f"{slot} = param == lower || param == upper ? real(0) : {slot};"


def _type(name: str) -> str:
    return "stored" if name == "param" else "real"


def _lines(lines: Iterable[str]) -> str:
    return "\n    ".join(lines)
