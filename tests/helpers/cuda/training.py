"""Trainings that the host decides on, and a device: the same gradients, the same events, any order.

A training is a list of steps. ``train`` makes them one after another; ``replayed`` captures the
first of them in a graph and replays it for the others. Both end in what can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastopt.core.arrays import Array
from fastopt.optimizers.base import Optimizer
from helpers.cuda.device import emulated, no_waiting
from helpers.cuda.runs import on_host
from helpers.variants import Variant

SHAPES: tuple[tuple[int, ...], ...] = ((5,), (70, 3), (), (0, 4), (4099,))


@dataclass
class Training:
    """What happens: gradients from a seed; of some steps one element is NaN, some are missing.

    ``large`` gives numbers that are an element of some steps' gradients; ``missing`` says of a step
    and an array whether it has no gradient; ``before`` what is done to the optimizer before a step.
    """

    steps: int = 40
    shapes: Sequence[tuple[int, ...]] = SHAPES
    dtypes: Sequence[Any] = (np.float32,)
    size: float = 1.0
    bad: Sequence[int] = ()
    large: Mapping[int, float] = field(default_factory=dict)
    missing: Callable[[int, int], bool] = lambda step, k: False
    scale: Callable[[int], float] = lambda step: 1.0
    before: Mapping[int, Callable[[Optimizer], object]] = field(default_factory=dict)

    def params(self) -> list[Array]:
        return self._draw(0)

    def grads(self, step: int) -> list[Array | None]:
        made: list[Any] = self._draw(1 + step)
        if step in self.bad:
            made[1].flat[made[1].size // 2] = (np.nan, np.inf, -np.inf)[step % 3]
        if step in self.large:
            made[-1].flat[made[-1].size // 3] = self.large[step]
        return [None if self.missing(step, k) else grad for k, grad in enumerate(made)]

    def _draw(self, seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        scale = self.size if seed else 1.0
        return [
            np.asarray(scale * rng.standard_normal(shape)).astype(self.dtypes[k % len(self.dtypes)])
            for k, shape in enumerate(self.shapes)
        ]


def train(
    training: Training,
    variant: Variant,
    xp: Any,
    scale_of: Callable[[float], Any] = float,
    **options: Any,
) -> dict[str, Array]:
    """Return what a training ends with."""
    params = [xp.asarray(param) for param in training.params()]
    opt = variant(params, backend="numpy" if xp is np else "cupy", **options)
    for step in range(training.steps):
        if step in training.before:
            training.before[step](opt)
        grads = [None if grad is None else xp.asarray(grad) for grad in training.grads(step)]
        scale = scale_of(training.scale(step))
        with no_waiting():
            opt.step(grads, grad_scale=scale)
    return end_of(opt, params)


def captured(cupy: Any, step: Callable[[], Any]) -> tuple[Any, Any]:
    """Return the graph of what is launched, which waits for nothing, and what ``step`` returns."""
    cuda = emulated()
    with no_waiting(), cupy.cuda.Stream(non_blocking=True) as stream:
        before = cuda and cuda.calls("cudaMalloc")
        stream.begin_capture()
        try:
            outcome = step()
        finally:
            graph = stream.end_capture()
    assert before == (cuda and cuda.calls("cudaMalloc")), "a pool may hand that memory to others"
    return graph, outcome


def replayed(training: Training, variant: Variant, cupy: Any, **options: Any) -> dict[str, Array]:
    """Return what a training ends with whose steps are replays of one that was captured."""
    params = [cupy.asarray(param) for param in training.params()]
    opt = variant(params, capturable=True, **options).warmup()
    grads = [cupy.asarray(grad) for grad in training._draw(1)]
    graph, _ = captured(cupy, lambda: opt.step(grads))
    for step in range(training.steps):
        if step in training.before:
            training.before[step](opt)
            opt.refresh()
        for grad, now in zip(grads, training.grads(step), strict=True):
            grad[...] = cupy.asarray(now)
        with no_waiting():
            graph.launch()
    return end_of(opt, params)


def end_of(opt: Optimizer, params: Sequence[Any]) -> dict[str, Array]:
    """Return all that can be read of an optimizer, and the parameters."""
    end = {f"param {k}": on_host(param) for k, param in enumerate(params)}
    saved = opt.state_dict()
    for name, entry in saved["state"].items():
        end |= {f"{name}.{slot}": np.asarray(value) for slot, value in entry.items()}
    end |= {f"memory {name}": np.array(value) for name, value in saved.get("memory", {}).items()}
    norm = -1.0 if opt.grad_norm is None else opt.grad_norm
    counts = (opt.step_count, saved["step_count"], opt.skipped_steps)
    # A NaN has many bit patterns.
    return end | {"norm": np.array(np.nan if norm != norm else norm), "counts": np.array(counts)}
