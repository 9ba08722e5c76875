// The sum of the sums of tiles: a block of LANES threads adds them as it adds the elements of a tile.
// From Python: LANES.

namespace fastopt {

// All threads of the block get it; `lane` is shared memory, LANES numbers.
__device__ __forceinline__ double total(const double *sums, long long count, double *lane) {
    double sum = 0;
    #pragma unroll 8
    for (long long k = threadIdx.x; k < count; k += LANES) {
        sum += sums[k];
    }
    lane[threadIdx.x] = sum;
    __syncthreads();
    #pragma unroll 1
    for (int width = LANES / 2; width != 0; width /= 2) {
        if (threadIdx.x < width) lane[threadIdx.x] += lane[threadIdx.x + width];
        __syncthreads();
    }
    return lane[0];
}

}  // namespace fastopt
