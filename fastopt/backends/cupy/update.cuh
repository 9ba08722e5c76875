// An update whose state is in exact numbers or 16 bits: one thread needs nothing of another.
//
// From Python: State and Scalars; Block, CAPACITY, THREADS, PACK (elements that a thread takes at
// once) and UNIT (that belong together: 2 if the squares of moduli are asked for, else 1); AllScalars
// and scalars_of, which says what the scalars of an element are.

namespace fastopt {

template <int N> __device__ __forceinline__ void update(
    stored *param_at, const gradient *grad_at, const Memory &memory, long long offset,
    unsigned int counter, long long element, const AllScalars &all
) {
    const Pack<gradient, N> grad = load_pack<N>(grad_at);
    Pack<stored, N> param = load_pack<N>(param_at);
    State<N> state;
    state.load(memory, offset);
    const Pack<real, N> square = square_moduli(param, grad, element, all);
    #pragma unroll
    for (int k = 0; k < N; ++k) {
        const Scalars &scalars = scalars_of(all, element + k);
        const real grad_k = Gradient::widen(grad.x[k]);
        const real number = state.step(k, param.x[k], grad_k, square.x[k], scalars);
        param.x[k] = state.narrow(k, number, counter, scalars);
        state.round(k, counter, scalars);
    }
    store_pack(param_at, param);
    state.store(memory, offset);
}

__device__ __forceinline__ void update_block(
    const long long *addresses, const Block &block, const long long *table,
    const Memory &memory, const AllScalars &all
) {
    const long long param_address = addresses[block.parameter];
    const long long grad_address = addresses[CAPACITY + block.parameter];
    if (grad_address == 0) return;  // no gradient in this step
    const long long start = block.start, offset = block.offset;
    const unsigned int counter = block.counter;
    const int count = block.count;
    const gradient *const grad_at = reinterpret_cast<const gradient *>(grad_address) + start;
    if (block.axes >= 0) {  // there are gaps: one element at a time, wherever it is
        const long long *const axes = table + block.axes;
        #pragma unroll 1
        for (int k = UNIT * threadIdx.x; k < count; k += UNIT * THREADS) {
            stored *const param_at = element_of(param_address, start + k, axes);
            update<UNIT>(
                param_at, grad_at + k, memory, offset + k, counter + k, start + k, all);
        }
        return;
    }
    stored *const param_at = reinterpret_cast<stored *>(param_address) + start;
    // State is aligned by where it stands in the arena; the user's arrays begin where they like.
    const bool aligned = param_address % (PACK * sizeof(stored)) == 0
        && grad_address % (PACK * sizeof(gradient)) == 0;
    const int packed = aligned ? count - count % PACK : 0;
    const int first = threadIdx.x * PACK;
    if (first < packed) {
        update<PACK>(
            param_at + first, grad_at + first, memory, offset + first, counter + first,
            start + first, all);
    }
    #pragma unroll 1
    for (int k = packed + UNIT * threadIdx.x; k < count; k += UNIT * THREADS) {
        update<UNIT>(
            param_at + k, grad_at + k, memory, offset + k, counter + k, start + k, all);
    }
}

}  // namespace fastopt
