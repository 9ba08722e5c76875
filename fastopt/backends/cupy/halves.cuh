// The sum of a tile's lanes in halves: 32 to 32, 16 to 16, and so on. From Python: LANES.

namespace fastopt {

template <int N> __device__ __forceinline__ double halves(const double *lane) {
    return halves<2 * N>(lane) + halves<2 * N>(lane + N);
}

template <> __device__ __forceinline__ double halves<LANES>(const double *lane) {
    return *lane;
}

}  // namespace fastopt
