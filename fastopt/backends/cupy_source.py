"""The CUDA C++ that runs the CuPy form of a rule, and its table of blocks; imports no CuPy."""

from __future__ import annotations

from collections.abc import Iterator
from string import Template
from typing import Any

from fastopt.backends import COMMON_SCALARS, tiny_names
from fastopt.backends import cupy_storage_source as storage
from fastopt.backends.cupy_blocks import fields
from fastopt.backends.cupy_half_source import TYPE, conversions
from fastopt.backends.cupy_storage_source import lines
from fastopt.formats import Format
from fastopt_kernels import Rule

CAPACITY = 192
"""Parameters per launch: two addresses of each fill 3 of the 4 KB that kernel arguments have."""

THREADS = 256
"""Threads per block. Each takes the 16 bytes of every array that one instruction can load."""

OPTIONS = ("--fmad=false",)
"""No fused multiply-add: each operation rounds once, as on the other backends."""

# In a namespace, because CuPy's headers have a function that is called `real`.
_ELEMENT = Template("""
namespace fastopt {

typedef $real real;
typedef $stored stored;
typedef $given given;
$conversions
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T x[N]; };

struct Scalars { real $scalars; };
$square_of
__device__ __forceinline__ void element(
    $references, $limits real grad, $modulus const Scalars &given
) {
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
""")

_SQUARE_OF = """
__device__ __forceinline__ real square_of(real param, real grad, const Scalars &given) {
    grad = given.grad_scale * grad;
    grad = given.l2 != real(0) ? grad + given.l2 * param : grad;
    return grad * grad;
}
"""

# Of both parts of each complex number, before the parameter changes.
_SQUARE_MODULI = Template("""Pack<real, $count> square;
    #pragma unroll
    for (int k = 0; k < $count; ++k) {
        square.x[k] = square_of(widen(param.x[k]), widen(grad.x[k]), scalars);
    }
    #pragma unroll
    for (int k = 0; k < $count; k += 2) {
        square.x[k] = square.x[k + 1] = square.x[k] + square.x[k + 1];
    }""")

_UPDATE = Template("""
template <int N>
__device__ __forceinline__ void update($pointers, const given *grad_at, const Scalars &scalars) {
    const Pack<given, N> grad = *reinterpret_cast<const Pack<given, N> *>(grad_at);
    $load_packs
    $square_moduli
    #pragma unroll
    for (int k = 0; k < N; ++k) {
        $load_param
        element(number, $elements, scalars);
        $store_param
    }
    $store_packs
}
""")

_ELEMENT_OF = """
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
"""

_BLOCK = Template("""
__device__ __forceinline__ void update_block(
    const long long *addresses, const long long *blocks, const long long *block, $memory,
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
        for (long long k = ${single}threadIdx.x; k < count; k += $single$threads) {
            stored *const param_at = element_of(param_address, start + k, axes);
            update<$at_least>(param_at, $state_k grad_at + k, scalars);
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
    for (long long k = packed + ${single}threadIdx.x; k < count; k += $single$threads) {
        update<$at_least>(param_at + k, $state_k grad_at + k, scalars);
    }
}

}  // namespace fastopt
""")

_OPERATION = Template("""
    fastopt::update_block(
        $addresses, &blocks[0], &blocks[${fields}ll * blockIdx.x], $memory, pitch, {$scalars});
""")

# A row of scalars that was chosen on the device, or none: see cupy_control_source.
_FROM_TABLE = Template("""
    if (counts[0] >= 0) {
        const fastopt::real *const row = &table[counts[0] * ${width}ll];
        $update
    }
""")


def pack(format: Format) -> int:
    """Return how many elements one thread takes at once: 16 bytes of each exact slot of state."""
    return 16 // format.real.itemsize


def memory(format: Format) -> list[tuple[str, str]]:
    """Return the arrays of state that a kernel takes: the dtype and the name of each."""
    codes = {"bfloat16": [("uint16", "codes")], "int8": [("uint8", "codes"), ("float32", "scales")]}
    return [(format.real.name, "arena"), *codes.get(format.state, ())]


def scalar_names(rule: Rule, format: Format) -> list[str]:
    """Return the names of an update's scalars, in the order of a row."""
    return [*COMMON_SCALARS, *rule.scalars, *format.limit_scalars, *format.random_scalars]


