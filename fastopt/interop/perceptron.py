"""A multilayer perceptron in NumPy: its outputs, its loss, and the gradients of that.

All but the last layer end in the activation. The last one ends in the output that belongs to the
loss, so that the loss's derivative before it is ``output - target``:

    softmax     sum_k t_k (log t_k - log p_k)               one of several classes
    logistic    -sum_k t_k log p_k + (1 - t_k) log(1 - p_k) two classes, or several labels
    identity    sum_k (p_k - t_k)^2 / 2                     numbers
    exp         sum_k p_k - t_k log p_k + t_k log t_k - t_k counts (half the Poisson deviance)

The loss is the mean over the samples, weighted where there are weights, with the penalty
``alpha / 2 * sum(W^2) / (sum of the weights, or number of samples)`` of the coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.special import expit, xlogy

from fastopt.core.arrays import Array


def _nothing(array: Array) -> None:
    """Leave an array as it is."""


def _relu(z: Array) -> None:
    np.maximum(z, 0, out=z)


def _tanh(z: Array) -> None:
    np.tanh(z, out=z)


def _logistic(z: Array) -> None:
    expit(z, out=z)


def _slope_of_relu(a: Array) -> None:
    np.greater(a, 0, out=a)


def _slope_of_tanh(a: Array) -> None:
    np.multiply(a, a, out=a)
    np.subtract(1, a, out=a)


def _slope_of_logistic(a: Array) -> None:
    a -= a * a


ACTIVATIONS: dict[str, Callable[[Array], None]] = {
    "identity": _nothing,
    "logistic": _logistic,
    "tanh": _tanh,
    "relu": _relu,
}
"""What each does, in place, to the sums that come into a layer."""

_SLOPES: dict[str, Callable[[Array], None]] = {
    "logistic": _slope_of_logistic,
    "tanh": _slope_of_tanh,
    "relu": _slope_of_relu,
}
"""The derivatives as functions of the activation's values, in whose place they are written. (That
of identity is 1.)"""


def _softmax(z: Array, target: Array | None) -> Array | None:
    z -= z.max(axis=1, keepdims=True)
    chosen = None if target is None else np.einsum("ij,ij->i", target, z)
    np.exp(z, out=z)
    total = z.sum(axis=1, keepdims=True)
    z /= total
    return None if chosen is None else np.log(total[:, 0]) - chosen


def _logistic_output(z: Array, target: Array | None) -> Array | None:
    losses: Array | None = None
    if target is not None:
        losses = (np.logaddexp(0, z) - target * z).sum(axis=1)
    expit(z, out=z)
    return losses


def _identity_output(z: Array, target: Array | None) -> Array | None:
    if target is None:
        return None
    error = z - target
    losses: Array = 0.5 * np.einsum("ij,ij->i", error, error)
    return losses


def _exp_output(z: Array, target: Array | None) -> Array | None:
    losses = None
    if target is not None:
        losses = (xlogy(target, target) - target * z - target).sum(axis=1)
    np.exp(z, out=z)
    return None if losses is None else losses + z.sum(axis=1)


OUTPUTS: dict[str, Callable[[Array, Array | None], Array | None]] = {
    "softmax": _softmax,
    "logistic": _logistic_output,
    "identity": _identity_output,
    "exp": _exp_output,
}
"""What each does, in place, to the sums that come into the last layer; the loss of each sample is
returned where there are targets. It is worked out of the sums, so that it is finite where a
probability is 0 in floating point."""


def _into(left: Any, right: Array, out: Array) -> Array:
    """Write a matrix product, the left one of which may be sparse."""
    if issparse(left):
        out[...] = left @ right
    else:
        np.dot(left, right, out=out)
    return out


@dataclass
class Layers:
    """The parameters: ``coefs[i]`` leads from layer i to layer i + 1, of shape (from, to)."""

    coefs: list[Array]
    intercepts: list[Array]


class Batch:
    """Arrays for passes over so many samples, written again by each."""

    def __init__(self, rows: int, like: Any, targets: Array, sizes: Sequence[int]) -> None:
        dtype = targets.dtype
        self.inputs: Array | None = (
            None if issparse(like) else np.empty((rows, like.shape[1]), dtype)
        )
        self.targets: Array = np.empty((rows, targets.shape[1]), dtype)
        self.values: list[Array] = [np.empty((rows, size), dtype) for size in sizes[1:]]
        self.errors: list[Array] = [np.empty((rows, size), dtype) for size in sizes[1:-1]]
        self.ones: Array = np.ones(rows, dtype)
        self.decays: list[Array] = [np.empty(shape, dtype) for shape in pairwise(sizes)]

    def take(self, inputs: Any, targets: Array, which: Array | slice) -> tuple[Any, Array]:
        """Return some rows of the inputs and targets: those of a slice as they lie there."""
        if isinstance(which, slice):
            return inputs[which], targets[which]
        np.take(targets, which, axis=0, out=self.targets, mode="clip")
        if self.inputs is None:
            return inputs[which], self.targets
        np.take(inputs, which, axis=0, out=self.inputs, mode="clip")
        return self.inputs, self.targets


@dataclass(frozen=True)
class Perceptron:
    """What a network computes: activation and output (of the tables here), and the penalty."""

    activation: str
    output: str
    alpha: float

    def outputs(self, inputs: Any, layers: Layers) -> Array:
        """Return what the last layer gives for every row of the inputs."""
        values, last = inputs, len(layers.coefs) - 1
        for i, (coef, intercept) in enumerate(zip(layers.coefs, layers.intercepts, strict=True)):
            values = values @ coef
            values += intercept
            if i < last:
                ACTIVATIONS[self.activation](values)
        OUTPUTS[self.output](values, None)
        found: Array = values
        return found

    def loss_and_gradients(
        self,
        inputs: Any,
        targets: Array,
        weight: Array | None,
        layers: Layers,
        grads: Layers,
        batch: Batch,
    ) -> float:
        """Return the loss of a batch, and write its gradients into ``grads``.

        ``weight`` are those of the samples, the sum of which is not 0; None: all are 1.
        """
        total = float(len(targets)) if weight is None else float(weight.sum())
        before, last = [inputs, *batch.values], len(layers.coefs) - 1
        for i, (coef, intercept) in enumerate(zip(layers.coefs, layers.intercepts, strict=True)):
            values = _into(before[i], coef, batch.values[i])
            values += intercept
            if i < last:
                ACTIVATIONS[self.activation](values)
        error = batch.values[-1]
        losses = OUTPUTS[self.output](error, targets)
        assert losses is not None
        loss = float(losses.sum() if weight is None else losses @ weight)
        error -= targets
        if weight is None:
            error /= total
        else:
            error *= (weight / total)[:, np.newaxis]
        for i in range(last, -1, -1):
            coef = layers.coefs[i]
            _into(before[i].T, error, grads.coefs[i])
            np.dot(batch.ones, error, out=grads.intercepts[i])
            if self.alpha:
                flat = coef.reshape(-1)
                loss += 0.5 * self.alpha * float(flat @ flat)
                # SciPy's axpy would do it at once, and has threads that get in the way of NumPy's.
                decay = np.multiply(coef, self.alpha / total, out=batch.decays[i])
                grads.coefs[i] += decay
            if i:
                error = np.dot(error, coef.T, out=batch.errors[i - 1])
                if self.activation in _SLOPES:
                    _SLOPES[self.activation](before[i])
                    error *= before[i]
        return loss / total
