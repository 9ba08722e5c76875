"""What a backend offers on whose device the scale of a loss can be kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastopt.arrays import Array
from fastopt.scale_policy import Scale

Answer = tuple[Array, int]
"""Where it stands whether a step was made: memory of the device, and the place in it."""


class ScaleTold(NamedTuple):
    """What the device says; ``given_up`` are skips in a row that were too many (0: none)."""

    scale: Scale
    given_up: int


class ScaleMemory(Protocol):
    """A scale in a device's memory."""

    @property
    def device(self) -> int | None:
        """The number of the device."""

    @property
    def inverse(self) -> Array:
        """What gradients are multiplied by, of shape ()."""

    def factor(self, dtype: np.dtype[Any]) -> Array:
        """Return what a loss is multiplied by, of shape () and in float32 or float64."""

    def here(self) -> AbstractContextManager[Any]:
        """Return a context for work on the device."""

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph instead of being run."""

    def send(self, scale: Scale) -> None:
        """Write the scale and what is counted."""

    def place(self) -> Answer:
        """Return a place for the answer whether the coming step is made."""

    @property
    def place_of_captured(self) -> Answer:
        """The place for what nobody can ask."""

    def follow(self, counts: Array, answer: Answer) -> None:
        """Launch what brings the scale up to date after a decision."""

    def request(self) -> None:
        """Have all of it copied to the host, some time; ``arrived`` returns it."""

    def arrived(self) -> ScaleTold | None:
        """Return what was asked for, once, if it is here; else None."""

    def fetch(self) -> ScaleTold:
        """Wait for all that the device has to do, and return what it says."""

    def answer(self, given: Answer) -> bool:
        """Wait, and return whether a step was made."""

    def forget_given_up(self) -> None:
        """Write that the host has heard of too many skips."""
