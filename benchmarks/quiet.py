"""Whether the machine was quiet: how much of the processors others took while we measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Seconds of processor time so far: of all processes, of this one, and idle time."""

    busy: float
    own: float
    idle: float

    @classmethod
    def now(cls) -> Usage | None:
        """Read the kernel's count; None where it keeps none."""
        try:
            first = Path("/proc/stat").read_text().splitlines()[0]
            ticks = [int(word) for word in first.split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        second = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
        # What a hypervisor gave to other machines ("steal") is among the rest.
        return cls((sum(ticks) - idle) / second, sum(os.times()[:4]), idle / second)


def others_since(before: Usage | None) -> float | None:
    """Return which share of all processors went to others since then; None if it is not known."""
    now = Usage.now()
    if before is None or now is None:
        return None
    busy, idle = now.busy - before.busy, now.idle - before.idle
    return max(0.0, busy - (now.own - before.own)) / (busy + idle)
