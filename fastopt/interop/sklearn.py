"""Multilayer perceptrons as estimators of scikit-learn, trained by any optimizer of this package.

What is here is the estimator: parameters and their checks, inputs and labels, epochs and when they
end. The network itself is in ``perceptron``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from itertools import chain, pairwise
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse

from fastopt import optimizers
from fastopt.core.arrays import Array
from fastopt.interop.perceptron import ACTIVATIONS, Batch, Layers, Perceptron
from fastopt.optimizers.adam import Adam
from fastopt.optimizers.base import Optimizer

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier
except ImportError as _error:
    raise ImportError(
        "fastopt.sklearn has estimators for scikit-learn, and scikit-learn is not installed here; "
        "install it (pip install scikit-learn)"
    ) from _error

from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_array, check_random_state, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_consistent_length, check_is_fitted

AS_SCIKIT_LEARN: dict[type[Optimizer], dict[str, Any]] = {Adam: {"eps_hat": True}}
"""Options that ``optimizer_options`` need not name, so that numbers are those of scikit-learn."""


def _validated(estimator: Any, *data: Any, **how: Any) -> Any:
    """Return X, or X and y, as arrays; what scikit-learn checks of them is checked."""
    if hasattr(estimator, "_validate_data"):  # before scikit-learn 1.6 alone
        return estimator._validate_data(*data, **how)
    from sklearn.utils.validation import validate_data

    return validate_data(estimator, *data, **how)


def _weights(given: Any, samples: Any, dtype: Any) -> Array | None:
    """Return the weights of the samples as an array; None if there are none."""
    if given is None:
        return None
    if isinstance(given, Real):
        return np.full(samples.shape[0], given, dtype)
    weight: Array = check_array(
        given, ensure_2d=False, dtype=dtype, order="C", input_name="sample_weight"
    )
    if weight.ndim != 1:
        raise ValueError(
            f"sample_weight must be a number for each sample, an array of one axis; got one of "
            f"shape {weight.shape}"
        )
    check_consistent_length(samples, weight)
    if weight.min() < 0 or not weight.sum() > 0:
        raise ValueError(
            "each sample_weight must be zero or more, and not all zero; got weights from "
            f"{weight.min():g} to {weight.max():g}"
        )
    return weight


# -------------------------------------------------------------------------------------------------
# Parameters and their checks.


def _number(name: str, value: Any, ok: bool, what: str) -> None:
    """Raise ValueError unless a parameter is a number in its range."""
    if isinstance(value, bool) or not isinstance(value, Real) or not ok:
        raise ValueError(f"{name} must be {what}; got {value!r:.200}")


def _whole(name: str, value: Any) -> None:
    """Raise ValueError unless a parameter is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1 on; got {value!r:.200}")


def _at_least(value: Any, low: float) -> bool:
    return isinstance(value, Real) and low <= float(value) < math.inf


def _is_lbfgs(optimizer: Any) -> bool:
    from fastopt.fits.methods import is_lbfgs

    return is_lbfgs(optimizer)


class _Made(NamedTuple):
    """How an optimizer was made: its class, its options, the learning rate (None: the class's)."""

    formula: type[Optimizer]
    options: dict[str, Any]
    lr: Any

    def make(self, tree: Any) -> Optimizer:
        """Return a new optimizer of these arrays."""
        rate = {} if self.lr is None else {"lr": self.lr}
        return self.formula(tree, **rate, **self.options)

    def is_as(self, other: _Made) -> bool:
        """Return whether an optimizer made otherwise can go on: another rate can be set."""
        return self.formula is other.formula and self.options == other.options


