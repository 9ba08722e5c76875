"""Where all parameters lie in memory, to find a gradient that shares it with one of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.tree import Leaf


class Extents:
    """Where all parameters lie in memory, to find a gradient that shares it with one of them."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._leaves = sorted(
            (leaf for leaf in leaves if leaf.array.size), key=lambda leaf: arrays.extent(leaf.array)
        )
        bounds = [arrays.extent(leaf.array) for leaf in self._leaves]
        self.low = np.array([low for low, _ in bounds], np.intp)
        # The highest address of this parameter and of all before it: extents of strided ones nest.
        high = np.array([high for _, high in bounds], np.intp)
        self.high: Array = np.maximum.accumulate(high) if len(high) else high
        self._lows, self._highs = self.low.tolist(), self.high.tolist()
        owners = [_owner(leaf) for leaf in leaves]
        # Where every parameter's memory is known to belong to a NumPy array, another array that
        # has memory of its own needs no look at addresses.
        known = all(type(o) is np.ndarray and o.flags.owndata for o in owners)
        self._owners = {id(owner): owner for owner in owners} if known else None

    def check_apart(self, grad: Array, path: str) -> None:
        """Raise ValueError if a gradient shares memory with a parameter, which is written."""
        owners, owns = self._owners, type(grad) is np.ndarray and grad.flags.owndata
        if owns and owners is not None and id(grad) not in owners:
            return  # memory of its own, of which no parameter is a view
        low, high = arrays.extent(grad)
        position = bisect_left(self._lows, high) - 1
        while position >= 0 and self._highs[position] > low:
            leaf = self._leaves[position]
            if arrays.share_memory(grad, leaf.array):
                raise ValueError(
                    f"{path} shares memory with {leaf.path}, which the step writes; "
                    "hand in a gradient with memory of its own"
                )
            position -= 1


def _owner(leaf: Leaf) -> object:
    """Return what holds the memory that a parameter is a view of."""
    owner: object = leaf.array
    while (base := getattr(owner, "base", None)) is not None:
        owner = base
    return owner
