"""The machine code of kernels: registers, spills, and how many instructions an element takes.

It is taken apart by nvdisasm (pip install nvidia-cuda-nvdisasm). No device is needed.
"""

from __future__ import annotations

import heapq
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from helpers.cuda import nvrtc

REGISTERS, THREADS = 65_536, 2_048
"""Of a multiprocessor: Ampere, Hopper and Blackwell of data centres."""

_LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([\w.]+)\s*(.*?)\s*;")
_LABEL = re.compile(r"(\.L_x_\d+):")
_TO = re.compile(r"\((\.L_x_\d+)\)")


@cache
def disassembler() -> str | None:
    """Return nvdisasm, from its package or from a toolkit; None if there is neither."""
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        if tools := sorted(Path(folder).glob("*/bin/nvdisasm")):
            return str(tools[-1])
    return shutil.which("nvdisasm")


class Instruction(NamedTuple):
    """An instruction, the predicate that it goes by, if any, and what it works on."""

    guard: str | None
    operation: str
    operands: str

    @property
    def name(self) -> str:
        """The operation without its kind."""
        return self.operation.split(".")[0]

    @property
    def moves_16_bytes(self) -> bool:
        """Whether it is a load or a store of so many."""
        return self.name in ("LDG", "LD", "STG", "ST") and ".128" in self.operation


class Code(NamedTuple):
    """What the compiler makes of a kernel."""

    registers: int
    spilled: int
    instructions: list[Instruction]
    labels: dict[str, int]

    def blocks(self, threads: int) -> int:
        """Return how many blocks of so many threads a multiprocessor holds."""
        return min(REGISTERS // (-(-self.registers // 8) * 8), THREADS) // threads

    def way(self) -> list[Instruction]:
        """Return the shortest way to the end through all loads and stores of 16 bytes.

        It leaves out what is for few: decay, denormal divisors, tails, gaps.
        """
        wide = [k for k, one in enumerate(self.instructions) if one.moves_16_bytes]
        bit = {k: 1 << n for n, k in enumerate(wide)}
        start, full = (0, 0), (1 << len(wide)) - 1
        before: dict[tuple[int, int], tuple[int, int] | None] = {start: None}
        waiting = [(0, *start)]
        while waiting:
            length, k, seen = heapq.heappop(waiting)
            if k == len(self.instructions):
                if seen == full:
                    return list(self._back(before, (k, seen)))
                continue
            seen_now = seen | bit.get(k, 0)
            for after in self._after(k):
                if (after, seen_now) not in before:  # each step is as long as any other
                    before[after, seen_now] = (k, seen)
                    heapq.heappush(waiting, (length + 1, after, seen_now))
        raise ValueError("no way goes through all loads and stores of 16 bytes")

    def _back(
        self, before: dict[tuple[int, int], tuple[int, int] | None], at: tuple[int, int]
    ) -> Iterator[Instruction]:
        place = before[at]
        while place is not None:
            yield self.instructions[place[0]]
            place = before[place]

    def _after(self, k: int) -> list[int]:
        """Return which instructions can come next; the number of them all is the end."""
        one, end = self.instructions[k], len(self.instructions)
        to = _TO.search(one.operands)
        goes_on = [k + 1] if one.guard or re.match(r"!?U?P\d", one.operands) else []
        if one.name == "EXIT":
            return [end, *goes_on]
        if one.name == "BRA" or (one.name == "CALL" and to):
            assert to, one
            divergent = [k + 1] if ".DIV" in one.operation else []
            return [self.labels[to[1]], *goes_on, *divergent]
        if one.name in ("CALL", "RET", "BRX", "JMP"):  # functions for denormal numbers
            return []
        return [k + 1]


def code_of(kernel: Any, architecture: int) -> Code:
    """Return the machine code of a cupy.ElementwiseKernel."""
    said = nvrtc.said_of_machine_code(kernel, architecture)
    registers = re.search(r"Used (\d+) registers", said)
    assert registers, said
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    tool = disassembler()
    assert tool, "needs nvdisasm: pip install nvidia-cuda-nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(nvrtc.machine_code(kernel, architecture))
        file.flush()
        done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in done.stdout.split(f".text.{kernel.name} ", 1)[1].splitlines():
        if line.startswith("//----"):
            break
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _LINE.match(line):
            instructions.append(Instruction(*found.groups()))
    return Code(int(registers[1]), spilled, instructions, labels)
