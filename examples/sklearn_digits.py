"""Train scikit-learn's network on digits, with any optimizer of fastopt in place of its three.

    python examples/sklearn_digits.py

What is gained is the choice: scikit-learn's networks have Adam, SGD and L-BFGS, those of
``fastopt.sklearn`` any optimizer here, by its name. One line of a program changes, the import:

    from sklearn.neural_network import MLPClassifier         # before
    from fastopt.sklearn import MLPClassifier                # now

Pipelines and searches take either. With the same settings both give the same network but for
rounding, which is shown first: the same split, the same first weights, the same batches. Then a
grid search chooses between two optimizers and their learning rates, as between any other settings.
At last ``partial_fit``, through ``pickle`` in the middle: it goes on with the optimizer's state,
the generator and the order of the samples, so that the weights are those of a run in one go, to the
bit.

The digits come with scikit-learn. Needs ``pip install -e '.[examples]'``.
"""

from __future__ import annotations

import argparse
import pickle
import time
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier as Theirs
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

from fastopt.sklearn import MLPClassifier

SETTINGS: dict[str, Any] = {
    "hidden_layer_sizes": (64,),
    "learning_rate_init": 0.003,
    "tol": 1e-3,
    "random_state": 0,
}
GRID = [
    {"network__optimizer": ["adam"], "network__learning_rate_init": [0.003, 0.01]},
    {"network__optimizer": ["yogi"], "network__learning_rate_init": [0.01, 0.03]},
]


class Data(NamedTuple):
    """Images and digits to train on, and those held out."""

    x: Any
    y: Any
    held_x: Any
    held_y: Any


def data() -> Data:
    """Return three quarters of the digits to train on, and a quarter held out."""
    images, digits = load_digits(return_X_y=True)
    x, held_x, y, held_y = train_test_split(images, digits, stratify=digits, random_state=0)
    return Data(x, y, held_x, held_y)


def pipeline(network: Any) -> Pipeline:
    """Return a network behind a scaler."""
    return Pipeline([("scaler", MinMaxScaler()), ("network", network)])


def beside(digits: Data) -> None:
    """Train scikit-learn's network and this one with the same settings, three times each."""
    makers = {"scikit-learn": Theirs, "fastopt": MLPClassifier}
    models = {name: pipeline(maker(**SETTINGS)) for name, maker in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(3):
        for name, model in models.items():
            began = time.perf_counter()
            model.fit(digits.x, digits.y)
            times[name].append(time.perf_counter() - began)
    for name, model in models.items():
        print(
            f"{name}: {100 * model.score(digits.held_x, digits.held_y):.1f} % of the digits that "
            f"were held out, {model['network'].n_iter_} epochs in {min(times[name]):.2f} s"
        )
    theirs, ours = (np.array(models[name]["network"].loss_curve_) for name in makers)
    off = np.abs(ours / theirs - 1).max()
    print(f"the losses of the epochs differ by a relative {off:.1e} at most")


def search(digits: Data) -> None:
    """Choose an optimizer and its learning rate by cross-validation."""
    found = GridSearchCV(pipeline(MLPClassifier(**SETTINGS)), GRID, cv=3)
    found.fit(digits.x, digits.y)
    tried = zip(found.cv_results_["params"], found.cv_results_["mean_test_score"], strict=True)
    for given, score in tried:
        print(f"{told(given)}: {100 * score:.1f} % in cross-validation")
    right = 100 * found.score(digits.held_x, digits.held_y)
    print(f"chosen: {told(found.best_params_)}, {right:.1f} % of the digits that were held out")


def told(given: dict[str, Any]) -> str:
    """Return an optimizer and its rate as a name."""
    return f"{given['network__optimizer']} at {given['network__learning_rate_init']}"


def go_on(digits: Data, epochs: int = 20) -> None:
    """Train for half of the epochs, pickle, go on with what is read back; the same in one go."""
    scaler = MinMaxScaler().fit(digits.x)
    x, held_x = scaler.transform(digits.x), scaler.transform(digits.held_x)
    settings = {**SETTINGS, "optimizer": "yogi", "learning_rate_init": 0.01}
    model, one_go = MLPClassifier(**settings), MLPClassifier(**settings)
    classes = np.unique(digits.y)
    for epoch in range(1, epochs + 1):
        one_go.partial_fit(x, digits.y, classes)
        model.partial_fit(x, digits.y, classes)
        if epoch in (epochs // 2, epochs):
            right = 100 * model.score(held_x, digits.held_y)
            steps = model.optimizer_.step_count
            print(f"partial_fit: {right:.1f} % after {epoch} epochs, {steps} steps of Yogi")
            model = pickle.loads(pickle.dumps(model))
    same = all(np.array_equal(a, b) for a, b in zip(one_go.coefs_, model.coefs_, strict=True))
    print(f"the weights are {'those' if same else 'not those'} of {epochs} epochs in one go")


def main(argv: list[str] | None = None) -> None:
    """Train beside scikit-learn's network, search, and go on."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.parse_args(argv)
    digits = data()
    beside(digits)
    search(digits)
    go_on(digits)


if __name__ == "__main__":
    main()
