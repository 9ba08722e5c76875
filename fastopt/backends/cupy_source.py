"""The CUDA C++ that runs the CuPy form of a rule, and its table of blocks; imports no CuPy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from string import Template
from typing import Any

import numpy as np

from fastopt.arrays import Array
from fastopt.backends import COMMON_SCALARS, tiny_names
from fastopt.parameters import Parameter
from fastopt_kernels import Rule

CAPACITY = 192
"""Parameters per launch: two addresses of each fill 3 of the 4 KB that kernel arguments have."""

THREADS = 256
"""Threads per block. Each takes the 16 bytes of every array that one instruction can load."""

BLOCK_FIELDS = ("parameter", "start", "count", "place")
"""What the table says of each block: which parameter, its first element there, how many elements,
and where their state begins in a slot of the arena."""

OPTIONS = ("--fmad=false",)
"""No fused multiply-add: each operation rounds once, as on the other backends."""

REAL = {4: "float", 8: "double"}

# In a namespace, because CuPy's headers have a function that is called `real`.
_PREAMBLE = Template("""
namespace fastopt {

typedef $real real;

template <int N> struct alignas(N * sizeof(real)) Pack { real x[N]; };

struct Scalars { real $scalars; };

__device__ __forceinline__ void element($references, real grad, const Scalars &given) {
    $load_scalars
    grad = grad_scale * grad;
    grad = l2 != real(0) ? grad + l2 * param : grad;
    param = decay != real(0) ? param - decay * param : param;
    {
        $rule
    }
    $flush
}

template <int N>
__device__ __forceinline__ void update($pointers, const real *grad_at, const Scalars &scalars) {
    const Pack<N> grad = *reinterpret_cast<const Pack<N> *>(grad_at);
    $load_packs
    #pragma unroll
    for (int k = 0; k < N; ++k) {
        element($elements, grad.x[k], scalars);
    }
    $store_packs
}

__device__ __forceinline__ void update_block(
    const long long *addresses, const long long *block, real *arena, long long pitch,
    const Scalars &scalars
) {
    const long long param_address = addresses[block[0]];
    const long long grad_address = addresses[$capacity + block[0]];
    if (grad_address == 0) return;  // no gradient in this step
    const long long start = block[1], count = block[2], place = block[3];
    real *const param_at = reinterpret_cast<real *>(param_address) + start;
    const real *const grad_at = reinterpret_cast<const real *>(grad_address) + start;
    $locate_state
    // State is aligned by its places in the arena; the user's arrays begin where they like.
    const bool aligned = ((param_address | grad_address) & 15) == 0;
    const long long packed = aligned ? count - count % $pack : 0;
    const long long first = threadIdx.x * ${pack}ll;
    if (first < packed) update<$pack>($places_first, grad_at + first, scalars);
    #pragma unroll 1
    for (long long k = packed + threadIdx.x; k < count; k += $threads) {
        update<1>($places_k, grad_at + k, scalars);
    }
}

}  // namespace fastopt
""")

_OPERATION = Template("""
    fastopt::update_block(
        $addresses, &blocks[${fields}ll * blockIdx.x], &arena[0], pitch, {$scalars});
""")

# A row of scalars that was chosen on the device, or none: see cupy_control_source.
_FROM_TABLE = Template("""
    if (counts[0] >= 0) {
        const fastopt::real *const row = &table[counts[0] * ${width}ll];
        $update
    }
""")


def pack(dtype: np.dtype[Any]) -> int:
    """Return how many elements one thread takes at once."""
    return 16 // dtype.itemsize


def kernel(
    rule: Rule, dtype: np.dtype[Any], by_value: bool, from_table: bool = False
) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a rule and a parameter dtype.

    The kernel takes ``addresses`` (CAPACITY of parameters, then CAPACITY of gradients, 0 where
    there is none), ``blocks``, ``pitch`` (elements of a slot), the scalars, and ``arena``. The
    addresses travel as a void scalar ``by_value``, which costs no copy to the device; otherwise in
    an array there. ``from_table`` the scalars are in device memory: it takes ``counts``, whose
    first element is the row of this step (-1: do nothing), ``scale``, which that row's gradient
    scale is multiplied by, and ``table``.
    """
    scalars = [*COMMON_SCALARS, *rule.scalars]
    given, values = [f"{dtype} {name}" for name in scalars], scalars
    if from_table:
        given = ["raw int64 counts", f"raw {dtype} scale", f"raw {dtype} table"]
        values = ["row[0] * scale[0]", *[f"row[{k}]" for k in range(1, len(scalars))]]
    declared, addresses = addresses_of(by_value)
    operation = _OPERATION.substitute(
        addresses=addresses, fields=len(BLOCK_FIELDS), scalars=", ".join(values)
    )
    if from_table:
        operation = _FROM_TABLE.substitute(width=len(scalars), update=operation.strip())
    return {
        "in_params": ", ".join([declared, "raw int64 blocks", "int64 pitch", *given]),
        "out_params": f"raw {dtype} arena",
        "operation": operation,
        "name": f"fastopt_{rule.name}" + "_from_table" * from_table,
        "preamble": _preamble(rule, dtype, scalars),
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


def blocks(parameters: Sequence[Parameter], length: int) -> Array:
    """Return the table of blocks: a line of BLOCK_FIELDS for every ``length`` elements."""
    sizes = np.array([parameter.flat.size for parameter in parameters], np.int64)
    counts = -(-sizes // length)
    which = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    place = np.array([parameter.offset for parameter in parameters], np.int64)[which] + start
    return np.stack([which, start, np.minimum(sizes[which] - start, length), place], axis=1)


def _preamble(rule: Rule, dtype: np.dtype[Any], scalars: list[str]) -> str:
    written = ("param", *rule.state)
    tiny = tiny_names(rule)
    return _PREAMBLE.substitute(
        real=REAL[dtype.itemsize],
        scalars=", ".join(scalars),
        references=", ".join(f"real &{name}" for name in written),
        load_scalars=_lines(f"const real {name} = given.{name};" for name in scalars),
        rule=rule.cupy.strip(),
        flush=_lines(f"{s} = fabs({s}) < {tiny[s]} ? real(0) : {s};" for s in rule.state),
        pointers=", ".join(f"real *{name}_at" for name in written),
        load_packs=_lines(
            f"Pack<N> {name} = *reinterpret_cast<Pack<N> *>({name}_at);" for name in written
        ),
        elements=", ".join(f"{name}.x[k]" for name in written),
        store_packs=_lines(
            f"*reinterpret_cast<Pack<N> *>({name}_at) = {name};" for name in written
        ),
        locate_state=_lines(
            f"real *const {slot}_at = arena + {k} * pitch + place;"
            for k, slot in enumerate(rule.state)
        ),
        places_first=", ".join(f"{name}_at + first" for name in written),
        places_k=", ".join(f"{name}_at + k" for name in written),
        capacity=CAPACITY,
        pack=pack(dtype),
        threads=THREADS,
    )


def _lines(lines: Iterable[str]) -> str:
    return "\n    ".join(lines)
