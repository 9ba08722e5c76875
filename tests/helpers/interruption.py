"""Interrupting a call at each of its lines."""

from __future__ import annotations

import dis
import signal
import sys
from collections.abc import Callable
from pathlib import Path
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
    previous: dict[Any, str] = {}

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            here = previous.get(frame, "RESUME")
            previous[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if here.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                seen += 1
                if seen > at:
                    sys.settrace(None)
                    signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False if seen > at else None


whole_traces = pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="sys.settrace leaves out opcodes from Python 3.12 on; random interrupts run everywhere",
)
