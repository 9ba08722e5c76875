"""The CUDA C++ that runs the CuPy form of a rule, and its table of blocks; imports no CuPy."""

from __future__ import annotations

from collections.abc import Iterator
from string import Template
from typing import Any

from fastopt.backends import COMMON_SCALARS, tiny_names
from fastopt.backends import cupy_code_source as codes
from fastopt.backends import cupy_storage_source as storage
from fastopt.backends.cupy_blocks import fields
from fastopt.backends.cupy_half_source import TYPE, conversions
from fastopt.backends.cupy_storage_source import lines
from fastopt.backends.cupy_update_source import (
    BLOCK,
    ELEMENT,
    ELEMENT_OF,
    SQUARE_MODULI,
    SQUARE_OF,
    UPDATE,
)
from fastopt.formats import Format
from fastopt_kernels import Rule

CAPACITY = 192
"""Parameters per launch: two addresses of each fill 3 of the 4 KB that kernel arguments have."""

THREADS = 256
"""Threads per block. Each takes the 16 bytes of every array that one instruction can load."""

OPTIONS = ("--fmad=false",)
"""No fused multiply-add: each operation rounds once, as on the other backends."""

_OPERATION = Template("""
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


def pack(format: Format) -> int:
    """Return how many elements one thread takes at once: 16 bytes of each exact slot of state."""
    return 16 // format.real.itemsize


def memory(format: Format) -> list[tuple[str, str]]:
    """Return the arrays of state that a kernel takes: the dtype and the name of each."""
    coded = {"bfloat16": [("uint16", "codes")], "int8": [("uint8", "codes"), ("float32", "scales")]}
    return [(format.real.name, "arena"), *coded.get(format.state, ())]


def scalar_names(rule: Rule, format: Format) -> list[str]:
    """Return the names of an update's scalars, in the order of a row."""
    return [*COMMON_SCALARS, *rule.scalars, *format.limit_scalars, *format.random_scalars]


def kernel(rule: Rule, format: Format, by_value: bool, from_table: bool = False) -> dict[str, Any]:
    """Return the arguments of cupy.ElementwiseKernel for a rule and a format of parameters.

    The kernel takes ``addresses`` (CAPACITY of parameters, then CAPACITY of gradients, 0 where
    there is none), ``blocks``, ``pitch`` (elements of a slot), the scalars, and ``arena``; where
    state is in codes also ``codes`` and, for 8 bits, ``scales``. The addresses travel as a void
    scalar ``by_value``, which costs no copy to the device; otherwise in an array there.
    ``from_table`` the scalars are in device memory: it takes ``counts``, whose first element is the
    row of this step (-1: do nothing), ``scale``, which that row's gradient scale is multiplied by,
    and ``table``.
    """
    scalars = scalar_names(rule, format)
    arrays = memory(format)
    given, values = [f"{format.real} {name}" for name in scalars], scalars
    if from_table:
        given = ["raw int64 counts", f"raw {format.real} scale", f"raw {format.real} table"]
        values = ["row[0] * scale[0]", *[f"row[{k}]" for k in range(1, len(scalars))]]
    declared, addresses = addresses_of(by_value)
    operation = _OPERATION.substitute(
        addresses=addresses,
        fields=len(fields(bool(format.random_scalars))),
        memory=", ".join(f"&{name}[0]" for _, name in arrays),
        scalars=", ".join(values),
    )
    if from_table:
        operation = _FROM_TABLE.substitute(width=len(scalars), update=operation.strip())
    return {
        "in_params": ", ".join([declared, "raw int64 blocks", "int64 pitch", *given]),
        "out_params": ", ".join(f"raw {dtype} {name}" for dtype, name in arrays),
        "operation": operation,
        "name": f"fastopt_{rule.name}" + "_from_table" * from_table,
        "preamble": _preamble(rule, format, scalars),
        "no_return": True,
        "options": OPTIONS,
    }


def addresses_of(by_value: bool) -> tuple[str, str]:
    """Return the declaration of a kernel's ``addresses``, and the pointer to them in its text.

    They are declared first, so that they are aligned: a void scalar has no alignment of its own.
    """
    if by_value:
        return f"V{16 * CAPACITY} addresses", "reinterpret_cast<const long long *>(&addresses)"
    return "raw int64 addresses", "&addresses[0]"


def _preamble(rule: Rule, format: Format, scalars: list[str]) -> str:
    text = ELEMENT.substitute(_of_elements(rule, format, scalars))
    about = _of_blocks(rule, format)
    if format.state == "int8":
        about |= storage.of_int8(rule, format)
        return text + ELEMENT_OF + storage.INT8_BLOCK.substitute(about)
    return text + UPDATE.substitute(about) + ELEMENT_OF + BLOCK.substitute(about)


def _of_elements(rule: Rule, format: Format, scalars: list[str]) -> dict[str, str]:
    tiny = tiny_names(rule)
    used = [name for name in scalars if name not in format.random_scalars]
    return {
        "real": TYPE[format.real.name],
        "stored": TYPE[format.stored.name],
        "given": TYPE[format.given.name],
        "conversions": (
            conversions(format.stored.name, format.real.name) + codes.conversions(format)
        ),
        "scalars": ", ".join(scalars),
        "references": ", ".join(f"real &{name}" for name in ("param", *rule.state)),
        "load_scalars": lines(f"const real {name} = given.{name};" for name in used),
        "square_of": SQUARE_OF * format.modulus,
        "modulus": "real square," * format.modulus,
        "square": "const real square = grad * grad;" * (rule.squares and not format.modulus),
        "rule": rule.cupy.strip(),
        "flush": lines(f"{s} = fabs({s}) < {tiny[s]} ? real(0) : {s};" for s in rule.state),
        "limits": " ".join(f"real {name}," for name in format.limits),
        "keep_bounds": lines(_keep_bounds(rule, format)),
    }


def _of_blocks(rule: Rule, format: Format) -> dict[str, Any]:
    written = ("param", *rule.state, *format.masters)
    slots = (*written[1:], *format.limits)
    all_names = ("param", *slots)
    types = dict.fromkeys(slots, "real") | {"param": "stored"}
    types |= dict.fromkeys(rule.state, storage.TYPE_OF_STATE[format.state])
    param, drawn = "widen(param.x[k])", bool(format.random_scalars)
    moving = [*(f"{slot}_at" for slot in slots), *["counter"] * drawn]
    narrowed = storage.narrowed(rule, format)
    return {
        "pointers": ", ".join(
            [*(f"{types[s]} *{s}_at" for s in all_names), *["unsigned int counter"] * drawn]
        ),
        "load_packs": lines(
            f"Pack<{types[name]}, N> {name} = "
            f"*reinterpret_cast<Pack<{types[name]}, N> *>({name}_at);"
            for name in all_names
        ),
        # What does not round to the stored parameter is not its master: somebody wrote it since.
        "load_param": lines(
            [
                *storage.decode(rule, format),
                "real number = master.x[k];\n"
                f"        if (widen(narrow(number)) != {param}) number = {param};"
                if format.master
                else f"real number = {param};",
            ]
        ),
        "elements": ", ".join(
            [
                *(storage.now(slot, format) for slot in rule.state),
                *(f"{slot}.x[k]" for slot in format.limits),
                "widen(grad.x[k])",
                *["square.x[k]"] * format.modulus,
            ]
        ),
        "store_param": lines(
            [
                *storage.draw(rule, format),
                f"param.x[k] = {narrowed};" + " master.x[k] = number;" * format.master,
                *storage.encode(rule, format),
            ]
        ),
        "store_packs": lines(
            f"*reinterpret_cast<Pack<{types[name]}, N> *>({name}_at) = {name};" for name in written
        ),
        "locate_state": lines(storage.locate(rule, format)),
        "state_first": " ".join(f"{s} + first," for s in moving),
        "state_k": " ".join(f"{s} + k," for s in moving),
        "memory": ", ".join(
            ["real *arena", *(f"{TYPE[dtype]} *{name}" for dtype, name in memory(format)[1:])]
        ),
        "square_moduli": SQUARE_MODULI.substitute(count=4 if format.state == "int8" else "N")
        if format.modulus
        else "",
        "at_least": 2 if format.modulus else 1,
        "single": "2ll * " * format.modulus,
        "capacity": CAPACITY,
        "pack": pack(format),
        "threads": THREADS,
    }


def _keep_bounds(rule: Rule, format: Format) -> Iterator[str]:
    if format.bounds != "none":
        yield "param = param < lower ? lower : param;"
        yield "param = param > upper ? upper : param;"
    if format.reset:
        for slot in rule.signed:
            yield f"{slot} = param == lower || param == upper ? real(0) : {slot};"
