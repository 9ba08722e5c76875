"""Runs PTX, the assembly that NVRTC makes of a kernel, on the CPU: a lane of NumPy per thread.

A register is an array with one element per thread. The threads whose next instruction comes first
in the text run it together, which brings threads back together after a branch. What a device does
wrong silently is an error here: memory that nobody allocated, addresses that are no multiple of
the width of the access, and words that one thread writes and another one touches.

It knows the instructions of elementwise kernels, shared memory, and barriers: what the threads of a
block touch is compared from barrier to barrier, and all that have not left must come to it. Where
all barriers are those of a warp, so it is for the threads of a warp.
Another instruction is a NotImplementedError.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Lanes = np.ndarray[Any, Any]

TYPES: dict[str, Any] = {
    **{"pred": np.bool_, "f32": np.float32, "f64": np.float64},
    **{"u8": "u1", "b8": "u1", "s8": "i1"},
    **{"u16": "u2", "u32": "u4", "u64": "u8", "b16": "u2", "b32": "u4", "b64": "u8"},
    **{"s16": "i2", "s32": "i4", "s64": "i8"},
}
REGISTERS = {"p": np.bool_, "rs": "u2", "r": "u4", "rd": "u8", "f": np.float32, "fd": np.float64}

COMPARE: dict[str, Callable[[Lanes, Lanes], Lanes]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b) if a.dtype.kind == "f" else a != b,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)),  # u: true also if one of them is NaN
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
COMPUTE: dict[str, Callable[..., Lanes]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": lambda a, b: a / b if a.dtype.kind == "f" else a // b,
    "rem": np.remainder,
    "mad": lambda a, b, c: a * b + c,
    "rcp": np.reciprocal,  # with .rn rounded as IEEE 754 has it; .approx is refused below
    "sqrt": np.sqrt,
    "abs": np.abs,
    "neg": np.negative,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": lambda a, b: a << b.astype(a.dtype),
    "shr": lambda a, b: a >> b.astype(a.dtype),
    "selp": lambda a, b, p: np.where(p, a, b),
    "prmt": lambda a, b, which: _chosen_bytes(a, b, which),
    "mov": lambda a: a,
}
INEXACT = ("approx", "full", "fma", "ex2", "lg2")


class Fault(AssertionError):
    """A kernel did what it must not do."""


class Memory:
    """The memory that a kernel may touch, and which thread touched what."""

    def __init__(self, regions: Sequence[tuple[int, int]]) -> None:
        self.word = 2
        """The bytes by which accesses are compared: as many as the smallest one has, or fewer."""
        used = sorted((address, size) for address, size in regions if size)
        self._starts = np.array([address for address, _ in used], np.uint64)
        self._ends = self._starts + np.array([size for _, size in used], np.uint64)
        self._bytes = [_bytes_at(address, size) for address, size in used]
        self._touched: dict[str, list[tuple[Lanes, Lanes]]] = {"load": [], "store": []}
        self._before: list[dict[str, list[tuple[Lanes, Lanes]]]] = []

    def load(self, at: Lanes, dtype: Any, count: int, threads: Lanes) -> Lanes:
        """Return ``count`` neighbours per thread, one row each."""
        width = np.dtype(dtype).itemsize * count
        found = np.empty((len(at), width), np.uint8)
        for lanes, region, offsets in self._places(at, width, "load", threads):
            found[lanes] = region[offsets]
        return found.view(dtype).T

    def store(self, at: Lanes, rows: Sequence[Lanes], threads: Lanes) -> None:
        values = np.ascontiguousarray(np.stack(rows, axis=1)).view(np.uint8)
        for lanes, region, offsets in self._places(at, values.shape[1], "store", threads):
            region[offsets] = values[lanes]

    def _places(self, at: Lanes, width: int, what: str, threads: Lanes) -> Any:
        """Yield the accesses region by region, after looking at all of them."""
        if (at % np.uint64(width)).any():
            raise Fault(f"a {what} of {width} bytes is misaligned")
        which = np.searchsorted(self._starts, at, "right").astype(np.intp) - 1
        if (which < 0).any() or (at + np.uint64(width) > self._ends[which]).any():
            raise Fault(f"a {what} of {width} bytes is outside of all arrays")
        count = -(-width // self.word)
        words = at[:, None] // np.uint64(self.word) + np.arange(count, dtype=np.uint64)
        self._touched[what].append((words.ravel(), np.repeat(threads, words.shape[1])))
        within = np.arange(width, dtype=np.uint64)
        for region in np.unique(which):
            lanes = np.flatnonzero(which == region)
            first = at[lanes] - self._starts[region]
            yield lanes, self._bytes[region], first[:, None] + within

    def check_races(self, block: int) -> None:
        """Raise Fault if one thread writes what another one reads or writes.

        Between those of a block there may be a barrier; between blocks there is none.
        """
        for k, now in enumerate(self._all()):
            _check_races(now["store"], [*now["store"], *now["load"]], 1)
            for other in self._all()[:k]:
                _check_races(now["store"], [*other["store"], *other["load"]], block)
                _check_races(other["store"], now["load"], block)

    def _all(self) -> list[dict[str, list[tuple[Lanes, Lanes]]]]:
        return [*self._before, self._touched]

    def barrier(self) -> None:
        """Keep apart what is touched from now on."""
        self._before.append(self._touched)
        self.forget()

    def forget(self) -> None:
        """Begin anew with what was touched."""
        self._touched = {"load": [], "store": []}


def _check_races(
    stores: Sequence[tuple[Lanes, Lanes]], others: Sequence[tuple[Lanes, Lanes]], together: int
) -> None:
    """Compare accesses; so many consecutive threads ``together`` may touch the same."""
    if not stores:
        return
    written, writers = map(np.concatenate, zip(*stores, strict=True))
    words, first = np.unique(written, return_index=True)
    owners = writers[first] // together
    for touched, threads in others:
        place = np.minimum(np.searchsorted(words, touched), len(words) - 1)
        if ((words[place] == touched) & (owners[place] != threads // together)).any():
            raise Fault("one thread writes what another one reads or writes")


def _bytes_at(address: int, size: int) -> Lanes:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class Program:
    """The instructions of one kernel."""

    def __init__(self, ptx: str, name: str) -> None:
        entry = re.search(rf"\.entry {name}\((.*?)\)[^{{]*\{{(.*)\n\}}", ptx, re.DOTALL)
        if entry is None:
            raise ValueError(f"no kernel {name} in this text")
        self.parameters: list[str] = re.findall(r"(\w+)(?:\[\d+\])?,?\s*$", entry[1], re.MULTILINE)
        self.code: list[tuple[str | None, list[str], list[str]]] = []
        self.labels: dict[str, int] = {}
        self.shared = {
            name: int(size) for name, size in re.findall(r"\.shared[^;]* (\w+)\[(\d+)\];", entry[2])
        }
        for line in re.sub(r"//.*", "", entry[2]).split("\n"):
            self._read(line.strip().rstrip(";"))
        small = any(o[0] in ("ld", "st") and o[-1] in ("u8", "b8", "s8") for _, o, _ in self.code)
        self._word = 1 if small else 2
        warps = any(o[:2] == ["bar", "warp"] or o[0] == "redux" for _, o, _ in self.code)
        self.together = 32 if warps else None
        """How many threads wait for each other at a barrier; None: those of a block."""

    def _read(self, line: str) -> None:
        if line.endswith(":"):
            self.labels[line[:-1]] = len(self.code)
        elif line and line[0] not in ".{}":
            parts = re.fullmatch(r"(?:@(!?%p\d+)\s+)?([\w.]+)\s*(.*)", line)
            assert parts is not None, line
            operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", parts[3])
            self.code.append((parts[1], parts[2].split("."), operands))

    def run(self, memory: Memory, arguments: Sequence[bytes], grid: int, block: int) -> None:
        """Run all threads; the arguments are what stands in the kernel's parameters."""
        memory.word = self._word
        with np.errstate(all="ignore"):
            _Run(self, memory, arguments, grid, block).to_the_end()
        memory.check_races(self.together or block)


