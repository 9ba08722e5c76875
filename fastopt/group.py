"""One parameter group at work: its tree, its hyperparameters, its buckets, and a step's scalars."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from fastopt import arrays, backends
from fastopt.arrays import Array
from fastopt.buckets import Bucket
from fastopt.formula import Formula
from fastopt.hyperparameters import NONNEGATIVE
from fastopt.param_group import Options, ParamGroup
from fastopt.parameters import Extents
from fastopt.precision import FLUSH_EVERY, tiny
from fastopt.tree import Tree


class Group:
    """The parameters of one group, and what a step does with them."""

    def __init__(
        self,
        formula: type[Formula],
        tree: Tree,
        options: ParamGroup,
        grads_root: str,
        asked: str,
        everywhere: Extents,
    ) -> None:
        self.tree = tree
        self.options = options
        self._formula = formula
        self._grads_root = grads_root
        self.buckets = self._make_buckets(asked, everywhere)
        self._scalars = [_Scalars(formula, bucket) for bucket in self.buckets]
        self._revision = options.revision
        options.reviews.append(self._check_same_state)
        self._prepared: tuple[int, float, int] | None = None

    def _make_buckets(self, asked: str, everywhere: Extents) -> list[Bucket]:
        """Sort the leaves by device and dtype, and make a bucket of each sort."""
        leaves, rule = self.tree.leaves, self._formula._rule(self.options)

        def place(position: int) -> tuple[int, str]:
            device = arrays.device(leaves[position].array)
            return (-1 if device is None else device, leaves[position].array.dtype.str)

        made = []
        for _, same in groupby(sorted(range(len(leaves)), key=place), place):
            positions = list(same)
            members = [leaves[position] for position in positions]
            backend = backends.for_array(members[0].array, members[0].path, asked)
            fill = self._formula._fill(self.options)
            made.append(Bucket(backend, rule, members, positions, fill, everywhere))
        return made

    def _check_same_state(self, options: Options) -> None:
        """Refuse a change that an optimizer in use cannot make."""
        wanted = self._formula._rule(options)
        for bucket in self.buckets:
            if wanted.state != bucket.rule.state:
                raise ValueError(
                    f"{self._formula.__name__}: this change needs other state, {wanted.state} "
                    f"instead of {bucket.rule.state}; construct a new optimizer"
                )

    def _leaves(self, grads: Any) -> tuple[list[Any], list[Any]]:
        """Return the arrays of a step: parameters and gradients in the order of the leaves."""
        self._follow_settings()
        return self.tree.current(), self.tree.match(grads, self._grads_root)

    def _follow_settings(self) -> None:
        """Go over to another rule, if a setting asks for one."""
        if self._revision != self.options.revision:
            for bucket in self.buckets:
                bucket.use(self._formula._rule(self.options))
            self._revision = self.options.revision

    def warm_up(self, norm: bool) -> None:
        """Compile what the steps will need."""
        self._follow_settings()
        for bucket in self.buckets:
            bucket.warm_up(norm)

    def check(self, grads: Any, copying: bool = True) -> None:
        """Look at all arrays of a step, before anything is written."""
        now, given = self._leaves(grads)
        for bucket in self.buckets:
            bucket.check(now, given, self._grads_root, copying)

    def nonfinite(self) -> str | None:
        """Return where the first checked gradient with NaN or infinity stands."""
        found = (bucket.nonfinite() for bucket in self.buckets)
        leaf = next(filter(None, found), None)
        return None if leaf is None else self._grads_root + leaf.suffix

    @property
    def at_once(self) -> bool:
        """Whether ``step_at_once`` can do anything."""
        return len(self.buckets) == 1 and self.buckets[0].at_once

    def step_at_once(self, grads: Any, grad_scale: float, clock: Array) -> bool:
        """Check, update and count in one compiled call, which nothing can interrupt.

        Returns False, with nothing changed, if something in this step is not as usual.
        """
        now, given = self._leaves(grads)
        self._prepare(grad_scale, clock)
        return self.buckets[0].step_at_once(now, given, self._scalars[0], clock)

    def row(self, number: int, lag: int, clock: int) -> tuple[float, ...]:
        """Return the scalars of a step, for a gradient scale of 1.

        They are those of the bucket of this number, for parameters that have made ``lag`` steps
        less than the ``clock`` says.
        """
        if self.options.scheduled:
            self._prepared = None  # a schedule with a memory may say something else by now
        self._prepare(1.0, np.array([clock]))
        return self._scalars[number](clock - lag + 1)

    def keep_rules(self) -> None:
        """Refuse from now on changes that need another rule."""
        self.options.reviews.append(self._check_same_rule)

    def _check_same_rule(self, options: Options) -> None:
        wanted = self._formula._rule(options)
        if any(wanted is not bucket.rule for bucket in self.buckets):
            raise ValueError(
                f"{self._formula.__name__}: a step has been captured in a CUDA graph, with the "
                "update as it was then; this change needs another one, so construct a new "
                "optimizer and capture again"
            )

    def plan(self, grad_scale: float, clock: Array) -> None:
        """Work out a step's scalars, in float64 on the host."""
        self._prepare(grad_scale, clock)
        for bucket, scalars in zip(self.buckets, self._scalars, strict=True):
            bucket.plan(scalars)

    def _prepare(self, grad_scale: float, clock: Array) -> None:
        # Without a schedule only the step count changes, unless the user sets something.
        scheduled_for = clock.item(0) if self.options.scheduled else -1
        wanted = (self.options.revision, grad_scale, scheduled_for)
        if self._prepared != wanted:
            lr, decay = (self.value(name, int(clock[0])) for name in ("lr", "weight_decay"))
            for scalars in self._scalars:
                scalars.prepare(self.options, lr, decay, grad_scale)
            self._prepared = wanted

    def value(self, name: str, step_count: int) -> float:
        """Return a hyperparameter's value in a step, checked if a schedule gives it."""
        value = self.options[name]
        if not callable(value):
            return float(value)
        described = f"{self._formula.__name__}: {name} at step {step_count}"
        return NONNEGATIVE(described, value(step_count))

    def update(self) -> None:
        """Make the step that was checked and planned."""
        for bucket in self.buckets:
            bucket.update()


