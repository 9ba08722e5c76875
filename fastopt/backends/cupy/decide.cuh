// The decision on a step: whether to make it, by which row of the tables, by which gradient scale.
//
// One block of LANES threads, or of MANY_THREADS where there are many tiles. They add up the sums of
// squares of all tiles; then they do in float64 what the host does otherwise, by the same operations,
// and the first writes what the update kernels read. `judge` in engine/policy.py and `step` in
// backends/numba/compiled.py say the same of the norm: change all four. From Python: the fields of `counts`, `measured` and `settings`; LANES, NO_ROW,
// SKIPPED_ROW, NOT_MEASURED, CLIP_EPS, LARGEST (a float64), TOO_SMALL, SMALLER, LARGER,
// SQUARES_OVERFLOW, MANY_THREADS and FETCHED, a multiple of it.

namespace fastopt {

// The same as `total`, for a block of MANY_THREADS: what comes next is on its way while the first
// LANES threads add what is there.
__device__ __forceinline__ double total_of_many(
    const double *sums, long long count, double *lane
) {
    constexpr int EACH = FETCHED / MANY_THREADS;
    __shared__ double fetched[FETCHED];
    double sum = 0, coming[EACH];
    #pragma unroll
    for (int n = 0; n < EACH; ++n) {
        const long long k = threadIdx.x + n * MANY_THREADS;
        coming[n] = k < count ? sums[k] : 0;
    }
    for (long long begin = 0; begin < count; begin += FETCHED) {
        #pragma unroll
        for (int n = 0; n < EACH; ++n) fetched[threadIdx.x + n * MANY_THREADS] = coming[n];
        __syncthreads();
        #pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const long long k = begin + FETCHED + threadIdx.x + n * MANY_THREADS;
            coming[n] = k < count ? sums[k] : 0;
        }
        if (threadIdx.x < LANES) {
            const long long rest = count - begin;
            const int there = rest < FETCHED ? (int)rest : FETCHED;
            #pragma unroll 8
            for (int k = threadIdx.x; k < there; k += LANES) sum += fetched[k];
        }
        __syncthreads();
    }
    return total_of(sum, lane);
}

// The sum of the sums of tiles, by either.
__device__ __forceinline__ double total_of_tiles(
    const double *sums, long long count, double *lane
) {
    return blockDim.x == MANY_THREADS ? total_of_many(sums, count, lane) : total(sums, count, lane);
}

// The row of a step, or NO_ROW.
__device__ __forceinline__ long long row_of(long long steps, const long long *settings) {
    const long long at = steps - settings[BASE], beyond = at - settings[LENGTH];
    const long long period = settings[PERIOD];
    if (beyond < 0) return at < 0 ? NO_ROW : at;
    return period > 0 ? settings[LENGTH] - period + beyond % period : NO_ROW;
}

// A number times what stands at an address in a float of `width` bytes (0: nothing does).
__device__ __forceinline__ double scale_of(double number, long long address, long long width) {
    double scale = number;
    if (width == 4) scale *= *reinterpret_cast<const float *>(address);
    if (width == 8) scale *= *reinterpret_cast<const double *>(address);
    return scale;
}

// `sums` are those of all tiles (-1 tiles: nothing was measured) and, if `scaled`, again for gradients
// multiplied by SMALLER and by LARGER. `in_single` is not 0 if some rule averages squares in float32.
__device__ __forceinline__ void decide(
    const double *sums, long long tiles, long long scaled, long long in_single, double scale,
    const long long *settings, const double *limit, long long *counts, double *measured,
    float *single, double *outcome
) {
    __shared__ double lane[LANES], again[LANES];
    double sum = 0, unit = 1;
    if (tiles >= 0) {
        sum = total_of_tiles(sums, tiles, lane);
        const bool large = sum > LARGEST;
        if (scaled != 0 && (large || sum < TOO_SMALL)) {
            unit = large ? LARGER : SMALLER;
            sum = total_of_tiles(&sums[(large ? 1 : 2) * tiles], tiles, again);
        }
    }
    const bool clips = tiles >= 0 && settings[CLIPS] != 0;
    const bool skips = tiles >= 0 && settings[SKIPS] != 0;
    const double norm = sqrt(sum) * unit * fabs(scale);
    const bool finite = sum <= LARGEST && fabs(scale) <= LARGEST;
    const long long steps = counts[STEPS];
    const long long coming = row_of(steps, settings);
    double factor = 1;
    if (clips && limit[0] <= LARGEST) {  // an infinite one only measures
        factor = limit[0] / (norm + CLIP_EPS);
        factor = factor > 1 ? 1 : factor;
        scale *= factor;
    }
    const bool overflows = in_single != 0 && norm * factor >= SQUARES_OVERFLOW;
    const bool go = !skips || (finite && !overflows);
    __syncthreads();  // all have read the count
    if (threadIdx.x == 0) {
        const long long row = go ? coming : SKIPPED_ROW;
        counts[ROW] = row;
        if (row >= 0) counts[STEPS] = steps + 1;
        if (!go) counts[SKIPPED] += 1;
        if (go && row < 0) counts[OVERRUN] += 1;
        measured[NORM] = clips || skips ? norm : NOT_MEASURED;
        measured[SCALE] = scale;
        single[0] = static_cast<float>(scale);
        outcome[0] = row >= 0;
        outcome[1] = measured[NORM];
    }
}

}  // namespace fastopt
