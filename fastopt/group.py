"""One parameter group at work: its tree, its hyperparameters, its buckets, and a step's scalars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from fastopt import arrays, backends, bounds, coefficients
from fastopt.arrays import Array
from fastopt.buckets import Bucket
from fastopt.extents import Extents
from fastopt.formats import Format, State, real_size, state_of
from fastopt.formula import Formula
from fastopt.param_group import Options, ParamGroup
from fastopt.shared import FIXED, MODULUS
from fastopt.step_scalars import StepScalars
from fastopt.tree import Tree


class Group:
    """The parameters of one group, and what a step does with them.

    ``positions`` are their places among the leaves of the tree, which other groups may share.
    """

    def __init__(
        self,
        formula: type[Formula],
        tree: Tree,
        positions: Sequence[int],
        options: ParamGroup,
        grads_root: str,
        asked: str,
        master_weights: bool,
        everywhere: Extents,
    ) -> None:
        self.tree = tree
        self.positions = positions
        self.leaves = [tree.leaves[position] for position in positions]
        self.options = options
        self._trainable: bool = options["trainable"]
        self._formula = formula
        self._grads_root = grads_root
        self.buckets = self._make_buckets(asked, master_weights, everywhere)
        self._scalars = [StepScalars(formula, bucket) for bucket in self.buckets]
        self._revision = options.revision
        options.reviews.append(self._check_same_state)
        self._prepared: tuple[int, float, int] | None = None

    def _make_buckets(self, asked: str, master_weights: bool, everywhere: Extents) -> list[Bucket]:
        """Sort the leaves by device, dtype and storage, and make a bucket of each sort."""
        leaves, rule = self.tree.leaves, self._formula._rule(self.options)
        state_dtype = self.options["state_dtype"]

        def place(position: int) -> tuple[int, str, State]:
            array = leaves[position].array
            device = arrays.device(array)
            size = real_size(array.size, array.dtype)
            state = state_of(state_dtype if rule.state else None, size)
            return (-1 if device is None else device, array.dtype.name, state)

        made = []
        for (_, _, state), same in groupby(sorted(self.positions, key=place), place):
            positions = list(same)
            members = [leaves[position] for position in positions]
            backend = backends.for_array(members[0].array, members[0].path, asked)
            fill = self._formula._fill(self.options)
            limits, reset = self.options["bounds"], self.options["reset_at_bounds"]
            kind = bounds.kind_of(limits)
            dtype, chance = members[0].array.dtype, self.options["stochastic_rounding"]
            modulus = self.options["complex_moment"] == MODULUS
            format = Format.of(
                dtype, master_weights, kind, reset, state, chance, modulus, state_dtype
            )
            bucket = Bucket(backend, rule, members, positions, fill, format, everywhere)
            if kind == "arrays":
                name = self._formula.__name__
                places = [self.positions[position] for position in positions]
                bucket.set_bounds(bounds.of_leaves(limits, self.tree, members, places, name))
            made.append(bucket)
        return made

    def _check_same_state(self, options: Options) -> None:
        """Refuse a change that an optimizer in use cannot make."""
        bounded = ("bounds", "reset_at_bounds")
        before, after = (
            [bounds.kind_of(o["bounds"]), o[bounded[1]]] for o in (self.options, options)
        )
        same_arrays = before[0] != "arrays" or options["bounds"] is self.options["bounds"]
        if before != after or not same_arrays:
            raise ValueError(
                f"{self._formula.__name__}: bounds that are numbers can be set to other numbers; "
                "for any other change of bounds construct a new optimizer"
            )
        for name in FIXED:
            before, after = self.options[name], options[name]
            if before != after:
                raise ValueError(
                    f"{self._formula.__name__}: {name} is {before!r} in this optimizer; construct "
                    f"a new one with {name}={after!r}"
                )
        wanted = self._formula._rule(options)
        for bucket in self.buckets:
            if wanted.state != bucket.rule.state:
                raise ValueError(
                    f"{self._formula.__name__}: this change needs other state, {wanted.state} "
                    f"instead of {bucket.rule.state}; construct a new optimizer"
                )

    def follow_settings(self) -> bool:
        """Go over to another rule, if a setting asks for one; return whether steps are made."""
        if self._revision != self.options.revision:
            for bucket in self.buckets:
                bucket.use(self._formula._rule(self.options))
            self._trainable = self.options["trainable"]
            self._revision = self.options.revision
        return self._trainable

    def warm_up(self, norm: bool) -> None:
        """Compile what the steps will need."""
        self.follow_settings()
        for bucket in self.buckets:
            bucket.warm_up(norm)

    def check(self, now: list[Any], given: list[Any], copying: bool = True) -> None:
        """Look at the arrays of a step, those at all leaves of the tree, before it is made."""
        for bucket in self.buckets:
            bucket.check(now, given, self._grads_root, copying)

    def nonfinite(self) -> str | None:
        """Return where the first checked gradient with NaN or infinity stands."""
        leaf = next(filter(None, (bucket.nonfinite() for bucket in self.buckets)), None)
        return None if leaf is None else self._grads_root + leaf.suffix

    @property
    def at_once(self) -> bool:
        """Whether ``step_at_once`` can do anything."""
        return len(self.buckets) == 1 and self.buckets[0].at_once

    def step_at_once(self, grads: Any, grad_scale: float, clock: Array) -> bool:
        """Check, update and count in one compiled call, which nothing can interrupt.

        Returns False, with nothing changed, if something in this step is not as usual.
        """
        if not self.follow_settings():
            return False
        now, given = self.tree.current(), self.tree.match(grads, self._grads_root)
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
            options = self.options.at(int(clock[0]))
            if self.options.scheduled:
                self._check_coefficients(options)
            for scalars in self._scalars:
                scalars.prepare(options, grad_scale)
            self._prepared = wanted

    def _check_coefficients(self, options: Options) -> None:
        for bucket in self.buckets:
            where = bucket.parameters[0].leaf.path
            coefficients.check(self._formula, options, bucket.real, where)

    @property
    def averages_squares_in_float32(self) -> bool:
        """Whether the step that was checked averages squares of gradients in float32."""
        return any(bucket.averages_squares_in_float32 for bucket in self.buckets)

    def norms(self) -> Iterator[tuple[str, float]]:
        """Yield where each checked gradient stands, and its norm."""
        for bucket in self.buckets:
            norms = bucket.norms()
            for i in bucket.members():
                yield self._grads_root + bucket.parameters[i].leaf.suffix, norms[i]

    def ask_schedules_anew(self) -> None:
        """Forget what schedules said when the last step was tried.

        If that step failed or was skipped this one has its number, and a schedule with a memory may
        have changed its mind.
        """
        if self.options.scheduled:
            self._prepared = None

    def value(self, name: str, step_count: int) -> float:
        """Return a hyperparameter's value in a step, checked if a schedule gives it."""
        return float(self.options.value(name, step_count))

    def update(self) -> None:
        """Make the step that was checked and planned."""
        for bucket in self.buckets:
            bucket.update()


def squares(groups: Sequence[Group], factor: float) -> Iterator[Array]:
    """Yield the sums of squares of all checked gradients, by pieces, bucket by bucket."""
    for group in groups:
        for bucket in group.buckets:
            yield bucket.squares(factor)
