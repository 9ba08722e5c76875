"""Train a model of thinc on digits, with fastopt.thinc in place of thinc's own Adam.

    python examples/thinc_digits.py

What is gained is any optimizer here, by its name, in whatever is trained by thinc. One line of a
program changes:

    optimizer = fastopt.thinc.Optimizer(0.002)               optimizer = thinc.api.Adam(0.002)

and with ``Optimizer(0.001, optimizer="lion")`` it is another one. First thinc's own Adam trains a
network, and its gradients are kept. By the same gradients fastopt's goes the same way: the weights,
and thinc's moving averages of them, are the same but for rounding. Three things are otherwise, and
are shown too: decoupled decay comes before the update and not after it; decay in the gradient is
added after clipping and not before it; RAdam counts steps as its paper does, where thinc counts one
more. Then the same network is trained by each optimizer for itself.

What is not gained is time: thinc hands over one array after another, and in a run as short as this
one, which stays on NumPy, its own Adam is about three times faster. The last lines say so. With
FASTOPT_BACKEND=numba the difference is small.

The network has two hidden layers and dropout, on the digits that come with scikit-learn. Needs
``pip install -e '.[examples]' thinc``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from thinc import api

import fastopt.thinc

Model = Any
Key = tuple[int, str]
Gradients = list[tuple[Key, Any]]

BATCH = 128
RATE = 0.002
OTHERS = {"lion": 0.001, "adan": 0.01}
SAME: dict[str, dict[str, Any]] = {
    "Adam": {},
    "clipped to a norm of 0.05": {"grad_clip": 0.05},
    "decay in the gradient": {"L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.0},
    "SGD": {"beta1": 0.0, "beta2": 0.0},
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "decoupled decay": {"L2": 0.1},
    "decay in the gradient, clipped": {"L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.05},
    "RAdam": {"use_radam": True},
}


def data() -> tuple[Any, Any, Any, Any]:
    """Return images and digits (a 1 in the digit's column) to train on, and those held out."""
    images, digits = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), np.eye(10, dtype=np.float32)[digits]
    x, held_x, y, held_y = train_test_split(x, y, stratify=digits, random_state=0)
    return x, y, held_x, held_y


def network(x: Any, y: Any) -> Model:
    """Return the network with its first weights, which are the same each time."""
    api.fix_random_seed(0)
    model = api.chain(api.Relu(64, dropout=0.1), api.Relu(32), api.Softmax())
    return model.initialize(X=x, Y=y)


def train(
    model: Model, optimizer: Any, epochs: int, x: Any, y: Any, kept: Gradients | None = None
) -> float:
    """Train in place, keep the gradients on request; return the seconds of the optimizer."""
    rng, seconds = np.random.default_rng(0), 0.0

    def keeping(key: Key, weights: Any, gradient: Any, **others: Any) -> Any:
        if kept is not None:
            kept.append((key, gradient.copy()))
        return optimizer(key, weights, gradient, **others)

    for _ in range(epochs):
        order = rng.permutation(len(x))
        for begin in range(0, len(x), BATCH):
            which = order[begin : begin + BATCH]
            found, backprop = model.begin_update(x[which])
            backprop((found - y[which]) / len(which))
            began = time.perf_counter()
            model.finish_update(optimizer if kept is None else keeping)
            optimizer.step_schedules()
            seconds += time.perf_counter() - began
    return seconds


def weights_of(model: Model) -> dict[Key, Any]:
    """Return copies of all weights, by the keys that optimizers get."""
    return {
        (node.id, name): node.get_param(name).copy()
        for node in model.walk()
        for name in node.param_names
    }


def stepped(optimizer: Any, first: dict[Key, Any], grads: Gradients) -> dict[Key, Any]:
    """Return where an optimizer gets by these gradients."""
    weights = {key: array.copy() for key, array in first.items()}
    for k, (key, gradient) in enumerate(grads):
        weights[key], _ = optimizer(key, weights[key], gradient.copy())
        if (k + 1) % len(first) == 0:
            optimizer.step_schedules()
    return weights


def difference(one: dict[Key, Any], other: dict[Key, Any]) -> float:
    """Return the largest difference of two trees of weights."""
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)


def accuracy(model: Model, x: Any, y: Any) -> float:
    """Return the share of the digits that are read correctly."""
    return float((model.predict(x).argmax(axis=1) == y.argmax(axis=1)).mean())


def main(argv: list[str] | None = None) -> None:
    """Train by thinc's own Adam, take the same gradients, and train by others."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--epochs", type=int, default=25)
    given = parser.parse_args(argv)
    x, y, held_x, held_y = data()

    model, grads = network(x, y), Gradients()
    first = weights_of(model)
    train(model, api.Adam(RATE), given.epochs, x, y, grads)
    far = difference(weights_of(model), first)
    print(
        f"{len(grads) // len(first)} steps of thinc's Adam, which move weights by up to {far:.2f}"
    )
    for word, table in (("same", SAME), ("otherwise", OTHERWISE)):
        for name, arguments in table.items():
            theirs, ours = (
                of(RATE, **arguments) for of in (api.Optimizer, fastopt.thinc.Optimizer)
            )
            off = difference(stepped(theirs, first, grads), stepped(ours, first, grads))
            averages = difference(theirs.averages, ours.averages)
            print(f"{word}: {name}: weights differ by {off:.1e}, their averages by {averages:.1e}")

    makers: dict[str, Callable[[], Any]] = {
        "thinc's Adam": lambda: api.Adam(RATE),
        "fastopt's Adam": lambda: fastopt.thinc.Optimizer(RATE),
    }
    for name, rate in OTHERS.items():
        makers[name] = partial(fastopt.thinc.Optimizer, rate, optimizer=name)
    for name, make in makers.items():
        model, optimizer = network(x, y), make()
        seconds = train(model, optimizer, given.epochs, x, y)
        now = 100 * accuracy(model, held_x, held_y)
        with model.use_params(optimizer.averages):
            averaged = 100 * accuracy(model, held_x, held_y)
        print(
            f"{name}: {now:.1f} % of the digits that were held out, {averaged:.1f} % by averages, "
            f"{1e6 * seconds * len(first) / len(grads):.0f} us per step of the optimizer"
        )


if __name__ == "__main__":
    main()
