"""What is done to whole gradients before a step sees them: adaptive clipping, centralization.

It makes new arrays, once, at the entrance of a step; binding, norms, kernels and all else go by
these. The arithmetic is written once for NumPy and CuPy, with sums in float64, and waits for
nothing. What cannot be the gradient of its parameter is let through: binding refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import BLOCK, Array, Extents
from fastopt.core.buckets import OptimizerState, Parameter
from fastopt.core.dtypes import dtype_of
from fastopt.core.rows import RowGrad

EPS = 1e-3
"""The least norm that the parameters of a unit are taken to have."""


@dataclass(frozen=True)
class Transform:
    """What is done to the gradient of one parameter.

    ``clip`` is the limit of |g| / |p|, for members an array of one for each, shaped to go with the
    norms; None for none. The first ``members`` axes, one or none, count fits that are made side by
    side. Gradients of these ``dtypes`` are read as they are.
    """

    parameter: Parameter
    clip: Any
    centralize: bool
    members: int
    dtypes: Sequence[np.dtype[Any]]

    def __call__(self, grad: Any, grad_scale: Any, extents: Extents) -> Any:
        """Return the gradient of a step as a new array; as it is if it is none."""
        path = f"grads{self.parameter.leaf.place}"
        if type(grad) is RowGrad:
            return self._of_rows(grad, grad_scale, extents, path)
        param = self.parameter.leaf.array
        if isinstance(grad, np.inexact) and param.shape == ():
            grad = np.asarray(grad)  # NumPy's reductions return scalars for 0-d results
        if not self._fits(grad) or grad.shape != param.shape:
            return grad
        extents.check_apart(grad, path)
        # In the parameter's order in memory, so that it is read as it stands.
        return self._made(grad, param, param, grad_scale)

    def _of_rows(self, grad: RowGrad, grad_scale: Any, extents: Extents, path: str) -> RowGrad:
        """Return the gradient of some rows: what the gradient of all rows would have there."""
        param = self.parameter.leaf.array
        rows, values = grad.merged(param.shape, path)
        if self.members or not self._fits(values):
            return grad
        with arrays.on_device_of(param):
            own = param if param.ndim == 1 else param[arrays.like(rows, param)]
        return RowGrad(rows, self._made(values, own, values, grad_scale))

    def _fits(self, grad: Any) -> bool:
        """Return whether it is an array of numbers like the parameter's, where that is."""
        param = self.parameter.leaf.array
        return (
            arrays.kind(grad) == arrays.kind(param)
            and arrays.device(grad) == arrays.device(param)
            and _kind(grad.dtype) == _kind(param.dtype)
        )

    def _made(self, grad: Array, param: Array, like: Array, grad_scale: Any) -> Array:
        """Return the gradient, laid out as ``like``; ``param`` are the parameters of its units."""
        by_row = grad.ndim - self.members >= 2
        units = tuple(range(self.members + by_row, grad.ndim))
        with arrays.on_device_of(grad), np.errstate(all="ignore"):
            if grad.dtype.itemsize == 2:
                grad = grad.astype(np.float32)  # in which it is read
            made: Array = arrays.namespace_of(grad).empty_like(like, dtype=grad.dtype)
            for some in self._pieces(grad) if by_row else [...]:
                self._write(made[some], grad[some], param[some], units, grad_scale)
                if self.centralize and by_row:
                    _take_mean_off(made[some], units)
        return made

    def _pieces(self, grad: Array) -> list[Any]:
        """Return slices of so many rows that what is worked out of them stays in the cache."""
        if self.members or arrays.kind(grad) != "numpy":
            return [...]
        rows = max(BLOCK * len(grad) // max(grad.size, 1), 1)
        return [slice(start, start + rows) for start in range(0, len(grad), rows)]

    def _write(
        self, made: Array, grad: Array, param: Array, units: tuple[int, ...], grad_scale: Any
    ) -> None:
        """Write the gradient with its units clipped; each is along these axes."""
        if self.clip is None:
            made[...] = grad
            return
        xp = arrays.namespace_of(grad)
        limit = self.clip * xp.maximum(_norms(param, units), EPS)
        factor = xp.minimum(limit / (abs(grad_scale) * _norms(grad, units)), 1.0)
        xp.multiply(grad, factor, out=made, casting="same_kind")


def _norms(values: Array, axes: tuple[int, ...]) -> Array:
    """Return the 2-norms over some axes, which stay with length 1, in float64."""
    xp = arrays.namespace_of(values)
    squares = [part.astype(np.float64) for part in _parts(values)]
    for own in squares:
        own *= own
    total: Array = xp.sum(sum(squares[1:], squares[0]), axis=axes, keepdims=True)
    return xp.sqrt(total)  # type: ignore[no-any-return]  # an array


def _take_mean_off(values: Array, axes: tuple[int, ...]) -> None:
    """Subtract the mean over some axes, which is worked out in float64."""
    xp = arrays.namespace_of(values)
    count = max(math.prod(values.shape[axis] for axis in axes), 1)
    for part in _parts(values):
        total = xp.sum(part, axis=axes, dtype=np.float64, keepdims=True)
        xp.subtract(part, total / count, out=part, casting="same_kind")


def _parts(values: Array) -> list[Array]:
    """Return the real numbers of an array, as views: two of each complex one."""
    return [values.real, values.imag] if values.dtype.kind == "c" else [values]


def _kind(dtype: np.dtype[Any]) -> str:
    return "f" if dtype.name == "bfloat16" else dtype.kind


class Transforms:
    """What is done to the gradients of an optimizer's parameters, by their places in the tree."""

    def __init__(self, found: dict[int, Transform], extents: Extents) -> None:
        self._found = found
        self._extents = extents

    def __call__(self, given: Sequence[Any], grad_scale: Any) -> list[Any]:
        """Return the gradients that a step goes by, for those it was handed and their scale."""
        made = list(given)
        for position, transform in self._found.items():
            if made[position] is not None:
                made[position] = transform(made[position], grad_scale, self._extents)
        return made

    def warm_up(self) -> None:
        """Compile what gradients take that are read as they are, if anything is compiled."""
        for transform in self._found.values():
            param = transform.parameter.leaf.array
            for dtype in transform.dtypes:
                with arrays.on_device_of(param):
                    nothing = arrays.namespace_of(param).zeros(param.shape, dtype)
                transform(nothing, 1.0, self._extents)


def transforms_of(state: OptimizerState, extents: Extents) -> Transforms | None:
    """Return what is done to gradients under the settings of now; None if nothing is."""
    found: dict[int, Transform] = {}
    for bucket in state.buckets:
        group = state.groups[bucket.group]
        clip, centralize = group["adaptive_clip"], group["centralize"]
        if clip is None or (isinstance(clip, float) and clip == math.inf):
            clip = None
        if not group["trainable"] or (clip is None and not centralize):
            continue
        for position, parameter in zip(bucket.positions, bucket.parameters, strict=True):
            array, members = parameter.leaf.array, int(bucket.spec.members)
            if clip is None and array.ndim - members < 2 and array.dtype.itemsize > 2:
                continue  # nothing is done to it; half precision is widened, as its others are
            own = clip
            if isinstance(clip, np.ndarray):
                own = arrays.like(clip.reshape(-1, *[1] * (array.ndim - 1)), array)
            dtypes = [dtype_of(real, parameter.dtype) for real in bucket.spec.readable]
            found[position] = Transform(parameter, own, centralize, members, dtypes)
    return Transforms(found, extents) if found else None
