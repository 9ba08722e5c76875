// The squares of the moduli of complex gradients.
//
// From Python: MODULUS, whether a rule gets these; square_of, which squares one part of a gradient
// as the rule sees it; AllScalars and scalars_of.

namespace fastopt {

// Real and imaginary parts alternate. Of both the squares come before the parameter changes.
template <int N> __device__ __forceinline__ Pack<real, N> square_moduli(
    const Pack<stored, N> &param, const Pack<gradient, N> &grad, long long element,
    const AllScalars &all
) {
    Pack<real, N> square = {};
    if (MODULUS) {
        #pragma unroll
        for (int k = 0; k < N; ++k) {
            const Scalars &scalars = scalars_of(all, element + k);
            square.x[k] = square_of(Stored::widen(param.x[k]), Gradient::widen(grad.x[k]), scalars);
        }
        #pragma unroll
        for (int k = 0; k < N - 1; k += 2) {
            square.x[k] = square.x[k + 1] = square.x[k] + square.x[k + 1];
        }
    }
    return square;
}

}  // namespace fastopt
