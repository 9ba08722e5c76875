"""The scale of a loss as a device keeps it, beside the decisions that it follows."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.backends.cupy_launch import Kernels
from fastopt.backends.cupy_scale_source import SCALES, TALLIES, rescale
from fastopt.backends.cupy_told import Told
from fastopt.backends.scale_memory import Answer, ScaleTold
from fastopt.scale_policy import Scale, ScalePolicy

ANSWERS = 1024
"""Steps whose outcomes share a piece of memory; it is kept as long as one of them may be read."""

_TALLIES = len(SCALES)  # where they begin
_SINGLES = _TALLIES + len(TALLIES)
_MOST = 2**63 - 1


class CupyScale:
    """The memory of a scale, all of it on the current device; it stays where it is."""

    def __init__(self, kernels: Kernels, policy: ScalePolicy) -> None:
        self._kernels = kernels
        self._cupy = kernels.cupy
        counts = {"growth_interval": policy.growth_interval, "max_skips": policy.max_skips}
        self._policy = policy._replace(**{k: min(v, _MOST) for k, v in counts.items()})
        self._told = Told(self._cupy, _SINGLES + 1)
        memory = self._told.memory
        self._scales = memory[:_TALLIES].view(np.float64)
        self._tallies = memory[_TALLIES:_SINGLES]
        self._singles = memory[_SINGLES:].view(np.float32)
        self._of_captured = (self._cupy.zeros(1, np.int64), 0)
        self._answers, self._next = self._cupy.zeros(ANSWERS, np.int64), 0
        # Once before it counts, so that it is compiled when a step is captured.
        self.follow(self._cupy.zeros(1, np.int64), self._of_captured)

    @property
    def device(self) -> int | None:
        """The number of the device."""
        return arrays.device(self._scales)

    def here(self) -> AbstractContextManager[Any]:
        """Return a context for work on the device."""
        return arrays.on_device_of(self._scales)

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph instead of being run."""
        return arrays.capturing(self._scales)

    @property
    def inverse(self) -> Array:
        """What gradients are multiplied by, of shape ()."""
        return self._scales[1]  # type: ignore[no-any-return]  # cupy's

    def factor(self, dtype: np.dtype[Any]) -> Array:
        """Return what a loss is multiplied by, of shape () and in float32 or float64."""
        scales = self._singles if dtype == np.float32 else self._scales
        return scales[0]  # type: ignore[no-any-return]  # cupy's

    def send(self, scale: Scale) -> None:
        """Write the scale and what is counted."""
        told = np.zeros(_SINGLES + 1, np.int64)
        both = np.array([scale.value, 1.0 / scale.value])
        told[:_TALLIES].view(np.float64)[:] = both
        told[_TALLIES:_SINGLES] = (scale.good_steps, scale.skips, 0)
        with np.errstate(over="ignore"):
            told[_SINGLES:].view(np.float32)[:] = both
        self._told.write(told)

    # A step ------------------------------------------------------------------------------------

    def place(self) -> Answer:
        """Return a place for the answer whether the coming step is made."""
        if self._next == ANSWERS:
            self._answers, self._next = self._cupy.zeros(ANSWERS, np.int64), 0
        self._next += 1
        return self._answers, self._next - 1

    @property
    def place_of_captured(self) -> Answer:
        """The place for what nobody can ask."""
        return self._of_captured

    def follow(self, counts: Array, answer: Answer) -> None:
        """Launch what brings the scale up to date after a decision."""
        answers, place = answer
        written = (self._scales, self._tallies, self._singles, answers)
        self._kernels.of(rescale)(counts, *self._policy, place, *written, size=1)

    # What the device says ----------------------------------------------------------------------

    def request(self) -> None:
        """Have all of it copied to the host, some time; ``arrived`` returns it."""
        if not self._told.requested:
            self._told.request()

    def arrived(self) -> ScaleTold | None:
        """Return what was asked for, once, if it is here; else None."""
        told = self._told.arrived()
        return None if told is None else _read(told)

    def fetch(self) -> ScaleTold:
        """Wait for all that the device has to do, and return what it says."""
        return _read(self._told.fetch())

    def answer(self, given: Answer) -> bool:
        """Wait, and return whether a step was made."""
        answers, place = given
        self._cupy.cuda.Device(self.device).synchronize()
        return bool(arrays.on_host(answers[place : place + 1])[0])

    def forget_given_up(self) -> None:
        """Write that the host has heard of too many skips."""
        self._tallies[TALLIES.index("given_up")] = 0


def _read(told: Array) -> ScaleTold:
    value = float(told[:1].view(np.float64)[0])
    good_steps, skips, given_up = told[_TALLIES:_SINGLES].tolist()
    return ScaleTold(Scale(value, good_steps, skips), given_up)
