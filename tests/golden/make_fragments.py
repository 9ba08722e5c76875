"""Makes the vectors of options that act around any rule: python -m tests.golden.make_fragments

Writes fragments/mask_zero.npz and fragments/cautious.npz, in the format that README.md gives; the
inputs are those of inputs.npz. It needs optax and jax, and never imports fastopt.
"""

import jax
import numpy as np
import optax

from . import oracle_fragments
from .kind_files import make_file
from .vector_cases import Case
from .vector_inputs import make_inputs

OC = ("optax", "closed")


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


def main() -> None:
    """Make the files."""
    inputs = make_inputs()
    oracles = {"optax": oracle_fragments.by_optax, "closed": oracle_fragments.closed}
    for option in ("mask_zero", "cautious"):
        make_file(f"fragments/{option}", cases(option), inputs, oracles, (optax, jax, np))


if __name__ == "__main__":
    main()