def kernel(rule: Rule, format: Format, by_value: bool, from_table: bool = False) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a rule and a format of parameters.

    The kernel takes ``addresses`` (CAPACITY of parameters, then CAPACITY of gradients, 0 where
    there is none), ``blocks``, ``pitch`` (elements of a slot), the scalars, and ``arena``; where
    state is in codes also ``codes`` and, for 8 bits, ``scales``. The addresses travel as a void
    scalar ``by_value``, which costs no copy to the device; otherwise in an array there.
    ``from_table`` the scalars are in device memory: it takes ``counts``, whose first element is the
    row of this step (-1: do nothing), ``scale``, which that row's gradient scale is multiplied by,
    and ``table``.
    """
    scalars = scalar_names(rule, format)
    arrays = memory(format)
    given, values = [f"{format.real} {name}" for name in scalars], scalars
    if from_table:
        given = ["raw int64 counts", f"raw {format.real} scale", f"raw {format.real} table"]
        values = ["row[0] * scale[0]", *[f"row[{k}]" for k in range(1, len(scalars))]]
    declared, addresses = addresses_of(by_value)
    operation = _OPERATION.substitute(
        addresses=addresses,
        fields=len(fields(bool(format.random_scalars))),
        memory=", ".join(f"&{name}[0]" for _, name in arrays),
        scalars=", ".join(values),
    )
    if from_table:
        operation = _FROM_TABLE.substitute(width=len(scalars), update=operation.strip())
    return {
        "in_params": ", ".join([declared, "raw int64 blocks", "int64 pitch", *given]),
        "out_params": ", ".join(f"raw {dtype} {name}" for dtype, name in arrays),
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
    text = _ELEMENT.substitute(_of_elements(rule, format, scalars))
    about = _of_blocks(rule, format)
    if format.state == "int8":
        about |= storage.of_int8(rule, format)
        return text + _ELEMENT_OF + storage.INT8_BLOCK.substitute(about)
    return text + _UPDATE.substitute(about) + _ELEMENT_OF + _BLOCK.substitute(about)


def _of_elements(rule: Rule, format: Format, scalars: list[str]) -> dict[str, str]:
    tiny = tiny_names(rule)
    used = [name for name in scalars if name not in format.random_scalars]
    return {
        "real": TYPE[format.real.name],
        "stored": TYPE[format.stored.name],
        "given": TYPE[format.given.name],
        "conversions": conversions(format.stored.name) + storage.conversions(format),
        "scalars": ", ".join(scalars),
        "references": ", ".join(f"real &{name}" for name in ("param", *rule.state)),
        "load_scalars": lines(f"const real {name} = given.{name};" for name in used),
        "square_of": _SQUARE_OF * format.modulus,
        "modulus": "real square," * format.modulus,
        "square": "const real square = grad * grad;" * (rule.squares and not format.modulus),
        "rule": rule.cupy.strip(),
        "flush": lines(f"{s} = fabs({s}) < {tiny[s]} ? real(0) : {s};" for s in rule.state),
        "limits": " ".join(f"real {name}," for name in format.limits),
        "keep_bounds": lines(_keep_bounds(rule, format)),
    }


def _of_blocks(rule: Rule, format: Format) -> dict[str, Any]:
    written = ("param", *rule.state, *format.masters)
    slots = (*written[1:], *format.limits)
    all_names = ("param", *slots)
    types = dict.fromkeys(slots, "real") | {"param": "stored"}
    types |= dict.fromkeys(rule.state, storage.TYPE_OF_STATE[format.state])
    param, drawn = "widen(param.x[k])", bool(format.random_scalars)
    moving = [*(f"{slot}_at" for slot in slots), *["counter"] * drawn]
    narrowed = storage.narrowed(rule, format)
    return {
        "pointers": ", ".join(
            [*(f"{types[s]} *{s}_at" for s in all_names), *["unsigned int counter"] * drawn]
        ),
        "load_packs": lines(
            f"Pack<{types[name]}, N> {name} = "
            f"*reinterpret_cast<Pack<{types[name]}, N> *>({name}_at);"
            for name in all_names
        ),
        # What does not round to the stored parameter is not its master: somebody wrote it since.
        "load_param": lines(
            [
                *storage.decode(rule, format),
                "real number = master.x[k];\n"
                f"        if (widen(narrow(number)) != {param}) number = {param};"
                if format.master
                else f"real number = {param};",
            ]
        ),
        "elements": ", ".join(
            [
                *(storage.now(slot, format) for slot in rule.state),
                *(f"{slot}.x[k]" for slot in format.limits),
                "widen(grad.x[k])",
                *["square.x[k]"] * format.modulus,
            ]
        ),
        "store_param": lines(
            [
                *storage.draw(rule, format),
                f"param.x[k] = {narrowed};" + " master.x[k] = number;" * format.master,
                *storage.encode(rule, format),
            ]
        ),
        "store_packs": lines(
            f"*reinterpret_cast<Pack<{types[name]}, N> *>({name}_at) = {name};" for name in written
        ),
        "locate_state": lines(storage.locate(rule, format)),
        "state_first": " ".join(f"{s} + first," for s in moving),
        "state_k": " ".join(f"{s} + k," for s in moving),
        "memory": ", ".join(
            ["real *arena", *(f"{TYPE[dtype]} *{name}" for dtype, name in memory(format)[1:])]
        ),
        "square_moduli": _SQUARE_MODULI.substitute(count=4 if format.state == "int8" else "N")
        if format.modulus
        else "",
        "at_least": 2 if format.modulus else 1,
        "single": "2ll * " * format.modulus,
        "capacity": CAPACITY,
        "pack": pack(format),
        "threads": THREADS,
    }


def _keep_bounds(rule: Rule, format: Format) -> Iterator[str]:
    if format.bounds != "none":
        yield "param = param < lower ? lower : param;"
        yield "param = param > upper ? upper : param;"
    if format.reset:
        for slot in rule.signed:
            yield f"{slot} = param == lower || param == upper ? real(0) : {slot};"
