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


@pytest.mark.parametrize("dtype", [np.float32, np.complex64], ids=["float32", "complex64"])
@pytest.mark.parametrize("decided", [{}, {"max_grad_norm": 2.0}], ids=["by_host", "by_device"])
@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd_cautious"])
def test_rates_of_elements_give_the_bits_of_numpy(
    cupy: Any, name: str, decided: dict[str, Any], dtype: Any
) -> None:
    training = Training(steps=10, shapes=((5,), (70, 3)), dtypes=[dtype])
    scales = [np.random.default_rng(3).random(shape) for shape in training.shapes]
    options = {"lr": lambda t: 0.1 / (1 + t), "weight_decay": 0.1, **decided}
    here = train(training, VARIANT_OF[name], np, lr_scale=scales, **options)
    on_device = [cupy.asarray(scale) for scale in scales]
    there = train(training, VARIANT_OF[name], cupy, lr_scale=on_device, **options)
    assert not differences(here, there)


def test_rates_of_elements_whatever_the_storage(cupy: Any) -> None:
    for dtype, options in (
        (np.float32, {"state_dtype": "int8", "bounds": ([np.full(4099, -1.0)], None)}),
        (np.float16, {"state_dtype": "bfloat16"}),
        (np.complex64, {"complex_moment": "modulus"}),
    ):
        training = Training(steps=10, shapes=((4099,),), dtypes=[dtype])
        scale = np.random.default_rng(3).random(4099)
        options = {**options, "lr": 0.1, "weight_decay": 0.1, "lr_scale": scale}
        here = train(training, VARIANT_OF["adamw"], np, **options)
        assert not differences(here, train(training, VARIANT_OF["adamw"], cupy, **options))
