// Numbers of another format than the arithmetic's: how they are read and written.
//
// The operations are those of backends/numba/compiled.py, and the same for every compiler: neither
// CUDA's headers nor the processor's own conversions are needed, which a C++ compiler for the CPU
// does not have. Between float32 and float64 the processor converts what is normal; denormal
// float32, which it takes for 0 in the way CuPy compiles, is read and written as the integer that
// it is, in units of 2**-149.

namespace fastopt {

union Word { float value; unsigned int bits; };
union LongWord { double value; unsigned long long bits; };

__device__ __forceinline__ float float_of(unsigned int bits) {
    Word word;
    word.bits = bits;
    return word.value;
}

__device__ __forceinline__ unsigned int bits_of(float value) {
    Word word;
    word.value = value;
    return word.bits;
}

// A format has the `type` in which its numbers stand in memory, `widen` to the arithmetic's type,
// which is exact, and `narrow` from there, which rounds to nearest even.

template <typename T> struct Exact {
    typedef T type;

    static __device__ __forceinline__ T widen(T number) { return number; }
    static __device__ __forceinline__ T narrow(T number) { return number; }
};

struct BFloat16 {
    typedef unsigned short type;

    static __device__ __forceinline__ float widen(unsigned short stored) {
        return float_of((unsigned int)stored << 16);
    }

    static __device__ __forceinline__ unsigned short narrow(float value) {
        const unsigned int bits = bits_of(value), odd = bits >> 16 & 1u;
        return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + 0x7fffu + odd) >> 16;
    }
};

struct Float16 {
    typedef unsigned short type;

    static __device__ __forceinline__ float widen(unsigned short stored) {
        const unsigned int magnitude = stored & 0x7fffu;
        const float normal = float_of((magnitude << 13) + 0x38000000u);
        const float denormal = (float)(int)magnitude * 5.9604644775390625e-8f;  // 2**-24
        const float infinite = float_of(magnitude << 13 | 0x7f800000u);
        const float size = magnitude < 0x0400u ? denormal : magnitude < 0x7c00u ? normal : infinite;
        return stored & 0x8000u ? -size : size;
    }

    static __device__ __forceinline__ unsigned short narrow(float value) {
        const unsigned int bits = bits_of(value), magnitude = bits & 0x7fffffffu;
        const unsigned int odd = magnitude >> 13 & 1u;
        const unsigned int normal = (magnitude - 0x38000000u + 0x0fffu + odd) >> 13;
        const unsigned int denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
        const unsigned int finite = magnitude < 0x38800000u ? denormal : normal;
        const unsigned int number = magnitude < 0x477ff000u ? finite : 0x7c00u;  // from 65520 on
        return (magnitude > 0x7f800000u ? 0x7e00u : number) | (bits >> 16 & 0x8000u);
    }
};

// float32 where the arithmetic is in float64.
struct Float32InFloat64 {
    typedef float type;

    static __device__ __forceinline__ double widen(float stored) {
        const unsigned int bits = bits_of(stored), magnitude = bits & 0x7fffffffu;
        const double denormal = (double)(int)magnitude * 1.401298464324817e-45;  // 2**-149
        if (magnitude >= 0x00800000u) return (double)stored;
        return bits >> 31 ? -denormal : denormal;
    }

    static __device__ __forceinline__ float narrow(double value) {
        LongWord whole, sum;
        whole.value = value;
        // 2**-97 has its last bit at 2**-149: the sum is rounded to that.
        sum.value = fabs(value) + 6.310887241768095e-30;
        const unsigned int sign = (unsigned int)(whole.bits >> 32) & 0x80000000u;
        const float denormal = float_of((unsigned int)sum.bits | sign);
        return fabs(value) < 1.1754943508222875e-38 ? denormal : (float)value;  // 2**-126
    }
};

// Half precision where the arithmetic is in float64: by way of float32, so it is rounded twice.
template <typename Half> struct HalfInFloat64 {
    typedef unsigned short type;

    static __device__ __forceinline__ double widen(unsigned short stored) {
        return Float32InFloat64::widen(Half::widen(stored));
    }

    static __device__ __forceinline__ unsigned short narrow(double value) {
        return Half::narrow(Float32InFloat64::narrow(value));
    }
};

}  // namespace fastopt
