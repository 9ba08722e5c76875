"""Estimates of the Hessian that steps are handed: taken into the state by a rule of their own.

An estimate is bound and checked as gradients are, and updates the same state by another rule
(``Formula._estimate``), right before the step's own. So every backend runs it as it runs any rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastopt.backends.interface import Backend, Kernel
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Gradients, OptimizerState
from fastopt.core.hyperparameters import Formula, Options
from fastopt.core.norms import total_norm
from fastopt.engine.policy import Policy, Verdict, judge
from fastopt.engine.scalars import Plan, Scalars
from fastopt_kernels import Rule


class Estimate(NamedTuple):
    """What the estimates of one bucket do to its state; ``gradients`` are the estimates."""

    number: int
    gradients: Gradients
    plan: Plan


class Estimates:
    """What takes estimates into the state of an optimizer's buckets."""

    def __init__(self, state: OptimizerState, backend: Backend, extents: Extents) -> None:
        rule = state.formula._estimate
        assert rule is not None
        formula = _formula_of(state.formula, rule)
        self._state = state
        self._extents = extents
        self._buckets = [_bucket_of(bucket, rule) for bucket in state.buckets]
        self._kernels: list[Kernel] = [backend.kernel(one, extents) for one in self._buckets]
        self._scalars = [Scalars(formula, state.groups[b.group], b) for b in self._buckets]

    def warm_up(self, norm: bool) -> None:
        """Compile what coming estimates need; with ``norm`` the sum of squares too."""
        for kernel in self._kernels:
            kernel.warm_up(norm)

    def bind(self, hessian: Any, trained: Iterable[int]) -> list[tuple[int, Gradients]]:
        """Return the checked estimates of the buckets that are trained, with their numbers."""
        tree = self._state.tree
        now, given = tree.current(), tree.match(hessian, "hessian")
        bound = []
        for number in trained:
            bucket = self._buckets[number]
            params, own = bucket.of_leaves(now), bucket.of_leaves(given)
            found = self._kernels[number].bind(params, own)
            bound.append((number, found or bucket.bind(params, own, self._extents)))
        return bound

    def judged(
        self,
        bound: Sequence[tuple[int, Gradients]],
        policy: Policy,
        verdict: Verdict,
        scale: float,
    ) -> Verdict:
        """Return the verdict on a step with these estimates, times a scale; raise under "raise"."""
        if policy.on_nonfinite == "propagate" or not verdict.made:
            return verdict
        in_single = any(self._buckets[n].averages_squares_in_single(own) for n, own in bound)
        unclipped = policy._replace(max_grad_norm=None)
        found = judge(unclipped, total_norm(partial(self._squares, bound)), scale, in_single)
        if found.made:
            return verdict
        if policy.on_nonfinite == "raise":
            step_count = self._state.counts.steps.item(0)
            if not found.finite:
                raise FloatingPointError(
                    f"hessian holds NaN or infinity at step {step_count}; nothing was changed. "
                    "on_nonfinite='skip' leaves such steps out."
                )
            raise FloatingPointError(
                f"hessian has a norm of {found.norm:.3g}, after grad_scale: it is finite, but its "
                f"squares overflow float32 at step {step_count}; nothing was changed. "
                "Construct the optimizer with state_dtype='float64'; on_nonfinite='skip' leaves "
                "such steps out."
            )
        return verdict._replace(made=False)

    def _squares(self, bound: Sequence[tuple[int, Gradients]], factor: float) -> Iterator[Array]:
        for number, gradients in bound:
            yield self._kernels[number].squares(gradients, factor)

    def plan(
        self, bound: Sequence[tuple[int, Gradients]], options: Mapping[int, Options]
    ) -> list[Estimate]:
        """Return what the estimates do, under the hyperparameters of their groups."""
        made = []
        for number, gradients in bound:
            bucket = self._buckets[number]
            bucket.steps_equal = self._state.buckets[number].steps_equal
            plan = self._scalars[number].plan(options[bucket.group], gradients)
            made.append(Estimate(number, gradients, plan))
        return made

    def take(self, estimates: Sequence[Estimate], scale: float) -> None:
        """Take estimates, multiplied by a scale, into the state; does not fail."""
        for number, gradients, plan in estimates:
            if not len(plan.table):  # none is there
                continue
            copied = self._buckets[number].copied(gradients.active)
            for parameter in copied:
                parameter.gather()
            self._kernels[number].update(gradients, plan.table, plan.row_numbers, scale)
            for parameter in copied:
                parameter.scatter()


def check_first(
    state: OptimizerState,
    bound: Sequence[tuple[int, Gradients]],
    estimated: Sequence[tuple[int, Gradients]],
) -> None:
    """Raise TypeError for a parameter that is to make its first step without an estimate."""
    there = dict(estimated)
    for number, gradients in bound:
        bucket = state.buckets[number]
        new = np.flatnonzero(bucket.steps == 0)
        if not len(new):
            continue
        stepping = _active(gradients, bucket)
        known = _active(there[number], bucket) if number in there else frozenset()
        for index in new.tolist():
            if index in stepping and index not in known:
                raise TypeError(
                    f"{state.formula.__name__} needs an estimate of the Hessian's diagonal for the "
                    f"first step of {bucket.parameters[index].leaf.path}: "
                    "opt.step(grads, hessian=...), nested as the parameters; got none"
                )


def _active(gradients: Gradients, bucket: Bucket) -> frozenset[int]:
    found = gradients.active
    return frozenset(range(len(bucket.parameters)) if found is None else found)


def _formula_of(formula: type[Formula], rule: Rule) -> type[Formula]:
    """Return a formula of the same scalars for the rule that takes estimates; nothing decays."""
    body = {
        "_rule": staticmethod(lambda options: rule),
        "_decay": staticmethod(lambda options: "rule"),
        "__abstractmethods__": frozenset(),
    }
    return type(formula.__name__, (formula,), body)


def _bucket_of(bucket: Bucket, rule: Rule) -> Bucket:
    """Return a bucket of the same parameters and state for the rule that takes estimates.

    What acts around the optimizer's rule acts on gradients and steps, and not on estimates.
    """
    own = replace(bucket, rule=rule, spec=replace(bucket.spec, fragments=()))
    vars(own)["_grad_paths"] = [f"hessian{one.leaf.place}" for one in bucket.parameters]
    return own
