// What a pass's memory makes of its sums: a block of LANES threads for each array, or one for all.
//
// From Python: remember, the function of the memory; SUMS, how many it takes; INPUTS, how many
// columns the table has; LANES.

namespace fastopt {

// The n-th sum is that of `count` numbers from sums[n * tiles + first] on. The first thread brings up
// to date what is remembered and the scalars that are made, if the step has a row in the table.
__device__ __forceinline__ void follow(
    const double *sums, long long tiles, long long first, long long count, double size,
    const long long *counts, const double *table, double *remembered, double *made
) {
    __shared__ double lane[LANES];
    double totals[SUMS > 0 ? SUMS : 1] = {};
    #pragma unroll
    for (int n = 0; n < SUMS; ++n) {
        totals[n] = total(&sums[n * tiles + first], count, lane);
        __syncthreads();  // all have read it before `lane` is used again
    }
    if (threadIdx.x == 0 && counts[0] >= 0) {
        remember(totals, size, &table[counts[0] * INPUTS], remembered, made);
    }
}

}  // namespace fastopt
