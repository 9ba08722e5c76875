"""Gradients that a step should not take: not finite, or with squares that float32 does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastopt.group import Group


class Misfit(NamedTuple):
    """What is wrong with a gradient, beginning with its name, and what to do."""

    what: str
    advice: str


def nonfinite(groups: Sequence[Group]) -> Misfit:
    """Return where the first NaN or infinity in a step's gradients stands."""
    places = (group.nonfinite() for group in groups)
    return Misfit(
        f"{next(filter(None, places))} holds NaN or infinity",
        "Look at the loss and at what it divides by; on_nonfinite='skip' leaves such steps out.",
    )


def too_large(groups: Sequence[Group], scale: float) -> Misfit:
    """Return which gradient is the longest of a step in which squares overflow.

    ``scale`` is what multiplies the gradients: grad_scale and clipping.
    """
    path, norm = max((one for group in groups for one in group.norms()), key=lambda one: one[1])
    return Misfit(
        f"{path} has a norm of {norm * abs(scale):.3g}, after grad_scale and clipping, the largest "
        "of all: it is finite, but its squares overflow float32",
        "Choose a smaller grad_scale, set max_grad_norm, or construct the optimizer with "
        "state_dtype='float64'; on_nonfinite='skip' leaves such steps out.",
    )
