"""Trainings with a scaled loss, on NumPy and on a device: what they end with, to be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

import fastopt
from fastopt.core.arrays import Array
from fastopt.optimizers.base import Optimizer
from fastopt.wrappers.base import Wrapper
from helpers.cuda.runs import on_host
from helpers.cuda.training import Training, captured, end_of
from helpers.variants import Variant

Wrap = Callable[[Optimizer], Optimizer | Wrapper]
POLICY: dict[str, Any] = {"init_scale": 1024.0, "growth_interval": 3, "growth_factor": 3.0}
"""Its inverses are not exact, and it grows often."""


def scaled(
    training: Training,
    variant: Variant,
    xp: Any,
    unwatched: Callable[[], AbstractContextManager[None]] = nullcontext,
    wrap: Wrap = lambda opt: opt,
    policy: dict[str, Any] = POLICY,
    **options: Any,
) -> dict[str, Array]:
    """Return what a training ends with whose gradients are those of a scaled loss.

    ``unwatched`` is what all steps are made in.
    """
    params = [xp.asarray(param) for param in training.params()]
    opt = variant(params, backend="numpy" if xp is np else "cupy", **options)
    scaler, around = fastopt.LossScaler(**policy), wrap(opt)
    for step in range(training.steps):
        given = [xp.asarray(grad) for grad in training.grads(step)]
        with unwatched():
            scaler.step(around, [scaler.multiply(grad) for grad in given])
            scaler.update()
    return end_of(opt, params) | remembered(scaler)


def scaled_replays(
    training: Training, variant: Variant, cupy: Any, eager: Sequence[int] = (), **options: Any
) -> dict[str, Array]:
    """Return what it ends with where multiplication and step are replays of a CUDA graph.

    Those steps that are ``eager`` are made in the usual way in between.
    """
    params = [cupy.asarray(param) for param in training.params()]
    more: dict[str, Any] = {"capturable": True, "on_nonfinite": "skip", **options}
    opt = variant(params, backend="cupy", **more)
    scaler = fastopt.LossScaler(**POLICY).warmup(opt)
    grads = [cupy.asarray(grad) for grad in training._draw(1)]
    cupy.cuda.Device().synchronize()

    def step() -> None:
        scaler.step(opt, [scaler.multiply(grad, out=grad) for grad in grads])
        scaler.update()

    graph, _ = captured(cupy, step)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for number in range(training.steps):
            for grad, now in zip(grads, training.grads(number), strict=True):
                grad[...] = cupy.asarray(now)
            step() if number in eager else graph.launch(stream)
        stream.synchronize()
        return end_of(opt, params) | remembered(scaler)


def remembered(scaler: Any) -> dict[str, Array]:
    """Return what a scaler remembers, and what it multiplies by."""
    saved = scaler.state_dict()
    names = ("scale", "good_steps", "skips")
    return {name: np.array(saved[name]) for name in names} | {"factor": on_host(scaler.scale)}
