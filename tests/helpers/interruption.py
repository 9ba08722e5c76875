"""Interrupting a call at each of its lines."""

from __future__ import annotations

import dis
import itertools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fastopt

PACKAGE = str(Path(fastopt.__file__).parent)  # also where the tests run against the wheel


def interrupted(call: Callable[[], None], at: int) -> bool | None:
    """Send SIGINT where Python would handle one for the ``at``-th time inside the package.

    That is after a call, on entry to a function and on jumping back. Returns whether
    KeyboardInterrupt came out of the call; None if there is no such place any more.
    """
    seen = 0

    def arrive(_: FrameType) -> None:
        nonlocal seen
        seen += 1
        if seen > at:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)

    try:
        _traced(call, arrive)
    except KeyboardInterrupt:
        return True
    return False if seen > at else None


def places_of(call: Callable[[], None]) -> list[int]:
    """Make a call; return the numbers of the places in it that are to be tried.

    These are all of its code, by where it is and from where that was called: what comes more often,
    as in a loop, the first two times and the last time.
    """
    met: dict[Any, list[int]] = {}
    count = itertools.count()

    def arrive(frame: FrameType) -> None:
        caller = frame.f_back
        here = frame.f_code, frame.f_lasti, caller and (caller.f_code, caller.f_lasti)
        met.setdefault(here, []).append(next(count))

    _traced(call, arrive)
    return sorted({at for each in met.values() for at in (*each[:2], each[-1])})


def _traced(call: Callable[[], None], arrive: Callable[[FrameType], None]) -> None:
    """Make a call, and another one at each place of the package where Python handles signals."""
    previous: dict[Any, str] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            here = previous.get(frame, "RESUME")
            previous[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if here.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                arrive(frame)
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)


whole_traces = pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="sys.settrace leaves out opcodes from Python 3.12 on; random interrupts run everywhere",
)
