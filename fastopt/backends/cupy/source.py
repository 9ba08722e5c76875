"""The CUDA C++ of updates, norms, decisions and storage, as text; imports no CuPy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from string import Template
from typing import Any

import numpy as np

from fastopt.backends.interface import COMMON_SCALARS, tiny_names
from fastopt.core.arrays import Array
from fastopt.core.buckets import Parameter
from fastopt.core.dtypes import UpdateSpec, wide
from fastopt.core.norms import LANES, SMALLER, SQUARES_OVERFLOW, TOO_SMALL
from fastopt.core.passes import derived_of, fragment_names
from fastopt.core.quantization import BEYOND, BLOCK, CUT_OFF, GOLDEN, MULTIPLIERS, POSITIVE, SIGNED
from fastopt_kernels import Rule
from fastopt_kernels.around import Fragment

# -------------------------------------------------------------------------------------------------
# The table that tells each block of a kernel's threads which elements are its own; no CuPy.

BLOCK_FIELDS = ("parameter", "start", "count", "place", "axes")
"""What the table says of each block: which parameter, its first element there, how many elements,
where their state begins in a slot of the arena, and where the table goes on to say of a parameter
with gaps how its elements stand in memory: the number of its axes, then the length of each and its
stride in bytes. -1 for one without gaps."""


def fields(draws: bool, members: bool = False) -> tuple[str, ...]:
    """Return the fields of a block.

    Where a kernel draws it has also the counter of its first element, where parameters have members
    how that of an element is found. There is no kernel that does both.
    """
    return (*BLOCK_FIELDS, *["counter"] * draws, *["divisor", "modulus"] * members)


def blocks(
    parameters: Sequence[Parameter], length: int, draws: bool = False, members: bool = False
) -> tuple[Array, int]:
    """Return the table of blocks, and how many there are.

    It is a line of ``fields`` for every ``length`` elements, then the axes that these refer to.
    """
    sizes = np.array([parameter.size for parameter in parameters], np.int64)
    counts = -(-sizes // length)
    which = np.repeat(np.arange(len(sizes)), counts)
    start = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    place = np.array([parameter.offset for parameter in parameters], np.int64)[which] + start
    count = np.minimum(sizes[which] - start, length)
    axes_at, axes = np.full(len(sizes), -1), [np.zeros(0, np.int64)]
    end = len(fields(draws, members)) * len(which)
    for k, parameter in enumerate(parameters):
        if parameter.apart:
            lines = np.array(parameter.axes(), np.int64)
            axes_at[k] = end
            axes.append(np.array([len(lines), *lines.reshape(-1)]))
            end += axes[-1].size
    streams = np.array([parameter.stream for parameter in parameters], np.int64)
    counter = [(streams[which] + start) % 2**32] * draws
    found = np.array([parameter.member or (1, 1) for parameter in parameters], np.int64)
    member = list(found.reshape(-1, 2)[which].T) * members
    lines = np.stack([which, start, count, place, axes_at[which], *counter, *member], axis=1)
    return np.concatenate([lines.reshape(-1), *axes]), len(which)


# -------------------------------------------------------------------------------------------------
# The CUDA C++ that reads and writes numbers of another dtype than the arithmetic's: text alone.
#
# The same operations as in ``backends.numba.compiled``, for every compiler the same: neither CUDA's
# headers nor the processor's own conversions are needed, which a C++ compiler for the CPU does not
# have. Between float32 and float64 the processor converts what is normal; denormal float32, which
# it takes for 0 in the way CuPy compiles, is read and written as the integer that it is, in units
# of 2**-149.

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


def half_conversions(stored: str, real: str) -> str:
    """Return ``widen`` and ``narrow`` between dtypes by name, and ``widen`` for ``real`` itself.

    For float64 there is ``widen`` for float32 too, and ``single``, which rounds to it.
    """
    if stored != real == "float64":
        half = _HALF_BY_SINGLE.replace("$half", _HALF[stored]) if stored in _HALF else ""
        return WORD + _SINGLE + (half or _NARROW_SINGLE) + _SAME
    if stored in _HALF:
        return WORD + _HALF[stored] + _SAME
    return _SAME + _NARROW_SAME


# -------------------------------------------------------------------------------------------------
# The CUDA C++ of the random bits, and of the codes in 16 and 8 bits: text alone.
#
# The formulas are those of ``core.quantization``, on bits, so that every
# compiler ends in the same ones.

_BLOCK_OF_THREADS = 256  # each with 4 elements: 4 blocks of codes

_MIX = Template("""
__device__ __forceinline__ unsigned int mix(unsigned int bits) {
    bits = (bits ^ bits >> 16) * ${first}u;
    bits = (bits ^ bits >> 15) * ${second}u;
    return bits ^ bits >> 16;
}
""")

_BFLOAT16_STOCHASTIC = """
__device__ __forceinline__ float from_bfloat16(unsigned short code) {
    return float_of((unsigned int)code << 16);
}

