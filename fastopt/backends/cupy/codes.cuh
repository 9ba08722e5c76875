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

// N codes, which one instruction loads or stores.
template <int N> struct CodeWord;
template <> struct CodeWord<1> { typedef unsigned char type; };
template <> struct CodeWord<2> { typedef unsigned short type; };
template <> struct CodeWord<4> { typedef unsigned int type; };

template <int N> struct Codes {
    unsigned int word;

    __device__ __forceinline__ void load(const unsigned char *from) {
        word = *reinterpret_cast<const typename CodeWord<N>::type *>(from);
    }

    // All zero if the scale says that they are not numbers.
    __device__ __forceinline__ void store(unsigned char *to, unsigned int largest) const {
        *reinterpret_cast<typename CodeWord<N>::type *>(to) = largest < BEYOND ? word : 0u;
    }

    // The k-th code becomes the highest byte of `bits`; they come from the first to the last.
    __device__ __forceinline__ void set(int k, unsigned int bits) {
        if (N == 1) word = bits >> 24;
        else if (k == 0) word = bits;
        else word = __byte_perm(word, bits, k == 1 ? 0x73u : k == 2 ? 0x710u : 0x7210u);
    }
};

// The k-th of some codes. With low - 1 added to its exponent, a code x has the bits of a float y. From
// the smallest normal code c on y is x; below it is (x + c) / 2. So x is 2 y - c or y, whichever is
// smaller.
template <bool with_sign, int N>
__device__ __forceinline__ float from_int8(const Codes<N> &codes, int k, float scale) {
    const unsigned int low = Grid<with_sign>::low;
    const unsigned int sizes = codes.word & Grid<with_sign>::top * 0x01010101u;
    const float y = float_of((__byte_perm(sizes, 0u, 0x4440u | k) << 19) + ((low - 1u) << 23));
    const unsigned int sign = with_sign ? codes.word << (24 - 8 * k) & 0x80000000u : 0u;
    return fminf(y, y - float_of(low << 23) + y) * float_of(bits_of(scale) ^ sign);
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

// The code is the highest byte of what is returned; the others hold nothing.
template <bool with_sign>
__device__ __forceinline__ unsigned int to_int8(
    float value, unsigned int largest, unsigned int draw
) {
    const unsigned int low = Grid<with_sign>::low, bits = bits_of(value);
    const float inverse = float_of((254u - exponent_of(largest)) << 23);
    const float size = fabs(value) * inverse;
    // The number of which `evenly` returns the bits, times 2: it is the larger one of both.
    const float twice = fmaxf(size + size, size + float_of(low << 23));
    const int rounded = bits_of(twice) + draw - (low << 23);
    if (with_sign) return (unsigned int)rounded << 5 & 0x7fffffffu | bits & 0x80000000u;
    // What is not zero never becomes zero: `least` is 1 << 19 from the smallest normal number on.
    const int above = bits - 0x780000u, least = above < 1 << 19 ? above : 1 << 19;
    return (unsigned int)(rounded > least ? rounded : least) << 5;
}

}  // namespace fastopt
