"""What the step has to reach on a GPU, and whether it does: read from the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_bandwidth import BYTES_PER_ELEMENT, COPY, TRAFFIC
from targets import Target, at, find, ratio

OURS, FUSED = "fastopt", "torch fused"
SHARE_OF_COPY = SHARE_OF_PEAK = 0.92
HOST_RATIOS = {(300, 10_000): 3.0, (1_000, 10_000): 3.0}


def targets(results: Mapping[str, Any]) -> list[Target]:
    """Return every target with what was measured."""
    return [
        _bandwidth(results),
        _peak(results),
        *_device(results),
        *_host(results),
    ]


def _bandwidth(results: Mapping[str, Any]) -> Target:
    row, text = results["sizes"][-1], "share of the copy's bandwidth"
    times = row["device"]
    if not {OURS, COPY} <= times.keys():
        return Target(text, SHARE_OF_COPY, None)
    copies, spread = ratio(times, COPY, OURS)
    share = copies * BYTES_PER_ELEMENT[TRAFFIC] / BYTES_PER_ELEMENT[COPY]
    size = at((row["arrays"], row["elements"]))
    return Target(f"{text}, {size}", SHARE_OF_COPY, share, spread)


def _peak(results: Mapping[str, Any]) -> Target:
    """What Adam moves in a second, as a share of what the memory can at its clock."""
    row, text = results["sizes"][-1], "share of the memory's peak"
    times, peak = row["device"], results["gpu"].get("peak")
    if not peak or OURS not in times:
        return Target(text, SHARE_OF_PEAK, None)
    moved = BYTES_PER_ELEMENT[TRAFFIC] * row["arrays"] * row["elements"]
    own = times[OURS]
    size = at((row["arrays"], row["elements"]))
    share = moved / own["median"] / peak
    return Target(f"{text}, {size}", SHARE_OF_PEAK, share, own["high"] / own["low"])


def _device(results: Mapping[str, Any]) -> Iterator[Target]:
    """At least as fast as PyTorch's fused Adam in every row."""
    pairs = {
        "sizes": (FUSED, OURS),
        "clipping": ("torch clip_grad_norm_, fused", "fastopt max_grad_norm"),
        "graphs": ("torch fused, graph", "fastopt graph"),
    }
    for part, names in pairs.items():
        for row in results[part]:
            size = (row["arrays"], row["elements"])
            text = f"{names[0]} / {names[1]}, {at(size)}, on the device"
            yield Target(text, 1.0, *find(results[part], size, "device", *names))


def _host(results: Mapping[str, Any]) -> Iterator[Target]:
    for size, limit in HOST_RATIOS.items():
        text = f"{FUSED} / {OURS}, {at(size)}, on the host"
        yield Target(text, limit, *find(results["sizes"], size, "host", FUSED, OURS))
