"""What corresponds to what in PyTorch 2.13: state, hyperparameters, and where they part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastopt.optimizer import Optimizer
from fastopt.optimizers.adadelta import Adadelta
from fastopt.optimizers.adagrad import Adagrad
from fastopt.optimizers.adam import Adam
from fastopt.optimizers.adamw import AdamW
from fastopt.optimizers.rmsprop import RMSprop
from fastopt.optimizers.sgd import SGD


@dataclass(frozen=True)
class Twin:
    """One class of ``torch.optim`` beside ours.

    ``slots`` and ``settings`` give our names and theirs; settings are taken over, those in
    ``flags``, which have one name, must agree: they make another algorithm. ``ours`` are settings
    that PyTorch does not have, with the value at which it computes the same, ``theirs`` the other
    way round. ``how`` are settings of theirs that say how a step is made, not what it computes.
    ``counted`` says whether a parameter's state has its step count, ``eager`` whether there is
    state before the first step.
    """

    name: str
    slots: Mapping[str, str]
    settings: Mapping[str, str]
    how: Mapping[str, Any]
    flags: tuple[str, ...] = ()
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    counted: bool = True
    eager: bool = False


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


COMMON = ("lr", "weight_decay", "maximize")
HOW = {"foreach": None, "differentiable": False}


def _adam(name: str, decoupled: bool) -> Twin:
    return Twin(
        name,
        slots={"m": "exp_avg", "v": "exp_avg_sq", "vmax": "max_exp_avg_sq"},
        settings=_same(*COMMON, "betas", "eps"),
        how={**HOW, "capturable": False, "fused": None},
        flags=("amsgrad",),
        ours={"eps_inside_sqrt": False, "bias_correction": True},
        theirs={"decoupled_weight_decay": decoupled},
    )


TWINS: dict[type[Optimizer], Twin] = {
    SGD: Twin(
        "SGD",
        slots={"buf": "momentum_buffer"},
        settings=_same(*COMMON, "momentum", "dampening"),
        how={**HOW, "fused": None},
        flags=("nesterov",),
        counted=False,
    ),
    Adagrad: Twin(
        "Adagrad",
        slots={"s": "sum"},
        settings=_same(*COMMON, "lr_decay", "initial_accumulator_value", "eps"),
        how={**HOW, "fused": None},
        eager=True,
    ),
    RMSprop: Twin(
        "RMSprop",
        slots={"v": "square_avg", "a": "grad_avg", "buf": "momentum_buffer"},
        settings={**_same(*COMMON, "eps", "momentum"), "beta": "alpha"},
        how={**HOW, "capturable": False},
        flags=("centered",),
        ours={"eps_inside_sqrt": False, "bias_correction": False},
    ),
    Adadelta: Twin(
        "Adadelta",
        slots={"v": "square_avg", "u": "acc_delta"},
        settings=_same(*COMMON, "rho", "eps"),
        how={**HOW, "capturable": False},
    ),
    Adam: _adam("Adam", decoupled=False),
    AdamW: _adam("AdamW", decoupled=True),
}

LATER = frozenset({"maximize", "decoupled_weight_decay"})
"""Settings that older versions do not write, which means False, or that the class says it all."""

SCHEDULED = frozenset({"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"})
"""What PyTorch's schedulers leave in a group for themselves."""


def twin_of(opt: Optimizer) -> Twin:
    """Return PyTorch's class for an optimizer; TypeError if there is none that is the same."""
    if not isinstance(opt, Optimizer):
        raise TypeError(f"opt must be an optimizer of fastopt; got {type(opt).__name__}")
    if type(opt) not in TWINS:
        known = ", ".join(sorted(ours.__name__ for ours in TWINS))
        raise TypeError(
            f"PyTorch has no {type(opt).__name__} that computes the same; there are {known}"
        )
    return TWINS[type(opt)]
