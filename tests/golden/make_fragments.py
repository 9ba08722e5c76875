"""Makes the vectors of options that act around any rule: python -m tests.golden.make_fragments

Writes fragments/<option>.npz for each, in the format that README.md gives; the inputs are those of
inputs.npz. It needs torch, optax and jax, and never imports fastopt.
"""

import jax
import numpy as np
import optax
import torch

from . import oracle_clips, oracle_decays, oracle_fragments
from .kind_files import make_file
from .vector_cases import MISSING, Case
from .vector_inputs import make_inputs

OC = ("optax", "closed")
TC = ("torch", "closed")


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


if __name__ == "__main__":
    main()
