"""Gradient-descent optimizers for NumPy and CuPy arrays: the same bits on every backend."""

from fastopt.backends import array_namespace, available_backends, set_backend, use_backend
from fastopt.backends.threads import set_num_threads
from fastopt.errors import (
    BackendMismatchError,
    BackendUnavailableError,
    CheckpointError,
    FastoptError,
)
from fastopt.load_report import LoadReport
from fastopt.optimizer import Optimizer
from fastopt.optimizers.adadelta import Adadelta
from fastopt.optimizers.adagrad import Adagrad
from fastopt.optimizers.adam import Adam
from fastopt.optimizers.adamw import AdamW
from fastopt.optimizers.momentum import Momentum
from fastopt.optimizers.rmsprop import RMSprop
from fastopt.optimizers.sgd import SGD
from fastopt.version import __version__

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "BackendMismatchError",
    "BackendUnavailableError",
    "CheckpointError",
    "FastoptError",
    "LoadReport",
    "Momentum",
    "Optimizer",
    "RMSprop",
    "__version__",
    "array_namespace",
    "available_backends",
    "set_backend",
    "set_num_threads",
    "use_backend",
]
