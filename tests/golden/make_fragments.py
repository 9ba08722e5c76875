"""Makes the vectors of options that act around any rule: python -m tests.golden.make_fragments

Writes fragments/<option>.npz for each, in the format that README.md gives; the inputs are those of
inputs.npz. It needs torch, optax, jax, timm, pytorch_optimizer and torch-optimi, and never imports
fastopt.
"""

from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import optax
import torch

from . import (
    oracle_clips,
    oracle_decays,
    oracle_decoupled_lr,
    oracle_fragments,
    oracle_gradients,
)
from .families import decoupled, layerwise, signs
from .kind_files import make_file, make_file_of
from .vector_cases import MISSING, Case
from .vector_inputs import make_inputs

OC = ("optax", "closed")
TC = ("torch", "closed")
TOC = ("torch", "optax", "closed")
IC = ("optimi", "closed")
OPTIMI = ("optimi",)


def cases(option: str) -> tuple[Case, ...]:
    """Return Adam with the option: alone, beside decay, and with other hyperparameters."""
    on = {option: True}
    decay = on | {"lr": 0.02, "weight_decay": 0.1}
    odd = on | {"lr": 0.05, "betas": [0.97, 0.8], "eps": 1e-3}
    return (
        Case("Adam", option, OC, on),
        Case("Adam", f"{option}_l2", OC, on | {"lr": 0.01, "weight_decay": 0.003}),
        Case("Adam", f"{option}_odd", OC, odd),
        Case("AdamW", f"{option}_decay", OC, decay),
        Case("AdamW", f"{option}_dense", OC, decay, inputs="dense"),
    )


def clips(option: str, low: float, high: float, *beside: Case) -> tuple[Case, ...]:
    """Return optimizers with a limit that acts in most steps, and one that acts in some."""
    on, rarely = {option: low}, {option: high}
    groups = ({"params": [0]}, {"params": [1], option: high}, {"params": [2], option: 0.1})
    momentum = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    return (
        Case("Adam", option, TC, on),
        Case("Adam", f"{option}_l2", TC, on | {"lr": 0.01, "weight_decay": 0.3}),
        Case("Adam", f"{option}_rarely", TC, rarely | {"betas": [0.97, 0.8], "eps": 1e-3}),
        Case("AdamW", f"{option}_decay", TC, on | {"lr": 0.02, "weight_decay": 0.1}),
        Case("SGD", f"{option}_alone", TC, on),
        Case("SGD", f"{option}_maximize", TC, rarely | momentum | {"maximize": True}),
        Case("SGD", f"{option}_groups", TC, on | momentum, missing=MISSING, groups=groups),
        *beside,
    )


def cautious_decays() -> tuple[Case, ...]:
    """Return AdamW whose decay looks at the update: little and much, in groups, with gaps."""
    on = {"cautious_decay": True}
    much = on | {"lr": 0.02, "weight_decay": 2.0}
    groups = ({"params": [0]}, {"params": [1], "lr": 0.1}, {"params": [2], "weight_decay": 0.1})
    return (
        Case("AdamW", "cautious_decay", TC, on),
        Case("AdamW", "cautious_decay_much", TC, much),
        Case("AdamW", "cautious_decay_dense", TC, much, inputs="dense"),
        Case("AdamW", "cautious_decay_long", TC, on, inputs="long", steps=200),
        Case("AdamW", "cautious_decay_odd", TC, much | {"betas": [0.97, 0.8], "eps": 1e-3}),
        Case("AdamW", "cautious_decay_maximize", TC, much | {"maximize": True}),
        Case("AdamW", "cautious_decay_groups", TC, much, missing=MISSING, groups=groups),
        Case("AdamW", "cautious_decay_lr", TC, much, lr_changes={5: 0.1, 20: 1e-3}),
        Case("AdamW", "cautious_decay_and_l1", TC, much | {"l1": 0.3}),
    )


def l1s() -> tuple[Case, ...]:
    """Return optimizers with much and little of it, with decay of both kinds, and schedules."""
    on = {"l1": 0.5}
    momentum = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    groups = ({"params": [0]}, {"params": [1], "l1": 0.1, "lr": 0.2}, {"params": [2], "l1": 0.0})
    return (
        Case("Adam", "l1", TC, on),
        Case("Adam", "l1_much", TC, {"l1": 30.0, "betas": [0.97, 0.8], "eps": 1e-3}),
        Case("AdamW", "l1_decay", TC, on | {"lr": 0.02, "weight_decay": 0.1}),
        Case("SGD", "l1_alone", TC, on),
        Case("SGD", "l1_maximize", TC, on | momentum | {"maximize": True}),
        Case("SGD", "l1_groups", TC, on | momentum, missing=MISSING, groups=groups),
        Case("RMSprop", "l1_lr", TC, on, lr_changes={5: 0.1, 20: 1e-3}),
        Case("Adadelta", "l1_l2", TC, {"l1": 1e-3, "weight_decay": 0.1}),
    )