class _Scalars:
    """The scalars of a bucket's update: those common to all rules, then the rule's own."""

    def __init__(self, formula: type[Formula], bucket: Bucket) -> None:
        self._formula = formula
        self._bucket = bucket

    def prepare(self, options: Options, lr: float, weight_decay: float, scale: float) -> None:
        """Fix everything but the step count."""
        self._pick = _picker(self._bucket.rule.scalars)
        small = tiny(self._bucket.dtype, self._formula._floor(options))
        l2, decay = (0.0, lr * weight_decay) if self._formula._decoupled else (weight_decay, 0.0)
        scale = -scale if options["maximize"] else scale
        # Rounded here, so that what is 0 in the dtype is left out by every backend alike.
        common = np.array([scale, l2, decay, small.signed, small.positive])
        with np.errstate(all="ignore"):
            self._flushing = tuple(common.astype(self._bucket.dtype).tolist())
        self._common = (*self._flushing[:3], 0.0, 0.0)
        self._arguments = (options, lr, small.guard)

    def __call__(self, t: int) -> tuple[float, ...]:
        """Return the row of a parameter's t-th step (1 for the first)."""
        options, lr, guard = self._arguments
        common = self._common if t % FLUSH_EVERY else self._flushing
        return common + self._pick(self._formula._scalars(options, lr, t, guard))


def _picker(names: tuple[str, ...]) -> Callable[[dict[str, float]], tuple[float, ...]]:
    """Return what takes values out of a dict, in the order of the names."""
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple(values[n] for n in names)
