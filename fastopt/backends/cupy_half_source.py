"""The CUDA C++ that reads and writes float16 and bfloat16 as bits: text alone.

The same operations as in ``numba_halves``, for every compiler the same: neither CUDA's headers nor
the processor's own conversions are needed, which a C++ compiler for the CPU does not have.
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

_HALF = {"float16": _FLOAT16, "bfloat16": _BFLOAT16}

TYPE = {
    **{"float32": "float", "float64": "double", "uint16": "unsigned short"},
    **{"uint8": "unsigned char", **dict.fromkeys(_HALF, "unsigned short")},
}
"""The C++ type in which numbers of a dtype stand in memory."""


def conversions(stored: str) -> str:
    """Return ``widen`` and ``narrow`` for a dtype by name, and ``widen`` for ``real`` itself."""
    if stored in _HALF:
        return WORD + _HALF[stored] + _SAME
    return _SAME + _NARROW_SAME
