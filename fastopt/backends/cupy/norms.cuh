// The sums of squares of gradients, in the order of core/norms.py.
//
// A tile is summed by LANES / WIDTH threads. Each takes the WIDTH lanes whose elements one load of 16
// bytes brings, so a block of LANES threads sums WIDTH tiles. From Python: Gradient, `gradient` and
// `real`, of gradients; Block; CAPACITY, LANES, WIDTH; total.cuh.

namespace fastopt {

struct alignas(16) Load { gradient of[WIDTH]; };

// Adds the square of one number times each factor to its lane.
template <int N> __device__ __forceinline__ void add_squares(
    gradient stored, const double (&factors)[N], double (&lanes)[N][WIDTH], int lane
) {
    const real number = Gradient::widen(stored);
    #pragma unroll
    for (int n = 0; n < N; ++n) {
        const double value = number * factors[n];
        lanes[n][lane] += value * value;
    }
}

// Sums the tile of this thread's group for each of some factors that multiply the gradients before
// they are squared. The sums of all `tiles` for one factor stand together; those of this launch, of
// which there are `own`, begin at the `first`.
template <int N> __device__ __forceinline__ void sum_squares(
    const long long *addresses, const long long *blocks, const double (&factors)[N],
    double *sums, long long first, long long own, long long tiles
) {
    constexpr int GROUP = LANES / WIDTH;
    const int group = threadIdx.x / GROUP, mine = threadIdx.x % GROUP;
    const long long tile = (long long)blockIdx.x * WIDTH + group;
    const Block block = reinterpret_cast<const Block *>(blocks)[tile < own ? tile : 0];
    const long long address = addresses[CAPACITY + block.parameter];
    const gradient *const grad = reinterpret_cast<const gradient *>(address) + block.start;
    const int count = address != 0 && tile < own ? block.count : 0;
    const int whole = (address & 15) == 0 ? count / LANES * LANES : 0;  // in loads of 16 bytes
    double lanes[N][WIDTH] = {};
    #pragma unroll 8
    for (int k = mine * WIDTH; k < whole; k += LANES) {
        const Load load = *reinterpret_cast<const Load *>(&grad[k]);
        #pragma unroll
        for (int lane = 0; lane < WIDTH; ++lane) add_squares(load.of[lane], factors, lanes, lane);
    }
    for (int k = whole + mine * WIDTH; k < count; k += LANES) {
        #pragma unroll
        for (int lane = 0; lane < WIDTH; ++lane) {
            if (k + lane < count) add_squares(grad[k + lane], factors, lanes, lane);
        }
    }
    __shared__ double shared[WIDTH][LANES];
    #pragma unroll
    for (int n = 0; n < N; ++n) {
        #pragma unroll
        for (int lane = 0; lane < WIDTH; ++lane) {
            shared[group][mine * WIDTH + lane] = lanes[n][lane];
        }
        const double sum = sum_of_lanes<GROUP>(shared[group], mine);
        if (mine == 0 && tile < own) sums[first + tile + n * tiles] = sum;
        __syncthreads();  // all have read it before `shared` is used again
    }
}

}  // namespace fastopt
