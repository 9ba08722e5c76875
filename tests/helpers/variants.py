"""Every optimizer in every variant: what the tests run over, and the backends they run on."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import families
import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers.base import Optimizer
from helpers.variant import Variant

HAS_NUMBA = find_spec("numba") is not None
CPU_BACKENDS = ("numpy", "numba") if HAS_NUMBA else ("numpy",)
"""Where numba is installed it must run; where it is not, NumPy alone is the package."""

if os.environ.get("FASTOPT_TEST_WITHOUT_NUMBA"):
    assert not HAS_NUMBA, "this run was to be without numba, and it is installed"


VARIANTS: list[Variant] = [
    Variant("sgd", fastopt.SGD, {"lr": 0.1}),
    Variant("sgd_momentum", fastopt.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.25}),
    Variant(
        "sgd_nesterov", fastopt.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True}, close=True
    ),
    Variant(
        "sgd_lr_inside", fastopt.SGD, {"lr": 0.05, "momentum": 0.9, "lr_inside": True}, close=True
    ),
    Variant(
        "sgd_lr_inside_nesterov",
        fastopt.SGD,
        {"lr": 0.05, "momentum": 0.8, "lr_inside": True, "nesterov": True},
        close=True,
    ),
    Variant("momentum", fastopt.Momentum, {"lr": 0.1}, close=True),
    Variant(
        "momentum_corrected", fastopt.Momentum, {"bias_correction": True, "lr": 0.1}, close=True
    ),
    Variant("adagrad", fastopt.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    Variant(
        "adagrad_eps_inside",
        fastopt.Adagrad,
        {"eps_inside_sqrt": True, "eps": 1e-7, "initial_accumulator_value": 0.1},
        close=True,
    ),
    Variant("rmsprop", fastopt.RMSprop, close=True),
    Variant("rmsprop_eps_inside", fastopt.RMSprop, {"eps_inside_sqrt": True}, close=True),
    Variant("rmsprop_eps_zero", fastopt.RMSprop, {"eps": 0.0}, close=True),
    Variant("rmsprop_centered", fastopt.RMSprop, {"centered": True, "eps": 1e-3}, close=True),
    Variant(
        "rmsprop_momentum", fastopt.RMSprop, {"momentum": 0.9, "bias_correction": True}, close=True
    ),
    Variant(
        "rmsprop_centered_momentum",
        fastopt.RMSprop,
        {"centered": True, "momentum": 0.5, "eps": 1e-3},
    ),
    Variant("rmsprop_lr_inside", fastopt.RMSprop, {"momentum": 0.9, "lr_inside": True}, close=True),
    Variant(
        "rmsprop_centered_lr_inside",
        fastopt.RMSprop,
        {"centered": True, "momentum": 0.5, "lr_inside": True, "eps": 1e-3},
        close=True,
    ),
    Variant("adadelta", fastopt.Adadelta),
    Variant("adam", fastopt.Adam),
    Variant("adam_uncorrected", fastopt.Adam, {"bias_correction": False}, close=True),
    Variant(
        "adam_eps_inside", fastopt.Adam, {"eps_inside_sqrt": True, "betas": (0.8, 0.95)}, close=True
    ),
    Variant("adam_eps_hat", fastopt.Adam, {"eps_hat": True, "eps": 1e-7}, close=True),
    Variant("adam_amsgrad", fastopt.Adam, {"amsgrad": True}),
    Variant("adamw", fastopt.AdamW, {"weight_decay": 0.1}),
    Variant("adamw_amsgrad", fastopt.AdamW, {"amsgrad": True}, close=True),
    Variant(
        "adamw_eps_hat", fastopt.AdamW, {"eps_hat": True, "amsgrad": True, "eps": 1e-6}, close=True
    ),
    Variant("adam_cautious", fastopt.Adam, {"cautious": True}),
    Variant("adam_mask_zero", fastopt.Adam, {"mask_zero": True, "weight_decay": 0.1}),
    Variant("adam_clip_value", fastopt.Adam, {"clip_value": 0.5, "weight_decay": 0.1}, close=True),
    Variant("adamw_clip_each", fastopt.AdamW, {"clip_each": 2.0}),
    Variant(
        "adamw_cautious_decay",
        fastopt.AdamW,
        {"cautious_decay": True, "weight_decay": 0.5},
        close=True,
    ),
    Variant("sgd_l1", fastopt.SGD, {"lr": 0.05, "momentum": 0.9, "l1": 0.25}, close=True),
    Variant(
        "lion_cautious_decay",
        fastopt.Lion,
        {"cautious": True, "cautious_decay": True, "l1": 0.25, "weight_decay": 0.5},
        close=True,
    ),
    Variant(
        "sgd_cautious", fastopt.SGD, {"lr": 0.05, "momentum": 0.5, "cautious": True}, close=True
    ),
    Variant(
        "sgd_mask_zero", fastopt.SGD, {"lr": 0.05, "momentum": 0.9, "mask_zero": True}, close=True
    ),
    Variant(
        "sgd_clip_value",
        fastopt.SGD,
        {"lr": 0.05, "clip_value": 0.75, "mask_zero": True},
        close=True,
    ),
    Variant(
        "sgd_clip_both", fastopt.SGD, {"lr": 0.05, "clip_value": 0.75, "clip_each": 1.0}, close=True
    ),
    Variant("lamb", fastopt.LAMB, {"lr": 0.01, "weight_decay": 0.1}),
    Variant("prodigy", fastopt.Prodigy, {"d0": 1e-2, "weight_decay": 0.1}),
    *families.VARIANTS,
]
OF_MATRICES: list[Variant] = [
    Variant("muon", fastopt.Muon, {"lr": 0.02}, shape=(1, 1)),
    Variant(
        "muon_matching",
        fastopt.Muon,
        {"nesterov": False, "adjust_lr": "match_rms_adamw", "ns_steps": 3, "weight_decay": 0.0},
        shape=(1, 1),
    ),
    *families.OF_MATRICES,
]
"""Those that take matrices alone: what is tested of all others is in test_matrices for them."""

SQUARING = [v for v in VARIANTS if v.rule.averages_squares]
ELEMENTWISE = [v for v in VARIANTS if v.is_elementwise]
"""Those in which each element goes its own way."""

SMOOTH = {
    *(getattr(fastopt, n) for n in ("SGD", "Momentum", "Adagrad", "RMSprop", "Adadelta")),
    *(getattr(fastopt, n) for n in ("Adam", "AdamW", "LAMB", "Prodigy", *families.SMOOTH)),
}
"""Optimizers whose steps change little where gradient and state change little: no signs."""

ONE_PASS = [v for v in ELEMENTWISE if "mask_zero" not in v.options]
"""Those of one launch, without sums or anything after the rule."""

APART = [v for v in VARIANTS if v.rule.memory is None or v.rule.memory.over == "array"]
"""Those in which each parameter goes its own way, whatever the others are."""

SUMMING = [v for v in VARIANTS if v.rule.sums is not None or "clip_each" in v.options]
"""Those that sum real numbers: the last bits depend on the order in memory."""

CAPTURED = [v for v in VARIANTS if not v.optimizer._takes_value]
"""Those whose steps can be captured in a CUDA graph: one that is handed a loss cannot be."""

CLIPPING = [v for v in VARIANTS if {"clip_value", "clip_each", "l1"} & v.options.keys()]
"""Those with a limit in units of the gradient: what is added to that counts, or how large it is."""

VARIANT_OF = {variant.name: variant for variant in VARIANTS}


def public_optimizers() -> list[type[Optimizer]]:
    """Return the optimizers that the package exports."""
    named = (getattr(fastopt, name) for name in fastopt.__all__)
    return [
        item
        for item in named
        if isinstance(item, type) and issubclass(item, Optimizer) and item is not Optimizer
    ]


def one_parameter(optimizer: Any) -> Array:
    """Return the smallest parameter that an optimizer takes."""
    return next(v for v in (*VARIANTS, *OF_MATRICES) if v.optimizer is optimizer).one_parameter


def script(text: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a process of its own, with the package that is tested here."""
    path = os.pathsep.join(place for place in sys.path if place)
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
