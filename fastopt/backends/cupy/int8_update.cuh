// An update whose state is in 8 bits: the threads of a warp share a block of codes.
//
// From Python: State and Scalars; SLOTS, how many slots are in codes; Block, CAPACITY, UNIT (see
// update.cuh).

namespace fastopt {

constexpr int WARP = 32;

// The largest number of the threads of a warp, all of which come here.
__device__ __forceinline__ unsigned int largest_of_warp(unsigned int number) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(~0u, number);
#else
    #pragma unroll
    for (int other = WARP / 2; other != 0; other /= 2) {
        number = max_of(number, __shfl_xor_sync(~0u, number, other));
    }
    return number;
#endif
}

// N elements of a thread. Their state is in registers from the rule to the rounding, which waits for
// the largest numbers; their parameters become those after the update, as they are stored.
template <int N> struct Elements {
    Pack<stored, N> param;
    Pack<gradient, N> grad;
    State<N> state;

    __device__ __forceinline__ void load(
        const stored *param_at, const gradient *grad_at, const Memory &memory, long long offset
    ) {
        grad = load_pack<N>(grad_at);
        param = load_pack<N>(param_at);
        state.load(memory, offset);
    }

    __device__ __forceinline__ void step(
        unsigned int (&largest)[SLOTS], long long element, unsigned int counter,
        const Scalars &scalars
    ) {
        const Pack<real, N> square = square_moduli(param, grad, element, scalars);
        #pragma unroll
        for (int k = 0; k < N; ++k) {
            const real grad_k = Gradient::widen(grad.x[k]);
            const real number = state.step(k, param.x[k], grad_k, square.x[k], scalars);
            param.x[k] = state.narrow(k, number, counter, scalars);
            state.compare(k, largest);
        }
    }

    __device__ __forceinline__ void store_state(
        const unsigned int (&largest)[SLOTS], const Memory &memory, long long offset,
        unsigned int counter, const Scalars &scalars
    ) {
        #pragma unroll
        for (int k = 0; k < N; ++k) state.round(k, counter, scalars, largest);
        state.store(memory, offset, largest);
    }
};

__device__ __forceinline__ void update_block(
    const long long *addresses, const Block &block, const long long *table,
    const Memory &memory, const Scalars &scalars
) {
    const long long param_address = addresses[block.parameter];
    const long long grad_address = addresses[CAPACITY + block.parameter];
    if (grad_address == 0) return;  // no gradient in this step
    const int first = threadIdx.x / WARP * CODES, lane = threadIdx.x % WARP;
    const int rest = block.count - first, count = rest < CODES ? rest : CODES;
    if (count <= 0) return;  // all threads of the warp leave
    const long long start = block.start + first, offset = block.offset + first;
    const Memory own = memory.from(offset);
    const unsigned int counter = block.counter + first;
    stored *const param_at = reinterpret_cast<stored *>(param_address) + start;
    const gradient *const grad_at = reinterpret_cast<const gradient *>(grad_address) + start;
    unsigned int largest[SLOTS] = {};
    if (count == CODES && block.axes < 0 && param_address % (4 * sizeof(stored)) == 0
        && grad_address % (4 * sizeof(gradient)) == 0) {
        const int k = 4 * lane, l = k + CODES / 2;
        Elements<4> some, more;
        some.load(param_at + k, grad_at + k, own, k);
        more.load(param_at + l, grad_at + l, own, l);
        some.step(largest, start + k, counter + k, scalars);
        store_pack(param_at + k, some.param);
        more.step(largest, start + l, counter + l, scalars);
        store_pack(param_at + l, more.param);
        #pragma unroll
        for (int n = 0; n < SLOTS; ++n) largest[n] = largest_of_warp(largest[n]);
        some.store_state(largest, own, k, counter + k, scalars);
        more.store_state(largest, own, l, counter + l, scalars);
    } else {  // a few elements at a time, each computed twice: there is not much of this kind
        const long long *const axes = table + block.axes;
        #pragma unroll 1
        for (int written = 0; written < 2; ++written) {
            #pragma unroll 1
            for (int k = UNIT * lane; k < count; k += UNIT * WARP) {
                stored *const at = block.axes >= 0
                    ? element_of(param_address, start + k, axes) : param_at + k;
                Elements<UNIT> some;
                some.load(at, grad_at + k, own, k);
                unsigned int here[SLOTS] = {};
                some.step(here, start + k, counter + k, scalars);
                if (written == 0) {
                    #pragma unroll
                    for (int n = 0; n < SLOTS; ++n) largest[n] = max_of(largest[n], here[n]);
                } else {
                    store_pack(at, some.param);
                    some.store_state(largest, own, k, counter + k, scalars);
                }
            }
            if (written == 0) {
                #pragma unroll
                for (int n = 0; n < SLOTS; ++n) largest[n] = largest_of_warp(largest[n]);
            }
        }
    }
    __syncwarp();  // all have read the scales
    if (lane != 0) return;
    #pragma unroll
    for (int n = 0; n < SLOTS; ++n) {
        own.scales[n * (own.pitch / CODES)] = scale_of(largest[n]);
    }
}

}  // namespace fastopt
