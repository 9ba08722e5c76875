"""The table of golden cases: which optimizer, with which arguments, on which inputs, against whom.

A new optimizer needs a line in DEFAULTS, rows in CASES and an entry in two of the oracles.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Hyper = dict[str, Any]

SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (3, 4))
SPARSE_STEPS = (1, 2, 3, 5, 10, 20, 30, 100, 200)  # what the second and third oracle record

# The documented defaults. An oracle is always given the whole list, a test only `kwargs`:
# so the cases with empty kwargs test the defaults themselves.
COMMON: Hyper = {"weight_decay": 0.0, "maximize": False}
ADAM: Hyper = {
    "lr": 1e-3,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "amsgrad": False,
    "eps_inside_sqrt": False,
    "eps_hat": False,
    "bias_correction": True,
}
DEFAULTS: dict[str, Hyper] = {
    "SGD": {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "nesterov": False,
        "lr_inside": False,
    },
    "Momentum": {"lr": 1e-2, "beta": 0.9, "bias_correction": False},
    "Adagrad": {
        "lr": 1e-2,
        "lr_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
        "eps_inside_sqrt": False,
    },
    "RMSprop": {
        "lr": 1e-2,
        "beta": 0.9,
        "eps": 1e-8,
        "momentum": 0.0,
        "centered": False,
        "lr_inside": False,
        "eps_inside_sqrt": False,
        "bias_correction": False,
    },
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6},
    "Adam": ADAM,
    "AdamW": ADAM | {"weight_decay": 1e-2},
}
DECOUPLED = frozenset({"AdamW"})  # p <- p - lr wd p instead of g <- g + wd p


@dataclass(frozen=True)
class Case:
    """One configuration; `oracles` says who computes it, the first of them in full."""

    optimizer: str
    name: str
    oracles: tuple[str, ...]
    kwargs: Hyper = field(default_factory=dict)
    inputs: str = "plain"
    steps: int = 30
    missing: dict[int, list[int]] = field(default_factory=dict)  # parameter -> steps from 0
    groups: tuple[Hyper, ...] = ()  # {"params": [indices], and what differs from kwargs}
    lr_changes: dict[int, float] = field(default_factory=dict)  # step from 0 -> lr from there on
    defaults: Hyper | None = None  # where they do not stand in DEFAULTS
    values: tuple[float, ...] = ()  # the loss of every step, where the optimizer takes it
    hessian_every: int = 0  # every so many steps an estimate, the gradients from the last one on

    def base(self) -> Hyper:
        """Return every hyperparameter, groups aside."""
        defaults = DEFAULTS[self.optimizer] if self.defaults is None else self.defaults
        return COMMON | defaults | self.kwargs

    def parts(self) -> list[tuple[list[int], Hyper]]:
        """Return the groups as (parameter indices, every hyperparameter)."""
        groups = self.groups or ({"params": list(range(len(SHAPES)))},)
        changes = [{k: g[k] for k in g if k != "params"} for g in groups]
        return [(g["params"], self.base() | c) for g, c in zip(groups, changes, strict=True)]

    def hyper(self, index: int) -> Hyper:
        """Return every hyperparameter of one parameter."""
        return next(hyper for indices, hyper in self.parts() if index in indices)

    def is_missing(self, index: int, step: int) -> bool:
        """Say whether this parameter gets no gradient at this step (counted from 0)."""
        return step in self.missing.get(index, ())

    def recorded(self, oracle: str) -> list[int]:
        """Return the steps (counted from 1) whose parameters are stored."""
        if oracle == self.oracles[0]:
            return sorted({*range(1, 31), *range(50, self.steps + 1, 50)})
        return [t for t in SPARSE_STEPS if t <= self.steps]


@dataclass(frozen=True)
class Result:
    """What an oracle computed: parameters after every step, state at the end, own step counts."""

    path: list[Array]  # one per parameter, shape (steps, *shape)
    state: dict[str, list[Array]]  # letter -> one array per parameter
    counts: list[int]


TO = ("torch", "optax")
TC = ("torch", "closed")
OC = ("optax", "closed")
C = ("closed",)
TOC = ("torch", "optax", "closed")
SC = ("sklearn", "closed")
STC = ("sklearn", "torch", "closed")

# First step, last step, single steps, and one step without any gradient.
MISSING = {0: [0, 1, 7, 12], 1: [4, 5, 7], 2: [7, 20, 29]}
GROUPS: tuple[Hyper, ...] = (
    {"params": [0], "lr": 0.1},
    {"params": [1], "weight_decay": 0.1},
    {"params": [2], "lr": 1e-4, "weight_decay": 0.02},
)
LATER = {10: 1e-4, 20: 5e-3}  # lr changed on the way
INSIDE: Hyper = {"momentum": 0.9, "lr_inside": True}  # as lr outside, but where lr changes
WARM = {4: 0.05, 12: 0.0, 14: 2e-3, 22: 0.3}

SGD = (
    Case("SGD", "default", TOC),
    Case("SGD", "momentum", TO, {"momentum": 0.9}),
    Case("SGD", "momentum_odd", TO, {"lr": 0.05, "momentum": 0.37}),
    Case("SGD", "dampening", TC, {"momentum": 0.9, "dampening": 0.3}),
    Case("SGD", "dampening_full", TC, {"momentum": 0.6, "dampening": 1.0}),
    Case("SGD", "nesterov", TO, {"momentum": 0.9, "nesterov": True}),
    Case("SGD", "weight_decay", TO, {"lr": 0.01, "weight_decay": 0.1}),
    Case("SGD", "maximize", TO, {"maximize": True}),
    Case(
        "SGD",
        "nesterov_decay_maximize",
        TO,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.03, "maximize": True},
    ),
    Case(
        "SGD",
        "dampening_decay_maximize",
        TC,
        {"momentum": 0.8, "dampening": 0.1, "weight_decay": 0.03, "maximize": True},
    ),
    Case("SGD", "missing", TC, {"momentum": 0.9, "dampening": 0.3}, missing=MISSING),
    Case("SGD", "missing_nesterov", TO, {"momentum": 0.9, "nesterov": True}, missing=MISSING),
    Case("SGD", "groups", TO, {"momentum": 0.9}, groups=GROUPS),
    Case("SGD", "lr_change", TO, {"momentum": 0.9}, lr_changes=LATER),
    Case("SGD", "inside", SC, INSIDE, lr_changes=LATER),
    Case("SGD", "inside_warm", SC, INSIDE, lr_changes=WARM),
    Case("SGD", "inside_odd", SC, {"lr": 0.02, "momentum": 0.45, "lr_inside": True}),
    Case("SGD", "inside_decay", SC, INSIDE | {"weight_decay": 0.1}, lr_changes=WARM),
    Case("SGD", "inside_long", SC, INSIDE, "long", 200, lr_changes={50: 0.02, 150: 1e-5}),
    Case("SGD", "inside_missing", SC, INSIDE, missing=MISSING, lr_changes=WARM),
    Case("SGD", "inside_groups", SC, INSIDE | {"momentum": 0.7}, groups=GROUPS),
    Case("SGD", "inside_nesterov", SC, INSIDE | {"nesterov": True}, lr_changes=LATER),
    Case(
        "SGD",
        "inside_nesterov_everything",
        SC,
        {
            "momentum": 0.8,
            "lr_inside": True,
            "nesterov": True,
            "weight_decay": 0.03,
            "maximize": True,
        },
        lr_changes=WARM,
    ),
    Case(
        "SGD",
        "inside_nesterov_missing",
        SC,
        INSIDE | {"nesterov": True},
        missing=MISSING,
        lr_changes=WARM,
    ),
)

MOMENTUM = (
    Case("Momentum", "default", OC),
    Case("Momentum", "bias_correction", OC, {"bias_correction": True}),
    Case("Momentum", "odd", OC, {"lr": 0.2, "beta": 0.35}),
    Case("Momentum", "slow_bias", OC, {"beta": 0.999, "bias_correction": True}),
    Case("Momentum", "beta_zero", OC, {"beta": 0.0}),
    Case("Momentum", "weight_decay", OC, {"weight_decay": 0.1}),
    Case("Momentum", "maximize", OC, {"maximize": True}),
    Case(
        "Momentum",
        "bias_decay_maximize",
        OC,
        {"beta": 0.7, "bias_correction": True, "weight_decay": 0.03, "maximize": True},
    ),
    Case("Momentum", "long", OC, {"bias_correction": True}, "long", 200),
    Case("Momentum", "missing", OC, missing=MISSING),
    Case("Momentum", "missing_bias", OC, {"bias_correction": True}, missing=MISSING),
    Case("Momentum", "groups", OC, {"bias_correction": True}, groups=GROUPS),
    Case("Momentum", "lr_change", OC, lr_changes=LATER),
)

ADAGRAD = (
    Case("Adagrad", "default", TC),
    Case("Adagrad", "lr_decay", TC, {"lr_decay": 0.1}),
    Case("Adagrad", "initial", TC, {"initial_accumulator_value": 0.3}),
    Case("Adagrad", "eps_big", TC, {"eps": 0.1, "lr": 0.3}),
    Case("Adagrad", "eps_zero", TO, {"eps": 0.0}, "dense"),
    Case("Adagrad", "eps_zero_lr_decay", TO, {"eps": 0.0, "lr_decay": 0.5}, "dense"),
    Case(
        "Adagrad", "eps_zero_initial", TO, {"eps": 0.0, "initial_accumulator_value": 0.01}, "dense"
    ),
    Case("Adagrad", "weight_decay", TC, {"weight_decay": 0.1}),
    Case("Adagrad", "maximize", TC, {"maximize": True}),
    Case(
        "Adagrad",
        "everything",
        TC,
        {
            "lr": 0.2,
            "lr_decay": 0.02,
            "initial_accumulator_value": 0.1,
            "eps": 1e-5,
            "weight_decay": 0.03,
            "maximize": True,
        },
    ),
    Case("Adagrad", "missing", TC, {"lr_decay": 0.1}, missing=MISSING),
    Case("Adagrad", "groups", TC, {"lr_decay": 0.1}, groups=GROUPS),
    Case("Adagrad", "lr_change", TC, {"lr_decay": 0.1}, lr_changes=LATER),
    Case("Adagrad", "inside", OC, {"eps_inside_sqrt": True}),
    Case("Adagrad", "inside_eps_big", OC, {"eps_inside_sqrt": True, "eps": 0.1, "lr": 0.3}),
    Case(
        "Adagrad",
        "inside_initial",
        OC,
        {"eps_inside_sqrt": True, "eps": 1e-7, "initial_accumulator_value": 0.1},
    ),
    Case(
        "Adagrad",
        "inside_everything",
        OC,
        {
            "eps_inside_sqrt": True,
            "lr": 0.2,
            "lr_decay": 0.02,
            "initial_accumulator_value": 0.01,
            "eps": 1e-5,
            "weight_decay": 0.03,
            "maximize": True,
        },
    ),
    Case(
        "Adagrad",
        "inside_missing",
        OC,
        {"eps_inside_sqrt": True, "eps": 1e-4, "lr_decay": 0.1},
        missing=MISSING,
    ),
    Case("Adagrad", "inside_groups", OC, {"eps_inside_sqrt": True, "eps": 1e-3}, groups=GROUPS),
    Case(
        "Adagrad", "inside_lr_change", OC, {"eps_inside_sqrt": True, "eps": 1e-3}, lr_changes=LATER
    ),
)

RMSPROP = (
    Case("RMSprop", "default", TOC),
    Case("RMSprop", "slow", TO, {"beta": 0.99}),
    Case("RMSprop", "odd", TO, {"lr": 0.3, "beta": 0.5, "eps": 0.1}),
    Case("RMSprop", "beta_zero", TO, {"beta": 0.0, "eps": 1e-4}),
    Case("RMSprop", "centered", TO, {"centered": True}),
    Case("RMSprop", "momentum", TO, {"momentum": 0.9}),
    Case("RMSprop", "centered_momentum", TO, {"centered": True, "momentum": 0.7, "beta": 0.95}),
    Case("RMSprop", "weight_decay", TO, {"weight_decay": 0.1}),
    Case("RMSprop", "maximize", TO, {"maximize": True}),
    Case(
        "RMSprop",
        "everything",
        TO,
        {
            "lr": 0.02,
            "beta": 0.95,
            "eps": 1e-3,
            "momentum": 0.5,
            "centered": True,
            "weight_decay": 0.03,
            "maximize": True,
        },
    ),
    Case("RMSprop", "eps_zero", TO, {"eps": 0.0}, "dense"),
    Case("RMSprop", "eps_zero_momentum", TO, {"eps": 0.0, "momentum": 0.9}, "dense"),
    Case("RMSprop", "inside", OC, {"eps_inside_sqrt": True}),
    Case("RMSprop", "inside_eps_big", OC, {"eps_inside_sqrt": True, "eps": 0.1, "lr": 0.1}),
    Case("RMSprop", "inside_centered", OC, {"eps_inside_sqrt": True, "centered": True}),
    Case("RMSprop", "inside_momentum", OC, {"eps_inside_sqrt": True, "momentum": 0.9}),
    Case("RMSprop", "bias", OC, {"bias_correction": True}),
    Case("RMSprop", "bias_slow", OC, {"bias_correction": True, "beta": 0.999}),
    Case("RMSprop", "bias_eps_zero", OC, {"bias_correction": True, "eps": 0.0}, "dense"),
    Case("RMSprop", "bias_momentum", OC, {"bias_correction": True, "momentum": 0.9}),
    Case("RMSprop", "bias_inside", OC, {"bias_correction": True, "eps_inside_sqrt": True}),
    # The first corrected variance is v - a^2 = 0 and its rounding error decides unless eps is
    # far larger: hence gradients near 1 and a large eps, inside the root.
    Case(
        "RMSprop",
        "bias_inside_centered",
        OC,
        {"bias_correction": True, "eps_inside_sqrt": True, "centered": True, "eps": 0.1},
        "mild",
    ),
    Case("RMSprop", "long", TO, {}, "long", 200),
    Case("RMSprop", "long_bias", OC, {"bias_correction": True}, "long", 200),
    Case("RMSprop", "missing", TC, {"centered": True, "momentum": 0.9}, missing=MISSING),
    Case("RMSprop", "missing_bias", OC, {"bias_correction": True}, missing=MISSING),
    Case("RMSprop", "groups", TO, {"momentum": 0.9}, groups=GROUPS),
    Case("RMSprop", "lr_change", TO, {"momentum": 0.9}, lr_changes=LATER),
    Case("RMSprop", "rate_inside", OC, INSIDE, lr_changes=LATER),
    Case("RMSprop", "rate_inside_warm", OC, INSIDE | {"eps": 1e-3}, lr_changes=WARM),
    Case(
        "RMSprop",
        "rate_inside_eps_inside",
        OC,
        INSIDE | {"eps_inside_sqrt": True, "eps": 1e-4},
        lr_changes=WARM,
    ),
    Case("RMSprop", "rate_inside_bias", OC, INSIDE | {"bias_correction": True}, lr_changes=LATER),
    Case("RMSprop", "rate_inside_missing", OC, INSIDE, missing=MISSING, lr_changes=WARM),
    Case("RMSprop", "rate_inside_groups", OC, INSIDE | {"momentum": 0.7}, groups=GROUPS),
    Case("RMSprop", "rate_inside_centered", OC, INSIDE | {"centered": True}, lr_changes=LATER),
    Case(
        "RMSprop",
        "rate_inside_everything",
        OC,
        {
            "beta": 0.95,
            "eps": 1e-2,
            "momentum": 0.5,
            "lr_inside": True,
            "centered": True,
            "eps_inside_sqrt": True,
            "weight_decay": 0.03,
            "maximize": True,
        },
        lr_changes=WARM,
    ),
    Case(
        "RMSprop",
        "rate_inside_centered_missing",
        OC,
        INSIDE | {"centered": True},
        missing=MISSING,
        lr_changes=WARM,
    ),
    Case(
        "RMSprop",
        "rate_inside_centered_bias",
        OC,
        INSIDE | {"centered": True, "bias_correction": True, "eps_inside_sqrt": True, "eps": 0.1},
        "mild",
        lr_changes=LATER,
    ),
)

ADADELTA = (
    Case("Adadelta", "default", TOC),
    Case("Adadelta", "rho", TO, {"rho": 0.5}),
    Case("Adadelta", "rho_zero", TO, {"rho": 0.0}),
    Case("Adadelta", "eps_big", TO, {"lr": 0.1, "eps": 1e-3}),
    Case("Adadelta", "eps_small", TO, {"lr": 3.0, "eps": 1e-12}),
    Case("Adadelta", "weight_decay", TO, {"weight_decay": 0.1}),
    Case("Adadelta", "maximize", TO, {"maximize": True}),
    Case(
        "Adadelta",
        "everything",
        TO,
        {"lr": 0.5, "rho": 0.99, "eps": 1e-4, "weight_decay": 0.03, "maximize": True},
    ),
    Case("Adadelta", "missing", TC, missing=MISSING),
    Case("Adadelta", "groups", TO, groups=GROUPS),
    Case("Adadelta", "lr_change", TO, lr_changes=LATER),
)


def adam_family(name: str) -> tuple[Case, ...]:
    """Return the cases that Adam and AdamW share: arguments are the same, the decay is not."""
    return (
        Case(name, "default", TOC),
        Case(name, "amsgrad", TC, {"amsgrad": True}),
        Case(name, "amsgrad_odd", TC, {"amsgrad": True, "betas": [0.8, 0.6], "lr": 0.02}),
        Case(name, "maximize", TO, {"maximize": True, "weight_decay": 0.0}),
        Case(name, "decay_maximize", TO, {"lr": 0.05, "weight_decay": 0.3, "maximize": True}),
        Case(
            name,
            "amsgrad_decay_maximize",
            TC,
            {"betas": [0.7, 0.9], "amsgrad": True, "weight_decay": 0.1, "maximize": True},
        ),
        Case(name, "inside", OC, {"eps_inside_sqrt": True}),
        Case(name, "no_bias", TC, {"bias_correction": False}),
        Case(name, "missing", TO, missing=MISSING),
        Case(name, "missing_amsgrad", TC, {"amsgrad": True, "betas": [0.9, 0.8]}, missing=MISSING),
        Case(name, "groups", TO, groups=GROUPS),
        Case(name, "lr_change", TO, lr_changes=LATER),
        Case(name, "long", TO, {}, "long", 200),
        Case(name, "hat", STC, {"eps_hat": True}),
        Case(name, "hat_eps_big", STC, {"eps_hat": True, "eps": 0.1, "lr": 0.1}),
        Case(name, "hat_odd", STC, {"eps_hat": True, "eps": 1e-4, "betas": [0.7, 0.6], "lr": 0.02}),
        Case(
            name,
            "hat_decay_maximize",
            STC,
            {"eps_hat": True, "eps": 1e-3, "lr": 0.05, "weight_decay": 0.3, "maximize": True},
        ),
        Case(
            name,
            "hat_amsgrad",
            TC,
            {"eps_hat": True, "eps": 1e-3, "amsgrad": True, "betas": [0.8, 0.6]},
        ),
        Case(name, "hat_inside", C, {"eps_hat": True, "eps_inside_sqrt": True}),
        Case(name, "hat_missing", SC, {"eps_hat": True, "eps": 1e-3}, missing=MISSING),
        Case(name, "hat_groups", STC, {"eps_hat": True, "eps": 1e-3}, groups=GROUPS),
        Case(name, "hat_lr_change", SC, {"eps_hat": True, "eps": 1e-3}, lr_changes=LATER),
        Case(name, "hat_long", STC, {"eps_hat": True}, "long", 200),
    )


ADAM_ONLY = (
    Case("Adam", "weight_decay", TO, {"weight_decay": 0.1}),
    Case("Adam", "betas_fast", TO, {"betas": [0.5, 0.9], "lr": 0.03}),
    Case("Adam", "betas_slow", TO, {"betas": [0.9, 0.9999]}),
    Case("Adam", "betas_swapped", TO, {"betas": [0.9999, 0.9]}),
    Case("Adam", "beta1_zero", TO, {"betas": [0.0, 0.999]}),
    Case("Adam", "beta2_zero", TO, {"betas": [0.9, 0.0], "eps": 1e-3}),
    Case("Adam", "eps_big", TO, {"eps": 0.1, "lr": 0.1}),
    Case("Adam", "eps_zero", TO, {"eps": 0.0}, "dense"),
    Case("Adam", "inside_eps_big", OC, {"eps_inside_sqrt": True, "eps": 0.1, "lr": 0.1}),
    Case("Adam", "inside_decay", OC, {"eps_inside_sqrt": True, "weight_decay": 0.1}),
    Case("Adam", "no_bias_inside", C, {"bias_correction": False, "eps_inside_sqrt": True}),
    Case("Adam", "no_bias_beta1_zero", TC, {"bias_correction": False, "betas": [0.0, 0.9]}),
    Case(
        "Adam",
        "no_bias_amsgrad",
        OC,
        {"bias_correction": False, "amsgrad": True, "betas": [0.9, 0.8]},
    ),
    Case("Adam", "no_bias_long", TC, {"bias_correction": False}, "long", 200),
    Case("Adam", "amsgrad_long", TC, {"amsgrad": True, "betas": [0.9, 0.95]}, "long", 200),
)

ADAMW_ONLY = (
    Case("AdamW", "decay_zero", TO, {"weight_decay": 0.0}),
    Case("AdamW", "decay_odd", TO, {"lr": 0.1, "weight_decay": 0.7, "betas": [0.6, 0.95]}),
    Case("AdamW", "eps_big", TO, {"eps": 0.1, "lr": 0.1}),
)

CASES = (
    *SGD,
    *MOMENTUM,
    *ADAGRAD,
    *RMSPROP,
    *ADADELTA,
    *adam_family("Adam"),
    *ADAM_ONLY,
    *adam_family("AdamW"),
    *ADAMW_ONLY,
)

# Pairs of one mathematics under two names; their oracles must agree, nothing of them is stored.
IDENTITIES = (
    (
        Case("RMSprop", "bias", OC, {"bias_correction": True, "lr": 1e-3}),
        Case("Adam", "beta1 zero", TO, {"betas": [0.0, 0.9]}),
    ),
    (
        Case("Adam", "no bias", TC, {"bias_correction": False, "betas": [0.0, 0.9]}),
        Case("RMSprop", "default", TO, {"lr": 1e-3}),
    ),
    (
        Case(
            "Adam",
            "no bias, inside",
            C,
            {"bias_correction": False, "eps_inside_sqrt": True, "betas": [0.0, 0.9]},
        ),
        Case("RMSprop", "inside", OC, {"eps_inside_sqrt": True, "lr": 1e-3}),
    ),
    (
        Case("AdamW", "no decay", TOC, {"weight_decay": 0.0}),
        Case("Adam", "default", TOC),
    ),
    (
        Case("SGD", "default", TOC),
        Case("Momentum", "beta zero", OC, {"beta": 0.0, "lr": 1e-3}),
    ),
)
