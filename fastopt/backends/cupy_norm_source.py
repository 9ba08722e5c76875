"""The CUDA C++ that sums the squares of gradients in the order of ``fastopt.norms``: text alone.

Shared memory would do it in one kernel, but then the order of the additions would be spread over
barriers. Two kernels cost a launch, 3 % more memory traffic, and nothing to synchronise.
"""

from __future__ import annotations

from string import Template
from typing import Any

import numpy as np

from fastopt.backends.cupy_half_source import TYPE, conversions
from fastopt.backends.cupy_source import BLOCK_FIELDS, CAPACITY, OPTIONS, addresses_of
from fastopt.norms import LANES

_SQUARES = Template("""
    const long long *block = &blocks[${fields}ll * blockIdx.x];
    const long long address = ($addresses)[$capacity + block[0]];
    const $given *const grad = reinterpret_cast<const $given *>(address) + block[1];
    const long long count = address != 0 ? block[2] : 0;
    double sum = 0;
    for (long long k = threadIdx.x; k < count; k += $lanes) {
        const double value = fastopt::widen(grad[k]) * factor;
        sum += value * value;
    }
    lanes[(first + blockIdx.x) * $lanes + threadIdx.x] = sum;
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
    declared, addresses = addresses_of(by_value)
    return {
        "in_params": f"{declared}, raw int64 blocks, int64 first, float64 factor",
        "out_params": "raw float64 lanes",
        "operation": _SQUARES.substitute(
            fields=len(BLOCK_FIELDS),
            addresses=addresses,
            capacity=CAPACITY,
            given=TYPE[dtype.name],
            lanes=LANES,
        ),
        "preamble": _WIDEN.substitute(
            real="double" if dtype.name == "float64" else "float",
            conversions=conversions(dtype.name),
        ),
        "name": "fastopt_squares",
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
