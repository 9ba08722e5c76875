"""Scaled learning rates on a device: the bits of NumPy, whoever decides, and in replays too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastopt.optimizers.base import Optimizer
from helpers.cuda.runs import differences
from helpers.cuda.training import Training, replayed, train
from helpers.variants import VARIANT_OF


def rescale(opt: Optimizer) -> None:
    opt.param_groups[0]["lr_scale"] = 0.7


TRAINING = Training(steps=12, shapes=((5,), (70, 3)), before={7: rescale})
SETTINGS: dict[str, Any] = {"lr": lambda t: 0.1 / (1 + t), "lr_scale": 0.3, "weight_decay": 0.1}


@pytest.mark.parametrize("decided", [{}, {"max_grad_norm": 2.0}], ids=["by_host", "by_device"])
@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_scaled_rates_give_the_bits_of_numpy(cupy: Any, name: str, decided: dict[str, Any]) -> None:
    options = {**SETTINGS, **decided}
    here = train(TRAINING, VARIANT_OF[name], np, **options)
    assert not differences(here, train(TRAINING, VARIANT_OF[name], cupy, **options))


def test_a_replay_follows_a_scale_that_is_set(cupy: Any) -> None:
    here = train(TRAINING, VARIANT_OF["adamw"], np, **SETTINGS)
    assert not differences(here, replayed(TRAINING, VARIANT_OF["adamw"], cupy, **SETTINGS))
