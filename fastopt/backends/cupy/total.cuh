// The sum of the sums of tiles: LANES threads of a block add them as elements of a tile are added;
// any other threads help to fetch them. From Python: LANES, and FETCHED, a multiple of it.

namespace fastopt {

// All threads of the block get it; `lane` is shared memory, LANES numbers.
__device__ __forceinline__ double total(const double *sums, long long count, double *lane) {
    constexpr int LARGEST_BLOCK = 1024, EACH = FETCHED / LARGEST_BLOCK;
    __shared__ double fetched[FETCHED];
    double sum = 0;
    if (blockDim.x < LARGEST_BLOCK) {
        if (threadIdx.x < LANES) {
            #pragma unroll 8
            for (long long k = threadIdx.x; k < count; k += LANES) sum += sums[k];
        }
    } else {
        // What comes next is on its way while the lanes add what is there.
        double coming[EACH];
        #pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const long long k = threadIdx.x + n * LARGEST_BLOCK;
            coming[n] = k < count ? sums[k] : 0;
        }
        for (long long begin = 0; begin < count; begin += FETCHED) {
            #pragma unroll
            for (int n = 0; n < EACH; ++n) fetched[threadIdx.x + n * LARGEST_BLOCK] = coming[n];
            __syncthreads();
            #pragma unroll
            for (int n = 0; n < EACH; ++n) {
                const long long k = begin + FETCHED + threadIdx.x + n * LARGEST_BLOCK;
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
    }
    if (threadIdx.x < LANES) lane[threadIdx.x] = sum;
    __syncthreads();
    #pragma unroll 1
    for (int width = LANES / 2; width != 0; width /= 2) {
        if (threadIdx.x < width) lane[threadIdx.x] += lane[threadIdx.x + width];
        __syncthreads();
    }
    return lane[0];
}

}  // namespace fastopt
