// Where parameters, gradients and state stand in memory.
//
// From Python: the formats Stored (of parameters) and Gradient (of gradients) and their types `stored`
// and `gradient`; the types `real` (of the arithmetic) and `code` (of state in 16 or 8 bits); CODES.

namespace fastopt {

// Numbers that one instruction loads or stores.
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T x[N]; };

template <int N, typename T> __device__ __forceinline__ Pack<T, N> load_pack(const T *from) {
    return *reinterpret_cast<const Pack<T, N> *>(from);
}

template <int N, typename T> __device__ __forceinline__ void store_pack(
    T *to, const Pack<T, N> &pack
) {
    *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

// The state of a bucket. The n-th slot of those in exact numbers begins at arena + n * pitch, of
// those in codes at codes + n * pitch; every CODES codes share one of the scales.
struct ConstMemory {
    const real *arena;
    const code *codes;
    const float *scales;
    long long pitch;
};

struct Memory {
    real *arena;
    code *codes;
    float *scales;
    long long pitch;

    __device__ __forceinline__ operator ConstMemory() const {
        return {arena, codes, scales, pitch};
    }

    // What begins at an offset within the slots, a multiple of CODES if there are scales.
    __device__ __forceinline__ Memory from(long long offset) const {
        return {arena + offset, codes + offset, scales + offset / CODES, pitch};
    }
};

// An element of a parameter whose elements have gaps between them. `axes` are how many axes there
// are, then the length of each and its stride in bytes.
__device__ __forceinline__ stored *element_of(
    long long address, long long number, const long long *axes
) {
    #pragma unroll 1
    for (long long axis = axes[0]; axis > 0; --axis) {
        address += number % axes[2 * axis - 1] * axes[2 * axis];
        number /= axes[2 * axis - 1];
    }
    return reinterpret_cast<stored *>(address);
}

// The parameter as the arithmetic has it, if there is a master. What does not round to the stored
// parameter is not its master: somebody wrote it since.
__device__ __forceinline__ real number_of(stored param, real master) {
    const real widened = Stored::widen(param);
    if (Stored::widen(Stored::narrow(master)) != widened) return widened;
    return master;
}

}  // namespace fastopt
