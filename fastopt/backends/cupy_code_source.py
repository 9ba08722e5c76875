"""The CUDA C++ of the random bits, and of the codes in 16 and 8 bits: text alone.

The formulas are those of ``fastopt.codes`` and ``fastopt.random_bits``, on bits, so that every
compiler ends in the same ones.
"""

from __future__ import annotations

from string import Template

from fastopt.backends.cupy_half_source import TYPE, WORD
from fastopt.codes import BEYOND, POSITIVE, SIGNED
from fastopt.formats import Format
from fastopt.random_bits import MULTIPLIERS

_BLOCK_OF_THREADS = 256  # each with 4 elements: 4 blocks of codes

_MIX = Template("""
__device__ __forceinline__ unsigned int mix(unsigned int bits) {
    bits = (bits ^ bits >> 16) * ${first}u;
    bits = (bits ^ bits >> 15) * ${second}u;
    return bits ^ bits >> 16;
}
""")

_BFLOAT16 = """
__device__ __forceinline__ float from_bfloat16(unsigned short code) {
    return float_of((unsigned int)code << 16);
}

__device__ __forceinline__ unsigned short to_bfloat16(float value, unsigned int draw) {
    const unsigned int bits = bits_of(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + draw) >> 16;
}
"""

# Bits of magnitudes, evenly spaced below the smallest normal number too: see fastopt.codes.
_EVENLY = """
__device__ __forceinline__ unsigned int evenly(unsigned int size, unsigned int normal) {
    const unsigned int sum = bits_of(float_of(size) + float_of(normal)) - (1u << 23);
    return size < normal ? sum : size;
}
"""

_FLOAT16 = """
__device__ __forceinline__ unsigned short to_float16(float value, unsigned int draw) {
    const unsigned int bits = bits_of(value), size = bits & 0x7fffffffu;
    const unsigned int rounded = (evenly(size, 0x38800000u) - 0x38000000u + (draw >> 3)) >> 13;
    const unsigned int number = size < 0x47800000u ? rounded : 0x7c00u;  // from 65536 on
    return (size > 0x7f800000u ? 0x7e00u : number) | (bits >> 16 & 0x8000u);
}
"""

_INT8 = Template("""
template <bool with_sign> struct Grid {
    static const unsigned int low = with_sign ? ${signed_low}u : ${positive_low}u;
    static const unsigned int top = with_sign ? ${signed_top}u : ${positive_top}u;
};

template <bool with_sign>
__device__ __forceinline__ float from_int8(unsigned int code, float scale) {
    const unsigned int low = Grid<with_sign>::low, size = code & Grid<with_sign>::top;
    const bool small = size < 16u;
    const float sum = float_of(((small ? size + 16u : size) << 19) + ((low - 1u) << 23));
    const float value = small ? sum - float_of(low << 23) : sum;
    return (with_sign && code > 0x7fu ? -value : value) * scale;
}

// The exponent of the scale of a block whose largest magnitude has these bits.
__device__ __forceinline__ unsigned int exponent_of(unsigned int largest) {
    const unsigned int exponent = (largest + 0x7ffffu) >> 23;
    return exponent < 27u ? 27u : exponent > 253u ? 253u : exponent;  // beyond: any will do
}

__device__ __forceinline__ float scale_of(unsigned int largest) {
    const unsigned int bits = largest < $beyond ? exponent_of(largest) << 23 : 0x7fc00000u;
    return float_of(largest == 0u ? 0u : bits);
}

template <bool with_sign>
__device__ __forceinline__ unsigned char to_int8(
    float value, unsigned int largest, unsigned int draw
) {
    const unsigned int low = Grid<with_sign>::low;
    const unsigned int bits = largest < $beyond ? bits_of(value) : 0u;
    const float inverse = float_of((254u - exponent_of(largest)) << 23);
    const unsigned int size = bits_of(float_of(bits & 0x7fffffffu) * inverse);
    const unsigned int code = (evenly(size, low << 23) + draw - ((low - 1u) << 23)) >> 19;
    if (with_sign) return code | (bits >> 24 & 0x80u);
    // What is not zero (denormal numbers are, on a GPU) never becomes zero.
    return code == 0u && (int)bits >= 0x00800000 ? 1u : code;
}

__device__ __forceinline__ unsigned int max_of(unsigned int one, unsigned int two) {
    return one > two ? one : two;
}

__device__ __forceinline__ unsigned int largest_of_8(const unsigned int *numbers) {
    unsigned int largest = 0u;
    #pragma unroll
    for (int k = 0; k < 8; ++k) largest = max_of(largest, numbers[k]);
    return largest;
}

// Make of each thread's largest numbers those of its 64 threads; all threads have to come here.
template <int N> __device__ __forceinline__ void share_largest(unsigned int (&largest)[N]) {
    __shared__ unsigned int of_thread[N][$threads], of_eight[N][$threads / 8];
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
""")


def conversions(format: Format) -> str:
    """Return what draws, and what rounds by chance; nothing where nothing does."""
    if not format.random_scalars:
        return ""
    text = "" if TYPE[format.stored.name] == "unsigned short" else WORD
    text += _MIX.substitute(first=MULTIPLIERS[0], second=MULTIPLIERS[1])
    if "bfloat16" in (format.state, format.stochastic and format.stored.name):
        text += _BFLOAT16
    halves = format.stochastic and format.stored.name == "float16"
    text += _EVENLY if halves or format.state == "int8" else ""
    text += _FLOAT16 if halves else ""
    if format.state == "int8":
        text += _INT8.substitute(
            signed_low=SIGNED.low,
            signed_top=SIGNED.top,
            positive_low=POSITIVE.low,
            positive_top=POSITIVE.top,
            beyond=f"{BEYOND:#x}u",
            threads=_BLOCK_OF_THREADS,
        )
    return text
