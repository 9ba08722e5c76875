"""Gradient-descent optimizers for NumPy and CuPy arrays: the same bits on every backend."""

import importlib
from typing import TYPE_CHECKING, Any

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
from fastopt.patterns import groups
from fastopt.version import __version__

if TYPE_CHECKING:
    from fastopt import interop, schedules
    from fastopt.accumulator import Accumulator
    from fastopt.clipping import clip_grad_norm_, clip_grad_value_, global_norm
    from fastopt.ema import EMA
    from fastopt.lookahead import Lookahead
    from fastopt.loss_scaler import LossScaler

_ON_FIRST_USE = {
    **dict.fromkeys(["clip_grad_norm_", "clip_grad_value_", "global_norm"], "clipping"),
    **{"Accumulator": "accumulator", "EMA": "ema"},
    **{"Lookahead": "lookahead", "LossScaler": "loss_scaler"},
}
"""What is around a step, by the modules that hold it: not every program needs it."""

__all__ = [
    "EMA",
    "SGD",
    "Accumulator",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "BackendMismatchError",
    "BackendUnavailableError",
    "CheckpointError",
    "FastoptError",
    "LoadReport",
    "Lookahead",
    "LossScaler",
    "Momentum",
    "Optimizer",
    "RMSprop",
    "__version__",
    "array_namespace",
    "available_backends",
    "clip_grad_norm_",
    "clip_grad_value_",
    "global_norm",
    "groups",
    "interop",
    "schedules",
    "set_backend",
    "set_num_threads",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """Import what is not needed by every program when it is first asked for."""
    if name in ("interop", "schedules"):
        return importlib.import_module(f"fastopt.{name}")
    if name in _ON_FIRST_USE:
        found = getattr(importlib.import_module(f"fastopt.{_ON_FIRST_USE[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'fastopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return __all__
