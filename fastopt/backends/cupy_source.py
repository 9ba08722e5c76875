"""The CUDA C++ that runs the CuPy form of a rule, and its table of blocks; imports no CuPy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from string import Template
from typing import Any

import numpy as np

from fastopt.arrays import Array
from fastopt.backends import COMMON_SCALARS, tiny_names
from fastopt.backends.cupy_half_source import TYPE, conversions
from fastopt.formats import Format
from fastopt.parameters import Parameter
from fastopt_kernels import Rule

CAPACITY = 192
"""Parameters per launch: two addresses of each fill 3 of the 4 KB that kernel arguments have."""

THREADS = 256
"""Threads per block. Each takes the 16 bytes of every array that one instruction can load."""

BLOCK_FIELDS = ("parameter", "start", "count", "place", "axes")
"""What the table says of each block: which parameter, its first element there, how many elements,
where their state begins in a slot of the arena, and where the table goes on to say of a parameter
with gaps how its elements stand in memory: the number of its axes, then the length of each and its
stride in bytes. -1 for one without gaps."""

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


def pack(format: Format) -> int:
    """Return how many elements one thread takes at once: 16 bytes of each slot of state."""
    return 16 // format.real.itemsize


def kernel(rule: Rule, format: Format, by_value: bool) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a rule and a format of parameters.

    The kernel takes ``addresses`` (CAPACITY of parameters, then CAPACITY of gradients, 0 where
    there is none), ``blocks``, ``pitch`` (elements of a slot), the scalars, and ``arena``. The
    addresses travel as a void scalar ``by_value``, which costs no copy to the device; otherwise in
    an array there.
    """
    scalars = [*COMMON_SCALARS, *rule.scalars, *format.limit_scalars]
    declared, addresses = addresses_of(by_value)
    inputs = [declared, "raw int64 blocks", "int64 pitch", *[f"{format.real} {s}" for s in scalars]]
    return {
        "in_params": ", ".join(inputs),
        "out_params": f"raw {format.real} arena",
        "operation": _OPERATION.substitute(
            addresses=addresses, fields=len(BLOCK_FIELDS), scalars=", ".join(scalars)
        ),
        "name": f"fastopt_{rule.name}",
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


def blocks(parameters: Sequence[Parameter], length: int) -> tuple[Array, int]:
    """Return the table of blocks, and how many there are.

    It is a line of BLOCK_FIELDS for every ``length`` elements, then the axes that these refer to.
    """
    sizes = np.array([parameter.size for parameter in parameters], np.int64)
    counts = -(-sizes // length)
    which = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    place = np.array([parameter.offset for parameter in parameters], np.int64)[which] + start
    count = np.minimum(sizes[which] - start, length)
    axes_at, axes = np.full(len(sizes), -1), [np.zeros(0, np.int64)]
    end = len(BLOCK_FIELDS) * len(which)
    for k, parameter in enumerate(parameters):
        if parameter.apart:
            lines = np.array(parameter.axes(), np.int64)
            axes_at[k] = end
            axes.append(np.array([len(lines), *lines.reshape(-1)]))
            end += axes[-1].size
    lines = np.stack([which, start, count, place, axes_at[which]], axis=1)
    return np.concatenate([lines.reshape(-1), *axes]), len(which)


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
