"""The CUDA C++ that keeps state in 16 or 8 bits and rounds by chance: text alone.

The formulas are those of ``fastopt.codes`` and ``fastopt.random_bits``, on bits, so that every
compiler ends in the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import Template

from fastopt.backends.cupy_half_source import TYPE, WORD
from fastopt.codes import BLOCK, POSITIVE, SIGNED
from fastopt.formats import Format
from fastopt.random_bits import GOLDEN, MULTIPLIERS
from fastopt_kernels import Rule

TYPE_OF_STATE = {"real": "real", "bfloat16": "unsigned short", "int8": "unsigned char"}
"""The C++ type in which the state of a rule stands in memory."""

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
    return exponent < 27u ? 27u : exponent > 253u ? 253u : exponent;
}

__device__ __forceinline__ float scale_of(unsigned int largest) {
    const unsigned int bits = largest < 0x7f800000u ? exponent_of(largest) << 23 : 0x7fc00000u;
    return float_of(largest == 0u ? 0u : bits);
}

template <bool with_sign>
__device__ __forceinline__ unsigned char to_int8(
    float value, unsigned int largest, unsigned int draw
) {
    const unsigned int low = Grid<with_sign>::low, top = Grid<with_sign>::top;
    const unsigned int bits = largest < 0x7f800000u ? bits_of(value) : 0u;
    const float inverse = float_of((254u - exponent_of(largest)) << 23);
    const unsigned int size = bits_of(float_of(bits & 0x7fffffffu) * inverse);
    const unsigned int sum = evenly(size, low << 23) + (draw << 3);
    const unsigned int rounded = (sum - ((low - 1u) << 23) + 4u) >> 19;
    const unsigned int code = rounded < top ? rounded : top;
    if (with_sign) return code | (bits >> 24 & 0x80u);
    return code == 0u && (int)bits > 0 ? 1u : code;  // what is not zero never becomes zero
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
            threads=_BLOCK_OF_THREADS,
        )
    return text


def now(slot: str, format: Format) -> str:
    """Return the number of a slot of state, as a rule works on it."""
    return {"real": f"{slot}.x[k]", "bfloat16": f"{slot}_now", "int8": f"{slot}_now.x[k]"}[
        format.state
    ]


def decode(rule: Rule, format: Format) -> Iterator[str]:
    """Yield the lines that read the k-th code of each slot."""
    for slot in rule.state:
        if format.state == "bfloat16":
            yield f"real {slot}_now = from_bfloat16({slot}.x[k]);"
        if format.state == "int8":
            yield f"{slot}_now.x[k] = from_int8<{_sign(rule, slot)}>({slot}.x[k], {slot}_scale);"


def draw(rule: Rule, format: Format) -> Iterator[str]:
    """Yield the lines that draw the random bits of the k-th element, 32 for two slots."""
    slots = len(rule.state) * (format.state != "real") + format.stochastic
    first = len(rule.state) if format.state == "real" else 0
    key = "((unsigned int)scalars.random_high << 16 | (unsigned int)scalars.random_low)"
    for word in sorted({slot // 2 for slot in range(first, first + slots)}):
        apart = word * GOLDEN % 2**32
        yield f"const unsigned int bits{word} = mix((counter + k) ^ {key} ^ {apart}u);"


def narrowed(rule: Rule, format: Format) -> str:
    """Return the parameter as it is stored."""
    if not format.stochastic:
        return "narrow(number)"
    return f"to_{format.stored.name}(number, {_draw_of(len(rule.state))})"


def encode(rule: Rule, format: Format) -> Iterator[str]:
    """Yield the lines that round the k-th number of each slot."""
    for n, slot in enumerate(rule.state):
        if format.state == "bfloat16":
            yield f"{slot}.x[k] = to_bfloat16({slot}_now, {_draw_of(n)});"
        if format.state == "int8":
            about = f"{slot}_now.x[k], largest[{n}], {_draw_of(n)}"
            yield f"{slot}.x[k] = to_int8<{_sign(rule, slot)}>({about});"


def locate(rule: Rule, format: Format) -> Iterator[str]:
    """Yield the lines that say where a block's piece of each slot begins."""
    coded = () if format.state == "real" else rule.state
    for n, slot in enumerate(coded):
        yield f"{TYPE_OF_STATE[format.state]} *const {slot}_at = codes + {n} * pitch + place;"
    exact = [*(rule.state if not coded else ()), *format.masters, *format.limits]
    for n, slot in enumerate(exact):
        yield f"real *const {slot}_at = arena + {n} * pitch + place;"
    if format.state == "int8":
        for n, slot in enumerate(coded):
            place = f"{n} * (pitch / {BLOCK}) + place / {BLOCK}"
            yield f"float *const {slot}_scale_at = scales + {place};"
    if format.random_scalars:
        yield "const unsigned int counter = (unsigned int)block[5]" + (
            " + (unsigned int)first;" if format.state == "int8" else ";"
        )


def of_int8(rule: Rule, format: Format) -> dict[str, str]:
    """Return what INT8_BLOCK needs besides: all of a thread's state is in registers."""
    exact = (*format.masters, *format.limits)
    kinds = dict.fromkeys(rule.state, "unsigned char") | dict.fromkeys(exact, "real")
    written = (*rule.state, *format.masters)
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


def _draw_of(slot: int) -> str:
    return f"bits{slot // 2} >> 16" if slot % 2 else f"bits{slot // 2} & 0xffffu"


def _sign(rule: Rule, slot: str) -> str:
    return "true" if slot in rule.signed else "false"
