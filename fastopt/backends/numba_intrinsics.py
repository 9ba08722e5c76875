"""What compiled code needs and Numba does not have: memory by address, bits, atomics, and calls."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

_WORD = ir.IntType(64)
_NOTHING = ir.VoidType()
_ADDRESSES = 8  # bytes of an atomic word

# Memory by address --------------------------------------------------------------------------------


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def pointer_to(context: Any, address: Any, element: Any) -> Any:
    """Turn an address into a pointer to elements of a type."""
    pointer = numba.types.CPointer(element.instance_type)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], target.get_value_type(pointer))

    return pointer(numba.types.intp, element), generate


@register_jitable  # type: ignore[untyped-decorator]
def word(address: int) -> int:
    """Return the 8 bytes at an address."""
    return numba.carray(pointer_to(address, numba.int64), 1)[0]  # type: ignore[no-any-return]


@register_jitable  # type: ignore[untyped-decorator]
def half(address: int) -> int:
    """Return the 4 bytes at an address."""
    return numba.carray(pointer_to(address, numba.int32), 1)[0]  # type: ignore[no-any-return]


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which need not be anybody's."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        number, place = ir.IntType(32), builder.inttoptr(values[0], cgutils.voidptr_t)
        # to be read, into all caches, as data
        _call(builder, "llvm.prefetch.p0", _NOTHING, [place, number(0), number(3), number(1)])
        return target.get_dummy_value()

    return numba.void(numba.int64), generate


# Numbers as bits ----------------------------------------------------------------------------------


@intrinsic  # type: ignore[untyped-decorator]
def bits(context: Any, value: Any) -> Any:
    """Return the bits of a float32 as a uint32."""
    return _recast(numba.uint32, numba.float32)


@intrinsic  # type: ignore[untyped-decorator]
def float_of(context: Any, given: Any) -> Any:
    """Return the float32 that has these bits."""
    return _recast(numba.float32, numba.uint32)


def _recast(result: Any, given: Any) -> Any:
    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], target.get_value_type(result))

    return result(given), generate


@intrinsic  # type: ignore[untyped-decorator]
def widen_float16(context: Any, stored: Any) -> Any:
    """Return a float16, given by its bits, as a float32: one instruction."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return numba.float32(numba.uint16), generate


@intrinsic  # type: ignore[untyped-decorator]
def narrow_float16(context: Any, value: Any) -> Any:
    """Return the bits of the float16 that is nearest to a float32: one instruction."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

    return numba.uint16(numba.float32), generate


# Words that several threads read and write --------------------------------------------------------


@intrinsic  # type: ignore[untyped-decorator]
def load(context: Any, address: Any) -> Any:
    """Return the word at an address; all threads agree on the order of these accesses."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_shared(builder, values[0]), "seq_cst", align=_ADDRESSES)

    return numba.int64(numba.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(context: Any, address: Any, value: Any) -> Any:
    """Write the word at an address."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _shared(builder, values[0])
        builder.store_atomic(values[1], place, "seq_cst", align=_ADDRESSES)
        return target.get_dummy_value()

    return numba.void(numba.int64, numba.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def add(context: Any, address: Any, value: Any) -> Any:
    """Add to the word at an address; return what it was before."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _shared(builder, values[0]), values[1], "seq_cst")

    return numba.int64(numba.int64, numba.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def claim(context: Any, address: Any) -> Any:
    """Turn the word at an address from 0 into 1; return whether it was 0."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _shared(builder, values[0])
        pair = builder.cmpxchg(place, _WORD(0), _WORD(1), "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return numba.boolean(numba.int64), generate


def _shared(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _WORD.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def pause(context: Any) -> Any:
    """Tell the processor that this loop waits for another thread."""
    hint = {
        "x86_64": ("llvm.x86.sse2.pause", []),
        "AMD64": ("llvm.x86.sse2.pause", []),
        "aarch64": ("llvm.aarch64.hint", [ir.IntType(32)(1)]),
        "arm64": ("llvm.aarch64.hint", [ir.IntType(32)(1)]),
    }.get(platform.machine())

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        if hint is not None:
            _call(builder, hint[0], _NOTHING, hint[1])
        return target.get_dummy_value()

    return numba.void(), generate


# Calls --------------------------------------------------------------------------------------------


@intrinsic  # type: ignore[untyped-decorator]
def call(context: Any, function: Any, job: Any, lane: Any, first: Any, last: Any) -> Any:
    """Call the C function at an address with four words."""
    signature = numba.void(*[numba.int64] * 5)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(_NOTHING, [_WORD] * 4)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return target.get_dummy_value()

    return signature, generate


def system_call(name: str, arguments: int) -> Callable[..., int]:
    """Return a function of the C library that takes addresses and returns an int, for our loops."""

    @intrinsic  # type: ignore[untyped-decorator]
    def called(context: Any, first: Any, second: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = [builder.inttoptr(value, cgutils.voidptr_t) for value in values[:arguments]]
            return _call(builder, name, ir.IntType(32), given)

        return numba.int32(numba.int64, numba.int64), generate

    return called  # type: ignore[no-any-return]


def _call(builder: Any, name: str, result: Any, arguments: Iterable[Any]) -> Any:
    given = list(arguments)
    kind = ir.FunctionType(result, [value.type for value in given])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
