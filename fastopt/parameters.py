"""One parameter as a backend sees it: flat, with a place in the state arena."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt import arrays, random_bits
from fastopt.arrays import Array, Layout
from fastopt.codes import BLOCK
from fastopt.errors import BackendMismatchError
from fastopt.extents import Extents
from fastopt.formats import real_dtype, real_size
from fastopt.tree import Leaf


@dataclass(frozen=True, slots=True)
class Parameter:
    """A leaf together with what a driver needs of it.

    ``flat`` is the array's own memory where its elements stand one after another. Where they stand
    ``apart`` it is the array with its axes turned, for a backend that bridges gaps; for another it
    is a copy (``copied``), that ``gather`` fills before an update and ``scatter`` writes back after
    it. ``size`` counts real numbers: two for every element of a complex ``dtype``.
    """

    leaf: Leaf
    layout: Layout
    dtype: np.dtype[Any]
    flat: Array
    size: int
    apart: bool
    copied: bool
    offset: int
    address: int
    everywhere: Extents

    @classmethod
    def of(
        cls, leaf: Leaf, offset: int, everywhere: Extents, bridges_gaps: bool = False
    ) -> Parameter:
        """Lay out a leaf whose state begins at ``offset`` in its bucket's arena.

        ``everywhere`` tells where all parameters of the optimizer lie; ``bridges_gaps`` whether the
        backend needs no copies.
        """
        layout, address = arrays.layout_of(leaf.array), arrays.address(leaf.array)
        dtype = leaf.array.dtype
        real = real_dtype(dtype)
        size = real_size(leaf.array.size, dtype)
        flat = arrays.flat_view(leaf.array, layout)
        gaps = flat is None
        if flat is not None:
            flat = flat.view(real)
        elif bridges_gaps:
            flat = layout.turn(leaf.array)
        else:
            flat = layout.turn(leaf.array).flatten().view(real)
        apart, copied = gaps and bridges_gaps, gaps and not bridges_gaps
        return cls(leaf, layout, dtype, flat, size, apart, copied, offset, address, everywhere)

    def gather(self) -> None:
        """Copy the array into ``flat``."""
        self._in_shape(self.flat)[...] = self.leaf.array

    def scatter(self) -> None:
        """Copy ``flat`` into the array."""
        self.leaf.array[...] = self._in_shape(self.flat)

    def axes(self) -> list[tuple[int, int]]:
        """Return how elements that stand apart are found: length and stride of each axis."""
        pair = [(2, self.dtype.itemsize // 2)] * (self.dtype.kind == "c")
        return [*zip(self.flat.shape, self.flat.strides, strict=True), *pair]

    def _in_shape(self, reals: Array) -> Array:
        """Return flat real numbers as a view in the parameter's shape, complex as it is."""
        if self.dtype.kind == "c":
            reals = reals.view(np.dtype(f"c{2 * reals.itemsize}"))
        return self.layout.unturn(reals)

    def state_view(self, slot: Array) -> Array:
        """Return the parameter's piece of one slot of the arena, in the parameter's shape."""
        return self._in_shape(slot[self.offset : self.offset + self.size])

    def code_view(self, slot: Array) -> Array:
        """Return its piece of a slot of codes, in its shape; complex ones have a last axis of 2."""
        piece = slot[self.offset : self.offset + self.size]
        return self.layout.unturn(piece, (2,) if self.dtype.kind == "c" else ())

    def scale_view(self, slot: Array) -> Array:
        """Return its piece of a slot of scales: one for every block, in the order of memory."""
        first = self.offset // BLOCK
        return slot[first : first - (-self.size // BLOCK)]

    @property
    def stream(self) -> int:
        """Where its random bits begin."""
        return random_bits.stream(self.leaf.name)

    def usual_strides(self, dtype: np.dtype[Any]) -> tuple[int, ...] | None:
        """Return the strides of a gradient that can be read flat as it stands; None if none can."""
        if self.layout.flipped:
            return None
        shape, step = self.layout.shape, dtype.itemsize
        strides = [0] * len(shape)
        for axis in reversed(self.layout.axes):
            strides[axis] = step
            step *= max(shape[axis], 1)
        return tuple(strides)

    def check_array(self, now: object) -> None:
        """Raise if the user's tree no longer holds the array, or it cannot be updated any more."""
        array = self.leaf.array
        if now is not array:
            raise ValueError(
                f"{self.leaf.path} is no longer the array that the optimizer was given, so it "
                "would not be trained. Write into it (params[...][...] = value), or construct a "
                "new optimizer."
            )
        if array.shape != self.layout.shape or array.dtype != self.dtype:
            raise ValueError(
                f"{self.leaf.path} was {self.dtype} of shape {self.layout.shape} when the "
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

    def flat_gradient(self, grad: Any, dtype: np.dtype[Any], path: str) -> Array | None:
        """Return a checked gradient as flat real numbers, in the order of the parameter.

        ``dtype`` is what it is converted to. It is a view where the gradient is of this dtype and
        stands in memory as the parameter does, else a copy.
        """
        if grad is None:
            return None
        if type(grad) is np.ndarray and self._is_usual(grad, dtype):
            self.everywhere.check_apart(grad, path)
            return grad.reshape(-1).view(real_dtype(dtype))
        grad = self.checked(grad, path)
        self.everywhere.check_apart(grad, path)
        turned = self.layout.turn(grad)
        flags = turned.flags
        aligned = getattr(flags, "aligned", True)  # CuPy keeps no such flag
        if grad.dtype == dtype and flags.c_contiguous and aligned:
            return turned.reshape(-1).view(real_dtype(dtype))
        # What is too large for the dtype becomes inf, whatever other code has set np.seterr to.
        with arrays.on_device_of(turned), np.errstate(all="ignore"):
            return turned.astype(dtype, order="C").reshape(-1).view(real_dtype(dtype))

    def _is_usual(self, grad: Array, dtype: np.dtype[Any]) -> bool:
        """Return whether a NumPy gradient needs no closer look: C order, like its parameter."""
        flags = grad.flags
        return (
            grad.dtype == dtype
            and grad.shape == self.layout.shape
            and flags.c_contiguous
            and flags.aligned
            and self.layout.plain
            and type(self.leaf.array) is np.ndarray
        )

    def checked(self, grad: Any, path: str) -> Array:
        """Return a gradient as the array it is, if it fits the parameter; raise if it does not."""
        if isinstance(grad, np.inexact) and self.layout.shape == ():
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
        wanted = "complex" if self.dtype.kind == "c" else "real floating"
        if _sort_of(grad.dtype) != wanted:
            raise TypeError(
                f"{path} must be of a {wanted} dtype like {self.leaf.path}; got {grad.dtype}. "
                + ("Take its real part." if grad.dtype.kind == "c" else "Convert it with .astype.")
            )
        if grad.shape != self.layout.shape:
            raise ValueError(
                f"{path} must have the shape of {self.leaf.path}, {self.layout.shape}; "
                f"got {grad.shape}. Gradients are not broadcast."
            )


def _sort_of(dtype: np.dtype[Any]) -> str:
    floating = dtype.kind == "f" or dtype.name == "bfloat16"
    return "real floating" if floating else "complex" if dtype.kind == "c" else "other"


def _place(array: Array) -> str:
    number = arrays.device(array)
    return "numpy, in host memory" if number is None else f"cupy, on device {number}"
