// The sums of a pass before an update writes: a block of LANES threads sums a tile, each a lane.
//
// From Python: State, Scalars and add_terms, which adds what is summed of one element; Block,
// CAPACITY, LANES; total.cuh.

namespace fastopt {

// Sums a tile, if there is a gradient. For each of the N sums those of all `tiles` stand together;
// this tile's is the `tile`-th of them.
template <int N> __device__ __forceinline__ void sum_tile(
    const long long *addresses, const Block &block, const long long *table,
    const ConstMemory &memory, const Scalars &scalars, double *sums, long long tile,
    long long tiles
) {
    const long long param_address = addresses[block.parameter];
    const long long grad_address = addresses[CAPACITY + block.parameter];
    if (grad_address == 0) return;  // no gradient in this step
    const long long start = block.start;
    const gradient *const grad_at = reinterpret_cast<const gradient *>(grad_address) + start;
    const long long *const axes = table + block.axes;
    const bool gaps = block.axes >= 0;
    const stored *const param_at = reinterpret_cast<const stored *>(param_address) + start;
    double own[N] = {};
    #pragma unroll 1
    for (int k = threadIdx.x; k < block.count; k += LANES) {
        const stored *const at = gaps ? element_of(param_address, start + k, axes) : param_at + k;
        real square = real(0);
        if (MODULUS) {
            Pack<stored, 2> param;
            Pack<gradient, 2> grad;
            #pragma unroll
            for (int part = 0; part < 2; ++part) {
                const int both = (k & ~1) + part;
                param.x[part] = gaps
                    ? *element_of(param_address, start + both, axes) : param_at[both];
                grad.x[part] = grad_at[both];
            }
            square = square_moduli(param, grad, start + k, scalars).x[0];
        }
        State<1> state;
        state.load(memory, block.offset + k);
        state.decode(0);
        const real param = state.number(0, *at);
        add_terms(param, state, Gradient::widen(grad_at[k]), square, scalars, own);
    }
    __shared__ double lane[LANES];
    #pragma unroll
    for (int n = 0; n < N; ++n) {
        const double sum = total_of(own[n], lane);
        if (threadIdx.x == 0) sums[n * tiles + tile] = sum;
        __syncthreads();  // all have read it before `lane` is used again
    }
}

}  // namespace fastopt
