// The sum of the sums of tiles: LANES threads of a block add them as elements of a tile are added.
// From Python: LANES.

namespace fastopt {

// The sum of all lanes, of which the first LANES threads hold one each: all threads of the block get
// it; `lane` is shared memory, LANES numbers.
__device__ __forceinline__ double total_of(double sum, double *lane) {
    if (threadIdx.x < LANES) lane[threadIdx.x] = sum;
    __syncthreads();
    #pragma unroll 1
    for (int width = LANES / 2; width != 0; width /= 2) {
        if (threadIdx.x < width) lane[threadIdx.x] += lane[threadIdx.x + width];
        __syncthreads();
    }
    return lane[0];
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
