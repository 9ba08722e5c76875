"""What corresponds to what in optax 0.2.8: states, hyperparameters, and where they part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastopt.optimizer import Optimizer
from fastopt.optimizers.adadelta import Adadelta
from fastopt.optimizers.adagrad import Adagrad
from fastopt.optimizers.adam import Adam
from fastopt.optimizers.adamw import AdamW
from fastopt.optimizers.momentum import Momentum
from fastopt.optimizers.rmsprop import RMSprop
from fastopt.optimizers.sgd import SGD

STATELESS = frozenset({"EmptyState", "MaskedNode", "ZeroNansState"})
"""Nothing, or nothing that the next step reads."""

COUNTING = frozenset({"ScaleByScheduleState", "WeightDecaySchedule"})
"""A step count alone; the schedule itself is no part of a state."""

FIELDS: dict[str, dict[str, str]] = {
    "TraceState": {"trace": "buf"},
    "EmaState": {"ema": "v"},
    "ScaleByRssState": {"sum_of_squares": "s"},
    "ScaleByRmsState": {"nu": "v"},
    "ScaleByRmsWithCountState": {"nu": "v"},
    "ScaleByRStdDevState": {"nu": "v", "mu": "a"},
    "ScaleByRStdDevWithCountState": {"nu": "v", "mu": "a"},
    "ScaleByAdaDeltaState": {"e_g": "v", "e_x": "u"},
    "ScaleByAdamState": {"mu": "m", "nu": "v"},
    "ScaleByAmsgradState": {"mu": "m", "nu": "v", "nu_max": "vmax"},
}
"""The fields of each state and our slots; some have a ``count`` besides."""


@dataclass(frozen=True)
class Relative:
    """What optax has for one class of ours.

    ``states`` are the classes of its state, ``injected`` gives optax's names of hyperparameters and
    ours (a number after the name is a place in a pair). ``ours`` are settings that optax does not
    have, with the value at which it computes the same, and why. ``complex`` says whether the
    squares of complex numbers play no part: optax takes those of the absolute value.
    """

    states: tuple[str, ...]
    injected: Mapping[str, str] = field(default_factory=dict)
    ours: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    complex: bool = False


def _adam() -> Relative:
    names = {"b1": "betas 0", "b2": "betas 1", "eps": "eps", "weight_decay": "weight_decay"}
    return Relative(("ScaleByAdamState", "ScaleByAmsgradState"), names)


_RMS = tuple(name for name in FIELDS if name.startswith(("ScaleByRms", "ScaleByRStdDev")))

RELATIVES: dict[type[Optimizer], Relative] = {
    SGD: Relative(
        ("TraceState",),
        {"momentum": "momentum", "weight_decay": "weight_decay"},
        {"dampening": (0.0, "optax damps nothing")},
        complex=True,
    ),
    Momentum: Relative(("EmaState",), {"decay": "beta"}, complex=True),
    Adagrad: Relative(
        ("ScaleByRssState",),
        {"initial_accumulator_value": "initial_accumulator_value", "eps": "eps"},
        {"eps": (0.0, "optax adds eps inside the root, so only without it both are the same")},
    ),
    RMSprop: Relative(
        (*_RMS, "TraceState"), {"decay": "beta", "eps": "eps", "momentum": "momentum"}
    ),
    Adadelta: Relative(
        ("ScaleByAdaDeltaState",), {"rho": "rho", "eps": "eps", "weight_decay": "weight_decay"}
    ),
    Adam: _adam(),
    AdamW: _adam(),
}
