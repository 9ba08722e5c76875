"""Makes the vectors of options that act around any rule: python -m tests.golden.make_fragments

Writes fragments/mask_zero.npz, cautious.npz, clip_value.npz and clip_each.npz, in the format that
README.md gives; the inputs are those of inputs.npz. It needs torch, optax and jax, and never
imports fastopt.
"""

import jax
import numpy as np
import optax
import torch

from . import oracle_clips, oracle_fragments
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


if __name__ == "__main__":
    main()
