"""State in 16 and 8 bits as it stands in a state_dict, and whether what was saved is stored alike.

The codes of 16 bits are bfloat16 arrays. Those of 8 bits are uint8 arrays in the parameter's shape
(complex numbers are pairs, on a last axis), and ``<slot>_scale`` has the scales of their blocks.
Blocks are consecutive in memory, so where a parameter is not in C order the entry has its "order".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.formats import Format
from fastopt.slots import SCALE

ORDER = "order"


def shown(array: Array) -> Array:
    """Return a slot as it stands in a state_dict: codes of 16 bits as bfloat16."""
    return array.view(_bfloat16()) if array.dtype == np.uint16 else array


def raw(array: Array) -> Array:
    """Return a slot of a state_dict as it is stored."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def order_of_blocks(param: Array, format: Format) -> dict[str, list[int]]:
    """Return what an entry says of the memory order of a parameter: nothing if it is C order.

    The axes by decreasing stride, ~axis for one that runs backwards.
    """
    order = arrays.layout_of(param).order if format.state == "int8" else []
    return {ORDER: order} if order else {}


def misfit(
    name: str, saved: Mapping[str, Any], slots: Mapping[str, Array], order: Mapping[str, Any]
) -> str | None:
    """Return in what an entry is stored otherwise than these slots; None if it is stored alike."""
    for slot, array in slots.items():
        here, there = kind_of(array), kind_of(saved.get(slot))
        if there is not None and here != there and not slot.endswith(SCALE):
            here, there = (
                str(found.dtype.name) if kind == "real" else kind
                for found, kind in ((array, here), (saved[slot], there))
            )
            return (
                f"state:{name}.{slot}: expected {here}; got {there}. Construct the optimizer with "
                "the state_dtype of the saved one, or convert"
            )
    there, here = (str(found.get(ORDER, "in C order")) for found in (saved, order))
    if there != here:  # as text: arrays have no truth value
        return (
            f"state:{name}: expected axes by decreasing stride {here}; got {there:.200}. Blocks of "
            "8-bit state are consecutive in memory, so give the parameter the order it had"
        )
    return None


def kind_of(array: Any) -> str | None:
    """Return how the numbers of a slot are stored, as a Format says it; None for no array."""
    if not isinstance(array, np.ndarray) and arrays.kind(array) is None:
        return None
    kinds = {"uint8": "int8", "uint16": "bfloat16", "bfloat16": "bfloat16"}
    return kinds.get(array.dtype.name, "real")


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            "state in bfloat16 becomes NumPy arrays of that dtype, which ml_dtypes has; pip "
            "install ml_dtypes"
        ) from error
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
