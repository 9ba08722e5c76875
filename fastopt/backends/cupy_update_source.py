"""The CUDA C++ of an update: of an element, a pack, and a block of threads; text alone."""

from __future__ import annotations

from string import Template

# In a namespace, because CuPy's headers have a function that is called `real`.
ELEMENT = Template("""
namespace fastopt {

typedef $real real;
typedef $stored stored;
typedef $given given;
$conversions
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T x[N]; };

struct Scalars { real $scalars; };
$square_of
__device__ __forceinline__ void element(
    $references, $limits real grad, $modulus const Scalars &given
) {
    $load_scalars
    grad = grad_scale * grad;
    grad = l2 != real(0) ? grad + l2 * param : grad;
    $square
    param = decay != real(0) ? param - decay * param : param;
    {
        $rule
    }
    $keep_bounds
    $flush
}
""")

SQUARE_OF = """
__device__ __forceinline__ real square_of(real param, real grad, const Scalars &given) {
    grad = given.grad_scale * grad;
    grad = given.l2 != real(0) ? grad + given.l2 * param : grad;
    return grad * grad;
}
"""

# Of both parts of each complex number, before the parameter changes.
SQUARE_MODULI = Template("""Pack<real, $count> square;
    #pragma unroll
    for (int k = 0; k < $count; ++k) {
        square.x[k] = square_of(widen(param.x[k]), widen(grad.x[k]), scalars);
    }
    #pragma unroll
    for (int k = 0; k < $count; k += 2) {
        square.x[k] = square.x[k + 1] = square.x[k] + square.x[k + 1];
    }""")

UPDATE = Template("""
template <int N>
__device__ __forceinline__ void update($pointers, const given *grad_at, const Scalars &scalars) {
    const Pack<given, N> grad = *reinterpret_cast<const Pack<given, N> *>(grad_at);
    $load_packs
    $square_moduli
    #pragma unroll
    for (int k = 0; k < N; ++k) {
        $load_param
        element(number, $elements, scalars);
        $store_param
    }
    $store_packs
}
""")

ELEMENT_OF = """
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
"""

BLOCK = Template("""
__device__ __forceinline__ void update_block(
    const long long *addresses, const long long *blocks, const long long *block, $memory,
    long long pitch, const Scalars &scalars
) {
    const long long param_address = addresses[block[0]];
    const long long grad_address = addresses[$capacity + block[0]];
    if (grad_address == 0) return;  // no gradient in this step
    const long long start = block[1], count = block[2], place = block[3];
    const given *const grad_at = reinterpret_cast<const given *>(grad_address) + start;
    $locate_state
    if (block[4] >= 0) {  // there are gaps: one element at a time, wherever it is
        const long long *const axes = blocks + block[4];
        #pragma unroll 1
        for (long long k = ${single}threadIdx.x; k < count; k += $single$threads) {
            stored *const param_at = element_of(param_address, start + k, axes);
            update<$at_least>(param_at, $state_k grad_at + k, scalars);
        }
        return;
    }
    stored *const param_at = reinterpret_cast<stored *>(param_address) + start;
    // State is aligned by its places in the arena; the user's arrays begin where they like.
    const bool aligned = param_address % (${pack} * sizeof(stored)) == 0
        && grad_address % (${pack} * sizeof(given)) == 0;
    const long long packed = aligned ? count - count % $pack : 0;
    const long long first = threadIdx.x * ${pack}ll;
    if (first < packed) {
        update<$pack>(param_at + first, $state_first grad_at + first, scalars);
    }
    #pragma unroll 1
    for (long long k = packed + ${single}threadIdx.x; k < count; k += $single$threads) {
        update<$at_least>(param_at + k, $state_k grad_at + k, scalars);
    }
}

}  // namespace fastopt
""")
