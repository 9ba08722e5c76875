"""A momentum buffer that another library keeps times its learning rate: ours are without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt.arrays import Array
from fastopt.errors import CheckpointError


def divide_buffer(
    slots: Mapping[str, tuple[str, Array]], lr: Any, sign: float, name: str
) -> dict[str, tuple[str, Array]]:
    """Return the slots of a parameter with ``buf`` divided by a learning rate and a sign.

    What rate it was when the buffer was gathered makes no difference: the steps go on as they would
    have there as long as the rate stays what it is now.
    """
    if "buf" not in slots:
        return dict(slots)
    place, array = slots["buf"]
    if callable(lr) or not lr:
        raise CheckpointError(
            f"{place} is kept times the learning rate, which must be a number above 0 to divide by "
            f"it; the lr of {name} is {lr!r}"
        )
    if array.dtype.kind not in "fc":
        raise CheckpointError(f"{place} must be floating; got {array.dtype}")
    wide = array.astype(np.result_type(array.dtype, np.float64))
    with np.errstate(all="ignore"):  # what overflows becomes infinite, as in a step
        divided = (wide / (sign * lr)).astype(array.dtype)
    return {**slots, "buf": (place, divided)}
