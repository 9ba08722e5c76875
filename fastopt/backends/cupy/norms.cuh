// The sums of squares of gradients, in the order of core/norms.py.
//
// Shared memory would do it in one kernel, but then the order of the additions would be spread over
// barriers. Two kernels cost a launch, 6 % more memory traffic for float32 (lanes are written and
// read again), and nothing to synchronise. From Python: Given, `given` and `real`, of gradients; the
// fields of a block; CAPACITY, LANES.

namespace fastopt {

// The lanes of a tile, for each of some factors that multiply the gradients before they are squared.
// Those of all `tiles` for one factor stand together.
template <int N> __device__ __forceinline__ void sum_squares(
    const long long *addresses, const long long *block, const double (&factors)[N],
    double *lanes, long long tile, long long tiles
) {
    const long long address = addresses[CAPACITY + block[PARAMETER]];
    const given *const grad = reinterpret_cast<const given *>(address) + block[START];
    const long long count = address != 0 ? block[COUNT] : 0;
    double sums[N] = {};
    for (long long k = threadIdx.x; k < count; k += LANES) {
        const real number = Given::widen(grad[k]);
        #pragma unroll
        for (int n = 0; n < N; ++n) {
            const double value = number * factors[n];
            sums[n] += value * value;
        }
    }
    #pragma unroll
    for (int n = 0; n < N; ++n) {
        lanes[(tile + n * tiles) * LANES + threadIdx.x] = sums[n];
    }
}

}  // namespace fastopt
