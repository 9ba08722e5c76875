"""The CUDA C++ that reads and writes numbers of another dtype than the arithmetic's: text alone.

The same operations as in ``numba_halves``, for every compiler the same: neither CUDA's headers nor
the processor's own conversions are needed, which a C++ compiler for the CPU does not have. Between
float32 and float64 the processor converts what is normal; denormal float32, which it takes for 0 in
the way CuPy compiles, is read and written as the integer that it is, in units of 2**-149.
"""

from __future__ import annotations

WORD = """
union Word { float value; unsigned int bits; };

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
"""

_BFLOAT16 = """
__device__ __forceinline__ float widen(unsigned short stored) {
    return float_of((unsigned int)stored << 16);
}

__device__ __forceinline__ unsigned short narrow(float value) {
    const unsigned int bits = bits_of(value), odd = bits >> 16 & 1u;
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + 0x7fffu + odd) >> 16;
}
"""

_FLOAT16 = """
__device__ __forceinline__ float widen(unsigned short stored) {
    const unsigned int magnitude = stored & 0x7fffu;
    const float normal = float_of((magnitude << 13) + 0x38000000u);
    const float denormal = (float)(int)magnitude * 5.9604644775390625e-8f;  // 2 to the -24
    const float infinite = float_of(magnitude << 13 | 0x7f800000u);
    const float size = magnitude < 0x0400u ? denormal : magnitude < 0x7c00u ? normal : infinite;
    return stored & 0x8000u ? -size : size;
}

__device__ __forceinline__ unsigned short narrow(float value) {
    const unsigned int bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    const unsigned int odd = magnitude >> 13 & 1u;
    const unsigned int normal = (magnitude - 0x38000000u + 0x0fffu + odd) >> 13;
    const unsigned int denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    const unsigned int finite = magnitude < 0x38800000u ? denormal : normal;
    const unsigned int number = magnitude < 0x477ff000u ? finite : 0x7c00u;  // from 65520 on
    return (magnitude > 0x7f800000u ? 0x7e00u : number) | (bits >> 16 & 0x8000u);
}
"""

_SAME = """
__device__ __forceinline__ real widen(real number) { return number; }
"""

_NARROW_SAME = """
__device__ __forceinline__ real narrow(real number) { return number; }
"""

# 2 to the -97 has its last bit at 2 to the -149: the sum is rounded to that.
_SINGLE = f"""
union LongWord {{ double value; unsigned long long bits; }};

__device__ __forceinline__ double widen(float stored) {{
    const unsigned int bits = bits_of(stored), magnitude = bits & 0x7fffffffu;
    const double denormal = (double)(int)magnitude * {2.0**-149!r};
    if (magnitude >= 0x00800000u) return (double)stored;
    return bits >> 31 ? -denormal : denormal;
}}

__device__ __forceinline__ float single(double value) {{
    LongWord whole, sum;
    whole.value = value;
    sum.value = fabs(value) + {2.0**-97!r};
    const unsigned int sign = (unsigned int)(whole.bits >> 32) & 0x80000000u;
    const float denormal = float_of((unsigned int)sum.bits | sign);
    return fabs(value) < {2.0**-126!r} ? denormal : (float)value;
}}
"""

_NARROW_SINGLE = """
__device__ __forceinline__ float narrow(double value) { return single(value); }
"""

_HALF_BY_SINGLE = """
namespace bits16 {
$half
}  // namespace bits16

__device__ __forceinline__ double widen(unsigned short stored) {
    return widen(bits16::widen(stored));
}

__device__ __forceinline__ unsigned short narrow(double value) {
    return bits16::narrow(single(value));
}
"""

_HALF = {"float16": _FLOAT16, "bfloat16": _BFLOAT16}

TYPE = {
    **{"float32": "float", "float64": "double", "uint16": "unsigned short"},
    **{"uint8": "unsigned char", **dict.fromkeys(_HALF, "unsigned short")},
}
"""The C++ type in which numbers of a dtype stand in memory."""


def conversions(stored: str, real: str) -> str:
    """Return ``widen`` and ``narrow`` between dtypes by name, and ``widen`` for ``real`` itself.

    For float64 there is ``widen`` for float32 too, and ``single``, which rounds to it.
    """
    if stored != real == "float64":
        half = _HALF_BY_SINGLE.replace("$half", _HALF[stored]) if stored in _HALF else ""
        return WORD + _SINGLE + (half or _NARROW_SINGLE) + _SAME
    if stored in _HALF:
        return WORD + _HALF[stored] + _SAME
    return _SAME + _NARROW_SAME