__device__ __forceinline__ unsigned short to_bfloat16(float value, unsigned int draw) {
    const unsigned int bits = bits_of(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (bits + draw) >> 16;
}
"""

# Bits of magnitudes, evenly spaced below the smallest normal number too: see core.quantization.
_EVENLY = """
__device__ __forceinline__ unsigned int evenly(unsigned int size, unsigned int normal) {
    const unsigned int sum = bits_of(float_of(size) + float_of(normal)) - (1u << 23);
    return size < normal ? sum : size;
}
"""

_FLOAT16_STOCHASTIC = """
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


def code_conversions(spec: UpdateSpec) -> str:
    """Return what draws, and what rounds by chance; nothing where nothing does."""
    if not spec.random_scalars:
        return ""
    text = "" if TYPE[spec.stored.name] == "unsigned short" else WORD
    text += _MIX.substitute(first=MULTIPLIERS[0], second=MULTIPLIERS[1])
    if "bfloat16" in (spec.state, spec.stochastic and spec.stored.name):
        text += _BFLOAT16_STOCHASTIC
    halves = spec.stochastic and spec.stored.name == "float16"
    text += _EVENLY if halves or spec.state == "int8" else ""
    text += _FLOAT16_STOCHASTIC if halves else ""
    if spec.state == "int8":
        text += _INT8.substitute(
            signed_low=SIGNED.low,
            signed_top=SIGNED.top,
            positive_low=POSITIVE.low,
            positive_top=POSITIVE.top,
            beyond=f"{BEYOND:#x}u",
            threads=_BLOCK_OF_THREADS,
        )
    return text


# -------------------------------------------------------------------------------------------------
# The CUDA C++ that keeps state in 16 or 8 bits and rounds by chance in an update: text alone.

TYPE_OF_STATE = {"real": "real", "bfloat16": "unsigned short", "int8": "unsigned char"}
"""The C++ type in which the state of a rule stands in memory."""

# A block of threads holds whole blocks of codes, a thread 4 elements: in registers from the rule to
# the rounding, which waits for the largest magnitude. Without gaps and aligned they are packs.
INT8_BLOCK = Template("""
__device__ __forceinline__ void update_block(
    const long long *addresses, const long long *blocks, const long long *block, $memory,
    long long pitch, const Scalars &scalars
) {
    const long long param_address = addresses[block[0]];
    const long long grad_address = addresses[$capacity + block[0]];
    if (grad_address == 0) return;  // no gradient in this step: all threads of the block leave
    const long long first = threadIdx.x * 4ll, start = block[1] + first, place = block[3] + first;
    const long long count = block[2] - first;  // of elements from this thread's first on
    const long long *const axes = blocks + block[4];
    const bool gaps = block[4] >= 0, together = !gaps && count >= 4
        && param_address % (4 * sizeof(stored)) == 0 && grad_address % (4 * sizeof(given)) == 0;
    stored *const param_at = reinterpret_cast<stored *>(param_address) + start;
    const given *const grad_at = reinterpret_cast<const given *>(grad_address) + start;
    Pack<stored, 4> param = {};
    Pack<given, 4> grad = {};
    if (together) {
        param = *reinterpret_cast<const Pack<stored, 4> *>(param_at);
        grad = *reinterpret_cast<const Pack<given, 4> *>(grad_at);
    } else {
        #pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (k >= count) continue;
            param.x[k] = gaps ? *element_of(param_address, start + k, axes) : param_at[k];
            grad.x[k] = grad_at[k];
        }
    }
    $locate_state
    $declare_state
    if (count > 0) {  // the arena has room up to the next whole block of codes
        $load_state
    }
    $square_moduli
    Pack<real, 4> now;
    unsigned int largest[$slots] = {};
    #pragma unroll
    for (int k = 0; k < 4; ++k) {
        $load_param
        element(number, $elements, scalars);
        now.x[k] = number;
        if (k >= count) continue;
        $compare
    }
    share_largest(largest);
    if (count <= 0) return;
    #pragma unroll
    for (int k = 0; k < 4; ++k) {
        const real number = now.x[k];
        $store_param
    }
    if (together) {
        *reinterpret_cast<Pack<stored, 4> *>(param_at) = param;
    } else {
        #pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (k >= count) continue;
            *(gaps ? element_of(param_address, start + k, axes) : param_at + k) = param.x[k];
        }
    }
    $store_state
    if (threadIdx.x % 64u == 0u) {
        $store_scales
    }
}

}  // namespace fastopt
""")


def now(slot: str, spec: UpdateSpec) -> str:
    """Return the number of a slot of state, as a rule works on it."""
    return {"real": f"{slot}.x[k]", "bfloat16": f"{slot}_now", "int8": f"{slot}_now.x[k]"}[
        spec.state
    ]


def decode(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    """Yield the lines that read the k-th code of each slot."""
    for slot in rule.state:
        if spec.state == "bfloat16":
            yield f"real {slot}_now = from_bfloat16({slot}.x[k]);"
        if spec.state == "int8":
            yield f"{slot}_now.x[k] = from_int8<{_sign(rule, slot)}>({slot}.x[k], {slot}_scale);"


def draw(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    """Yield the lines that draw the random bits of the k-th element, 32 for two slots."""
    slots = len(rule.state) * (spec.state != "real") + spec.stochastic
    first = len(rule.state) if spec.state == "real" else 0
    key = "((unsigned int)scalars.random_high << 16 | (unsigned int)scalars.random_low)"
    for word in sorted({slot // 2 for slot in range(first, first + slots)}):
        apart = word * GOLDEN % 2**32
        yield f"const unsigned int bits{word} = mix((counter + k) ^ {key} ^ {apart}u);"


def narrowed_param(rule: Rule, spec: UpdateSpec) -> str:
    """Return the parameter as it is stored."""
    if not spec.stochastic:
        return "narrow(number)"
    number = "single(number)" if spec.widened else "number"
    return f"to_{spec.stored.name}({number}, {_draw_of(len(rule.state))})"


def encode(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    """Yield the lines that round the k-th number of each slot."""
    for n, slot in enumerate(rule.state):
        if spec.state == "bfloat16":
            yield f"{slot}.x[k] = to_bfloat16({slot}_now, {_draw_of(n)});"
        if spec.state == "int8":
            about = f"{slot}_now.x[k], largest[{n}], {_draw_of(n, CUT_OFF)}"
            yield f"{slot}.x[k] = to_int8<{_sign(rule, slot)}>({about});"


def locate(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    """Yield the lines that say where a block's piece of each slot begins."""
    coded = () if spec.state == "real" else rule.state
    for n, slot in enumerate(coded):
        yield f"{TYPE_OF_STATE[spec.state]} *const {slot}_at = codes + {n} * pitch + place;"
    exact = [*(rule.state if not coded else ()), *spec.masters, *spec.limits]
    for n, slot in enumerate(exact):
        yield f"real *const {slot}_at = arena + {n} * pitch + place;"
    if spec.state == "int8":
        for n, slot in enumerate(coded):
            place = f"{n} * (pitch / {BLOCK}) + place / {BLOCK}"
            yield f"float *const {slot}_scale_at = scales + {place};"
    if spec.members:
        yield "const long long index = start;"
    if spec.random_scalars:
        yield "const unsigned int counter = (unsigned int)block[5]" + (
            " + (unsigned int)first;" if spec.state == "int8" else ";"
        )


def of_int8(rule: Rule, spec: UpdateSpec) -> dict[str, str]:
    """Return what INT8_BLOCK needs besides: all of a thread's state is in registers."""
    exact = (*spec.masters, *spec.limits)
    kinds = dict.fromkeys(rule.state, "unsigned char") | dict.fromkeys(exact, "real")
    written = (*rule.state, *spec.masters)
    return {
        "slots": str(len(rule.state)),
        "declare_state": lines(
            [
                *(f"Pack<{kind}, 4> {slot} = {{}};" for slot, kind in kinds.items()),
                *(f"Pack<real, 4> {s}_now; float {s}_scale = 0;" for s in rule.state),
            ]
        ),
        "load_state": lines(
            [
                *(
                    f"{s} = *reinterpret_cast<Pack<{kind}, 4> *>({s}_at);"
                    for s, kind in kinds.items()
                ),
                *(f"{slot}_scale = *{slot}_scale_at;" for slot in rule.state),
            ]
        ),
        "compare": lines(
            f"largest[{n}] = max_of(largest[{n}], bits_of({slot}_now.x[k]) & 0x7fffffffu);"
            for n, slot in enumerate(rule.state)
        ),
        "store_state": lines(
            f"*reinterpret_cast<Pack<{kinds[s]}, 4> *>({s}_at) = {s};" for s in written
        ),
        "store_scales": lines(
            f"*{slot}_scale_at = scale_of(largest[{n}]);" for n, slot in enumerate(rule.state)
        ),
    }


def lines(made: Iterable[str]) -> str:
    """Return the lines of a function's body."""
    return "\n    ".join(made)


def _draw_of(slot: int, size: int = 16) -> str:
    word = f"bits{slot // 2}"
    return f"{word} >> {32 - size}" if slot % 2 else f"{word} & {(1 << size) - 1:#x}u"


def _sign(rule: Rule, slot: str) -> str:
    return "true" if slot in rule.signed else "false"


# -------------------------------------------------------------------------------------------------
# The CUDA C++ of an update: of an element, a pack, and a block of threads; text alone.

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
    $references, $limits real grad, $modulus const Scalars &numbers
) {
    $load_scalars
    $begin
    {
        $rule
    }
    $after_param
    $keep_bounds
    $after_all
    $flush
}
""")

_SQUARE_OF = Template("""
__device__ __forceinline__ real square_of(real param, real grad, const Scalars &numbers) {
    $load_scalars
    $gradient
    return grad * grad;
}
""")

# Of both parts of each complex number, before the parameter changes.
SQUARE_MODULI = Template("""Pack<real, $count> square;
    #pragma unroll
    for (int k = 0; k < $count; ++k) {
        square.x[k] = square_of(widen(param.x[k]), widen(grad.x[k]), $numbers);
    }
    #pragma unroll
    for (int k = 0; k < $count; k += 2) {
        square.x[k] = square.x[k + 1] = square.x[k] + square.x[k + 1];
    }""")

UPDATE = Template("""
template <int N>
__device__ __forceinline__ void update($pointers, const given *grad_at, const $scalars &scalars) {
    const Pack<given, N> grad = *reinterpret_cast<const Pack<given, N> *>(grad_at);
    $load_packs
    $square_moduli
    #pragma unroll
    for (int k = 0; k < N; ++k) {
        $load_param
        element(number, $elements, $numbers);
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

UPDATE_BLOCK = Template("""
__device__ __forceinline__ void update_block(
    const long long *addresses, const long long *blocks, const long long *block, $memory,
    long long pitch, const $scalars &scalars
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


# -------------------------------------------------------------------------------------------------
# The CUDA C++ that runs the CuPy form of a rule, and its table of blocks; imports no CuPy.

CAPACITY = 192
"""Parameters per launch: two addresses of each fill 3 of the 4 KB that kernel arguments have."""

THREADS = 256
"""Threads per block. Each takes the 16 bytes of every array that one instruction can load."""

OPTIONS = ("--fmad=false",)
"""No fused multiply-add: each operation rounds once, as on the other backends."""

_UPDATE_OPERATION = Template("""
    fastopt::update_block(
        $addresses, &blocks[0], &blocks[${fields}ll * blockIdx.x], $memory, pitch, {$scalars});
""")

# A row of scalars that was chosen on the device, or none: see cupy_control_source.
_FROM_TABLE = Template("""
    if (counts[0] >= 0) {
        const fastopt::real *const row = &table[counts[0] * ${width}ll];
        $update
    }
""")


# What stands for the scalars where parameters have members: it looks up those of an element.
_MEMBERS = Template("""
struct Members {
    const real *table;
    real scale;
    long long divisor, modulus;

    __device__ __forceinline__ Scalars of(long long element) const {
        const real *const row = table + element / divisor % modulus * ${width}ll;
        return {$values};
    }
};
""")

# The rows of the members of a step that was chosen on the device.
_FROM_MEMBERS = Template("""
    const long long *const about = &blocks[${fields}ll * blockIdx.x + $divisor];
    if (counts[0] >= 0) {
        $update
    }
""")


def _of_members(names: Sequence[str]) -> str:
    """Return what looks up the scalars of a member."""
    values = ["row[0] * scale", *(f"row[{k}]" for k in range(1, len(names)))]
    return _MEMBERS.substitute(width=len(names), values=", ".join(values))


def pack(spec: UpdateSpec) -> int:
    """Return how many elements one thread takes at once: 16 bytes of each exact slot of state."""
    return 16 // spec.real.itemsize


def memory(spec: UpdateSpec) -> list[tuple[str, str]]:
    """Return the arrays of state that a kernel takes: the dtype and the name of each."""
    coded = {"bfloat16": [("uint16", "codes")], "int8": [("uint8", "codes"), ("float32", "scales")]}
    return [(spec.real.name, "arena"), *coded.get(spec.state, ())]


def scalar_names(rule: Rule, spec: UpdateSpec) -> list[str]:
    """Return the names of an update's scalars, in the order of a row."""
    return [*COMMON_SCALARS, *map(number_name, rule.scalars), *spec.scalars]


def number_name(name: str) -> str:
    """Return what a scalar of the rule is called, apart from all other names of a kernel."""
    return f"{name}_number"


def kernel(
    rule: Rule, spec: UpdateSpec, by_value: bool, from_table: bool = False
) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a rule and a format of parameters.

    The kernel takes ``addresses`` (CAPACITY of parameters, then CAPACITY of gradients, 0 where
    there is none), ``blocks``, ``pitch`` (elements of a slot), the scalars, and ``arena``; where
    state is in codes also ``codes`` and, for 8 bits, ``scales``. The addresses travel as a void
    scalar ``by_value``, which costs no copy to the device; otherwise in an array there.
    ``from_table`` the scalars are in device memory: it takes ``counts``, whose first element is the
    row of this step (-1: do nothing), ``scale``, which that row's gradient scale is multiplied by,
    and ``table``; with members always, and the rows of a step are then as many as they are. Derived
    scalars, if there are any, are in a row of ``derived`` for each parameter; that of the first
    address is row ``first_parameter``.
    """
    width = len(fields(bool(spec.random_scalars), spec.members))
    declared, values, operation = scalars_of(rule, spec, from_table, width)
    addresses_declared, addresses = addresses_of(by_value)
    text = _UPDATE_OPERATION.substitute(
        addresses=addresses,
        fields=width,
        memory=", ".join(f"&{name}[0]" for _, name in memory(spec)),
        scalars=", ".join(values),
    )
    scalars = [*scalar_names(rule, spec), *map(number_name, derived_of(rule, spec).names)]
    return {
        "in_params": ", ".join([addresses_declared, "raw int64 blocks", "int64 pitch", *declared]),
        "out_params": ", ".join(f"raw {dtype} {name}" for dtype, name in memory(spec)),
        "operation": operation(text),
        "name": f"fastopt_{rule.name}" + "_from_table" * from_table,
        "preamble": _preamble(rule, spec, scalars),
        "no_return": True,
        "options": OPTIONS,
    }


def scalars_of(
    rule: Rule, spec: UpdateSpec, from_table: bool, width: int
) -> tuple[list[str], list[str], Callable[[str], str]]:
    """Return how a kernel takes its scalars: declared, as values, and what its text stands in.

    ``width`` is how many fields the table of blocks has for each.
    """
    names, derived = scalar_names(rule, spec), derived_of(rule, spec).names
    declared, values = [f"{spec.real} {name}" for name in names], names
    if spec.members:
        declared = ["raw int64 counts", f"raw {spec.real} scale", f"raw {spec.real} table"]
        row = f"&table[counts[0] * about[1] * {len(names)}ll]"
        about = {"fields": width, "divisor": fields(False, members=True).index("divisor")}
        return (
            declared,
            [row, "scale[0]", "about[0]", "about[1]"],
            lambda text: _FROM_MEMBERS.substitute(about, update=text.strip()),
        )
    if from_table:
        declared = ["raw int64 counts", f"raw {spec.real} scale", f"raw {spec.real} table"]
        values = ["row[0] * scale[0]", *[f"row[{k}]" for k in range(1, len(names))]]
    before = ""
    if derived:
        declared = [*declared, "raw float64 derived", "int64 first_parameter"]
        parameter = f"(first_parameter + blocks[{width}ll * blockIdx.x])"
        before = f"const double *const made = &derived[{parameter} * {len(derived)}ll];"
        real = "static_cast<fastopt::real>"
        values = [*values, *(f"{real}(made[{k}])" for k in range(len(derived)))]

    def within(text: str) -> str:
        text = f"{before}\n{text.strip()}" if before else text
        if not from_table:
            return text
        return _FROM_TABLE.substitute(width=len(names), update=text.strip())

    return declared, values, within


def addresses_of(by_value: bool) -> tuple[str, str]:
    """Return the declaration of a kernel's ``addresses``, and the pointer to them in its text.

    They are declared first, so that they are aligned: a void scalar has no alignment of its own.
    """
    if by_value:
        return f"V{16 * CAPACITY} addresses", "reinterpret_cast<const long long *>(&addresses)"
    return "raw int64 addresses", "&addresses[0]"


def _preamble(rule: Rule, spec: UpdateSpec, scalars: list[str]) -> str:
    text = ELEMENT.substitute(_of_elements(rule, spec, scalars))
    about = _of_blocks(rule, spec)
    if spec.state == "int8":
        about |= of_int8(rule, spec)
        return text + ELEMENT_OF + INT8_BLOCK.substitute(about)
    return text + UPDATE.substitute(about) + ELEMENT_OF + UPDATE_BLOCK.substitute(about)


def _of_elements(rule: Rule, spec: UpdateSpec, scalars: list[str]) -> dict[str, str]:
    tiny = tiny_names(rule)
    loaded = load_scalars(spec)
    late = [fragment for fragment in spec.fragments if fragment.at == "after"]
    return {
        "real": TYPE[spec.real.name],
        "stored": TYPE[spec.stored.name],
        "given": TYPE[spec.given.name],
        "conversions": (
            half_conversions(spec.stored.name, spec.real.name) + code_conversions(spec)
        ),
        "scalars": ", ".join(scalars),
        "references": ", ".join(f"real &{name}" for name in ("param", *rule.state)),
        "load_scalars": loaded,
        "square_of": _of_members(scalars) * spec.members + square_of(spec),
        "modulus": "real square," * spec.modulus,
        "begin": lines(
            [
                *begin(rule, spec, spec.fragments),
                *(f"const real {s}_before = {s};" for s in rule.state if late),
            ]
        ),
        "rule": f"{numbers_of(rule)} {rule.cupy.strip()}",
        "after_param": lines(
            with_fragment(fragment, "param") for fragment in late if fragment.on == "param"
        ),
        "after_all": lines(
            with_fragment(fragment, slot)
            for fragment in late
            if fragment.on == "all"
            for slot in ("param", *rule.state)
        ),
        "flush": lines(f"{s} = fabs({s}) < {tiny[s]} ? real(0) : {s};" for s in rule.state),
        "limits": " ".join(f"real {name}," for name in spec.limits),
        "keep_bounds": lines(_keep_bounds(rule, spec)),
    }


def load_scalars(spec: UpdateSpec) -> str:
    """Return the text that names the scalars which are not those of the rule or of a fragment."""
    return lines(f"const real {s} = numbers.{s};" for s in (*COMMON_SCALARS, *spec.limit_scalars))


def square_of(spec: UpdateSpec) -> str:
    """Return the function that squares a part of a complex gradient, if its modulus is asked for.

    It works on the gradient as the rule sees it.
    """
    if not spec.modulus:
        return ""
    gradient_of = lines(gradient(spec.fragments))
    return _SQUARE_OF.substitute(load_scalars=load_scalars(spec), gradient=gradient_of)


def gradient(fragments: Sequence[Fragment]) -> Iterator[str]:
    """Yield the lines that make of an element's gradient what the rule sees."""
    yield "const real given = grad_scale * grad;"
    yield "grad = l2 != real(0) ? given + l2 * param : given;"
    for fragment in fragments:
        if fragment.at == "gradient":
            yield with_fragment(fragment, "grad")


def begin(rule: Rule, spec: UpdateSpec, fragments: Sequence[Fragment]) -> Iterator[str]:
    """Yield the lines that make of an element what the rule begins with."""
    yield from gradient(fragments)
    if rule.squares and not spec.modulus:
        yield "const real square = grad * grad;"
    late = any(fragment.at == "after" for fragment in spec.fragments)
    yield from ["const real before = param;"] * late
    yield "param = decay != real(0) ? param - decay * param : param;"
    yield from ["const real decayed = param;"] * late


def with_fragment(fragment: Fragment, name: str) -> str:
    """Return the text that lets a fragment act on the variable of this name."""
    values = {"after": name}
    if name not in ("param", "grad"):
        values |= {"before": f"{name}_before", "decayed": f"{name}_before"}
    wanted = [f"const real {v} = {values[v]};" for v in fragment.values if v in values]
    numbers = numbers_of_fragment(fragment)
    return f"{{ {' '.join(wanted)} {numbers} real kept; {fragment.cupy.strip()} {name} = kept; }}"


def numbers_of(rule: Rule, made: bool = True) -> str:
    """Return the text that gives the scalars of a rule the names that its forms use.

    Without ``made`` those that are made of sums are not among them.
    """
    handed = rule.memory.handed if rule.memory else ()
    last = rule.memory.scalars if rule.memory and made else ()
    names = (*rule.scalars, *handed, *last)
    return " ".join(f"const real {name} = numbers.{number_name(name)};" for name in names)


def numbers_of_fragment(fragment: Fragment, made: bool = True) -> str:
    """Return the same for a fragment."""
    own = len(fragment.scalars)
    names = fragment_names(fragment)[: None if made else own]
    short = [name.removeprefix(f"{fragment.name}_") for name in names]
    members = [*names[:own], *map(number_name, names[own:])]
    pairs = zip(short, members, strict=True)
    return " ".join(f"const real {name} = numbers.{member};" for name, member in pairs)


def _of_blocks(rule: Rule, spec: UpdateSpec) -> dict[str, Any]:
    written = ("param", *rule.state, *spec.masters)
    slots = (*written[1:], *spec.limits)
    all_names = ("param", *slots)
    types = dict.fromkeys(slots, "real") | {"param": "stored"}
    types |= dict.fromkeys(rule.state, TYPE_OF_STATE[spec.state])
    param, drawn = "widen(param.x[k])", bool(spec.random_scalars)
    moving = [*(f"{slot}_at" for slot in slots), *["counter"] * drawn, *["index"] * spec.members]
    numbers = "scalars.of(index + k)" if spec.members else "scalars"
    narrowed = narrowed_param(rule, spec)
    return {
        "pointers": ", ".join(
            [
                *(f"{types[s]} *{s}_at" for s in all_names),
                *["unsigned int counter"] * drawn,
                *["long long index"] * spec.members,
            ]
        ),
        "scalars": "Members" if spec.members else "Scalars",
        "numbers": numbers,
        "load_packs": lines(
            f"Pack<{types[name]}, N> {name} = "
            f"*reinterpret_cast<Pack<{types[name]}, N> *>({name}_at);"
            for name in all_names
        ),
        # What does not round to the stored parameter is not its master: somebody wrote it since.
        "load_param": lines(
            [
                *decode(rule, spec),
                "real number = master.x[k];\n"
                f"        if (widen(narrow(number)) != {param}) number = {param};"
                if spec.master
                else f"real number = {param};",
            ]
        ),
        "elements": ", ".join(
            [
                *(now(slot, spec) for slot in rule.state),
                *(f"{slot}.x[k]" for slot in spec.limits),
                "widen(grad.x[k])",
                *["square.x[k]"] * spec.modulus,
            ]
        ),
        "store_param": lines(
            [
                *draw(rule, spec),
                f"param.x[k] = {narrowed};" + " master.x[k] = number;" * spec.master,
                *encode(rule, spec),
            ]
        ),
        "store_packs": lines(
            f"*reinterpret_cast<Pack<{types[name]}, N> *>({name}_at) = {name};" for name in written
        ),
        "locate_state": lines(locate(rule, spec)),
        "state_first": " ".join(f"{s} + first," for s in moving),
        "state_k": " ".join(f"{s} + k," for s in moving),
        "memory": ", ".join(
            ["real *arena", *(f"{TYPE[dtype]} *{name}" for dtype, name in memory(spec)[1:])]
        ),
        "square_moduli": SQUARE_MODULI.substitute(
            count=4 if spec.state == "int8" else "N", numbers=numbers
        )
        if spec.modulus
        else "",
        "at_least": 2 if spec.modulus else 1,
        "single": "2ll * " * spec.modulus,
        "capacity": CAPACITY,
        "pack": pack(spec),
        "threads": THREADS,
    }


def _keep_bounds(rule: Rule, spec: UpdateSpec) -> Iterator[str]:
    if spec.bounds != "none":
        yield "param = param < lower ? lower : param;"
        yield "param = param > upper ? upper : param;"
    if spec.reset:
        for slot in rule.signed:
            yield f"{slot} = param == lower || param == upper ? real(0) : {slot};"


# -------------------------------------------------------------------------------------------------
# The CUDA C++ that sums the squares of gradients in the order of ``core.norms``: text alone.
#
# Shared memory would do it in one kernel, but then the order of the additions would be spread over
# barriers. Two kernels cost a launch, 6 % more memory traffic for float32 (lanes are written and
# read again), and nothing to synchronise.

FACTORS = (1.0, SMALLER, 1.0 / SMALLER)
"""What gradients are multiplied by before they are squared, where the device chooses among them."""

_SQUARES = Template("""
    const long long *block = &blocks[${fields}ll * blockIdx.x];
    const long long address = ($addresses)[$capacity + block[0]];
    const $given *const grad = reinterpret_cast<const $given *>(address) + block[1];
    const long long count = address != 0 ? block[2] : 0;
    $start
    for (long long k = threadIdx.x; k < count; k += $lanes) {
        $add
    }
    const long long lane = (first + blockIdx.x) * $lanes + threadIdx.x;
    $store
""")

_WIDEN = Template("""
namespace fastopt {

typedef $real real;
$conversions
}  // namespace fastopt
""")

_HALVES = Template("""
namespace fastopt {

template <int N> __device__ __forceinline__ double halves(const double *lane) {
    return halves<2 * N>(lane) + halves<2 * N>(lane + N);
}

template <> __device__ __forceinline__ double halves<$lanes>(const double *lane) {
    return *lane;
}

}  // namespace fastopt
""")


def squares(dtype: np.dtype[Any], by_value: bool) -> dict[str, Any]:
    """Return the arguments of the kernel that sums each lane of each tile.

    It takes ``addresses`` and ``blocks`` as an update does, with a block of LANES threads for each
    tile, ``first`` (the tiles before those), ``factor``, and ``lanes``, which it writes.
    """
    return _squares(dtype, by_value, "float64 factor", ["factor"], "fastopt_squares")


def squares_to_decide(dtype: np.dtype[Any], by_value: bool, wide: bool) -> dict[str, Any]:
    """Return the arguments of the kernel that a device decides by, in one pass.

    In place of ``factor`` it takes ``tiles``, how many there are in all. It writes the lanes of
    all tiles for the first of FACTORS, and with ``wide`` then for the others.
    """
    factors = [repr(factor) for factor in FACTORS[: None if wide else 1]]
    name = f"fastopt_{'all_' * wide}squares_to_decide"
    return _squares(dtype, by_value, "int64 tiles", factors, name)


def _squares(
    dtype: np.dtype[Any], by_value: bool, last: str, factors: Sequence[str], name: str
) -> dict[str, Any]:
    declared, addresses = addresses_of(by_value)
    start = [f"double sum{k} = 0;" for k in range(len(factors))]
    add = [
        f"const double value{k} = number * {factor}; sum{k} += value{k} * value{k};"
        for k, factor in enumerate(factors)
    ]
    return {
        "in_params": f"{declared}, raw int64 blocks, int64 first, {last}",
        "out_params": "raw float64 lanes",
        "operation": _SQUARES.substitute(
            fields=len(BLOCK_FIELDS),
            addresses=addresses,
            capacity=CAPACITY,
            given=TYPE[dtype.name],
            lanes=LANES,
            start=" ".join(start),
            add="\n        ".join(["const fastopt::real number = fastopt::widen(grad[k]);", *add]),
            store=" ".join(
                f"lanes[lane + {k}{' * tiles' * (k > 0)} * {LANES}] = sum{k};"
                for k in range(len(factors))
            ),
        ),
        "preamble": _WIDEN.substitute(
            real=TYPE[wide(dtype).name],
            conversions=half_conversions(dtype.name, wide(dtype).name),
        ),
        "name": name,
        "no_return": True,
        "options": OPTIONS,
    }


def halves() -> dict[str, Any]:
    """Return the arguments of the kernel that adds the lanes of each tile, in halves."""
    return {
        "in_params": "raw float64 lanes",
        "out_params": "raw float64 sums",
        "operation": f"sums[i] = fastopt::halves<1>(&lanes[i * {LANES}ll])",
        "name": "fastopt_halves",
        "preamble": _HALVES.substitute(lanes=LANES),
        "no_return": True,
        "options": OPTIONS,
    }


# -------------------------------------------------------------------------------------------------
# The CUDA C++ that decides on a step: whether to make it, by which row, by which gradient scale.
#
# One block of LANES threads. Each adds up a lane of the tiles' sums of squares, and the lanes are
# added in halves, as ``core.norms`` lays it down; then they do in float64 what the host does
# otherwise, by the same operations, and the first writes what the update kernels read.

COUNTS = ("row", "steps", "skipped", "overrun")
"""What is counted on the device: the row of this step (-1: there is none, SKIPPED_ROW: the step is
skipped), how many steps were made, how many were skipped, and how many were left out because the
tables had no row for them."""

SKIPPED_ROW = -2

MEASURED = ("norm", "scale")
"""The norm of the last step's gradients (-1 where it was not measured), and what scales them."""

SETTINGS = ("base", "length", "period", "clips", "skips")
"""What the host says, as int64; the last of it, the limit, is a float64 and stands behind them."""

_DECIDE_PREAMBLE = Template("""
namespace fastopt {

$fields

__device__ __forceinline__ double total(const double *sums, long long count, double *lane) {
    double sum = 0;
    #pragma unroll 8
    for (long long k = threadIdx.x; k < count; k += $lanes) {
        sum += sums[k];
    }
    lane[threadIdx.x] = sum;
    __syncthreads();
    #pragma unroll 1
    for (int width = $lanes / 2; width != 0; width /= 2) {
        if (threadIdx.x < width) lane[threadIdx.x] += lane[threadIdx.x + width];
        __syncthreads();
    }
    return lane[0];
}

// The row of a step, or -1 if there is none.
__device__ __forceinline__ long long row_of(long long steps, const long long *settings) {
    const long long at = steps - settings[BASE], beyond = at - settings[LENGTH];
    const long long period = settings[PERIOD];
    if (beyond < 0) return at < 0 ? -1 : at;
    return period > 0 ? settings[LENGTH] - period + beyond % period : -1;
}

}  // namespace fastopt
""")

_DECIDE_OPERATION = Template("""
    __shared__ double lane[$lanes], again[$lanes];
    double sum = 0, unit = 1;
    if (tiles >= 0) {
        sum = fastopt::total(&sums[0], tiles, lane);
        const bool large = sum > $largest;
        if (scaled != 0 && (large || sum < $too_small)) {
            unit = large ? $larger : $smaller;
            sum = fastopt::total(&sums[(large ? 1 : 2) * tiles], tiles, again);
        }
    }
    double scale = number;
    if (width == 4) scale *= *reinterpret_cast<const float *>(address);
    if (width == 8) scale *= *reinterpret_cast<const double *>(address);
    const bool clips = tiles >= 0 && settings[fastopt::CLIPS] != 0;
    const bool skips = tiles >= 0 && settings[fastopt::SKIPS] != 0;
    const double norm = sqrt(sum) * unit * fabs(scale);
    const bool finite = sum <= $largest && fabs(scale) <= $largest;
    const long long steps = counts[fastopt::STEPS];
    const long long coming = fastopt::row_of(steps, &settings[0]);
    double factor = 1;
    if (clips && limit[0] <= $largest) {
        factor = limit[0] / (norm + 1e-6);
        factor = factor > 1 ? 1 : factor;
        scale *= factor;
    }
    const bool overflows = squares != 0 && norm * factor >= $limit;
    const bool go = !skips || (finite && !overflows);
    __syncthreads();  // all have read the count
    if (threadIdx.x == 0) {
        const long long row = go ? coming : $skipped;
        counts[fastopt::ROW] = row;
        if (row >= 0) counts[fastopt::STEPS] = steps + 1;
        if (!go) counts[fastopt::SKIPPED] += 1;
        if (go && row < 0) counts[fastopt::OVERRUN] += 1;
        measured[fastopt::NORM] = clips || skips ? norm : -1;
        measured[fastopt::SCALE] = scale;
        single[0] = static_cast<float>(scale);
        outcomes[2 * place] = row >= 0;
        outcomes[2 * place + 1] = measured[fastopt::NORM];
    }
""")


def places_of(*tables: Sequence[str]) -> str:
    """Return the text that names the places in some tables of numbers."""
    places = [place for table in tables for place in enumerate(table)]
    return "\n".join(f"enum {{ {name.upper()} = {k} }};" for k, name in places)


def decide() -> dict[str, Any]:
    """Return the arguments of the kernel that decides, to be launched with LANES threads.

    It takes the ``sums`` of squares of all ``tiles`` (-1: not measured) for the first of FACTORS
    or, if ``scaled``, for each; ``squares``, not 0 if some rule averages squares in float32; the
    gradients' scale as a ``number`` times what stands at an ``address`` in a float of ``width``
    bytes (0: nothing); ``settings`` and ``limit``, the largest
    norm. It writes ``counts``, ``measured``, the scale in single precision, and the outcome (made,
    norm) at a ``place`` among the ``outcomes``.
    """
    return {
        "in_params": "raw float64 sums, int64 tiles, int64 scaled, int64 squares, "
        "float64 number, int64 address, int64 width, raw int64 settings, raw float64 limit, "
        "int64 place",
        "out_params": "raw int64 counts, raw float64 measured, raw float32 single, "
        "raw float64 outcomes",
        "operation": _DECIDE_OPERATION.substitute(
            lanes=LANES,
            largest=repr(sys.float_info.max),
            too_small=repr(TOO_SMALL),
            larger=repr(FACTORS[2]),
            smaller=repr(FACTORS[1]),
            skipped=SKIPPED_ROW,
            limit=repr(SQUARES_OVERFLOW),
        ),
        "name": "fastopt_decide",
        "preamble": _DECIDE_PREAMBLE.substitute(
            lanes=LANES,
            fields=places_of(COUNTS, MEASURED, SETTINGS),
        ),
        "no_return": True,
        "options": OPTIONS,
    }


# -------------------------------------------------------------------------------------------------
# The CUDA C++ that lets the scale of a loss follow a step: one thread, after the decision.
#
# The arithmetic is that of ``core.loss_scale``, in float64 and in the same order.

SCALES = ("scale", "inverse")
"""What the loss is multiplied by, and what its gradients are; in float64, and in float32 too."""

TALLIES = ("good_steps", "skips", "given_up", "made", "skipped")
"""The updates since the scale last changed, the skips in a row at the smallest one, how many of
those there were when they became too many (0: they have not, since the host last looked); whether a
step was made, and one skipped, since the last update."""

_NOTE_OPERATION = Template("""
    const long long row = counts[$row];
    if (row == $skipped) tallies[fastopt::SKIPPED] = 1;
    if (row >= 0) tallies[fastopt::MADE] = 1;
""")

_RESCALE_OPERATION = Template("""
    const bool made = made_elsewhere != 0 || tallies[fastopt::MADE] != 0;
    const bool skipped = skipped_elsewhere != 0 || tallies[fastopt::SKIPPED] != 0;
    double scale = scales[fastopt::SCALE];
    long long good = tallies[fastopt::GOOD_STEPS], skips = tallies[fastopt::SKIPS];
    if (skipped) {
        skips = scale == min_scale ? skips + 1 : 0;
        good = 0;
        scale *= backoff_factor;
        if (scale < min_scale) scale = min_scale;
        if (skips >= max_skips) tallies[fastopt::GIVEN_UP] = skips;
    } else if (made) {
        skips = 0;
        good += 1;
        if (good >= growth_interval) {
            good = 0;
            scale *= growth_factor;
            if (scale > max_scale) scale = max_scale;
        }
    }
    const double inverse = 1.0 / scale;
    scales[fastopt::SCALE] = scale;
    scales[fastopt::INVERSE] = inverse;
    singles[fastopt::SCALE] = static_cast<float>(scale);
    singles[fastopt::INVERSE] = static_cast<float>(inverse);
    tallies[fastopt::GOOD_STEPS] = good;
    tallies[fastopt::SKIPS] = skips;
    tallies[fastopt::MADE] = tallies[fastopt::SKIPPED] = 0;
""")

_RESCALE_PREAMBLE = Template("""
namespace fastopt {

$fields

}  // namespace fastopt
""")


def note() -> dict[str, Any]:
    """Return the arguments of the kernel that notes a decision, to be launched with one thread.

    It takes the ``counts`` of the decision, and writes to ``tallies`` if the step was made or
    skipped.
    """
    return {
        "in_params": "raw int64 counts",
        "out_params": "raw int64 tallies",
        "operation": _NOTE_OPERATION.substitute(row=COUNTS.index("row"), skipped=SKIPPED_ROW),
        "name": "fastopt_note",
        "preamble": _RESCALE_PREAMBLE.substitute(fields=places_of(SCALES, TALLIES)),
        "no_return": True,
        "options": OPTIONS,
    }


def rescale() -> dict[str, Any]:
    """Return the arguments of the kernel that follows what was noted, for one thread.

    It takes the numbers of a ScalePolicy, and whether steps were made or skipped ``elsewhere``.
    ``scales``, ``tallies`` and ``singles``, the scales in single precision, it brings up to date.
    """
    return {
        "in_params": "float64 growth_factor, float64 backoff_factor, int64 growth_interval, "
        "float64 min_scale, float64 max_scale, int64 max_skips, int64 made_elsewhere, "
        "int64 skipped_elsewhere",
        "out_params": "raw float64 scales, raw int64 tallies, raw float32 singles",
        "operation": _RESCALE_OPERATION.template,
        "name": "fastopt_rescale",
        "preamble": _RESCALE_PREAMBLE.substitute(fields=places_of(SCALES, TALLIES)),
        "no_return": True,
        "options": OPTIONS,
    }
