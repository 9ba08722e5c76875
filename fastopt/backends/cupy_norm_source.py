"""The CUDA C++ that sums the squares of gradients in the order of ``fastopt.norms``: text alone.

Shared memory would do it in one kernel, but then the order of the additions would be spread over
barriers. Two kernels cost a launch, 6 % more memory traffic for float32 (lanes are written and read
again), and nothing to synchronise.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Template
from typing import Any

import numpy as np

from fastopt.backends.cupy_blocks import BLOCK_FIELDS
from fastopt.backends.cupy_half_source import TYPE, conversions
from fastopt.backends.cupy_source import CAPACITY, OPTIONS, addresses_of
from fastopt.formats import wide
from fastopt.norms import LANES, SMALLER

FACTORS = (1.0, SMALLER, 1.0 / SMALLER)
"""What gradients are multiplied by before they are squared, where the device chooses among them."""

_SQUARES = Template("""
    const long long *block = &blocks[${fields}ll * blockIdx.x];
    const long long address = ($addresses)[$capacity + block[0]];
    const $given *const grad = reinterpret_cast<const $given *>(address) + block[1];
    const long long count = address != 0 ? block[2] : 0;
    $start
    for (long long k = threadIdx.x; k < count; k += $lanes) {
        $add
    }
    const long long lane = (first + blockIdx.x) * $lanes + threadIdx.x;
    $store
""")

_WIDEN = Template("""
namespace fastopt {

typedef $real real;
$conversions
}  // namespace fastopt
""")

_HALVES = Template("""
namespace fastopt {

template <int N> __device__ __forceinline__ double halves(const double *lane) {
    return halves<2 * N>(lane) + halves<2 * N>(lane + N);
}

template <> __device__ __forceinline__ double halves<$lanes>(const double *lane) {
    return *lane;
}

}  // namespace fastopt
""")


def squares(dtype: np.dtype[Any], by_value: bool) -> dict[str, Any]:
    """Return the arguments of the kernel that sums each lane of each piece.

    It takes ``addresses`` and ``blocks`` as an update does, with a block of LANES threads for each
    piece, ``first`` (the pieces before those), ``factor``, and ``lanes``, which it writes.
    """
    return _squares(dtype, by_value, "float64 factor", ["factor"], "fastopt_squares")


def squares_to_decide(dtype: np.dtype[Any], by_value: bool, wide: bool) -> dict[str, Any]:
    """Return the arguments of the kernel that a device decides by, in one pass.

    In place of ``factor`` it takes ``pieces``, how many there are in all. It writes the lanes of
    all pieces for the first of FACTORS, and with ``wide`` then for the others.
    """
    factors = [repr(factor) for factor in FACTORS[: None if wide else 1]]
    name = f"fastopt_{'all_' * wide}squares_to_decide"
    return _squares(dtype, by_value, "int64 pieces", factors, name)


def _squares(
    dtype: np.dtype[Any], by_value: bool, last: str, factors: Sequence[str], name: str
) -> dict[str, Any]:
    declared, addresses = addresses_of(by_value)
    start = [f"double sum{k} = 0;" for k in range(len(factors))]
    add = [
        f"const double value{k} = number * {factor}; sum{k} += value{k} * value{k};"
        for k, factor in enumerate(factors)
    ]
    return {
        "in_params": f"{declared}, raw int64 blocks, int64 first, {last}",
        "out_params": "raw float64 lanes",
        "operation": _SQUARES.substitute(
            fields=len(BLOCK_FIELDS),
            addresses=addresses,
            capacity=CAPACITY,
            given=TYPE[dtype.name],
            lanes=LANES,
            start=" ".join(start),
            add="\n        ".join(["const fastopt::real number = fastopt::widen(grad[k]);", *add]),
            store=" ".join(
                f"lanes[lane + {k}{' * pieces' * (k > 0)} * {LANES}] = sum{k};"
                for k in range(len(factors))
            ),
        ),
        "preamble": _WIDEN.substitute(
            real=TYPE[wide(dtype).name],
            conversions=conversions(dtype.name, wide(dtype).name),
        ),
        "name": name,
        "no_return": True,
        "options": OPTIONS,
    }


def halves() -> dict[str, Any]:
    """Return the arguments of the kernel that adds the lanes of each piece, in halves."""
    return {
        "in_params": "raw float64 lanes",
        "out_params": "raw float64 sums",
        "operation": f"sums[i] = fastopt::halves<1>(&lanes[i * {LANES}ll])",
        "name": "fastopt_halves",
        "preamble": _HALVES.substitute(lanes=LANES),
        "no_return": True,
        "options": OPTIONS,
    }
