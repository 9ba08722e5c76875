"""One parameter as a backend sees it: flat, with a place in the state arena."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array, Layout
from fastopt.errors import BackendMismatchError
from fastopt.tree import Leaf


@dataclass(frozen=True, slots=True)
class Parameter:
    """A leaf together with what a driver needs of it.

    ``flat`` is the array's own memory where its elements stand one after another, otherwise a copy
    that ``gather`` fills before an update and ``scatter`` writes back after it.
    """

    leaf: Leaf
    layout: Layout
    flat: Array
    copied: bool
    offset: int
    address: int
    everywhere: Extents

    @classmethod
    def of(cls, leaf: Leaf, offset: int, everywhere: Extents) -> Parameter:
        """Lay out a leaf whose state begins at ``offset`` in its bucket's arena.

        ``everywhere`` tells where all parameters of the optimizer lie.
        """
        layout, address = arrays.layout_of(leaf.array), arrays.address(leaf.array)
        flat = arrays.flat_view(leaf.array, layout)
        if flat is None:
            with arrays.on_device_of(leaf.array):
                copy = layout.turn(leaf.array).flatten()
            return cls(leaf, layout, copy, True, offset, address, everywhere)
        return cls(leaf, layout, flat, False, offset, address, everywhere)

    def gather(self) -> None:
        """Copy the array into ``flat``."""
        with arrays.on_device_of(self.flat):
            self.layout.unturn(self.flat)[...] = self.leaf.array

    def scatter(self) -> None:
        """Copy ``flat`` into the array."""
        with arrays.on_device_of(self.flat):
            self.leaf.array[...] = self.layout.unturn(self.flat)

    def state_view(self, slot: Array) -> Array:
        """Return the parameter's piece of one slot of the arena, in the parameter's shape."""
        return self.layout.unturn(slot[self.offset : self.offset + self.flat.size])

    def usual_strides(self) -> tuple[int, ...] | None:
        """Return the strides of a gradient that can be read flat as it stands; None if none can."""
        return None if self.layout.flipped else self.layout.unturn(self.flat).strides

    def check_array(self, now: object) -> None:
        """Raise if the user's tree no longer holds the array, or it cannot be updated any more."""
        array = self.leaf.array
        if now is not array:
            raise ValueError(
                f"{self.leaf.path} is no longer the array that the optimizer was given, so it "
                "would not be trained. Write into it (params[...][...] = value), or construct a "
                "new optimizer."
            )
        if array.shape != self.layout.shape or array.dtype != self.flat.dtype:
            raise ValueError(
                f"{self.leaf.path} was {self.flat.dtype} of shape {self.layout.shape} when the "
                f"optimizer was made; got {array.dtype} of shape {array.shape}. Construct a new "
                "optimizer."
            )
        if arrays.address(array) != self.address:
            raise ValueError(
                f"{self.leaf.path} has been moved in memory (resize?) since the optimizer was "
                "made. Construct a new optimizer."
            )
        if not getattr(array.flags, "writeable", True):
            raise ValueError(f"{self.leaf.path} has become read-only; parameters change in place")

    def flat_gradient(self, grad: Any, path: str) -> Array | None:
        """Return a checked gradient as a flat array of the parameter's dtype and order.

        It is a view where the gradient stands in memory as the parameter does, else a copy.
        """
        if grad is None:
            return None
        if type(grad) is np.ndarray and self._is_usual(grad):
            self.everywhere.check_apart(grad, path)
            return grad.reshape(-1)
        grad = self.checked(grad, path)
        self.everywhere.check_apart(grad, path)
        turned = self.layout.turn(grad)
        flags = turned.flags
        aligned = getattr(flags, "aligned", True)  # CuPy keeps no such flag
        if grad.dtype == self.flat.dtype and flags.c_contiguous and aligned:
            return turned.reshape(-1)
        # What is too large for the dtype becomes inf, whatever other code has set np.seterr to.
        with arrays.on_device_of(turned), np.errstate(all="ignore"):
            return turned.astype(self.flat.dtype, order="C").reshape(-1)

    def _is_usual(self, grad: Array) -> bool:
        """Return whether a NumPy gradient needs no closer look: C order, like its parameter."""
        flags = grad.flags
        return (
            grad.dtype == self.flat.dtype
            and grad.shape == self.layout.shape
            and flags.c_contiguous
            and flags.aligned
            and self.layout.plain
            and type(self.leaf.array) is np.ndarray
        )

    def checked(self, grad: Any, path: str) -> Array:
        """Return a gradient as the array it is, if it fits the parameter; raise if it does not."""
        if isinstance(grad, np.floating) and self.layout.shape == ():
            grad = np.asarray(grad)  # NumPy's reductions return scalars for 0-d results
        self._check_gradient(grad, path)
        return grad  # type: ignore[no-any-return]  # it is an array now

    def _check_gradient(self, grad: Any, path: str) -> None:
        array = self.leaf.array
        kind, needed = arrays.kind(grad), arrays.kind(array)
        if kind is None:
            raise TypeError(
                f"{path} must be a {needed} array like {self.leaf.path}; "
                f"got {type(grad).__name__}. Use None for no gradient."
            )
        if kind != needed or arrays.device(grad) != arrays.device(array):
            raise BackendMismatchError(
                f"{path} must be on the same device as {self.leaf.path} "
                f"({_place(array)}); got {_place(grad)}. Move it there before the step."
            )
        if grad.dtype.kind != "f" and grad.dtype.name != "bfloat16":
            raise TypeError(
                f"{path} must be of a real floating dtype; got {grad.dtype}. "
                + ("Take its real part." if grad.dtype.kind == "c" else "Convert it with .astype.")
            )
        if grad.shape != self.layout.shape:
            raise ValueError(
                f"{path} must have the shape of {self.leaf.path}, {self.layout.shape}; "
                f"got {grad.shape}. Gradients are not broadcast."
            )


def _place(array: Array) -> str:
    number = arrays.device(array)
    return "numpy, in host memory" if number is None else f"cupy, on device {number}"


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