def of_gradients() -> dict[str, tuple[Case, ...]]:
    """Return optimizers whose whole gradients are clipped by units, centralized, or both."""
    clip, both = {"adaptive_clip": 0.05}, {"adaptive_clip": 0.2, "centralize": True}
    momentum = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    groups = (
        {"params": [0]},
        {"params": [1], "adaptive_clip": 3.0},
        {"params": [2], "adaptive_clip": 0.3},
    )
    return {
        "adaptive_clip": (
            Case("Adam", "adaptive_clip", TOC, clip),
            Case("Adam", "adaptive_clip_l2", TOC, clip | {"lr": 0.01, "weight_decay": 0.3}),
            Case("Adam", "adaptive_clip_rarely", TOC, {"adaptive_clip": 4.0, "lr": 0.01}),
            Case("AdamW", "adaptive_clip_decay", TOC, clip | {"lr": 0.02, "weight_decay": 0.1}),
            Case("AdamW", "adaptive_clip_centralize", TOC, both | {"lr": 0.02}),
            Case("SGD", "adaptive_clip_alone", TOC, clip | {"lr": 0.5}),
            Case("SGD", "adaptive_clip_momentum", TOC, clip | momentum),
            Case("SGD", "adaptive_clip_maximize", TC, clip | momentum | {"maximize": True}),
            Case("SGD", "adaptive_clip_both", TOC, both | momentum, inputs="dense"),
            Case("SGD", "adaptive_clip_groups", TC, clip, missing=MISSING, groups=groups),
        ),
        "centralize": (
            Case("Adam", "centralize", TOC, {"centralize": True}),
            Case("Adam", "centralize_l2", TOC, {"centralize": True, "weight_decay": 0.3}),
            Case("AdamW", "centralize_decay", TOC, {"centralize": True, "lr": 0.02}),
            Case("SGD", "centralize_alone", TOC, {"centralize": True}),
            Case(
                "SGD", "centralize_momentum", TC, {"centralize": True} | momentum, missing=MISSING
            ),
        ),
    }


def decoupled_lrs() -> tuple[Case, ...]:
    """Return optimizers whose decay follows the schedule alone: lr that is set on the way."""
    on: dict[str, Any] = {"decoupled_lr": True, "lr": 0.02, "weight_decay": 0.01}
    later = {5: 0.01, 20: 0.05}
    groups = ({"params": [0]}, {"params": [1], "lr": 0.1}, {"params": [2], "decoupled_lr": 0.5})
    moves = on | {"decoupled_weight_decay": True, "momentum": 0.9}
    of_sgd = {"defaults": decoupled.DEFAULTS["SGD"]}
    of_lion = {"defaults": signs.DEFAULTS["Lion"]}
    of_stable = {"defaults": layerwise.DEFAULTS["StableAdamW"]}
    return (
        Case("AdamW", "decoupled_lr", IC, on),
        Case("AdamW", "decoupled_lr_later", IC, on, lr_changes=later),
        Case("AdamW", "decoupled_lr_number", IC, on | {"decoupled_lr": 0.1}, lr_changes=later),
        Case("AdamW", "decoupled_lr_groups", IC, on, groups=groups),
        Case("SGD", "decoupled_lr_sgd", IC, moves, lr_changes=later, **of_sgd),
        Case("Lion", "decoupled_lr_lion", OPTIMI, on, lr_changes=later, **of_lion),
        Case("StableAdamW", "decoupled_lr_stable", OPTIMI, on, lr_changes=later, **of_stable),
    )


def versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}


def main() -> None:
    """Make the files."""
    inputs = make_inputs()
    oracles = {"optax": oracle_fragments.by_optax, "closed": oracle_fragments.closed}
    for option in ("mask_zero", "cautious"):
        make_file(f"fragments/{option}", cases(option), inputs, oracles, (optax, jax, np))
    oracles = {"torch": oracle_clips.by_torch, "closed": oracle_clips.closed}
    both = {"clip_value": 0.3, "clip_each": 0.4, "weight_decay": 0.1}
    made = {
        "clip_value": clips("clip_value", 0.5, 20.0),
        "clip_each": clips("clip_each", 0.5, 50.0, Case("Adam", "clip_value_and_each", TC, both)),
    }
    for option, of_option in made.items():
        make_file(f"fragments/{option}", of_option, inputs, oracles, (torch, np))
    oracles = {"torch": oracle_decays.by_torch, "closed": oracle_decays.closed}
    for option, of_option in {"cautious_decay": cautious_decays(), "l1": l1s()}.items():
        make_file(f"fragments/{option}", of_option, inputs, oracles, (torch, np))
    whole = {
        "torch": oracle_gradients.by_torch,
        "optax": oracle_gradients.of_case,
        "closed": oracle_gradients.closed,
    }
    for option, of_option in of_gradients().items():
        by = versions("torch", "timm", "pytorch_optimizer", "optax", "jax", "numpy")
        make_file_of(f"fragments/{option}", of_option, inputs, whole, by)
    oracles = {"optimi": oracle_decoupled_lr.by_optimi, "closed": oracle_decoupled_lr.closed}
    by = versions("torch", "torch-optimi", "numpy")
    make_file_of("fragments/decoupled_lr", decoupled_lrs(), inputs, oracles, by)


if __name__ == "__main__":
    main()
