// An update whose state is in 8 bits: threads share the largest magnitude of a block of codes.
//
// A block of threads holds whole blocks of codes, a thread 4 elements: in registers from the rule
// to the rounding, which waits for the largest magnitude. From Python: State and Scalars; CAPACITY
// and THREADS.

namespace fastopt {

__device__ __forceinline__ unsigned int largest_of_8(const unsigned int *numbers) {
    unsigned int largest = 0u;
    #pragma unroll
    for (int k = 0; k < 8; ++k) largest = max_of(largest, numbers[k]);
    return largest;
}

// Make of each thread's largest numbers those of its 64 threads; all threads have to come here.
template <int N> __device__ __forceinline__ void share_largest(unsigned int (&largest)[N]) {
    __shared__ unsigned int of_thread[N][THREADS], of_eight[N][THREADS / 8];
    #pragma unroll
    for (int n = 0; n < N; ++n) of_thread[n][threadIdx.x] = largest[n];
    __syncthreads();
    if (threadIdx.x % 8u == 0u) {
        #pragma unroll
        for (int n = 0; n < N; ++n) {
            of_eight[n][threadIdx.x / 8u] = largest_of_8(&of_thread[n][threadIdx.x]);
        }
    }
    __syncthreads();
    #pragma unroll
    for (int n = 0; n < N; ++n) largest[n] = largest_of_8(&of_eight[n][threadIdx.x / 64u * 8u]);
}

__device__ __forceinline__ void update_block(
    const long long *addresses, const long long *blocks, const long long *block,
    const Memory &memory, const Scalars &scalars
) {
    const long long param_address = addresses[block[PARAMETER]];
    const long long grad_address = addresses[CAPACITY + block[PARAMETER]];
    if (grad_address == 0) return;  // no gradient in this step: all threads of the block leave
    const long long first = threadIdx.x * 4ll, start = block[START] + first;
    const long long offset = block[OFFSET] + first;
    const long long count = block[COUNT] - first;  // of elements from this thread's first on
    const unsigned int counter = counter_of(block) + (unsigned int)first;
    const long long *const axes = blocks + block[AXES];
    // Without gaps and aligned they are packs.
    const bool gaps = block[AXES] >= 0, together = !gaps && count >= 4
        && param_address % (4 * sizeof(stored)) == 0 && grad_address % (4 * sizeof(given)) == 0;
    stored *const param_at = reinterpret_cast<stored *>(param_address) + start;
    const given *const grad_at = reinterpret_cast<const given *>(grad_address) + start;
    Pack<stored, 4> param = {};
    Pack<given, 4> grad = {};
    if (together) {
        param = load_pack<4>(param_at);
        grad = load_pack<4>(grad_at);
    } else {
        #pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (k >= count) continue;
            param.x[k] = gaps ? *element_of(param_address, start + k, axes) : param_at[k];
            grad.x[k] = grad_at[k];
        }
    }
    State<4> state = {};
    if (count > 0) {  // the arena has room up to the next whole block of codes
        state.load(memory, offset);
    }
    const Pack<real, 4> square = square_moduli(param, grad, start, scalars);
    Pack<real, 4> stepped;
    #pragma unroll
    for (int k = 0; k < 4; ++k) {
        const real grad_k = Given::widen(grad.x[k]);
        stepped.x[k] = state.step(k, param.x[k], grad_k, square.x[k], scalars);
        if (k >= count) continue;
        state.compare(k);
    }
    share_largest(state.largest);
    if (count <= 0) return;
    #pragma unroll
    for (int k = 0; k < 4; ++k) {
        param.x[k] = state.round(k, stepped.x[k], counter, scalars);
    }
    if (together) {
        store_pack(param_at, param);
    } else {
        #pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (k >= count) continue;
            *(gaps ? element_of(param_address, start + k, axes) : param_at + k) = param.x[k];
        }
    }
    state.store(memory, offset);
    if (threadIdx.x % 64u == 0u) {
        state.store_scales(memory, offset);
    }
}

}  // namespace fastopt
