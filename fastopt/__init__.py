"""Gradient-descent optimizers for NumPy and CuPy arrays: the same bits on every backend."""

import importlib
from typing import TYPE_CHECKING, Any

from fastopt import optimizers
from fastopt.backends import (
    array_namespace,
    available_backends,
    set_backend,
    set_num_threads,
    use_backend,
)
from fastopt.core.param_groups import groups
from fastopt.errors import (
    BackendMismatchError,
    BackendUnavailableError,
    CheckpointError,
    FastoptError,
    RankError,
)
from fastopt.optimizers import optimizer
from fastopt.optimizers.base import Optimizer
from fastopt.version import __version__

if TYPE_CHECKING:
    from fastopt import distributed, interop, schedules, viz
    from fastopt.checkpoint.numbered import Checkpoints
    from fastopt.checkpoint.state_dict import LoadReport
    from fastopt.core.norms import clip_grad_norm_, clip_grad_value_, global_norm
    from fastopt.core.rows import RowGrad
    from fastopt.fits.closure import LBFGS
    from fastopt.fits.find_lr import RangeTest, find_lr
    from fastopt.fits.minimize import minimize
    from fastopt.fits.ravel import ravel
    from fastopt.fits.scipy_method import scipy_method
    from fastopt.optimizers.adabelief import AdaBelief, Yogi
    from fastopt.optimizers.adabound import AdaBound
    from fastopt.optimizers.adagrad import Adadelta, Adagrad
    from fastopt.optimizers.adam import Adam, AdamW
    from fastopt.optimizers.adam_relatives import Adamax, NAdam, RAdam
    from fastopt.optimizers.adan import Adan, AdEMAMix
    from fastopt.optimizers.adopt import ADOPT, LaProp
    from fastopt.optimizers.aggregated import AggMo
    from fastopt.optimizers.arctangent import AdamAtan2
    from fastopt.optimizers.averaged import ASGD
    from fastopt.optimizers.coin_betting import COCOB
    from fastopt.optimizers.curvature import AdaHessian, Sophia
    from fastopt.optimizers.d_adaptation import DAdaptAdam, DAdaptSGD
    from fastopt.optimizers.dual_averaging import MADGRAD
    from fastopt.optimizers.eigenbasis import SOAP, Shampoo
    from fastopt.optimizers.factored import CAME, SM3, Adafactor
    from fastopt.optimizers.layerwise import LAMB, LARS, NovoGrad, StableAdamW
    from fastopt.optimizers.matrices import Muon, MuonWithAdamW, NorMuon
    from fastopt.optimizers.norm_constrained import Scion
    from fastopt.optimizers.optimistic import OptimisticAdam
    from fastopt.optimizers.parameter_free import DoG, DoWG, Prodigy
    from fastopt.optimizers.polyak import MoMo, MoMoAdam
    from fastopt.optimizers.projected import SGDP, AdamP
    from fastopt.optimizers.quasi_hyperbolic import QHM, QHAdam
    from fastopt.optimizers.regularized_leader import FTRL
    from fastopt.optimizers.rmsprop import RMSprop
    from fastopt.optimizers.rprop import Rprop
    from fastopt.optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
    from fastopt.optimizers.sgd import SGD, Momentum
    from fastopt.optimizers.signs import Lion, Signum
    from fastopt.optimizers.variance_reduction import Mars
    from fastopt.viz.watch import watch
    from fastopt.wrappers.accumulator import Accumulator
    from fastopt.wrappers.averaging import EMA, Lookahead
    from fastopt.wrappers.loss_scaler import LossScaler
    from fastopt.wrappers.sam import ASAM, SAM

