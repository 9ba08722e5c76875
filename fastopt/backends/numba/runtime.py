"""What compiled code needs and Numba does not have: memory, atomics and calls; and the threads."""

from __future__ import annotations

import atexit
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastopt.core import arrays

# -------------------------------------------------------------------------------------------------
# What compiled code needs and Numba does not have: memory by address, bits, atomics, and calls.

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
def int64_at(address: int) -> int:
    """Return the 8 bytes at an address."""
    return numba.carray(pointer_to(address, numba.int64), 1)[0]  # type: ignore[no-any-return]


@register_jitable  # type: ignore[untyped-decorator]
def int32_at(address: int) -> int:
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
def call(context: Any, function: Any, job: Any, thread: Any, first: Any, last: Any) -> Any:
    """Call the C function at an address with four words."""
    signature = numba.void(*[numba.int64] * 5)

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(_NOTHING, [_WORD] * 4)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return target.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def ask(context: Any, function: Any, about: Any, answer: Any) -> Any:
    """Call the C function at an address with two addresses; return its int."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [_WORD] * 2)
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return numba.int32(numba.int64, numba.int64, numba.int64), generate


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


# -------------------------------------------------------------------------------------------------
# The threads of the Numba backend: idle ones help with a step, and none is ever waited for.
#
# Whoever steps offers the chunks of the step and works on them itself; threads of the pool that are
# awake take chunks too. The caller waits only for chunks that a thread has begun, so a step is at
# no moment behind a thread that the system has not given a processor: that thread's chunks are done
# by whoever comes first. Chunks are dealt out in one range per thread, so that in every step the
# same thread takes the same ones, as long as it is in time: they are in its cache.
#
# While one step uses the pool, a step of another Python thread does its chunks alone. The child of
# a fork has no threads; its first step makes new ones.

MOST_THREADS = 256

_LINE = 128
"""Bytes between words that different threads write: two cache lines, which processors fetch
together."""

(_CLAIMED, _ROUND, _BUSY, _ASLEEP, _ALIVE, _STOP, _REST, _FUNCTION, _JOB, _TOTAL, _THREADS) = (
    _LINE * place for place in range(11)
)
_MUTEX, _CONDITION, _NEXT = (_LINE * place for place in (12, 13, 14))
"""Where in the pool's memory: whether a step uses it; the number of the round, odd while chunks are
offered; how many threads are at work, asleep, alive; whether to end; how many small steps found
sleepers; what is offered; the lock and the signal of sleepers; each range's next chunk."""

_PATIENCE, _BEFORE_YIELDING = 20_000, 4_000
"""How often an idle thread looks for work before it goes to sleep, some 250 microseconds (with a
quarter of that, threads fell asleep between steps that followed each other); and how often a step
looks whether the others are done before it gives its processor away."""

_SHARES, _MOST_AT_ONCE = 64, 8
"""In how many pieces a thread takes its range, at least, and how many chunks it takes at once."""

_WORTH_WAKING = 256
"""Chunks (of 2 048 elements) for which sleepers are woken in any case: that takes some 50
microseconds. For fewer they are woken now and then, to see whether steps follow each other fast."""

_NOW_AND_THEN = 16

_SYSTEM = {
    **{"pthread_mutex_init": 2, "pthread_mutex_lock": 1, "pthread_mutex_unlock": 1},
    **{"pthread_cond_init": 2, "pthread_cond_wait": 2, "pthread_cond_broadcast": 1},
    "sched_yield": 0,
}
"""What is needed of the system, with the number of arguments. Where it is missing (on Windows)
steps are made by one thread."""

_mutex_init, _lock, _unlock, _condition_init, _wait, _broadcast, _yield = (
    system_call(name, arguments) for name, arguments in _SYSTEM.items()
)


def serve(pool: int, me: int) -> int:
    """Help with steps until told to stop, as the thread of this number (1, 2, ...).

    To be compiled. A ``me`` of 0 makes the lock and the signal; -1 tells all threads to stop, and
    returns how many have not.
    """
    if me == 0:
        _mutex_init(pool + _MUTEX, 0)
        _condition_init(pool + _CONDITION, 0)
        return 0
    if me < 0:
        store(pool + _STOP, 1)
        _broadcast(pool + _CONDITION, 0)
        return load(pool + _ALIVE)  # type: ignore[no-any-return]
    add(pool + _ALIVE, 1)
    seen = 0
    while True:
        seen = _next_round(pool, seen)
        if seen < 0:
            break
        add(pool + _BUSY, 1)
        # From here on the step waits for this thread, if it is still the same step.
        if load(pool + _ROUND) == seen and me < load(pool + _THREADS):
            _take(pool, me)
        add(pool + _BUSY, -1)
    add(pool + _ALIVE, -1)
    return 0


