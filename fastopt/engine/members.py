"""Members: fits that are made side by side, each with a norm, a verdict and step counts of its own.

The first axis of every parameter counts them. What each does by itself in ordinary steps, its
scalars, the kernels do for all at once; here is what is judged for each, and the update of some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastopt.backends.interface import Backend
from fastopt.core import arrays
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Gradients, OptimizerState, Parameter
from fastopt.core.dtypes import real_dtype
from fastopt.core.norms import norms_by_member
from fastopt.core.rows import RowGrad
from fastopt.engine.policy import Policy, Verdict, judge_members, refusal
from fastopt.engine.rows import Rows
from fastopt.engine.scalars import Plan

Given = Sequence[Any]
"""The gradients of a step as they were handed in, in the order of the leaves."""

Bound = Sequence[tuple[int, Gradients]]
"""The checked gradients of buckets, with the buckets' numbers."""


def judge(
    state: OptimizerState, bound: Bound, given: Given, policy: Policy, grad_scale: float
) -> Verdict:
    """Judge the gradients of each member by themselves; raises under "raise", naming one."""
    members = state.counts.members
    assert members is not None
    found: list[Array | None] = []
    sizes: list[int] = []
    for number, gradients in bound:
        bucket = state.buckets[number]
        for parameter, position in zip(bucket.parameters, bucket.positions, strict=True):
            grad = given[position]
            found.append(None if grad is None else _by_member(grad, parameter, gradients))
            sizes.append(parameter.size // len(members.missed))
    norms, finite = np.zeros(len(members.missed)), np.ones(len(members.missed), bool)
    if any(grad is not None for grad in found):
        norms, finite = norms_by_member(found, sizes)
    in_single = any(state.buckets[n].averages_squares_in_single(each) for n, each in bound)
    verdict = judge_members(policy, norms, finite, grad_scale, in_single)
    if policy.on_nonfinite == "raise" and verdict.each is not None and not verdict.each.made.all():
        raise _refusal(state, verdict, grad_scale)
    return verdict


def _by_member(grad: Array, parameter: Parameter, gradients: Gradients) -> Array:
    """Return a gradient as an array of real numbers with a row for each member."""
    count = parameter.layout.shape[0]
    with arrays.on_device_of(grad), np.errstate(all="ignore"):
        if grad.dtype.kind == "c":
            rows = arrays.namespace_of(grad).ascontiguousarray(grad).reshape(count, -1)
            rows = rows.view(real_dtype(grad.dtype))
        else:
            rows = grad.reshape(count, -1)
        found: Array = rows if rows.dtype == gradients.dtype else rows.astype(gradients.dtype)
        return found


def _refusal(state: OptimizerState, verdict: Verdict, grad_scale: float) -> FloatingPointError:
    """Return what is raised: for the first that is not finite, or the one with the largest norm."""
    each = verdict.each
    assert each is not None
    scaled = each.norm * abs(each.scale / grad_scale)
    worst = int(np.argmin(each.finite) if not verdict.finite else np.argmax(scaled))
    name, step = f"the gradient of member {worst}", int(state.counts.made[worst])
    return refusal(name, float(scaled[worst]), verdict, step)


def updates_of_some(
    bucket: Bucket,
    number: int,
    gradients: Gradients,
    plan: Plan,
    made: Array,
    given: Given,
    backend: Backend,
    extents: Extents,
) -> list[Callable[[], None]]:
    """Work out the updates of those members whose step is ``made``; return what writes them."""
    rows = np.flatnonzero(made)
    active = range(len(bucket.parameters)) if gradients.active is None else gradients.active
    return [
        _update_of_some(bucket, number, index, rows, plan, given, backend, extents)
        for index in active
    ]


def _update_of_some(
    bucket: Bucket,
    number: int,
    index: int,
    rows: Array,
    plan: Plan,
    given: Given,
    backend: Backend,
    extents: Extents,
) -> Callable[[], None]:
    parameter, grad = bucket.parameters[index], given[bucket.positions[index]]
    with arrays.on_device_of(grad):
        some = RowGrad(rows, grad[arrays.like(rows, grad)])
    path = f"grads{parameter.leaf.place}"
    part = Rows(number, index, some, bucket, path, backend, extents)
    first = plan.row_of(index)
    part.copy(back=False)
    part.kernel.update(part.gradients, np.asarray(plan.table)[first + rows], None, 1.0)
    missed = np.ones(parameter.layout.shape[0], np.int64)
    missed[rows] = 0

    def write() -> None:
        part.copy(back=True)
        bucket.advance([index], 1)
        bucket.miss(index, missed)

    return write


def count(state: OptimizerState, verdict: Verdict) -> None:
    """Count for each member whether it made the step; the verdict is written down."""
    members, each = state.counts.members, verdict.each
    assert members is not None
    assert each is not None
    members.norms = each.norm
    if each.made.all():
        return
    members.skipped[~each.made] += 1
    if verdict.made:  # for others it is one more step
        members.missed[~each.made] += 1
        for bucket in state.buckets:
            bucket.allow_misses()


def step_counts(state: OptimizerState) -> Array | None:
    """Return the steps that each member has made, where they are not all the same."""
    members = state.counts.members
    return state.counts.made if members is not None and members.apart else None
