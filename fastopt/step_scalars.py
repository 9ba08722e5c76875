"""The scalars of a step: those common to all rules, the rule's, those of bounds and of chance."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from fastopt import bounds, random_bits
from fastopt.buckets import Bucket
from fastopt.formula import Formula
from fastopt.param_group import Options
from fastopt.precision import FLUSH_EVERY, tiny


class StepScalars:
    """The scalars of a bucket's update: those common to all rules, then the rule's own."""

    def __init__(self, formula: type[Formula], bucket: Bucket) -> None:
        self._formula = formula
        self._bucket = bucket

    def prepare(self, options: Options, scale: float) -> None:
        """Fix everything but the step count; the options have numbers in the place of schedules."""
        lr, weight_decay = options["lr"], options["weight_decay"]
        self._pick = _picker(self._bucket.rule.scalars)
        small = tiny(self._bucket.format.real, self._formula._floor(options))
        l2, decay = (0.0, lr * weight_decay) if self._formula._decoupled else (weight_decay, 0.0)
        scale = -scale if options["maximize"] else scale
        # Rounded here, so that what is 0 in the dtype is left out by every backend alike.
        common = np.array([scale, l2, decay, small.signed, small.positive])
        with np.errstate(all="ignore"):
            self._flushing = tuple(common.astype(self._bucket.format.real).tolist())
        self._common = (*self._flushing[:3], 0.0, 0.0)
        self._limits: tuple[float, ...] = ()
        if self._bucket.format.limit_scalars:
            self._limits = bounds.numbers(options["bounds"], self._bucket.format.stored)
        self._seed = options["seed"] if self._bucket.format.random_scalars else None
        self._arguments = (options, lr, small.guard)

    def __call__(self, t: int) -> tuple[float, ...]:
        """Return the row of a parameter's t-th step (1 for the first)."""
        options, lr, guard = self._arguments
        common = self._common if t % FLUSH_EVERY else self._flushing
        row = common + self._pick(self._formula._scalars(options, lr, t, guard)) + self._limits
        return row if self._seed is None else (*row, *self._random(t, self._seed))

    @staticmethod
    def _random(t: int, seed: int) -> tuple[float, float]:
        """Return the halves of the step's random key, each exact in float32."""
        key = random_bits.key(seed, t)
        return float(key >> 16), float(key & 0xFFFF)


def _picker(names: tuple[str, ...]) -> Callable[[dict[str, float]], tuple[float, ...]]:
    """Return what takes values out of a dict, in the order of the names."""
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple(values[n] for n in names)
