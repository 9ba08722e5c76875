"""The scalars of a step: those common to all rules, the rule's, those of bounds and of chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter

import numpy as np

from fastopt import bounds, random_bits
from fastopt.buckets import Bucket
from fastopt.exponents import Exponents
from fastopt.formula import Formula
from fastopt.param_group import Options
from fastopt.precision import FLUSH_EVERY, Tiny, tiny
from fastopt.scaling import Span, carried, span_of, window_of


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
        self._factors = (scale, l2, decay)
        self._flushing = self._rounded(small)
        self._common = (*self._flushing[:3], 0.0, 0.0)
        self._limits: tuple[float, ...] = ()
        if self._bucket.format.limit_scalars:
            self._limits = bounds.numbers(options["bounds"], self._bucket.format.stored)
        self._seed = options["seed"] if self._bucket.format.random_scalars else None
        self._arguments = (options, lr, small.guard)

    def _rounded(self, small: Tiny, exponent: int = 0) -> tuple[float, ...]:
        """Return the common scalars, as they are in the dtype, in the units of an exponent."""
        scale, l2, decay = self._factors
        if exponent:
            scale, l2 = math.ldexp(scale, exponent), math.ldexp(l2, exponent)
        # Rounded here, so that what is 0 in the dtype is left out by every backend alike.
        common = np.array([scale, l2, decay, small.signed, small.positive])
        with np.errstate(all="ignore"):
            return tuple(common.astype(self._bucket.format.real).tolist())

    def __call__(self, t: int, exponent: int | None = None) -> tuple[float, ...]:
        """Return the row of a parameter's t-th step (1 for the first).

        Under ``scale_safe`` it is in the units of an exponent, see ``fastopt.scaling``.
        """
        if exponent is not None:
            return self._carried(t, exponent)
        options, lr, guard = self._arguments
        common = self._common if t % FLUSH_EVERY else self._flushing
        row = common + self._pick(self._formula._scalars(options, lr, t, guard)) + self._limits
        return row if self._seed is None else (*row, *self._random(t, self._seed))

    @staticmethod
    def _random(t: int, seed: int) -> tuple[float, float]:
        """Return the halves of the step's random key, each exact in float32."""
        key = random_bits.key(seed, t)
        return float(key >> 16), float(key & 0xFFFF)

    def _carried(self, t: int, exponent: int) -> tuple[float, ...]:
        options, lr, guard = self._arguments
        real, units = self._bucket.format.real, self._formula._units or {}
        # With an exponent only what is nearly denormal is flushed, as if nothing outweighed it:
        # steps that are tiny beside lr are still those of the formula.
        small = tiny(real, 0.0 if exponent else self._formula._floor(options))
        common = self._rounded(small, exponent)
        values = {
            name: carried(value, units.get(name, 0), exponent, real, guard)
            # The guard is no part of the formula and has no unit: it comes out as it is.
            for name, value in self._formula._scalars(options, lr, t, 0.0).items()
        }
        flushing = common if t % FLUSH_EVERY == 0 else (*common[:3], 0.0, 0.0)
        row = flushing + self._pick(values) + self._limits
        return row if self._seed is None else (*row, *self._random(t, self._seed))

    def choose_exponents(self, exponents: Exponents, grad_scale: float) -> None:
        """Choose the exponents of the step that is being planned."""
        bucket, l2 = self._bucket, self._factors[1]
        spans: dict[int, Span] = {}

        def span(i: int) -> Span:
            t = int(bucket.steps[i]) + 1
            if t not in spans:
                spans[t] = self._span(t, grad_scale)
            return spans[t]

        exponents.choose(bucket.members(), bucket.squares, grad_scale, l2, span)

    def _span(self, t: int, grad_scale: float) -> Span:
        options, lr, _ = self._arguments
        units, made = self._formula._units or {}, self._formula._scalars(options, lr, t, 0.0)
        scalars = [(units.get(name, 0), made[name]) for name in self._bucket.rule.scalars]
        window = window_of(self._bucket.format.real)
        return span_of([*scalars, (1, self._factors[1])], grad_scale, window)


def _picker(names: tuple[str, ...]) -> Callable[[dict[str, float]], tuple[float, ...]]:
    """Return what takes values out of a dict, in the order of the names."""
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple(values[n] for n in names)