def _made_of(optimizer: Any, options: Mapping[str, Any] | None, lr: Any) -> _Made:
    """Return what makes the optimizer of these parameters of an estimator."""
    if isinstance(optimizer, str):
        try:
            formula = optimizers.named(optimizer)
        except ValueError as error:
            raise ValueError(f"optimizer: {error}; 'lbfgs' is one here too") from None
    elif isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        formula = optimizer
    else:
        raise TypeError(
            "optimizer must be the name or the class of one of fastopt's, such as 'adam' or "
            f"fastopt.Adam (its options go into optimizer_options); got {optimizer!r:.200}"
        )
    if formula._estimate is not None:
        raise ValueError(
            f"{formula.__name__} steps by estimates of the Hessian, and there are none here; take "
            "another optimizer"
        )
    given = _checked_options(options)
    return _Made(formula, {**AS_SCIKIT_LEARN.get(formula, {}), **given}, lr)


def _checked_options(options: Any) -> dict[str, Any]:
    """Return optimizer_options as a dict."""
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"optimizer_options must be a dict or None; got {options!r:.200}")
    given = {} if options is None else {**options}
    for name, instead in _ELSEWHERE.items():
        if name in given:
            raise ValueError(f"optimizer_options must not hold {name!r}: {instead}")
    return given


_ELSEWHERE = {
    "lr": "learning_rate_init is the learning rate",
    "members": "one estimator is one network",
    "maximize": "the loss goes down",
    "capturable": "the arrays are NumPy's",
}


# -------------------------------------------------------------------------------------------------
# The estimators.


class _Data(NamedTuple):
    """Samples: inputs, what the network is to give for them, their weights if they have any."""

    inputs: Any
    targets: Array
    weight: Array | None


class _Held(NamedTuple):
    """What is held out to judge by: inputs, targets as ``predict`` gives them, weights."""

    inputs: Any
    targets: Array
    weight: Array | None


def _goes_step_by_step(self: Any) -> bool:
    """Return whether there is a partial_fit; AttributeError if not."""
    if _is_lbfgs(self.optimizer):
        raise AttributeError(
            "partial_fit makes steps of one batch after another, and L-BFGS works on all samples "
            "at once; take another optimizer, or fit"
        )
    return True