@register_jitable  # type: ignore[untyped-decorator]
def _next_round(pool: int, seen: int) -> int:
    """Wait until chunks are offered that this thread has not seen; -1 at the end.

    Who is woken looks for work as long as any other, also when what it was woken for is done:
    steps follow each other, and the next one finds it awake.
    """
    while True:
        for _ in range(_PATIENCE):
            if load(pool + _STOP) != 0:
                return -1
            number = load(pool + _ROUND)
            if number % 2 == 1 and number != seen:
                return number  # type: ignore[no-any-return]
            pause()
        _lock(pool + _MUTEX, 0)
        add(pool + _ASLEEP, 1)
        number = load(pool + _ROUND)
        if number % 2 == 0 or number == seen:
            while load(pool + _ROUND) == number and load(pool + _STOP) == 0:
                _wait(pool + _CONDITION, pool + _MUTEX)
        add(pool + _ASLEEP, -1)
        _unlock(pool + _MUTEX, 0)


@register_jitable  # type: ignore[untyped-decorator]
def _take(pool: int, me: int) -> None:
    """Do chunks, those of the own range first, until none is left."""
    function, job = load(pool + _FUNCTION), load(pool + _JOB)
    total, threads = load(pool + _TOTAL), load(pool + _THREADS)
    several = min(max(total // (_SHARES * threads), 1), _MOST_AT_ONCE)
    for turn in range(threads):
        whose = (me + turn) % threads
        end = total * (whose + 1) // threads
        while True:
            chunk = add(pool + _NEXT + _LINE * whose, several)
            if chunk >= end:
                break
            call(function, job, me, chunk, min(chunk + several, end))


@register_jitable  # type: ignore[untyped-decorator]
def run_chunks(pool: int, threads: int, function: int, job: int, total: int) -> None:
    """Do all chunks of a job, together with the threads of the pool that are awake.

    ``function(job, thread, first, last)`` does chunks from ``first`` to ``last``, this one not
    included; the numbers of threads that are at work at the same time differ.
    """
    if threads == 1 or not claim(pool + _CLAIMED):
        call(function, job, 0, 0, total)
        return
    store(pool + _FUNCTION, function)
    store(pool + _JOB, job)
    store(pool + _TOTAL, total)
    store(pool + _THREADS, threads)
    for whose in range(threads):
        store(pool + _NEXT + _LINE * whose, total * whose // threads)
    number = load(pool + _ROUND) + 1
    store(pool + _ROUND, number)
    # Either this sees a sleeper, or the sleeper-to-be sees the round.
    if load(pool + _ASLEEP) != 0:
        rest = add(pool + _REST, 1)
        if total >= _WORTH_WAKING or rest % _NOW_AND_THEN == 0:
            _broadcast(pool + _CONDITION, 0)
    _take(pool, 0)
    store(pool + _ROUND, number + 1)
    # Either a thread sees that the round is over, or this sees the thread.
    looks = 0
    while load(pool + _BUSY) != 0:
        looks += 1
        if looks > _BEFORE_YIELDING:
            _yield(0, 0)  # it may be waiting for this very processor
        else:
            pause()
    store(pool + _CLAIMED, 0)


class Pool:
    """The threads of this process, made when the first large step needs them."""

    def __init__(self, compile: Callable[[Callable[..., Any], str], Callable[..., Any]]) -> None:
        self._compile = compile
        bytes_needed = _NEXT + _LINE * MOST_THREADS
        self._memory = np.zeros(bytes_needed + _LINE, np.uint8)  # never freed: threads look at it
        self.address: int = -(-arrays.address(self._memory) // _LINE) * _LINE
        self._made = 0
        self._over = not all(map(llvmlite.binding.address_of_symbol, _SYSTEM))
        self._lock = threading.Lock()
        if not self._over:
            atexit.register(self._stop)
            os.register_at_fork(after_in_child=self._forget)

    def threads(self, wanted: int) -> int:
        """Return how many threads a step can share its chunks among; make those that lack."""
        if self._made < wanted - 1 and not self._over:
            with self._lock:
                self._make(min(wanted, MOST_THREADS))
        return min(wanted, self._made + 1)

    def _make(self, wanted: int) -> None:
        served = self._compile(serve, "serve")
        if self._made == 0:
            served(self.address, 0)
        while self._made < wanted - 1:
            me = self._made + 1
            helper = threading.Thread(
                target=served, args=(self.address, me), name=f"fastopt-{me}", daemon=True
            )
            try:
                helper.start()
            except RuntimeError:  # no more threads, or the interpreter is about to end
                self._over = True
                return
            self._made = me

    def _stop(self) -> None:
        """End the threads: compiled code must not run while the interpreter is taken down."""
        with self._lock:
            self._over, made, self._made = True, self._made, 0
        if made:
            served = self._compile(serve, "serve")
            deadline = time.monotonic() + 1.0
            while served(self.address, -1) and time.monotonic() < deadline:
                time.sleep(1e-4)

    def _forget(self) -> None:
        """Begin anew in the child of a fork, which has none of the threads."""
        self._memory[:] = 0
        self._made, self._lock = 0, threading.Lock()