_ON_FIRST_USE = {
    **dict.fromkeys(["clip_grad_norm_", "clip_grad_value_", "global_norm"], "core.norms"),
    **{"Accumulator": "wrappers.accumulator", "EMA": "wrappers.averaging"},
    "Checkpoints": "checkpoint.numbered",
    "LoadReport": "checkpoint.state_dict",
    "RowGrad": "core.rows",
    "LBFGS": "fits.closure",
    **{"Lookahead": "wrappers.averaging", "LossScaler": "wrappers.loss_scaler"},
    **dict.fromkeys(["ASAM", "SAM"], "wrappers.sam"),
    **dict.fromkeys(["SGD", "Momentum"], "optimizers.sgd"),
    **dict.fromkeys(["Adagrad", "Adadelta"], "optimizers.adagrad"),
    "RMSprop": "optimizers.rmsprop",
    **dict.fromkeys(["Adam", "AdamW"], "optimizers.adam"),
    **dict.fromkeys(["AdaBelief", "Yogi"], "optimizers.adabelief"),
    "AdaBound": "optimizers.adabound",
    **dict.fromkeys(["AdEMAMix", "Adan"], "optimizers.adan"),
    **dict.fromkeys(["ADOPT", "LaProp"], "optimizers.adopt"),
    **dict.fromkeys(["Adafactor", "CAME", "SM3"], "optimizers.factored"),
    **dict.fromkeys(["AdaHessian", "Sophia"], "optimizers.curvature"),
    **dict.fromkeys(["LAMB", "LARS", "NovoGrad", "StableAdamW"], "optimizers.layerwise"),
    **dict.fromkeys(["DAdaptAdam", "DAdaptSGD"], "optimizers.d_adaptation"),
    **dict.fromkeys(["DoG", "DoWG", "Prodigy"], "optimizers.parameter_free"),
    **dict.fromkeys(["Adamax", "NAdam", "RAdam"], "optimizers.adam_relatives"),
    "Rprop": "optimizers.rprop",
    "ASGD": "optimizers.averaged",
    **dict.fromkeys(["Muon", "MuonWithAdamW", "NorMuon"], "optimizers.matrices"),
    **dict.fromkeys(["SOAP", "Shampoo"], "optimizers.eigenbasis"),
    "Scion": "optimizers.norm_constrained",
    **dict.fromkeys(["QHAdam", "QHM"], "optimizers.quasi_hyperbolic"),
    "OptimisticAdam": "optimizers.optimistic",
    "COCOB": "optimizers.coin_betting",
    "MADGRAD": "optimizers.dual_averaging",
    "FTRL": "optimizers.regularized_leader",
    "AdamAtan2": "optimizers.arctangent",
    "AggMo": "optimizers.aggregated",
    **dict.fromkeys(["MoMo", "MoMoAdam"], "optimizers.polyak"),
    **dict.fromkeys(["Lion", "Signum"], "optimizers.signs"),
    **dict.fromkeys(["ScheduleFreeAdamW", "ScheduleFreeSGD"], "optimizers.schedule_free"),
    **dict.fromkeys(["AdamP", "SGDP"], "optimizers.projected"),
    "Mars": "optimizers.variance_reduction",
    **{"RangeTest": "fits.find_lr", "find_lr": "fits.find_lr"},
    "watch": "viz.watch",
    **{"minimize": "fits.minimize", "ravel": "fits.ravel", "scipy_method": "fits.scipy_method"},
}
"""Public names by the modules that hold them, which are imported when a name is first used: a
program needs one optimizer, and not everything that stands around a step. The optimizers among them
are what ``fastopt.optimizers.names`` lists."""

__all__ = [
    "ADOPT",
    "ASAM",
    "ASGD",
    "CAME",
    "COCOB",
    "EMA",
    "FTRL",
    "LAMB",
    "LARS",
    "LBFGS",
    "MADGRAD",
    "QHM",
    "SAM",
    "SGD",
    "SGDP",
    "SM3",
    "SOAP",
    "Accumulator",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaHessian",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamP",
    "AdamW",
    "Adamax",
    "Adan",
    "AggMo",
    "BackendMismatchError",
    "BackendUnavailableError",
    "CheckpointError",
    "Checkpoints",
    "DAdaptAdam",
    "DAdaptSGD",
    "DoG",
    "DoWG",
    "FastoptError",
    "LaProp",
    "Lion",
    "LoadReport",
    "Lookahead",
    "LossScaler",
    "Mars",
    "MoMo",
    "MoMoAdam",
    "Momentum",
    "Muon",
    "MuonWithAdamW",
    "NAdam",
    "NorMuon",
    "NovoGrad",
    "OptimisticAdam",
    "Optimizer",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RMSprop",
    "RangeTest",
    "RankError",
    "RowGrad",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Scion",
    "Shampoo",
    "Signum",
    "Sophia",
    "StableAdamW",
    "Yogi",
    "__version__",
    "array_namespace",
    "available_backends",
    "clip_grad_norm_",
    "clip_grad_value_",
    "distributed",
    "find_lr",
    "global_norm",
    "groups",
    "interop",
    "minimize",
    "optimizer",
    "optimizers",
    "ravel",
    "schedules",
    "scipy_method",
    "set_backend",
    "set_num_threads",
    "use_backend",
    "viz",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Import what is not needed by every program when it is first asked for."""
    if name in ("distributed", "interop", "schedules", "sklearn", "thinc", "torch", "viz"):
        return importlib.import_module(f"fastopt.{name}")
    if name in _ON_FIRST_USE:
        found = getattr(importlib.import_module(f"fastopt.{_ON_FIRST_USE[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'fastopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return __all__
