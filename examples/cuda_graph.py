"""Capture a whole training step in a CUDA graph, and replay it.

    python examples/cuda_graph.py

A step of a small network is some thirty kernels of a few microseconds each, so a GPU waits most of
the time for the host to launch the next one. A CUDA graph launches all of them at once. It repeats
what it has seen with the same addresses, so everything is computed into arrays that are allocated
once, or in memory that is kept with the graph (see ``Replay``), and the batch is copied into the
same two arrays before each replay. What changes from step to step in the optimizer (the step count,
the learning rate by its schedule, the bias corrections, the clipping) it keeps and counts on the
device: that is what ``capturable=True`` is for.

The network is that of train_digits.py: hidden = tanh(x W1 + b1), scores = hidden W2 + b2, softmax
and cross-entropy, gradients written by hand. With NumPy (FASTOPT_BACKEND=numpy, or no GPU) there is
nothing to capture: the same steps are made one after another, and end in the same losses, but for
the last digits of the matrix products. Needs ``pip install -e '.[examples]'``.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import fastopt

Array = Any  # numpy.ndarray or cupy.ndarray

PIXELS, HIDDEN, DIGITS = 64, 128, 10
BATCH_SIZE = 32
HIGHEST_LR = 0.003

# CuPy lets no call of cuBLAS be captured (nor of cuSOLVER, cuRAND and cuSPARSE), so matrices are
# multiplied by a kernel of our own: a thread for each element, which will do for small ones.
PRODUCT = {
    "name": "product",
    "in_params": "raw float32 a, raw float32 b, int32 inner, int32 columns",
    "out_params": "float32 out",
    "operation": """
        const int row = i / columns, column = i % columns;
        float sum = 0;
        for (int k = 0; k < inner; ++k) sum += a[row * inner + k] * b[k * columns + column];
        out = sum;
    """,
}


class Network:
    """Parameters, gradients, and all that is in between, allocated once for batches of one size."""

    def __init__(self, xp: ModuleType, rng: np.random.Generator) -> None:
        def weights(inputs: int, outputs: int) -> Array:
            drawn = rng.standard_normal((inputs, outputs), dtype=np.float32)
            return xp.asarray(drawn * inputs**-0.5)

        def empty(*shape: int) -> Array:
            return xp.zeros(shape, dtype=xp.float32)

        self.xp = xp
        self.params = {
            "W1": weights(PIXELS, HIDDEN),
            "b1": empty(HIDDEN),
            "W2": weights(HIDDEN, DIGITS),
            "b2": empty(DIGITS),
        }
        self.grads = {name: xp.zeros_like(array) for name, array in self.params.items()}
        self.x, self.y = empty(BATCH_SIZE, PIXELS), empty(BATCH_SIZE, DIGITS)
        self.hidden, self.slope = empty(BATCH_SIZE, HIDDEN), empty(BATCH_SIZE, HIDDEN)
        self.scores, self.d_scores = empty(BATCH_SIZE, DIGITS), empty(BATCH_SIZE, DIGITS)
        self.column = empty(BATCH_SIZE, 1)
        self.loss, self.total_loss = empty(), empty()
        if xp is not np:
            self.product = xp.ElementwiseKernel(**PRODUCT)

    def multiply(self, a: Array, b: Array, out: Array) -> None:
        """Write the product of two matrices into ``out``."""
        if self.xp is np:
            np.matmul(a, b, out=out)
        else:
            self.product(a, b, *b.shape, out)

    def forward(self) -> None:
        """Work out the loss of the batch; ``scores`` become the logarithms of probabilities."""
        xp, p = self.xp, self.params
        self.multiply(self.x, p["W1"], self.hidden)
        xp.add(self.hidden, p["b1"], out=self.hidden)
        xp.tanh(self.hidden, out=self.hidden)
        self.multiply(self.hidden, p["W2"], self.scores)
        xp.add(self.scores, p["b2"], out=self.scores)
        # The same softmax, and exp cannot overflow.
        xp.max(self.scores, axis=1, keepdims=True, out=self.column)
        xp.subtract(self.scores, self.column, out=self.scores)
        xp.exp(self.scores, out=self.d_scores)
        xp.sum(self.d_scores, axis=1, keepdims=True, out=self.column)
        xp.log(self.column, out=self.column)
        xp.subtract(self.scores, self.column, out=self.scores)
        xp.multiply(self.y, self.scores, out=self.d_scores)
        xp.sum(self.d_scores, out=self.loss)
        xp.subtract(self.total_loss, self.loss, out=self.total_loss)

    def backward(self) -> None:
        """Work out the gradients of the mean loss, by the chain rule."""
        xp, g = self.xp, self.grads
        xp.exp(self.scores, out=self.d_scores)
        xp.subtract(self.d_scores, self.y, out=self.d_scores)
        xp.divide(self.d_scores, BATCH_SIZE, out=self.d_scores)
        self.multiply(self.hidden.T, self.d_scores, g["W2"])
        xp.sum(self.d_scores, axis=0, out=g["b2"])
        xp.multiply(self.hidden, self.hidden, out=self.slope)
        xp.subtract(1, self.slope, out=self.slope)  # tanh' = 1 - tanh^2
        self.multiply(self.d_scores, self.params["W2"].T, self.hidden)
        xp.multiply(self.hidden, self.slope, out=self.slope)
        self.multiply(self.x.T, self.slope, g["W1"])
        xp.sum(self.slope, axis=0, out=g["b1"])


class Replay:
    """A step as a CUDA graph, captured on the current stream.

    CuPy's sums and maxima take memory to work in, and give it back when they are launched; but the
    graph goes on using it. So it comes from a pool of its own, which gives it to nobody else as
    long as the graph lives.
    """

    def __init__(self, xp: ModuleType, step: Callable[[], None], stream: Any) -> None:
        self._stream, self._pool = stream, xp.cuda.MemoryPool()
        with xp.cuda.using_allocator(self._pool.malloc):
            stream.begin_capture()
            try:
                step()  # noted, not made
            finally:  # else everything that comes later fails too
                self._graph = stream.end_capture()

    def __call__(self) -> None:
        """Make the step."""
        self._graph.launch(self._stream)


def train(xp: ModuleType, epochs: int, stream: Any) -> tuple[list[float], float, fastopt.Optimizer]:
    """Return the mean loss of each epoch, the seconds, and the optimizer."""
    images, digits = load_digits(return_X_y=True)
    x = xp.asarray((images / 16).astype(np.float32))
    y = xp.asarray(np.eye(DIGITS, dtype=np.float32)[digits])
    rng = np.random.default_rng(0)
    network = Network(xp, rng)
    batches = len(images) // BATCH_SIZE

    def lr(step: int) -> float:
        return HIGHEST_LR * (1 + math.cos(math.pi * min(1.0, step / (epochs * batches)))) / 2

    opt = fastopt.Adam(
        network.params, lr=lr, max_grad_norm=1.0, on_nonfinite="skip", capturable=True
    )

    def step() -> None:
        network.forward()
        network.backward()
        opt.step(network.grads)

    run: Callable[[], None] = step
    losses = []
    start = time.perf_counter()
    for epoch in range(epochs):
        order = xp.asarray(rng.permutation(len(images)))
        for number in range(batches):
            chosen = order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
            network.x[...], network.y[...] = x[chosen], y[chosen]
            # First some steps as they are, in which kernels are compiled and libraries set up.
            if stream is not None and (epoch, number) == (0, 3):
                run = Replay(xp, step, stream)
            run()
        losses.append(float(network.total_loss) / (batches * BATCH_SIZE))  # waits for the device
        network.total_loss[...] = 0
    return losses, time.perf_counter() - start, opt


def main(arguments: list[str] | None = None) -> None:
    """Train, and say in two lines how it went."""
    parser = argparse.ArgumentParser(description="Train with a step that is a CUDA graph.")
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    epochs = parser.parse_args(arguments).epochs
    if epochs < 1:
        parser.error(f"--epochs must be at least 1; got {epochs}")
    try:
        xp = fastopt.array_namespace()
    except fastopt.FastoptError as error:  # the backend that was asked for cannot run
        sys.exit(f"cuda_graph.py: {error}")
    stream = None if xp is np else xp.cuda.Stream(non_blocking=True)  # the default cannot capture
    with stream or nullcontext():
        losses, seconds, opt = train(xp, epochs, stream)
        steps = opt.step_count
    how = "made one after another" if stream is None else "replayed from one CUDA graph"
    print(f"loss {losses[0]:.4f} in the first epoch, {losses[-1]:.4f} in the last")
    print(f"{steps} steps on {opt.backend}, {how}: {seconds / steps * 1e6:.0f} µs each")


if __name__ == "__main__":
    main()
