"""Times of a step of all contenders at one size, on the host and on the device."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import gpu_bandwidth
import gpu_timing
import numpy as np
from checks import away_from_zero, end, wrong_steps
from contenders import Array, Classes, Contender
from gpu_contenders import cupy
from steps import check_moved

from fastopt.cli.timing import Effort, Turn

TILE = 1 << 20
"""Elements that are drawn at random; longer arrays repeat them."""

LEAST = 4_000_000
"""Parameters below which the largest size does not go: the device's cache would hold everything."""


def measure(
    classes: Classes, size: tuple[int, int], effort: Effort, bandwidth: bool = False
) -> dict[str, Any]:
    """Return ``{"arrays": ..., "elements": ..., "host": {name: times}, "device": ...}``.

    With ``bandwidth`` a copy and Adam's bare traffic take part too. ``"left_out"`` says who fails
    at this size, and why: all must make the same first three steps, which are checked, and in the
    end all must have moved on by as many steps as were timed.
    """
    arrays, elements = size
    params = [_numbers(elements, number) for number in range(arrays)]
    grads = [away_from_zero(_numbers(elements, arrays + number)) for number in range(arrays)]
    made, left_out = _made(classes, params, grads)
    turns = {name: Turn(one.step, getattr(one, "prepare", None)) for name, one in made.items()}
    before = {name: end(contender.result(0)) for name, contender in made.items()}
    host = gpu_timing.host_times(turns, effort)
    if bandwidth:
        turns |= gpu_bandwidth.turns(arrays * elements)
    device = gpu_timing.device_times(turns, effort)
    for name, contender in made.items():
        try:
            count = host[name].count + device[name].count
            check_moved(name, before[name], end(contender.result(0)), count)
        except RuntimeError as error:
            left_out[name] = str(error)
    return {
        "arrays": arrays,
        "elements": elements,
        "host": {name: asdict(t) for name, t in host.items() if name not in left_out},
        "device": {name: asdict(t) for name, t in device.items() if name not in left_out},
        "left_out": left_out,
    }


def _numbers(elements: int, seed: int) -> Array:
    piece = np.random.default_rng(seed).standard_normal(min(elements, TILE), np.float32)
    return np.resize(piece, elements)


def _made(
    classes: Classes, params: Sequence[Array], grads: Sequence[Array]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders that make the first steps rightly, and of the others the reason."""
    made: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for contender in classes:
        try:
            one = contender(params)
            reason = wrong_steps(one, params, grads)
        except Exception as error:  # no memory, a driver that refuses: the others go on
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if reason:
            left_out[contender.name] = reason
        else:
            made[contender.name] = one
    return made, left_out


def largest_fitting(classes: Classes, elements: int) -> int:
    """Return the size of one array, halved until all contenders fit on the device together."""
    free, _ = cupy().cuda.Device().mem_info
    # Four arrays of each contender, four for the bandwidth, and for each of the two libraries
    # eight that it keeps for temporaries.
    arrays = 4 * len(classes) + 4 + 2 * 8
    while elements > LEAST and 4 * elements * arrays > 0.9 * free:
        elements //= 2
    return elements


def give_memory_back() -> None:
    """Hand what earlier sizes used back to the device, so that every library can have it."""
    gc.collect()
    cupy().get_default_memory_pool().free_all_blocks()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()
