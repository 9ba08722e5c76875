"""Train a network that HIPS autograd differentiates, with fastopt in place of its optimizers.

    python examples/autograd_net.py --optimizer adam

Programs for autograd are NumPy programs: parameters are arrays in lists and tuples, ``grad``
returns their gradients in the same ones. That is what fastopt takes, so that a loop by
``autograd.misc.optimizers`` becomes

    opt = fastopt.Adam(params)                          params = adam(gradient, params,
    for step in range(steps):                                         num_iters=steps)
        opt.step(gradient(params, step))

with the same numbers (``--compare`` runs both), and any other optimizer by its name. autograd's own
flattens everything into one vector in each step, and makes new arrays; fastopt writes into the
arrays that there are. Of complex parameters autograd returns the conjugate of the gradient that is
meant here: hand in ``conj(g)``.

The network is that of autograd's own example ``neural_net.py`` (layers of tanh, the logarithm of
the softmax, a Gaussian prior of the weights), on the digits that come with scikit-learn. Needs
``pip install -e '.[examples]'``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import grad
from autograd.misc.optimizers import adam
from autograd.scipy.special import logsumexp
from sklearn.datasets import load_digits

import fastopt

Params = list[tuple[Any, Any]]

LAYERS = (64, 64, 10)
BATCH = 128
L2 = 1.0
RATES = {"sgd": 0.5, "rmsprop": 3e-3, "adam": 3e-3, "lion": 3e-4, "adan": 1e-2}


def initial_params(rng: np.random.Generator) -> Params:
    """Return weights and biases of every layer."""
    pairs = pairwise(LAYERS)
    return [(rng.standard_normal((m, n)) / np.sqrt(m), np.zeros(n)) for m, n in pairs]


def log_probabilities(params: Params, inputs: Any) -> Any:
    """Return the logarithm of the probability of each digit."""
    for weights, bias in params:
        outputs = anp.dot(inputs, weights) + bias
        inputs = anp.tanh(outputs)
    return outputs - logsumexp(outputs, axis=1, keepdims=True)


def data() -> tuple[Any, Any, Any, Any]:
    """Return images and digits (a 1 in the digit's column) to train on, and those held out."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(3).permutation(len(images))
    x, y = images[order] / 16.0, np.eye(10)[digits[order]]
    return x[450:], y[450:], x[:450], y[:450]


def gradient_of(x: Any, y: Any) -> Callable[[Params, int], Any]:
    """Return the gradient of the negative log posterior of a batch, per image."""
    batches = len(x) // BATCH

    def objective(params: Params, step: int) -> Any:
        which = slice(BATCH * (step % batches), BATCH * (step % batches + 1))
        squares = sum(anp.sum(weights**2) for weights, _ in params)
        likelihood = anp.sum(log_probabilities(params, x[which]) * y[which]) / BATCH
        return L2 * squares / 2 / len(x) - likelihood

    return grad(objective)  # type: ignore[no-any-return]  # autograd has no types


def train(
    optimizer: str, steps: int, params: Params, gradient: Callable[[Params, int], Any]
) -> float:
    """Train in place; return the seconds that the optimizer's steps took."""
    opt = fastopt.optimizer(optimizer, params, lr=RATES.get(optimizer, 3e-3))
    seconds = 0.0
    for step in range(steps):
        grads = gradient(params, step)
        began = time.perf_counter()
        opt.step(grads)
        seconds += time.perf_counter() - began
    return seconds


def accuracy(params: Params, x: Any, y: Any) -> float:
    """Return the share of the digits that are read correctly."""
    found = log_probabilities(params, x).argmax(axis=1)
    return float((found == y.argmax(axis=1)).mean())


def main(argv: list[str] | None = None) -> None:
    """Train and print; on request the same by autograd's own Adam."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--optimizer", default="adam", help="any of fastopt.optimizers.names()")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--compare", action="store_true", help="with autograd's own Adam")
    given = parser.parse_args(argv)
    x, y, held_x, held_y = data()
    gradient = gradient_of(x, y)
    params = initial_params(np.random.default_rng(0))
    seconds = train(given.optimizer, given.steps, params, gradient)
    print(
        f"{given.optimizer}: {100 * accuracy(params, held_x, held_y):.1f} % of the digits that "
        f"were held out, {1e6 * seconds / given.steps:.0f} us per step of the optimizer"
    )
    if given.compare:
        theirs = adam(
            gradient,
            initial_params(np.random.default_rng(0)),
            num_iters=given.steps,
            step_size=RATES["adam"],
        )
        pairs = zip(params, theirs, strict=True)
        off = max(
            abs(p - q).max() for ours, other in pairs for p, q in zip(ours, other, strict=True)
        )
        print(
            f"autograd's own Adam: {100 * accuracy(theirs, held_x, held_y):.1f} %; the parameters "
            f"differ by {off:.1e} at most"
        )


if __name__ == "__main__":
    main()