class _Network(BaseEstimator):  # type: ignore[misc]  # scikit-learn is not looked into
    """Base of both estimators."""

    n_iter_: int
    t_: int
    n_layers_: int
    n_outputs_: int
    out_activation_: str
    loss_: float
    _made: _Made
    _given_rate: Any

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        optimizer: Any = "adam",
        optimizer_options: Any = None,
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate_init: Any = None,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: float = 10,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.optimizer = optimizer
        self.optimizer_options = optimizer_options
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change

    # What scikit-learn asks ----------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        """Say that inputs may be sparse."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check_parameters(self) -> None:
        """Raise ValueError or TypeError for parameters out of range."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}; got "
                f"{self.activation!r:.200}"
            )
        _number("alpha", self.alpha, _at_least(self.alpha, 0), "a number from 0 on")
        if self.batch_size != "auto":
            _whole("batch_size ('auto' is 200 at most)", self.batch_size)
        _whole("max_iter", self.max_iter)
        _number("tol", self.tol, _at_least(self.tol, 0), "a number from 0 on")
        fraction = self.validation_fraction
        within = _at_least(fraction, 0) and fraction < 1
        _number("validation_fraction", fraction, within, "a number from 0 on and below 1")
        if not _is_lbfgs(self.optimizer):
            _made_of(self.optimizer, self.optimizer_options, None)
        if self.n_iter_no_change != math.inf:
            _whole("n_iter_no_change (inf for never)", self.n_iter_no_change)

    def _hidden(self) -> list[int]:
        """Return the sizes of the hidden layers."""
        given = self.hidden_layer_sizes
        sizes = list(given) if hasattr(given, "__iter__") else [given]
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
                raise ValueError(
                    "hidden_layer_sizes must be whole numbers > 0, one for each hidden layer, such "
                    f"as (100, 50); got {given!r:.200}"
                )
        return [int(size) for size in sizes]

    # Training ------------------------------------------------------------------------------------

    def _targets(self, y: Array, first: bool) -> Array:
        """Return what the network is to give for every sample, of two axes."""
        raise NotImplementedError

    def _checked(self, X: Any, y: Any, first: bool) -> tuple[Any, Array]:
        """Return inputs and y as arrays."""
        raise NotImplementedError

    def _output(self) -> str:
        """Return what the last layer ends in."""
        raise NotImplementedError

    def _fit(self, X: Any, y: Any, sample_weight: Any, partial: bool) -> Any:
        self._check_parameters()
        hidden = self._hidden()
        first = not hasattr(self, "coefs_") or not (self.warm_start or partial)
        X, y = self._checked(X, y, first)
        weight = _weights(sample_weight, X, X.dtype)
        targets = np.ascontiguousarray(self._targets(y, first), X.dtype)
        sizes = [X.shape[1], *hidden, targets.shape[1]]
        if first:
            self._begin(sizes, X.dtype)
        else:
            self._go_on(sizes, X.dtype)
        data = _Data(X, targets, weight)
        if _is_lbfgs(self.optimizer):
            self._train_whole(data)
        else:
            self._train(data, partial)
        if not self._is_finite():
            raise ValueError(self._diverged())
        return self

    def _begin(self, sizes: Sequence[int], dtype: Any) -> None:
        """Set all attributes as they are before the first epoch."""
        self._random_state = check_random_state(self.random_state)
        self._order: Array | None = None
        self.n_iter_ = 0
        self.t_ = 0
        self.n_layers_ = len(sizes)
        self.n_outputs_ = sizes[-1]
        self.out_activation_ = self._output()
        self.coefs_: list[Array] = []
        self.intercepts_: list[Array] = []
        for before, after in pairwise(sizes):
            # Glorot and Bengio (2010), as scikit-learn has it for each activation.
            bound = math.sqrt((2.0 if self.activation == "logistic" else 6.0) / (before + after))
            coef = self._random_state.uniform(-bound, bound, (before, after))
            intercept = self._random_state.uniform(-bound, bound, after)
            self.coefs_.append(coef.astype(dtype))
            self.intercepts_.append(intercept.astype(dtype))
        self.loss_curve_: list[float] = []
        self._without_improvement = 0
        self.validation_scores_: list[float] | None = [] if self.early_stopping else None
        self.best_validation_score_ = -math.inf if self.early_stopping else None
        self.best_loss_ = None if self.early_stopping else math.inf
        self._optimizer: Optimizer | None = None
        self._saved: dict[str, Any] | None = None

    def _go_on(self, sizes: Sequence[int], dtype: Any) -> None:
        """Take the layers as they are now, which may have been replaced; raise for other sizes."""
        shapes = [*pairwise(sizes)]
        if [np.shape(coef) for coef in self.coefs_] != shapes:
            raise ValueError(
                f"the layers have the sizes {[len(c) for c in self.coefs_]} and {self.n_outputs_} "
                f"outputs, and what is asked for now has {sizes[:-1]} and {sizes[-1]}; fit goes on "
                "with the same layers alone: set warm_start=False to begin anew"
            )
        self.coefs_ = [np.require(one, dtype, ["C", "W"]) for one in self.coefs_]
        self.intercepts_ = [np.require(one, dtype, ["C", "W"]) for one in self.intercepts_]
        if self.early_stopping and self.validation_scores_ is None:
            self.validation_scores_, self.best_validation_score_ = [], -math.inf
        if not self.early_stopping and self.best_loss_ is None:
            self.best_loss_ = math.inf

    def _layers(self) -> Layers:
        return Layers(self.coefs_, self.intercepts_)

    def _network(self) -> Perceptron:
        return Perceptron(self.activation, self.out_activation_, float(self.alpha))

    @property
    def optimizer_(self) -> Optimizer:
        """The optimizer of the last fit, with its state."""
        if self.__dict__.get("_optimizer") is None:
            if not self._has_optimizer():
                raise AttributeError(f"this {type(self).__name__} has no optimizer: fit makes one")
            self._optimizer = self._restored(self._saved)
            self._saved = None
        assert self._optimizer is not None
        return self._optimizer

    def _restored(self, saved: Mapping[str, Any] | None) -> Optimizer:
        """Return the optimizer that a pickled estimator had."""
        assert saved is not None
        self.coefs_ = [np.require(one, None, ["C", "W"]) for one in self.coefs_]
        self.intercepts_ = [np.require(one, None, ["C", "W"]) for one in self.intercepts_]
        opt: Any = self._made.make(self._tree())
        opt.load_state_dict(saved["state"])
        if saved["in_training"] is not None:
            predicting = self._copies()
            self._write(saved["in_training"])
            opt.eval()
            self._write(predicting)
        made: Optimizer = opt
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, with the optimizer's state in its place.

        Arrays that are read-only where they are unpickled (``joblib.load(mmap_mode="r")``) are then
        enough to predict.
        """
        state: dict[str, Any] = dict(super().__getstate__())
        opt = state.pop("_optimizer", None)
        if opt is not None:
            in_training = None
            if hasattr(opt, "train"):
                predicting = self._copies()  # averages, or the best of them
                with opt.train():
                    in_training = self._copies()
                self._write(predicting)
            state["_saved"] = {"state": opt.state_dict(), "in_training": in_training}
        return state

    def _copies(self) -> list[Array]:
        """Return copies of the layers."""
        return [one.copy() for one in chain(self.coefs_, self.intercepts_)]

    def _write(self, layers: Sequence[Array]) -> None:
        """Write what was copied back into the layers."""
        for now, one in zip(chain(self.coefs_, self.intercepts_), layers, strict=True):
            now[...] = one

    def _tree(self) -> dict[str, list[Array]]:
        return {"coefs": self.coefs_, "intercepts": self.intercepts_}

    def _ready_optimizer(self) -> Optimizer:
        """Return the optimizer of the layers: the one of before, if it is of the same kind."""
        given = deepcopy(self.learning_rate_init)
        made = _made_of(self.optimizer, self.optimizer_options, deepcopy(given))
        held = self.optimizer_ if self._has_optimizer() else None
        if held is None or not self._made.is_as(made) or self._has_other_dtypes(held):
            self._optimizer = held = made.make(self._tree())
            self._made, self._given_rate = made, given
            return held
        if hasattr(held, "train"):
            held.train()
        held.rebind(self._tree())
        if given != self._given_rate:
            held.lr = made.make(self._tree()).lr if made.lr is None else made.lr
            self._made, self._given_rate = made, given
        return held

    def _has_optimizer(self) -> bool:
        return any(self.__dict__.get(name) is not None for name in ("_optimizer", "_saved"))

    def _has_other_dtypes(self, opt: Optimizer) -> bool:
        return bool(opt.params["coefs"][0].dtype != self.coefs_[0].dtype)

    def _train(self, data: _Data, partial: bool) -> None:
        """Make epochs until one of the reasons to end is there; one alone where partial."""
        if self.early_stopping and partial:
            raise ValueError(
                "partial_fit does not hold samples out, so it cannot go with early_stopping=True; "
                "set early_stopping=False, or call fit"
            )
        data, held_out = self._split(data) if self.early_stopping else (data, None)
        opt = self._ready_optimizer()
        epochs = self._epochs(data, opt, partial)
        best: list[Array] | None = None
        self.n_iter_ = 0
        try:
            for loss in epochs:
                self._note(loss, data, opt)
                if held_out is None:
                    self._judge_loss()
                else:
                    best = self._judge(held_out, opt) or best
                if self._without_improvement > self.n_iter_no_change:
                    self._say_end()
                    break
                if partial:
                    break
                if self.n_iter_ == self.max_iter:
                    warnings.warn(
                        f"training ends after max_iter={self.max_iter} iterations, and was still "
                        "making headway; raise max_iter, or tol",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
                    break
        except KeyboardInterrupt:
            warnings.warn("training was interrupted; the network is as it was then", stacklevel=4)
        if hasattr(opt, "eval"):
            opt.eval()
        if best is not None:
            self._write(best)

    def _epochs(self, data: _Data, opt: Optimizer, partial: bool) -> Iterator[float]:
        """Make epochs for ever; yield the mean loss of each, as it was during the epoch."""
        samples = data.targets.shape[0]
        size = self._batch_size(samples)
        network, layers, tree = self._network(), self._layers(), opt.gradient_buffers()
        grads = Layers(tree["coefs"], tree["intercepts"])
        sizes = [len(coef) for coef in layers.coefs] + [data.targets.shape[1]]
        batches: dict[int, Batch] = {}
        order = np.arange(samples)
        if self._order is not None and len(self._order) == samples:
            order = self._order
        takes_value = opt._takes_value
        while True:
            if self.shuffle:  # the order of before, as sklearn.utils.shuffle does it
                places = np.arange(samples)
                self._random_state.shuffle(places)
                order = order[places]
                self._order = order if partial or self.warm_start else None
            loss = counted = 0.0
            for begin in range(0, samples, size):
                part = slice(begin, min(begin + size, samples))
                rows = part.stop - begin
                if rows not in batches:
                    batches[rows] = Batch(rows, data.inputs, data.targets, sizes)
                batch = batches[rows]
                which = order[part] if self.shuffle else part
                weight = None if data.weight is None else data.weight[which]
                share = float(rows) if weight is None else float(weight.sum())
                if not share:
                    continue  # all of them count for nothing
                inputs, targets = batch.take(data.inputs, data.targets, which)
                value = network.loss_and_gradients(inputs, targets, weight, layers, grads, batch)
                if takes_value:
                    opt.step(tree, value=value)
                else:
                    opt.step(tree)
                loss += value * share
                counted += share
            yield loss / counted

    def _batch_size(self, samples: int) -> int:
        if self.batch_size == "auto":
            return min(200, samples)
        if self.batch_size > samples:
            warnings.warn(
                f"batch_size={self.batch_size} is more than there are samples, {samples}, all of "
                "which are then one batch",
                stacklevel=6,
            )
        return min(int(self.batch_size), samples)

    def _note(self, loss: float, data: _Data, opt: Optimizer) -> None:
        """Write down what came of an epoch."""
        self.n_iter_ += 1
        self.t_ += data.targets.shape[0]
        self.loss_ = loss
        self.loss_curve_.append(loss)
        report = getattr(self._made.lr, "report", None)
        if report is not None:
            report(loss)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {loss:.8f}")
        if not math.isfinite(loss) and not self._is_finite():
            raise ValueError(self._diverged())

    def _judge_loss(self) -> None:
        """Count epochs in which the loss fell by less than tol."""
        loss, best = self.loss_curve_[-1], self.best_loss_
        assert best is not None
        self._without_improvement = self._without_improvement + 1 if loss > best - self.tol else 0
        self.best_loss_ = min(loss, best)

    def _judge(self, held: _Held, opt: Optimizer) -> list[Array] | None:
        """Count epochs in which the score rose by less than tol; return the layers if it is best.

        They are copies, as they are to predict.
        """
        assert self.validation_scores_ is not None
        assert self.best_validation_score_ is not None
        with opt.eval() if hasattr(opt, "eval") else nullcontext():
            score = self._score_of(held)
            is_best = score > self.best_validation_score_
            copies = self._copies() if is_best else None
        self.validation_scores_.append(score)
        if self.verbose:
            print(f"Validation score: {score:f}")
        risen = not score < self.best_validation_score_ + self.tol
        self._without_improvement = 0 if risen else self._without_improvement + 1
        if is_best:
            self.best_validation_score_ = score
        return copies

    def _score_of(self, held: _Held) -> float:
        raw = self._network().outputs(held.inputs, self._layers())
        if not np.isfinite(raw).all():
            return math.nan
        metric = accuracy_score if is_classifier(self) else r2_score
        return float(metric(held.targets, self._as_y(raw), sample_weight=held.weight))

    def _say_end(self) -> None:
        if self.verbose:
            what = "validation score" if self.early_stopping else "training loss"
            print(
                f"The {what} did not improve by more than tol={self.tol:g} in "
                f"{self.n_iter_no_change} iterations. Stopping."
            )

    def _split(self, data: _Data) -> tuple[_Data, _Held]:
        """Hold a part of the samples out."""
        stratify = data.targets if is_classifier(self) and self.n_outputs_ == 1 else None
        arrays = [one for one in data if one is not None]
        parts = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=stratify,
        )
        trained, held = parts[::2], parts[1::2]
        if held[0].shape[0] < 2:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of {data.targets.shape[0]} "
                "samples is less than two to judge by; raise it, or hand in more samples"
            )
        weights = (None, None) if data.weight is None else (trained[2], held[2])
        judged = _Held(held[0], self._as_y(held[1]), weights[1])
        return _Data(trained[0], trained[1], weights[0]), judged

    def _as_y(self, outputs: Array) -> Array:
        """Return outputs of the network, or targets, as y has them."""
        raise NotImplementedError

    def _train_whole(self, data: _Data) -> None:
        """Minimise the loss of all samples by L-BFGS."""
        from fastopt.fits.minimize import minimize

        network, layers = self._network(), self._layers()
        sizes = [len(coef) for coef in layers.coefs] + [data.targets.shape[1]]
        batch = Batch(data.targets.shape[0], data.inputs, data.targets, sizes)
        grads = {
            "coefs": [np.empty_like(coef) for coef in layers.coefs],
            "intercepts": [np.empty_like(intercept) for intercept in layers.intercepts],
        }
        into = Layers(grads["coefs"], grads["intercepts"])

        def loss_at(tree: dict[str, list[Array]]) -> tuple[float, dict[str, list[Array]]]:
            at = Layers(tree["coefs"], tree["intercepts"])
            return (
                network.loss_and_gradients(data.inputs, data.targets, data.weight, at, into, batch),
                grads,
            )

        result = minimize(
            loss_at,
            {"coefs": self.coefs_, "intercepts": self.intercepts_},
            method="lbfgs",
            maxiter=self.max_iter,
            gtol=self.tol,
            options=_checked_options(self.optimizer_options),
        )
        self.coefs_, self.intercepts_ = result.x["coefs"], result.x["intercepts"]
        self.n_iter_, self.loss_ = result.nit, float(result.fun)
        self.t_ += result.nfev * data.targets.shape[0]
        self.loss_curve_ += [float(one) for one in result.history.value[1:]]
        self.best_loss_ = self.loss_
        if result.status == 1:
            warnings.warn(
                f"{result.message}; raise max_iter, or tol", ConvergenceWarning, stacklevel=4
            )

    def _is_finite(self) -> bool:
        return all(bool(np.isfinite(one).all()) for one in (*self.coefs_, *self.intercepts_))

    def _diverged(self) -> str:
        return (
            f"weights are not finite after {self.n_iter_} iterations: the loss ran away. Scale the "
            "inputs (sklearn.preprocessing.StandardScaler), lower learning_rate_init, or set "
            "optimizer_options={'max_grad_norm': 1.0}"
        )

    def _outputs(self, X: Any) -> Array:
        """Return what the network gives for inputs."""
        check_is_fitted(self)
        X = _validated(
            self, X, accept_sparse=["csr", "csc"], dtype=[np.float64, np.float32], reset=False
        )
        return self._network().outputs(X, self._layers())

    # What users call -----------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on samples; return the estimator.

        With ``warm_start=True`` a later fit goes on where the one before ended, with the
        optimizer's state; parameters may be set in between. Another ``learning_rate_init`` is that
        of the optimizer from then on; another optimizer, or other options, begin with fresh state.

        Args:
            X: array or sparse matrix of shape (samples, features), float32 or float64; the network
                has its dtype. Others become float64.
            y: array of shape (samples,) or (samples, outputs).
            sample_weight: weights of the samples in the loss, 0 or more: array of shape (samples,).

        Raises:
            ValueError: for parameters out of range, for data that scikit-learn refuses, and where
                weights are not finite any more.
        """
        return self._fit(X, y, sample_weight, False)

    def predict(self, X: Any) -> Array:
        """Return what the network predicts, of shape (samples,) or (samples, outputs)."""
        outputs = self._outputs(X)
        return self._as_y(outputs)


class MLPClassifier(ClassifierMixin, _Network):  # type: ignore[misc]  # likewise
    """A multilayer perceptron that tells classes, trained by any optimizer.

    It is ``sklearn.neural_network.MLPClassifier`` with ``optimizer`` in place of ``solver``, and
    gives the same numbers but for rounding: the log loss, of several classes by softmax, of two
    classes or several labels per sample by logistic units::

        from fastopt.sklearn import MLPClassifier

        model = MLPClassifier((100,), optimizer="adamw", optimizer_options={"weight_decay": 0.1})
        model.fit(X, y).score(X_test, y_test)

    Args:
        hidden_layer_sizes: units of each hidden layer; a number for one layer.
        activation: of the hidden layers: "identity", "logistic", "tanh" or "relu".
        optimizer: any optimizer of fastopt, by name (``fastopt.optimizers.names()``) or class, or
            "lbfgs", which works on all samples at once. scikit-learn's solver "sgd" is "sgd" with
            ``{"momentum": 0.9, "nesterov": True}``. "adam" has ``eps_hat=True`` unless told
            otherwise, as scikit-learn's.
        optimizer_options: a dict of what else the optimizer takes, such as
            ``{"betas": (0.9, 0.99), "max_grad_norm": 1.0}``.
        alpha: strength of the L2 penalty, 0 or more: ``alpha / 2 * sum(W^2) / batch size``.
        batch_size: samples of a step; "auto" is 200, or all of them.
        learning_rate_init: the learning rate: a number, or a schedule of the number of steps
            (``fastopt.schedules``; a ReduceLROnPlateau is told the loss of every epoch). None is
            the optimizer's own default, 0.001 of "adam".
        max_iter: epochs at most ("lbfgs": iterations).
        shuffle: whether each epoch has another order of samples.
        random_state: seed or generator of the first weights, of the order of samples, and of what
            is held out. It is asked at the first fit; what continues that goes on with it.
        tol: an epoch improves the loss, or the score, if it does so by this much. Of "lbfgs" the
            largest element of the gradient at which it ends.
        verbose: whether to print the loss of every epoch.
        warm_start: whether fit goes on from the fit before.
        early_stopping: whether to hold samples out and go by their score; the network is then that
            of the best epoch.
        validation_fraction: the share that is held out, from 0 on and below 1.
        n_iter_no_change: training ends after more than so many epochs in a row without improvement.

    Attributes:
        coefs_, intercepts_: the weights, a list of arrays of shape (from, to) and one of (to,).
        loss_, loss_curve_, best_loss_: of the last epoch, of all, and the least.
        validation_scores_, best_validation_score_: with early_stopping.
        n_iter_: epochs of the last fit. ``t_``: samples seen in training.
        n_layers_, n_outputs_, out_activation_, n_features_in_, feature_names_in_: as in
            scikit-learn.
        optimizer_: the optimizer, with its state. ("lbfgs" has none.)
        classes_: the labels.
    """

    classes_: Any

    def __sklearn_tags__(self) -> Any:
        """Say that samples may have several labels."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _more_tags(self) -> dict[str, Any]:
        """Say it to scikit-learn before 1.6."""
        return {"multilabel": True}

    def _checked(self, X: Any, y: Any, first: bool) -> tuple[Any, Array]:
        X, y = _validated(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=[np.float64, np.float32],
            reset=first,
        )
        y = y.toarray() if issparse(y) else y
        check_classification_targets(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _targets(self, y: Array, first: bool) -> Array:
        if first and not self._classes_are_told:
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        elif unknown := set(unique_labels(y)) - set(self.classes_):
            raise ValueError(
                f"y holds the classes {np.sort([*unknown]).tolist()}, and the network was made for "
                f"{self.classes_.tolist()}; hand all of them to the first partial_fit, or begin "
                "anew: fit with warm_start=False"
            )
        targets: Array = self._label_binarizer.transform(y)
        return targets

    _classes_are_told = False

    def _output(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _as_y(self, outputs: Array) -> Array:
        found: Array = self._label_binarizer.inverse_transform(outputs)
        return found

    @available_if(_goes_step_by_step)  # type: ignore[untyped-decorator]  # likewise
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Train on samples once, going on from before; return the estimator.

        Args:
            X, y, sample_weight: as of ``fit``.
            classes: all labels that will ever come; needed at the first call, before any fit.
        """
        if hasattr(self, "classes_"):
            if classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
                raise ValueError(
                    f"classes={classes!r:.200} are other ones than at the first call, "
                    f"{self.classes_.tolist()}; leave classes out, or clone the estimator"
                )
            return self._fit(X, y, sample_weight, True)
        if classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        told = unique_labels(classes)
        labels = np.asarray(y.toarray() if issparse(y) else y)
        several = labels.ndim == 2 and labels.shape[1] > 1
        self._label_binarizer = LabelBinarizer().fit(labels if several else told)
        self.classes_ = self._label_binarizer.classes_
        self._classes_are_told = True
        try:
            return self._fit(X, y, sample_weight, True)
        except BaseException:
            del self.classes_, self._label_binarizer
            raise
        finally:
            del self._classes_are_told

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, of shape (samples, classes), as ``classes_``."""
        outputs = self._outputs(X)
        if self.n_outputs_ == 1:
            return np.hstack([1 - outputs, outputs])
        return outputs

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of ``predict_proba``."""
        with np.errstate(divide="ignore"):
            found: Array = np.log(self.predict_proba(X))
        return found


class MLPRegressor(RegressorMixin, _Network):  # type: ignore[misc]  # likewise
    """A multilayer perceptron that tells numbers, trained by any optimizer.

    It is ``sklearn.neural_network.MLPRegressor`` with ``optimizer`` in place of ``solver``, and
    gives the same numbers but for rounding::

        from fastopt.sklearn import MLPRegressor

        model = MLPRegressor((100,), optimizer="lion", learning_rate_init=3e-4).fit(X, y)

    Args:
        loss: "squared_error", half the squared error, or "poisson", half the Poisson deviance of
            counts (y >= 0), which are predicted as the exponential of the last layer.

    All others, and the attributes, are those of ``MLPClassifier``.
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        loss: str = "squared_error",
        optimizer: Any = "adam",
        optimizer_options: Any = None,
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate_init: Any = None,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: float = 10,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation,
            optimizer=optimizer,
            optimizer_options=optimizer_options,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
        )
        self.loss = loss

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.loss not in ("squared_error", "poisson"):
            raise ValueError(f"loss must be 'squared_error' or 'poisson'; got {self.loss!r:.200}")

    def _checked(self, X: Any, y: Any, first: bool) -> tuple[Any, Array]:
        X, y = _validated(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            dtype=[np.float64, np.float32],
            reset=first,
        )
        if self.loss == "poisson" and (y < 0).any():
            raise ValueError("loss='poisson' is of counts, y must be 0 or more; got less")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _targets(self, y: Array, first: bool) -> Array:
        return y.reshape(-1, 1) if y.ndim == 1 else y

    def _output(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _as_y(self, outputs: Array) -> Array:
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    @available_if(_goes_step_by_step)  # type: ignore[untyped-decorator]  # likewise
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on samples once, going on from before; return the estimator.

        ``X``, ``y`` and ``sample_weight`` are as of ``fit``.
        """
        return self._fit(X, y, sample_weight, True)
