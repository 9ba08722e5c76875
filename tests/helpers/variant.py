"""An optimizer's class with some hyperparameters, and what its rule is like."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fastopt.core.arrays import Array
from fastopt.core.buckets import memory_names
from fastopt.optimizers.base import Optimizer
from fastopt_kernels import AnyRule, ArrayRule
from helpers.handing import handing


@dataclass(frozen=True)
class Variant:
    """An optimizer's class with some hyperparameters.

    ``close`` says that its code is that of others in another order: it is met where numbers and
    bits are looked at, and with each value of other parameters once. ``shape`` is that of the
    smallest parameter that it takes. ``one_unit`` says that lr has one unit in all steps: that all
    gradients times a factor make the same steps, or with lr divided by it. ``led_by_lr`` says that
    lr makes every step longer or shorter, and not the first one alone; ``rate_inside`` that lr
    weighs what state gathers, which goes on moving the parameter when lr has become 0. What its
    steps need beside gradients they are handed (``handing``). ``waits`` says that the first
    gradient only fills state.
    """

    name: str
    optimizer: type[Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    close: bool = False
    shape: tuple[int, ...] = (1,)
    one_unit: bool = True
    rate_inside: bool = False
    led_by_lr: bool = True
    waits: bool = False

    def __call__(self, params: Any, **more: Any) -> Optimizer:
        return handing(self.optimizer)(params, **{**self.options, **more})

    def __str__(self) -> str:
        return self.name

    @property
    def one_parameter(self) -> Array:
        """The smallest parameter that it takes."""
        return np.ones(self.shape)

    @cached_property
    def rule(self) -> AnyRule:
        """What it does to a parameter."""
        return self.optimizer._rule(self(self.one_parameter).param_groups[0])

    @property
    def sums(self) -> bool:
        """Whether it sums over arrays, or an option around it does."""
        return self.rule.sums is not None or bool({"cautious", "clip_each"} & self.options.keys())

    @property
    def remembered(self) -> set[str]:
        """The names of numbers in float64 that it remembers of each array beside state."""
        return {*memory_names(self.rule, "array")}

    @property
    def is_elementwise(self) -> bool:
        """Whether each element goes its own way."""
        whole = isinstance(self.rule, ArrayRule)
        return not (whole or self.sums or self.rule.memory is not None)
