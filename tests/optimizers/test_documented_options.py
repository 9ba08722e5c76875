"""Docstrings list the common options that their optimizer accepts, and no others."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fastopt.core.options import OPTIONS
from helpers.variants import public_optimizers

TRIED: dict[str, tuple[Any, ...]] = {
    "lr_scale": (0.5,),
    "decoupled_lr": (True,),
    "maximize": (True,),
    "trainable": (False,),
    "bounds": ((-1, 1),),
    "reset_at_bounds": (True,),
    "adaptive_clip": (0.01,),
    "centralize": (True,),
    "max_grad_norm": (1.0,),
    "clip_value": (1.0,),
    "clip_each": (1.0,),
    "on_nonfinite": ("skip", "raise"),
    "members": (4,),
    "capturable": (True,),
    "master_weights": (False,),
    "state_dtype": ("float64",),
    "stochastic_rounding": (True,),
    "cautious": (True,),
    "cautious_decay": (True,),
    "l1": (0.1,),
    "mask_zero": (True,),
    "complex_moment": ("modulus",),
    "seed": (3,),
    "backend": ("numpy",),
}
"""What differs from the default, of every common option."""


def accepts(optimizer: Any, option: str, value: Any) -> bool:
    """Return whether some way to construct the optimizer, with an array, takes the option."""
    beside = {"bounds": (-1, 1)} if option == "reset_at_bounds" else {}
    decoupled = "decoupled_weight_decay" in optimizer._checks
    for more in ({}, {"decoupled_weight_decay": True})[: 1 + decoupled]:
        try:
            optimizer([np.ones((4, 4), np.float32)], **{option: value}, **beside, **more)
        except ValueError:
            continue
        return True
    return False


def test_every_option_is_tried() -> None:
    assert TRIED.keys() == OPTIONS.keys()


@pytest.mark.parametrize("optimizer", public_optimizers())
def test_docstrings_list_what_is_accepted(optimizer: Any) -> None:
    said = re.search(r"common: .*?see ``Common``:(.*?)\.\s", optimizer.__doc__, re.DOTALL)
    assert said is not None
    listed = set(re.findall(r"\w+", said[1]))
    accepted = {
        option
        for option, values in TRIED.items()
        if all(accepts(optimizer, option, value) for value in values)
    }
    if optimizer.__name__ == "MuonWithAdamW":  # what is refused depends on the group's shapes
        accepted |= {"stochastic_rounding", "cautious", "mask_zero"}
    assert listed == accepted
