"""The estimators give scikit-learn's numbers, pass its checks, and go on where they ended."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings
from itertools import pairwise
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn.neural_network as theirs
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import fastopt
import fastopt.sklearn as ours
from fastopt.core.arrays import Array
from fastopt.interop.perceptron import ACTIVATIONS, OUTPUTS, Batch, Layers, Perceptron
from fastopt.schedules import ReduceLROnPlateau, cosine

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

CLASSIFIED, NUMBERED = "MLPClassifier", "MLPRegressor"
DATA = {"digits": CLASSIFIED, "cancer": CLASSIFIED, "diabetes": NUMBERED}
LOADERS = {"digits": load_digits, "cancer": load_breast_cancer, "diabetes": load_diabetes}
HESSIAN = ("AdaHessian", "Sophia")
NAMES = [name for name in fastopt.optimizers.names() if name not in HESSIAN]


def loaded(name: str) -> tuple[Array, Array]:
    X, y = LOADERS[name](return_X_y=True)
    X = StandardScaler().fit_transform(X)
    return X, (y - y.mean()) / y.std() if name == "diabetes" else y


def small(seed: int = 0, classes: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 5))
    return X, (X @ rng.standard_normal((5, classes))).argmax(axis=1)


# scikit-learn's checks, and its numbers ----------------------------------------------------------


@pytest.mark.parametrize("name", [CLASSIFIED, NUMBERED])
def test_it_passes_the_checks_of_scikit_learn(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks that need pandas say that they are skipped
        check_estimator(getattr(ours, name)())


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "early": {"early_stopping": True, "max_iter": 60},
    "deep": {"hidden_layer_sizes": (20, 10), "activation": "tanh", "alpha": 0.1, "batch_size": 50},
    "logistic": {"activation": "logistic", "learning_rate_init": 0.02, "shuffle": False},
    "ends": {"tol": 0.02, "n_iter_no_change": 3, "max_iter": 200},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("data", DATA)
def test_loss_curve_and_weights_are_those_of_scikit_learn(data: str, setting: str) -> None:
    X, y = loaded(data)
    options = {"max_iter": 15, "random_state": 3, "hidden_layer_sizes": 30, **SETTINGS[setting]}
    one = getattr(theirs, DATA[data])(**options).fit(X, y)
    other = getattr(ours, DATA[data])(**options).fit(X, y)
    assert other.n_iter_ == one.n_iter_
    np.testing.assert_allclose(other.loss_curve_, one.loss_curve_, rtol=1e-9)
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(other.predict(X), one.predict(X), rtol=1e-7)
    assert other.score(X, y) == pytest.approx(one.score(X, y))
    if setting == "early":
        assert other.validation_scores_ == pytest.approx(one.validation_scores_)
        assert other.best_validation_score_ == pytest.approx(one.best_validation_score_)
    for name in ("loss_", "best_loss_", "t_", "n_layers_", "n_outputs_", "out_activation_"):
        assert getattr(other, name) == pytest.approx(getattr(one, name)), name


def test_their_sgd_is_ours_with_momentum() -> None:
    X, y = loaded("digits")
    options: dict[str, Any] = {"learning_rate_init": 0.05, "max_iter": 10, "random_state": 0}
    one = theirs.MLPClassifier(20, solver="sgd", **options).fit(X, y)
    nesterov = {"momentum": 0.9, "nesterov": True}
    other = ours.MLPClassifier(20, optimizer="sgd", optimizer_options=nesterov, **options)
    np.testing.assert_allclose(other.fit(X, y).loss_curve_, one.loss_curve_, rtol=1e-9)


def test_two_classes_of_labels_at_once_as_scikit_learn() -> None:
    X, y = small()
    labels = np.stack([y > 0, y == 1, X[:, 0] > 0], axis=1).astype(int)
    options: dict[str, Any] = {"max_iter": 20, "random_state": 1}
    one = theirs.MLPClassifier(8, **options).fit(X, labels)
    for given in (labels, csr_matrix(labels)):
        other = ours.MLPClassifier(8, **options).fit(X, given)
        np.testing.assert_allclose(other.predict_proba(X), one.predict_proba(X), rtol=1e-9)
        assert np.array_equal(other.predict(X), one.predict(X))


def test_probabilities_and_names_of_classes() -> None:
    X, y = small(classes=2)
    named = np.array(["no", "yes"])[y]
    model = ours.MLPClassifier(8, max_iter=5, random_state=1).fit(X, named)
    proba = model.predict_proba(X)
    assert proba.shape == (60, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), proba)
    assert np.array_equal(model.predict(X), model.classes_[proba.argmax(axis=1)])


def test_several_numbers_at_once() -> None:
    X, _ = small()
    y = np.stack([X[:, 0] + 1, X[:, 1] * X[:, 2]], axis=1)
    model = ours.MLPRegressor(50, max_iter=800, learning_rate_init=0.01, random_state=0, tol=1e-6)
    assert model.fit(X, y).predict(X).shape == (60, 2)
    assert model.score(X, y) > 0.95


# Convex cases, whose minimum others find otherwise -----------------------------------------------


@pytest.mark.parametrize("optimizer", ["lbfgs", fastopt.LBFGS])
def test_without_a_hidden_layer_it_is_logistic_regression(optimizer: Any) -> None:
    X, y = small()
    model = ours.MLPClassifier((), optimizer=optimizer, alpha=2.0, tol=1e-9, max_iter=500)
    one = LogisticRegression(C=1 / 2.0, tol=1e-10, max_iter=5000).fit(X, y)
    np.testing.assert_allclose(model.fit(X, y).predict_proba(X), one.predict_proba(X), atol=1e-6)
    assert model.loss_curve_[-1] == model.loss_
    assert model.n_iter_ < 500
    assert not hasattr(model, "partial_fit")


def test_counts_without_a_hidden_layer_are_poisson_regression() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3))
    y = rng.poisson(np.exp(X @ [0.5, -0.3, 0.1] + 0.2)).astype(float)
    weight = rng.integers(0, 3, 200)
    one = PoissonRegressor(alpha=0, tol=1e-10, max_iter=1000).fit(X, y, weight)
    model = ours.MLPRegressor((), loss="poisson", optimizer="lbfgs", alpha=0, tol=1e-9)
    model.fit(X, y, weight)
    np.testing.assert_allclose(model.coefs_[0][:, 0], one.coef_, atol=1e-5)
    np.testing.assert_allclose(model.predict(X), one.predict(X), rtol=1e-5)
    # A rate that falls to nothing: with one that stays Adam ends near the minimum, not in it.
    stochastic = clone(model).set_params(
        optimizer="adam", learning_rate_init=cosine(0.1, 600), max_iter=600, tol=0
    )
    stochastic.set_params(n_iter_no_change=600, random_state=0)
    stochastic.fit(X, y, weight)
    np.testing.assert_allclose(stochastic.predict(X), one.predict(X), rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_are_those_of_the_loss(activation: str, output: str) -> None:
    rng = np.random.default_rng(5)
    X, weight = rng.standard_normal((7, 4)), rng.random(7)
    targets = rng.random((7, 2))
    if output == "softmax":
        targets /= targets.sum(axis=1, keepdims=True)
    sizes = [4, 3, 5, 2]
    net = Perceptron(activation, output, 0.3)
    arrays = [rng.standard_normal(shape) for shape in pairwise(sizes)]
    layers = Layers(arrays, [rng.standard_normal(size) for size in sizes[1:]])
    grads = Layers([a.copy() for a in layers.coefs], [a.copy() for a in layers.intercepts])
    batch = Batch(7, X, targets, sizes)

    def loss() -> float:
        return net.loss_and_gradients(X, targets, weight, layers, spare, batch)

    net.loss_and_gradients(X, targets, weight, layers, grads, batch)
    spare = Layers([a.copy() for a in layers.coefs], [a.copy() for a in layers.intercepts])
    for param, grad in zip(
        [*layers.coefs, *layers.intercepts], [*grads.coefs, *grads.intercepts], strict=True
    ):
        direction = rng.standard_normal(param.shape)
        kept = param.copy()
        param[...] = kept + 1e-6 * direction
        above = loss()
        param[...] = kept - 1e-6 * direction
        below = loss()
        param[...] = kept
        assert (above - below) / 2e-6 == pytest.approx((grad * direction).sum(), rel=1e-5, abs=1e-8)


# Going on ----------------------------------------------------------------------------------------


def weights(model: Any) -> list[Array]:
    return [*model.coefs_, *model.intercepts_]


def same(one: Any, other: Any) -> bool:
    return all(map(np.array_equal, weights(one), weights(other)))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_on_in_the_same_bits(name: str) -> None:
    X, y = small()
    given: dict[str, Any] = {"optimizer": name, "batch_size": 25, "random_state": 2}
    # The momentum of matrices alone refuses vectors, and says so.
    if name in ("Muon", "NorMuon"):
        with pytest.raises(ValueError, match="MuonWithAdamW"):
            ours.MLPClassifier(6, **given).fit(X, y)
        return
    whole = ours.MLPClassifier(6, max_iter=4, **given).fit(X, y)
    assert np.isfinite(whole.predict_proba(X)).all()

    parts = ours.MLPClassifier(6, **given)
    for _ in range(2):
        parts.partial_fit(X, y, classes=[0, 1, 2])
    parts = pickle.loads(pickle.dumps(parts))
    before = parts.predict_proba(X)
    assert np.array_equal(pickle.loads(pickle.dumps(parts)).predict_proba(X), before)
    for _ in range(2):
        parts.partial_fit(X, y)
    assert same(parts, whole)
    assert parts.optimizer_.step_count == whole.optimizer_.step_count == 12
    assert parts.loss_curve_ == whole.loss_curve_

    warm = ours.MLPClassifier(6, max_iter=2, warm_start=True, **given).fit(X, y).fit(X, y)
    assert same(warm, whole)


def test_going_on_obeys_what_was_set_in_between() -> None:
    X, y = small()
    model = ours.MLPClassifier(6, max_iter=3, warm_start=True, random_state=0).fit(X, y)
    opt = model.optimizer_
    model.set_params(learning_rate_init=0.25).fit(X, y)
    assert model.optimizer_ is opt
    assert opt.lr == 0.25
    assert opt.step_count == 6
    model.set_params(learning_rate_init=None).fit(X, y)
    assert (opt.lr, opt.step_count) == (1e-3, 9)
    model.set_params(optimizer="lion").fit(X, y)
    assert isinstance(model.optimizer_, fastopt.Lion)
    assert model.optimizer_.step_count == 3
    model.coefs_ = [np.zeros_like(one) for one in model.coefs_]
    model.set_params(learning_rate_init=1e-9).fit(X, y)
    assert all(abs(one).max() < 1e-7 for one in model.coefs_)
    with pytest.raises(ValueError, match="warm_start=False"):
        model.set_params(hidden_layer_sizes=7).fit(X, y)
    assert model.set_params(warm_start=False).fit(X, y).coefs_[0].shape == (5, 7)


def test_a_plateau_is_told_the_losses_and_stays_as_it_was_given() -> None:
    X, y = small()
    rate = ReduceLROnPlateau(0.5, patience=0, threshold=0.5)
    model = ours.MLPClassifier(4, learning_rate_init=rate, max_iter=6, random_state=0).fit(X, y)
    assert model.optimizer_.lr < 0.5
    assert rate(0) == 0.5
    falling = ours.MLPClassifier(4, learning_rate_init=cosine(0.1, 6), max_iter=6).fit(X, y)
    assert falling.optimizer_.lr < 1e-9


def test_early_stopping_predicts_with_the_best_of_a_schedule_free_run() -> None:
    X, y = loaded("digits")
    model = ours.MLPClassifier(
        20,
        optimizer="ScheduleFreeAdamW",
        learning_rate_init=0.01,
        early_stopping=True,
        max_iter=8,
        random_state=0,
    ).fit(X, y)
    assert max(model.validation_scores_) == model.best_validation_score_ > 0.8
    assert not model.optimizer_.training
    before = model.predict_proba(X)
    copied = pickle.loads(pickle.dumps(model))
    assert not copied.optimizer_.training
    for one in (model, copied):
        assert np.array_equal(one.predict_proba(X), before)


def test_a_file_that_is_mapped_predicts_and_goes_on(tmp_path: Any) -> None:
    X, y = small()
    model = ours.MLPClassifier(6, max_iter=3, warm_start=True, random_state=0).fit(X, y)
    joblib.dump(model, tmp_path / "model")
    mapped = joblib.load(tmp_path / "model", mmap_mode="r")
    assert np.array_equal(mapped.predict_proba(X), model.predict_proba(X))
    assert same(mapped.fit(X, y), model.fit(X, y))


# Data --------------------------------------------------------------------------------------------


def test_weights_are_repetitions() -> None:
    X, y = small()
    weight = np.random.default_rng(0).integers(0, 4, len(X))
    options: dict[str, Any] = {"max_iter": 30, "random_state": 0, "batch_size": 10_000}
    with pytest.warns(UserWarning, match="batch_size=10000"):
        one = ours.MLPClassifier(6, **options).fit(X, y, sample_weight=weight)
    with pytest.warns(UserWarning, match="batch_size=10000"):
        other = ours.MLPClassifier(6, **options).fit(X.repeat(weight, axis=0), y.repeat(weight))
    np.testing.assert_allclose(one.loss_curve_, other.loss_curve_, rtol=1e-8)
    np.testing.assert_allclose(one.predict_proba(X), other.predict_proba(X), rtol=1e-6)


def test_a_batch_that_counts_for_nothing_is_no_step() -> None:
    X, y = small()
    weight = np.r_[np.zeros(20), np.ones(40)]
    model = ours.MLPClassifier(6, batch_size=20, shuffle=False, max_iter=3, random_state=0)
    model.fit(X, y, weight)
    assert model.optimizer_.step_count == 6


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_sparse_inputs_are_as_dense_ones(optimizer: str) -> None:
    X, y = small()
    X[X < 0.5] = 0
    options = {"optimizer": optimizer, "random_state": 0, "max_iter": 20}
    one = ours.MLPClassifier(6, **options).fit(X, y)
    other = ours.MLPClassifier(6, **options).fit(csr_matrix(X), y)
    np.testing.assert_allclose(one.coefs_[0], other.coefs_[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(one.predict_proba(X), other.predict_proba(csr_matrix(X)), rtol=1e-5)


def test_float32_stays_float32() -> None:
    X, y = small()
    model = ours.MLPClassifier(6, max_iter=3, random_state=0).fit(X.astype(np.float32), y)
    assert {one.dtype for one in weights(model)} == {np.dtype(np.float32)}
    assert model.predict_proba(X.astype(np.float32)).dtype == np.float32
    model.partial_fit(X, y)  # goes on in the wider one, with fresh state
    assert {one.dtype for one in weights(model)} == {np.dtype(np.float64)}


def test_within_pipelines_and_searches() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), ours.MLPClassifier(8, max_iter=15, random_state=0))
    grid = {"mlpclassifier__optimizer": ["adamw", "rmsprop"], "mlpclassifier__alpha": [0, 1e-3]}
    search = GridSearchCV(model, grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.9
    copied = clone(search.best_estimator_)
    assert copied[-1].get_params() == search.best_estimator_[-1].get_params()
    assert same(copied.fit(X, y)[-1], search.best_estimator_[-1])


def test_classes_of_partial_fit() -> None:
    X, y = small()
    model = ours.MLPClassifier(4, random_state=0)
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, y)
    with pytest.raises(ValueError, match="2D array"):
        model.partial_fit(X[0], y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, y)  # the call that failed has told nothing
    only = y == 0
    model.partial_fit(X[only], y[only], classes=[2, 1, 0]).partial_fit(X, y)
    assert model.predict_proba(X).shape == (60, 3)
    with pytest.raises(ValueError, match="other ones than at the first call"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"holds the classes \[3\]"):
        model.partial_fit(X, y + 1)


# Errors ------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"optimizer": "adm"}, ValueError, "did you mean"),
    ({"optimizer": 3}, TypeError, "name or the class"),
    ({"optimizer": "sophia"}, ValueError, "Hessian"),
    ({"optimizer_options": {"lr": 1}}, ValueError, "learning_rate_init"),
    ({"optimizer_options": {"members": 2}}, ValueError, "one network"),
    ({"optimizer_options": [1]}, TypeError, "must be a dict"),
    ({"optimizer_options": {"beta": 1}}, TypeError, "beta"),
    ({"optimizer": "lbfgs", "optimizer_options": {"eps": 1}}, TypeError, "history"),
    ({"learning_rate_init": -1.0}, ValueError, "lr"),
    ({"activation": "selu"}, ValueError, "'relu'"),
    ({"hidden_layer_sizes": (5, 0)}, ValueError, "> 0"),
    ({"hidden_layer_sizes": 2.5}, ValueError, "whole numbers"),
    ({"alpha": -1}, ValueError, "alpha"),
    ({"alpha": float("nan")}, ValueError, "alpha"),
    ({"batch_size": 0}, ValueError, "batch_size"),
    ({"max_iter": 0}, ValueError, "max_iter"),
    ({"tol": None}, ValueError, "tol"),
    ({"validation_fraction": 1.0}, ValueError, "validation_fraction"),
    ({"validation_fraction": 0.01, "early_stopping": True}, ValueError, "less than two"),
    ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=str)
def test_wrong_parameters(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ours.MLPClassifier(**options).fit(*small())


def test_other_errors() -> None:
    X, y = small()
    with pytest.raises(ValueError, match="'poisson'"):
        ours.MLPRegressor(loss="absolute").fit(X, y)
    with pytest.raises(ValueError, match="0 or more"):
        ours.MLPRegressor(loss="poisson").fit(X, y - 1)
    with pytest.raises(ValueError, match="early_stopping=False"):
        ours.MLPRegressor(early_stopping=True).partial_fit(X, y)
    with pytest.raises(ValueError, match="sample_weight"):
        ours.MLPRegressor().fit(X, y, sample_weight=-np.ones(60))
    with pytest.raises(AttributeError, match="has no optimizer"):
        _ = ours.MLPRegressor().optimizer_
    with pytest.raises(NotFittedError):
        ours.MLPRegressor().predict(X)
    with pytest.raises(ValueError, match="StandardScaler"), np.errstate(all="ignore"):
        ours.MLPRegressor(optimizer="sgd", learning_rate_init=1e5, max_iter=50).fit(1e5 * X, y)


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = small()
    with pytest.warns(ConvergenceWarning, match="max_iter=2") as said:
        ours.MLPClassifier(4, max_iter=2, verbose=True).fit(X, y)
    assert said[0].filename == __file__
    with pytest.warns(ConvergenceWarning, match="raise max_iter") as said:
        ours.MLPClassifier(4, max_iter=2, optimizer="lbfgs").fit(X, y)
    assert said[0].filename == __file__
    ours.MLPClassifier(4, tol=10, n_iter_no_change=2, verbose=True).fit(X, y)
    printed = capsys.readouterr().out
    assert "Iteration 2, loss = " in printed
    assert "did not improve by more than tol=10 in 2 iterations" in printed


def test_an_interrupt_keeps_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = small()
    model = ours.MLPClassifier(4, random_state=0)

    def interrupt(*_: Any) -> None:
        if model.n_iter_ == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(model, "_judge_loss", interrupt)
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(X, y)
    assert same(model, ours.MLPClassifier(4, random_state=0, max_iter=3).fit(X, y))


def test_without_scikit_learn_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import fastopt; fastopt.sklearn"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "pip install scikit-learn" in ended.stderr


def test_no_buffers_are_in_a_file() -> None:
    X, y = loaded("digits")
    model = ours.MLPClassifier(50, max_iter=1, random_state=0).fit(X, y)
    size = sum(one.nbytes for one in weights(model))
    written = io.BytesIO()
    pickle.dump(model, written)
    assert written.tell() < 3.5 * size  # the weights, and the two averages of Adam
