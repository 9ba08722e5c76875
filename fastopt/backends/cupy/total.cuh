// Sums of LANES numbers, and of many by as many threads, in the order of core/norms.py.
// From Python: LANES.

namespace fastopt {

// The sum of LANES numbers in shared memory, which so many `threads` add up; this thread is number
// `mine` of them, or none. All threads of the block come here, and get the sum.
template <int threads> __device__ __forceinline__ double sum_of_lanes(double *lane, int mine) {
    __syncthreads();
    #pragma unroll
    for (int width = LANES / 2; width != 0; width /= 2) {
        for (int k = mine; k < width; k += threads) lane[k] += lane[k + width];
        __syncthreads();
    }
    return lane[0];
}

// The sum of all lanes, of which the first LANES threads hold one each; `lane` is shared memory for
// LANES numbers, which nobody reads any more.
__device__ __forceinline__ double total_of(double sum, double *lane) {
    if (threadIdx.x < LANES) lane[threadIdx.x] = sum;
    return sum_of_lanes<LANES>(lane, threadIdx.x);
}

// For a block of LANES threads.
__device__ __forceinline__ double total(const double *sums, long long count, double *lane) {
    double sum = 0;
    #pragma unroll 8
    for (long long k = threadIdx.x; k < count; k += LANES) {
        sum += sums[k];
    }
    return total_of(sum, lane);
}

}  // namespace fastopt
