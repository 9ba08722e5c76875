"""The CUDA C++ that decides on a step: whether to make it, by which row, by which gradient scale.

One block of LANES threads. Each adds up a lane of the pieces' sums of squares, and the lanes are
added in halves, as ``fastopt.norms`` lays it down; then they do in float64 what the host does
otherwise, by the same operations, and the first writes what the update kernels read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from string import Template
from typing import Any

from fastopt import overflow
from fastopt.backends.cupy_norm_source import FACTORS
from fastopt.backends.cupy_source import OPTIONS
from fastopt.backends.decisions import Settings
from fastopt.norms import LANES, TOO_SMALL

COUNTS = ("row", "clock", "skipped", "overrun")
"""What is counted on the device: the row of this step (-1: there is none, SKIPPED_ROW: the step is
skipped), how many steps were made, how many were skipped, and how many were left out because the
tables had no row for them."""

SKIPPED_ROW = -2

MEASURED = ("norm", "scale")
"""The norm of the last step's gradients (-1 where it was not measured), and what scales them."""

SETTINGS = Settings._fields[:-1]
"""What the host says, as int64; the last of it, the limit, is a float64 and stands behind them."""

_PREAMBLE = Template("""
namespace fastopt {

$fields

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

// The row of a step, or -1 if there is none.
__device__ __forceinline__ long long row_of(long long clock, const long long *settings) {
    const long long at = clock - settings[BASE], beyond = at - settings[LENGTH];
    const long long period = settings[PERIOD];
    if (beyond < 0) return at < 0 ? -1 : at;
    return period > 0 ? settings[LENGTH] - period + beyond % period : -1;
}

}  // namespace fastopt
""")

_OPERATION = Template("""
    __shared__ double lane[$lanes], again[$lanes];
    double sum = 0, unit = 1;
    if (pieces >= 0) {
        sum = fastopt::total(&sums[0], pieces, lane);
        const bool large = sum > $largest;
        if (scaled != 0 && (large || sum < $too_small)) {
            unit = large ? $larger : $smaller;
            sum = fastopt::total(&sums[(large ? 1 : 2) * pieces], pieces, again);
        }
    }
    double scale = number;
    if (width == 4) scale *= *reinterpret_cast<const float *>(address);
    if (width == 8) scale *= *reinterpret_cast<const double *>(address);
    const bool clips = pieces >= 0 && settings[fastopt::CLIPS] != 0;
    const bool skips = pieces >= 0 && settings[fastopt::SKIPS] != 0;
    const double norm = sqrt(sum) * unit * fabs(scale);
    const bool finite = sum <= $largest && fabs(scale) <= $largest;
    const long long clock = counts[fastopt::CLOCK];
    const long long coming = fastopt::row_of(clock, &settings[0]);
    double factor = 1;
    if (clips) {
        factor = limit[0] / (norm + 1e-6);
        factor = factor > 1 ? 1 : factor;
        scale *= factor;
    }
    const bool overflows = squares != 0 && norm * factor >= $limit;
    const bool go = !skips || (finite && !overflows);
    __syncthreads();  // all have read the clock
    if (threadIdx.x == 0) {
        const long long row = go ? coming : $skipped;
        counts[fastopt::ROW] = row;
        if (row >= 0) counts[fastopt::CLOCK] = clock + 1;
        if (!go) counts[fastopt::SKIPPED] += 1;
        if (go && row < 0) counts[fastopt::OVERRUN] += 1;
        measured[fastopt::NORM] = clips || skips ? norm : -1;
        measured[fastopt::SCALE] = scale;
        single[0] = static_cast<float>(scale);
    }
""")


def places_of(*tables: Sequence[str]) -> str:
    """Return the text that names the places in some tables of numbers."""
    places = [place for table in tables for place in enumerate(table)]
    return "\n".join(f"enum {{ {name.upper()} = {k} }};" for k, name in places)


def decide() -> dict[str, Any]:
    """Return the arguments of the kernel that decides, to be launched with LANES threads.

    It takes the ``sums`` of squares of all ``pieces`` (-1: not measured) for the first of FACTORS
    or, if ``scaled``, for each; ``squares``, not 0 if some rule averages squares in float32; the
    gradients' scale as a ``number`` times what stands at an ``address`` in a float of ``width``
    bytes (0: nothing); ``settings`` and ``limit``, the largest
    norm. It writes ``counts``, ``measured``, and the scale in single
    precision.
    """
    return {
        "in_params": "raw float64 sums, int64 pieces, int64 scaled, int64 squares, "
        "float64 number, int64 address, int64 width, raw int64 settings, raw float64 limit",
        "out_params": "raw int64 counts, raw float64 measured, raw float32 single",
        "operation": _OPERATION.substitute(
            lanes=LANES,
            largest=repr(sys.float_info.max),
            too_small=repr(TOO_SMALL),
            larger=repr(FACTORS[2]),
            smaller=repr(FACTORS[1]),
            skipped=SKIPPED_ROW,
            limit=repr(overflow.LIMIT),
        ),
        "name": "fastopt_decide",
        "preamble": _PREAMBLE.substitute(
            lanes=LANES,
            fields=places_of(COUNTS, MEASURED, SETTINGS),
        ),
        "no_return": True,
        "options": OPTIONS,
    }
