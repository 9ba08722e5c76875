"""Every elementwise optimizer against the time that its own bytes take at Adam's bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastopt
from fastopt.cli.timing import Effort, Turn, take_turns
from fastopt.optimizers.base import Optimizer
from fastopt_kernels import Rule

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SGD", {"momentum": 0.9}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("Adam", {"amsgrad": True}),
)
"""What brings other state than the defaults do."""


def measure(
    parameters: int, effort: Effort, backend: str, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return of every optimizer its bytes per parameter, its time, Adam's, and the ratio.

    Each takes turns with Adam, so that both see the same bandwidth.
    """
    grad = np.random.default_rng(0).standard_normal(parameters, np.float32)
    adam = _turn(fastopt.Adam, {}, grad, backend)
    adam_bytes = _bytes_per_parameter(fastopt.Adam, {})
    rows = []
    for name, options in _candidates():
        optimizer = getattr(fastopt, name)
        label = ", ".join([name, *(f"{k}={v}" for k, v in options.items())])
        tell(f"{label} against its traffic")
        bytes_per_parameter = _bytes_per_parameter(optimizer, options)
        turns = {"Adam": adam, label: _turn(optimizer, options, grad, backend)}
        times = take_turns(turns, effort)
        rule, adams = times[label], times["Adam"]
        rows.append(
            {
                "name": label,
                "parameters": parameters,
                "bytes_per_parameter": bytes_per_parameter,
                "seconds": rule.median,
                "adam_seconds": adams.median,
                "ratio": rule.median / (adams.median * bytes_per_parameter / adam_bytes),
                "spread": max(rule.high / rule.low, adams.high / adams.low),
            }
        )
    return rows


def _candidates() -> list[tuple[str, dict[str, Any]]]:
    exported = {name: getattr(fastopt, name) for name in fastopt.__all__}
    defaults = [
        (name, {})
        for name, item in exported.items()
        if isinstance(item, type) and issubclass(item, Optimizer) and item is not Optimizer
    ]
    return [
        (name, options)
        for name, options in [*sorted(defaults, key=lambda pair: pair[0]), *VARIANTS]
        if _is_elementwise(exported[name]) and (name, options) != ("Adam", {})
    ]


def _is_elementwise(optimizer: Any) -> bool:
    """Return whether an optimizer reads each array once, and needs nothing but gradients."""
    rule = optimizer._rule(optimizer([np.ones((1, 1))]).param_groups[0])
    return isinstance(rule, Rule) and rule.sums is None and optimizer._estimate is None


def _turn(
    optimizer: Callable[..., Optimizer], options: dict[str, Any], grad: Any, backend: str
) -> Turn:
    opt = optimizer([np.ones_like(grad)], backend=backend, **options)
    grads = [grad]
    return Turn(lambda: opt.step(grads))


def _bytes_per_parameter(optimizer: Callable[..., Optimizer], options: dict[str, Any]) -> float:
    """Return what a step moves: gradient read, parameter and state read and written."""
    one = optimizer([np.ones(1, np.float32)], **options)
    (entry,) = one.state_dict()["state"].values()
    state = sum(slot.nbytes for slot in entry.values() if isinstance(slot, np.ndarray))
    return 3 * 4 + 2 * state