class _Run:
    """All threads of one launch."""

    def __init__(
        self, program: Program, memory: Memory, arguments: Sequence[bytes], grid: int, block: int
    ) -> None:
        self._program, self._memory = program, memory
        threads = np.arange(grid * block, dtype=np.uint32)
        self._next = np.zeros(len(threads), np.intp)
        self._registers: dict[str, Lanes] = {
            "%tid.x": threads % np.uint32(block),
            "%ctaid.x": threads // np.uint32(block),
            "%ntid.x": np.full_like(threads, block),
            "%nctaid.x": np.full_like(threads, grid),
        }
        pieces = {
            name: [np.full(size, 0xFF, np.uint8) for _ in range(grid)]
            for name, size in program.shared.items()
        }
        self._shared = {
            name: np.array([piece.ctypes.data for piece in of_blocks], np.uint64)
            for name, of_blocks in pieces.items()
        }
        self._shared_pieces = pieces  # kept, so that the addresses stay theirs
        regions = [(p.ctypes.data, p.size) for of_blocks in pieces.values() for p in of_blocks]
        self._shared_memory = Memory(regions)
        self._block, self._chunk = block, program.together or block
        # Parameters have a memory of their own, which begins at 0.
        self._parameters: dict[str, int] = {}
        held = b""
        for name, argument in zip(program.parameters, arguments, strict=True):
            self._parameters[name] = len(held)
            held += argument.ljust(-(-len(argument) // 8) * 8, b"\0")
        self._constant = np.frombuffer(held, np.uint8)

    def to_the_end(self) -> None:
        end = len(self._program.code)
        while (first := int(self._next.min())) < end:
            lanes = np.flatnonzero(self._next == first)
            running = self._next < end
            self._next[lanes] += 1
            guard, operation, operands = self._program.code[first]
            if operation[0] in ("bar", "barrier"):
                here, left = self._blocks_of(lanes), self._blocks_of(np.flatnonzero(running))
                self._meet(guard is None and not ((here > 0) & (here != left)).any())
                continue
            if guard:
                wanted = self._registers[guard.lstrip("!")][lanes]
                lanes = lanes[wanted != guard.startswith("!")]
            if operation[0] == "redux":
                here = self._blocks_of(lanes)
                if operation != ["redux", "sync", "max", "u32"] or here.max(initial=0) > 32:
                    raise NotImplementedError(f"{'.'.join(operation)}: teach it to the interpreter")
                if set(here.tolist()) - {0, 32}:
                    raise Fault("some threads do not come to the maximum of their warp")
                most = self._get(operands[1], "u32", lanes).reshape(-1, 32).max(axis=1)
                self._put(operands[0], np.repeat(most, 32), "u32", lanes)
            elif len(lanes):
                self._step(operation, operands, lanes)

        self._meet(all_are_here=True)

    def _meet(self, all_are_here: bool) -> None:
        """Let the threads of a block go on together."""
        if not all_are_here:
            raise Fault("some threads do not come to the barrier that others wait at")
        self._shared_memory.check_races(self._chunk)
        self._shared_memory.forget()
        self._memory.barrier()

    def _blocks_of(self, lanes: Lanes) -> Lanes:
        """Return how many threads of each block these are."""
        return np.bincount(lanes // self._chunk, minlength=len(self._next) // self._chunk)

    def _step(self, operation: list[str], operands: list[str], lanes: Lanes) -> None:
        name, kind = operation[0], operation[-1]
        if name == "bra":
            self._next[lanes] = self._program.labels[operands[0]]
        elif name in ("ret", "exit"):
            self._next[lanes] = len(self._program.code)
        elif name in ("ld", "st"):
            self._move(operation, operands, lanes)
        elif name == "cvt":
            flush = _flushed if "ftz" in operation else np.asarray
            found = flush(self._get(operands[1], kind, lanes)).astype(TYPES[operation[-2]])
            self._put(operands[0], flush(found), operation[-2], lanes)
        elif name == "cvta":
            self._put(operands[0], self._get(operands[-1], kind, lanes), kind, lanes)
        elif name == "mov" and "{" in operands[0] + operands[1]:
            self._repack(kind, *operands, lanes)
        else:
            self._compute(operation, operands, lanes)

    def _compute(self, operation: list[str], operands: list[str], lanes: Lanes) -> None:
        name, kind = operation[0], operation[-1]
        if (name not in COMPUTE and name != "setp") or set(operation) & {*INEXACT}:
            raise NotImplementedError(f"{'.'.join(operation)}: teach it to the interpreter")
        flush = _flushed if "ftz" in operation else np.asarray
        kinds = [kind] * (len(operands) - 1)
        if name in ("shl", "shr"):
            kinds[1] = "u32"
        if name == "selp":
            kinds[2] = "pred"
        given = [flush(self._get(x, k, lanes)) for x, k in zip(operands[1:], kinds, strict=True)]
        if name == "setp":
            self._put(operands[0], COMPARE[operation[1]](*given), "pred", lanes)
            return
        if "wide" in operation:
            kind = f"{kind[0]}64"
            given = [value.astype(TYPES[kind]) for value in given]
        self._put(operands[0], flush(COMPUTE[name](*given)), kind, lanes)

    def _repack(self, kind: str, to: str, given: str, lanes: Lanes) -> None:
        """Cut a register into several, the lowest bits first, or put one together of several."""
        names = re.findall(r"[%\w]+", to if "{" in to else given)
        part = f"b{int(kind[1:]) // len(names)}"
        if "{" in to:
            parts = self._get(given, kind, lanes).view(TYPES[part]).reshape(-1, len(names))
            for name, row in zip(names, parts.T, strict=True):
                if name != "_":
                    self._put(name, row, part, lanes)
        else:
            rows = np.stack([self._get(name, part, lanes) for name in names], axis=1)
            self._put(to, rows.view(TYPES[kind])[:, 0], kind, lanes)

    def _move(self, operation: list[str], operands: list[str], lanes: Lanes) -> None:
        """Load or store: parameters, or global memory."""
        load = operation[0] == "ld"
        place, registers = operands[::-1] if load else operands
        names = re.findall(r"%\w+", registers)
        base, _, offset = place.strip("[]").partition("+")
        at = self._get(base, "u64", lanes) + np.uint64(int(offset or 0) % 2**64)
        dtype = np.dtype(TYPES[operation[-1]])
        memory = self._shared_memory if operation[1] == "shared" else self._memory
        if not load:
            rows = [self._get(name, operation[-1], lanes) for name in names]
            memory.store(at, rows, lanes)
            return
        if operation[1] == "param":
            bytes_of = at.astype(np.intp)[:, None] + np.arange(dtype.itemsize * len(names))
            found = self._constant[bytes_of].view(dtype).T
        else:
            found = memory.load(at, dtype, len(names), lanes)
        for name, row in zip(names, found, strict=True):
            self._put(name, row, operation[-1], lanes)

    def _get(self, operand: str, kind: str, lanes: Lanes) -> Lanes:
        dtype = np.dtype(TYPES[kind])
        if operand in self._parameters:
            return np.full(len(lanes), self._parameters[operand], dtype)
        if operand in self._shared:
            return self._shared[operand][lanes // self._block].astype(dtype)
        if operand in self._registers:
            held = self._registers[operand][lanes]
            return held.view(dtype) if held.itemsize == dtype.itemsize else held.astype(dtype)
        if operand[:2] in ("0f", "0d"):
            bits = np.array(int(operand[2:], 16), "u4" if operand[1] == "f" else "u8")
            return np.full(len(lanes), bits.view(dtype))
        number = np.array(int(operand) % 2 ** (8 * dtype.itemsize), f"u{dtype.itemsize}")
        return np.full(len(lanes), number.view(dtype))

    def _put(self, register: str, values: Lanes, kind: str, lanes: Lanes) -> None:
        dtype = np.dtype(REGISTERS[re.sub(r"\W|\d", "", register)])
        held = self._registers.setdefault(register, np.zeros(len(self._next), dtype))
        values = values.astype(TYPES[kind])
        if values.itemsize < dtype.itemsize:  # a load fills the rest of a register with its sign
            values = values.astype(f"{values.dtype.kind}{dtype.itemsize}")
        held[lanes] = values.view(dtype)


def _chosen_bytes(low: Lanes, high: Lanes, which: Lanes) -> Lanes:
    """Return the bytes that the four lowest hexadecimal digits choose from two words."""
    words = low.astype("u8") | high.astype("u8") << np.uint64(32)
    chosen = [
        (words >> (8 * (which >> np.uint32(4 * k) & np.uint32(7))).astype("u8") & np.uint64(255))
        << np.uint64(8 * k)
        for k in range(4)
    ]
    return np.bitwise_or.reduce(chosen).astype("u4")


def _flushed(values: Lanes) -> Lanes:
    """Return float32 values with denormal ones turned to zero, signs kept."""
    if values.dtype != np.float32:
        return values
    denormal = np.abs(values) < np.finfo(np.float32).smallest_normal
    return np.where(denormal, np.copysign(np.float32(0), values), values)
