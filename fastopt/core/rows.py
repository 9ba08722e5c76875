"""Gradients of some rows of a parameter: what an embedding's backward pass has."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array


class RowGrad:
    """The gradient of some rows of a parameter: all others have none, and are left alone.

    ``opt.step({"embedding": fastopt.RowGrad(tokens, grads), "W": dW})`` moves the rows of
    ``embedding`` that ``tokens`` names, with their state, and costs time in proportion to them,
    whatever the number of rows is. The other rows and their state stay as they are: nothing decays
    there, no average fades. The parameter's step count, which bias corrections go by, counts the
    steps of the whole array, as PyTorch's ``SparseAdam`` does it.

    Gradients of one row that is named several times are added, in the order in which they stand, in
    the dtype of ``values``; so the sum has the same bits in every run, on a device too.

    For optimizers of elementwise rules (SGD, Momentum, Adagrad, RMSprop, Adam, AdamW and most
    others); those whose steps need sums over an array, or whole arrays, refuse it by name, and so
    do ``state_dtype`` in fewer bits and ``stochastic_rounding``. With ``max_grad_norm`` the norm
    is that of the sums. The host decides on such steps, so that they cannot be captured in a CUDA
    graph.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> table = np.zeros((4, 2))
        >>> opt = fastopt.SGD(table, lr=1.0)
        >>> opt.step(fastopt.RowGrad(np.array([0, 2]), np.ones((2, 2))))
        <Outcome: made>
        >>> table.tolist()
        [[-1.0, -1.0], [0.0, 0.0], [-1.0, -1.0], [0.0, 0.0]]

    Args:
        indices: the numbers of the rows, of shape (n,) and an integer dtype, from -rows to
            rows - 1; negative ones count from the end. Any order; a row may come several times.
            They are kept in host memory, so that indices on a device are waited for.
        values: their gradients, of shape (n, *shape of a row), on the parameter's device, real or
            complex as the parameter.

    Raises:
        TypeError: if ``indices`` are no integers, or ``values`` no array.
        ValueError: if they do not belong together.
    """

    __slots__ = ("indices", "values")

    def __init__(self, indices: Any, values: Array) -> None:
        if arrays.kind(values) is None:
            raise TypeError(
                f"RowGrad values must be a numpy or cupy array of shape (n, *shape of a row); got "
                f"{type(values).__name__}. Hand in np.asarray(values)."
            )
        if arrays.kind(indices) is None:
            indices = np.asarray(indices, None if len(indices) else np.int64)
        if indices.dtype.kind not in "iu":
            hint = "np.flatnonzero(indices)" if indices.dtype.kind == "b" else "indices.astype(int)"
            raise TypeError(
                f"RowGrad indices must be integers, the numbers of rows; got {indices.dtype}. "
                f"Hand in {hint}."
            )
        if indices.ndim != 1 or values.ndim < 1 or len(indices) != len(values):
            raise ValueError(
                "RowGrad takes indices of shape (n,) and values of shape (n, *shape of a row); got "
                f"{indices.shape} and {values.shape}. If the first axes count rows together: "
                "RowGrad(indices.ravel(), values.reshape(indices.size, -1)) for rows of one axis."
            )
        self.indices: Array = arrays.on_host(indices)
        self.values: Array = values

    def __repr__(self) -> str:
        return f"RowGrad({len(self.indices)} rows, values of {self.values.dtype})"

    def dense(self, param: Array) -> Array:
        """Return it as a gradient of all rows of ``param``, zeros where there is none."""
        rows, values = self.merged(param.shape, "values")
        with arrays.on_device_of(values):
            found: Array = arrays.namespace_of(values).zeros(param.shape, values.dtype)
            found[arrays.like(rows, values)] = values
        return found

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether the values are rows of a parameter of this shape."""
        return bool(shape) and self.values.shape[1:] == shape[1:]

    def merged(self, shape: tuple[int, ...], path: str) -> tuple[Array, Array]:
        """Return the numbers of the rows, ascending and each once, in host memory; their gradients.

        ``shape`` is the parameter's, ``path`` what errors call this. What follows from one row to
        the next is added at once for all rows: first the second gradients of all, then the third.
        """
        indices, values = self.indices, self.values
        if not self.fits(shape):
            wanted = f"(n, {', '.join(map(str, shape[1:]))})" if shape else "of rows"
            raise ValueError(
                f"the values of {path} must have the shape {wanted}, as rows of a parameter of "
                f"shape {shape}; got {values.shape}"
            )
        if outside := indices[(indices < -shape[0]) | (indices >= shape[0])][:1].tolist():
            raise IndexError(
                f"{path} names row {outside[0]}, but its parameter has {shape[0]} rows, "
                f"0 to {shape[0] - 1}"
            )
        indices = np.where(indices < 0, indices + shape[0], indices).astype(np.int64)
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        first = np.flatnonzero(np.diff(ordered, prepend=-1))
        counts = np.diff(first, append=len(ordered))
        with arrays.on_device_of(values):
            sums = values[arrays.like(order[first], values)]
            for k in range(1, counts.max(initial=0)):
                more = np.flatnonzero(counts > k)
                sums[arrays.like(more, values)] += values[
                    arrays.like(order[first[more] + k], values)
                ]
        return ordered[first], sums
