// The squares of the moduli of complex gradients.
//
// From Python: MODULUS, whether a rule gets these; Scalars, and square_of, which squares one part
// of a gradient as the rule sees it.

namespace fastopt {

// Real and imaginary parts alternate. Of both the squares come before the parameter changes.
template <int N> __device__ __forceinline__ Pack<real, N> square_moduli(
    const Pack<stored, N> &param, const Pack<given, N> &grad, const Scalars &scalars
) {
    Pack<real, N> square = {};
    if (MODULUS) {
        #pragma unroll
        for (int k = 0; k < N; ++k) {
            square.x[k] = square_of(Stored::widen(param.x[k]), Given::widen(grad.x[k]), scalars);
        }
        #pragma unroll
        for (int k = 0; k < N - 1; k += 2) {
            square.x[k] = square.x[k + 1] = square.x[k] + square.x[k + 1];
        }
    }
    return square;
}

}  // namespace fastopt
