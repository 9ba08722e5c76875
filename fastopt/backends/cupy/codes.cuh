// Random bits, rounding by chance, and the codes of state in 16 and 8 bits.
//
// The formulas are those of core/quantization.py, on bits, so that every compiler ends in the same
// ones. From Python: MIX_FIRST, MIX_SECOND, GOLDEN; SIGNED_LOW, SIGNED_TOP, POSITIVE_LOW,
// POSITIVE_TOP (the grids of 8-bit codes), BEYOND.

namespace fastopt {

__device__ __forceinline__ unsigned int mix(unsigned int bits) {
    bits = (bits ^ bits >> 16) * MIX_FIRST;
    bits = (bits ^ bits >> 15) * MIX_SECOND;
    return bits ^ bits >> 16;
}

// 32 random bits: the `word`-th of an element, under the key of a step.
__device__ __forceinline__ unsigned int random_bits(
    unsigned int element, unsigned int key, unsigned int word
) {
    return mix(element ^ key ^ word * GOLDEN);
}

// Rounding takes a `draw` of as many random bits as it cuts off; it rounds up as they carry.

__device__ __forceinline__ float from_bfloat16(unsigned short code) {
    return float_of((unsigned int)code << 16);
}

__device__ __forceinline__ unsigned short to_bfloat16(float value, unsigned int draw) {
    const unsigned int bits = bits_of(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + draw) >> 16;
}

// The bits of a magnitude, evenly spaced below the smallest normal number too: there the sum with
// that number has them as its fraction, and an exponent that is one too many.
__device__ __forceinline__ unsigned int evenly(unsigned int size, unsigned int normal) {
    const unsigned int sum = bits_of(float_of(size) + float_of(normal)) - (1u << 23);
    return size < normal ? sum : size;
}

__device__ __forceinline__ unsigned short to_float16(float value, unsigned int draw) {
    const unsigned int bits = bits_of(value), size = bits & 0x7fffffffu;
    const unsigned int rounded = (evenly(size, 0x38800000u) - 0x38000000u + (draw >> 3)) >> 13;
    const unsigned int number = size < 0x47800000u ? rounded : 0x7c00u;  // from 65536 on
    return (size > 0x7f800000u ? 0x7e00u : number) | (bits >> 16 & 0x8000u);
}

// 8 bits: a small float of an exponent and four bits of fraction, relative to the scale of its
// block; after a sign where the state can be negative.

template <bool with_sign> struct Grid {
    static const unsigned int low = with_sign ? SIGNED_LOW : POSITIVE_LOW;
    static const unsigned int top = with_sign ? SIGNED_TOP : POSITIVE_TOP;
};

template <bool with_sign>
__device__ __forceinline__ float from_int8(unsigned int code, float scale) {
    const unsigned int low = Grid<with_sign>::low, size = code & Grid<with_sign>::top;
    const bool small = size < 16u;
    const float sum = float_of(((small ? size + 16u : size) << 19) + ((low - 1u) << 23));
    const float value = small ? sum - float_of(low << 23) : sum;
    return (with_sign && code > 0x7fu ? -value : value) * scale;
}

__device__ __forceinline__ unsigned int max_of(unsigned int one, unsigned int two) {
    return one > two ? one : two;
}

// The exponent of the scale of a block whose largest magnitude has these bits.
__device__ __forceinline__ unsigned int exponent_of(unsigned int largest) {
    const unsigned int exponent = (largest + 0x7ffffu) >> 23;
    return exponent < 27u ? 27u : exponent > 253u ? 253u : exponent;  // beyond: any will do
}

__device__ __forceinline__ float scale_of(unsigned int largest) {
    const unsigned int bits = largest < BEYOND ? exponent_of(largest) << 23 : 0x7fc00000u;
    return float_of(largest == 0u ? 0u : bits);
}

template <bool with_sign>
__device__ __forceinline__ unsigned char to_int8(
    float value, unsigned int largest, unsigned int draw
) {
    const unsigned int low = Grid<with_sign>::low;
    const unsigned int bits = largest < BEYOND ? bits_of(value) : 0u;
    const float inverse = float_of((254u - exponent_of(largest)) << 23);
    const unsigned int size = bits_of(float_of(bits & 0x7fffffffu) * inverse);
    const unsigned int code = (evenly(size, low << 23) + draw - ((low - 1u) << 23)) >> 19;
    if (with_sign) return code | (bits >> 24 & 0x80u);
    // What is not zero (denormal numbers are, on a GPU) never becomes zero.
    return code == 0u && (int)bits >= 0x00800000 ? 1u : code;
}

}  // namespace fastopt
