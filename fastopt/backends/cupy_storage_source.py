"""The CUDA C++ that keeps state in 16 or 8 bits and rounds by chance in an update: text alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from string import Template

from fastopt.codes import BLOCK, CUT_OFF
from fastopt.formats import Format
from fastopt.random_bits import GOLDEN
from fastopt_kernels import Rule

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
    number = "single(number)" if format.widened else "number"
    return f"to_{format.stored.name}({number}, {_draw_of(len(rule.state))})"


def encode(rule: Rule, format: Format) -> Iterator[str]:
    """Yield the lines that round the k-th number of each slot."""
    for n, slot in enumerate(rule.state):
        if format.state == "bfloat16":
            yield f"{slot}.x[k] = to_bfloat16({slot}_now, {_draw_of(n)});"
        if format.state == "int8":
            about = f"{slot}_now.x[k], largest[{n}], {_draw_of(n, CUT_OFF)}"
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


def _draw_of(slot: int, size: int = 16) -> str:
    word = f"bits{slot // 2}"
    return f"{word} >> {32 - size}" if slot % 2 else f"{word} & {(1 << size) - 1:#x}u"


def _sign(rule: Rule, slot: str) -> str:
    return "true" if slot in rule.signed else "false"
