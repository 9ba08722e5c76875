"""A step as a chain of values, decided and made on the host.

Gradients are bound to their buckets, plans hold the scalars, the verdict says whether and how: all
of that is prepared, may raise, and writes nothing. Committing it cannot fail.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from math import inf, isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import ref

import numpy as np

from fastopt.backends.interface import Backend, Fused, Kernel
from fastopt.core.arrays import Array, Extents
from fastopt.core.buckets import Bucket, Gradients, OptimizerState
from fastopt.core.hyperparameters import Options
from fastopt.core.norms import SMALLER, array_norms, tile_counts, total_norm
from fastopt.core.options import NonfinitePolicy
from fastopt.core.param_groups import ParamGroup
from fastopt.core.passes import derived_of
from fastopt.core.rows import RowGrad
from fastopt.core.signals import Deferred
from fastopt.engine import members, passes, rows, whole
from fastopt.engine.buffers import GradientBuffers
from fastopt.engine.estimates import Estimate, Estimates, check_first
from fastopt.engine.extra import NOTHING, Extra, checked_value, judged, scaled
from fastopt.engine.later import Later, failed
from fastopt.engine.passes import OtherParts, Update
from fastopt.engine.policy import (
    MADE,
    Outcome,
    Policy,
    Verdict,
    checked_scale,
    judge,
    refusal,
)
from fastopt.engine.rows import Rows
from fastopt.engine.scalars import Plan, Scalars
from fastopt.engine.transforms import Transforms, transforms_of
from fastopt.engine.whole import NewValues
from fastopt_kernels import ArrayRule

if TYPE_CHECKING:
    from fastopt.backends.cupy.control import ScaleMemory
    from fastopt.core.loss_scale import ScalePolicy


class Work(NamedTuple):
    """What a step does with one bucket.

    ``derived`` are the scalars that were made of sums, in float64, a row for each parameter, and
    ``memory`` what the rule's memory of each array becomes; None for a rule without. ``new_values``
    are the coming parameters and state of a rule on whole arrays.
    """

    number: int
    gradients: Gradients
    plan: Plan
    derived: Array | None = None
    memory: Array | None = None
    new_values: Sequence[NewValues] = ()


class Prepared(NamedTuple):
    """A step that can be made: what is done with each bucket, if the verdict is to make it.

    ``memory`` is what the rule's memory of all arrays together becomes; ``estimates`` are taken
    into the state before, multiplied by ``estimate_scale``. ``rows`` write updates of some
    rows.
    """

    works: Sequence[Work]
    verdict: Verdict
    memory: Mapping[str, float]
    rows: Sequence[Callable[[], None]] = ()
    estimates: Sequence[Estimate] = ()
    estimate_scale: float = 1.0


class Measured(NamedTuple):
    """Gradients, and what their norm is measured by."""

    bucket: Bucket
    kernel: Kernel
    gradients: Gradients


def _squares(parts: Sequence[Measured], factor: float) -> Iterator[Array]:
    """Yield the sums of squares of all gradients by tiles, bucket by bucket."""
    for part in parts:
        yield part.kernel.squares(part.gradients, factor)


def _worst(parts: Sequence[Measured], finite: bool) -> tuple[str, float]:
    """Return the name and the norm of the largest gradient, or of the first not finite one."""
    largest, name = -1.0, ""
    for bucket, kernel, gradients in parts:
        sizes = [parameter.size for parameter in bucket.parameters]
        if finite:
            norms = array_norms(sizes, partial(kernel.squares, gradients), bucket.spec.real)
        else:
            sums = kernel.squares(gradients, SMALLER)  # finite wherever the gradients are
            tiles = np.split(sums, np.cumsum(tile_counts(sizes))[:-1])
            norms = [np.inf if not np.isfinite(one).all() else -1.0 for one in tiles]
        for parameter, norm in zip(bucket.parameters, norms, strict=True):
            if norm > largest:
                largest, name = norm, f"grads{parameter.leaf.place}"
    return name, largest


def _outcome(verdict: Verdict) -> Outcome:
    if verdict.each is not None:
        return Outcome(verdict.each.made, verdict.each.norm)
    return MADE if verdict.made and verdict.norm is None else Outcome(verdict.made, verdict.norm)


class HostEngine:
    """Steps that are decided on the host.

    ``kernels`` and ``scalars`` belong to the buckets of the state, in the same order. They and all
    else that is kept here can be dropped at any moment (``invalidate``).
    """

    capturable = False
    device: int | None = None
    """The number of the CUDA device that holds the parameters; None for the host."""

    def __init__(self, state: OptimizerState, backend: Backend, later: Later | None = None) -> None:
        self.state = state
        self.later = later
        self.backend: Backend = backend
        self.extents: Extents = Extents(state.tree.leaves)
        self._changes = state.groups.changes
        self._estimate_first = state.formula._estimate_first
        self._by_member = state.counts.members is not None  # each is judged by itself
        self._buffers: GradientBuffers | None = None
        self._outdated: list[ref[Any]] = []  # gradient buffers of parameters that were replaced
        self.other_parts: OtherParts | None = None
        """Where the other parts of the parameters' arrays are, if these are parts."""
        self.invalidate()

    def invalidate(self) -> None:
        """Drop all that can be worked out again: kernels, scalars, what groups are trained."""
        state = self.state
        self.kernels: list[Kernel] = [self.kernel_of(bucket) for bucket in state.buckets]
        self.scalars: list[Scalars] = [
            Scalars(bucket.formula, state.groups[bucket.group], bucket) for bucket in state.buckets
        ]
        self._rules = [bucket.rule for bucket in state.buckets]
        self.derives: bool = any(derived_of(b.rule, b.spec).passes for b in state.buckets)
        """Whether some updates need scalars that are made of sums or memory."""
        self._frozen: frozenset[int] | None = None  # the numbers of groups; None: not known
        self._settings_seen: int | None = None  # the number of changes that this follows
        self._is_fused = False  # whether what follows is up to date: follow_settings sees to it
        self._fused: Fused | None = None
        self.transforms: Transforms | None = None
        """What is done to whole gradients before anything else."""
        self._fused_parts: list[tuple[Bucket, Scalars, ParamGroup]] = []
        self._buffered: dict[int, Gradients] = {}  # of each bucket those in the buffers
        self._estimates = self._new_estimates()
        self._given_rows = False  # whether the last step was, so that the next one may be too
        self._limit_of: Policy | None = None
        self._limit: float | None = None  # that of this policy

    def kernel_of(self, bucket: Bucket) -> Kernel:
        """Return a new kernel for a bucket."""
        return self.backend.kernel(bucket, self.extents)

    def _new_estimates(self) -> Estimates | None:
        """Return what takes estimates of the Hessian in; None if the optimizer takes none."""
        if self.state.formula._estimate is None:
            return None
        return Estimates(self.state, self.backend, self.extents)

    # The step -----------------------------------------------------------------------------------

    def step(self, grads: Any, grad_scale: Any, policy: Policy, extra: Extra = NOTHING) -> Outcome:
        """Make a step: all of it, or on an error nothing."""
        if type(grad_scale) is not float or not -inf < grad_scale < inf:
            grad_scale = self.checked_scale(grad_scale, policy.on_nonfinite)
        if self._settings_seen != self._changes.besides_lr:
            self.follow_settings()
        asked: dict[int, Options] = {}
        given = None
        if self.transforms is not None:
            given = self.transformed(self.matched(grads), grad_scale)
        plain = extra is NOTHING or extra.hessian is None
        usual = plain and not self._estimate_first and not self._given_rows
        loss: tuple[float, ...] = ()
        if self._fused is not None and usual and extra.value is not None:
            value = checked_value(extra.value, None)
            loss = (scaled(value, self._sign, grad_scale),)
            usual = isfinite(value)
        if self._fused is not None and usual:
            if policy is not self._limit_of:  # a fortieth of a small step
                self._limit_of, self._limit = policy, policy.limit
            limit = self._limit
            if self._step_fused(self._fused, grads, given, grad_scale, limit, asked, loss):
                return MADE if limit is None else Outcome(True, self.state.counts.norm.item(0))
        if given is None:
            given = self.matched(grads)
        return self.commit(self.prepare(given, grad_scale, policy, asked, extra))

    def step_and_go_over(
        self, later: Later, grads: Any, grad_scale: Any, policy: Policy, extra: Extra
    ) -> Outcome:
        """Make a step, on the backend that comes later if that pays now."""
        if later.due:
            self._go_over(later, policy)
        began = perf_counter()
        outcome = self.step(grads, grad_scale, policy, extra)
        later.spent += perf_counter() - began
        return outcome

    def _go_over(self, later: Later, policy: Policy) -> None:
        """Go over to the backend that comes later; stay on this one if it does not work."""
        try:
            backend = later.backend()
            for bucket in self.state.buckets:
                backend.kernel(bucket, self.extents).warm_up(policy.measures)
        except Exception as error:  # a compiler has errors of its own
            failed(error)
            self.later = None
            return
        with Deferred():
            self.backend = backend
            self.invalidate()
            self.later = None

    @property
    def _sign(self) -> float:
        """What multiplies the loss: -1 where the first group maximizes it."""
        return -1.0 if self.state.groups[0]["maximize"] else 1.0

    def checked_scale(self, scale: Any, on_nonfinite: NonfinitePolicy) -> Any:
        """Return what gradients are multiplied by under a policy, checked."""
        return checked_scale(scale)

    def ready_on_host(self, grads: Any, grad_scale: float) -> list[Any]:
        """Return gradients for ``prepare`` to take: for ranks, which agree before ``commit``."""
        self.follow_settings()
        return self.transformed(self.matched(grads), grad_scale)

    def prepare(
        self,
        matched: list[Any],
        grad_scale: float,
        policy: Policy,
        asked: dict[int, Options],
        extra: Extra = NOTHING,
        verdict: Verdict | None = None,
    ) -> Prepared:
        """Check everything and work out what the step does; raises, and writes nothing.

        ``matched`` are the gradients in the order of the leaves, transformed if they are to be.
        ``asked`` are the hyperparameters of groups whose schedules have been asked in this step.
        ``verdict`` is that on the gradients, where ranks have reached it together.
        """
        memory: Mapping[str, float] = self.state.memory
        given = memory
        leaves, given_rows = rows.split(matched)
        self._given_rows = bool(given_rows)
        bound = self.bind(leaves, besides=given_rows)
        some = self._bind_rows(given_rows)
        estimated = self._bind_estimate(extra)
        if self._estimate_first:
            check_first(self.state, bound, estimated)
        if verdict is None:
            verdict = self._judge(bound, some, leaves, grad_scale, policy)
        if self._estimates is not None and estimated:
            verdict = self._estimates.judged(estimated, policy, verdict, grad_scale)
        if extra.value is not None:
            value = checked_value(extra.value, None)
            verdict = judged(policy, verdict, value, self.state.counts.steps.item(0))
            given = {**memory, "value": scaled(value, self._sign, grad_scale)}
        if not verdict.made:
            return Prepared([], verdict, memory)
        works, of_some = self._planned(bound, leaves, verdict, asked)
        if self.derives:
            works, memory = self._derived(works, verdict.scale, given)
        works = [self._computed(w, verdict.scale) for w in works]
        writes = [*of_some, *(self._update_of(part, asked, verdict.scale) for part in some)]
        if self._estimates is None or not estimated:
            return Prepared(works, verdict, memory, writes)
        groups = {self.state.buckets[number].group for number, _ in estimated}
        options_of = {number: self._options(number, asked) for number in groups}
        estimates = self._estimates.plan(estimated, options_of)
        return Prepared(works, verdict, memory, writes, estimates, grad_scale)

    def _planned(
        self,
        bound: Sequence[tuple[int, Gradients]],
        given: Sequence[Any],
        verdict: Verdict,
        asked: dict[int, Options],
    ) -> tuple[list[Work], list[Callable[[], None]]]:
        """Return what is done with each bucket; where some members alone step, what writes that."""
        state, each = self.state, verdict.each
        counts = members.step_counts(state)
        works, of_some = [], []
        for number, gradients in bound:
            bucket = state.buckets[number]
            options = {} if counts is not None else self._options(bucket.group, asked)
            scale = None if each is None else each.scale
            plan = self.scalars[number].plan(options, gradients, scale, counts)
            if each is None or each.made.all():
                works.append(Work(number, gradients, plan))
                continue
            about = bucket, number, gradients, plan
            engine = self.backend, self.extents
            of_some += members.updates_of_some(*about, each.made, given, *engine)
        return works, of_some

    def _bind_rows(self, given: Mapping[int, RowGrad]) -> list[Rows]:
        """Return the checked gradients of rows, if a step is handed any."""
        if not given:
            return []
        return rows.bind(self.state, given, self.trained(), self.backend, self.extents)

    def _update_of(self, part: Rows, asked: dict[int, Options], scale: float) -> Callable[[], None]:
        """Return what writes an update of rows."""
        number, whole = part.number, part.whole
        t = whole.steps.item(part.place) + 1
        if self.state.groups[whole.group].foreseeable:
            row = self.scalars[number].next_row(t, self.state.counts.steps.item(0))
        else:
            row = self.scalars[number].row(self._options(whole.group, asked), t)
        return part.update(self.kernels[number], cast(Sequence[float], row), scale)

    def _bind_estimate(self, extra: Extra) -> list[tuple[int, Gradients]]:
        """Return the checked estimates of the Hessian that a step is handed, if it is."""
        if extra.hessian is None or self._estimates is None:
            return []
        return self._estimates.bind(extra.hessian, self.trained())

    def _computed(self, work: Work, scale: float) -> Work:
        """Return the work with the coming values, if a rule on whole arrays makes some."""
        bucket = self.state.buckets[work.number]
        if not isinstance(bucket.rule, ArrayRule):
            return work
        made = whole.compute(bucket, work.gradients, work.plan, scale, work.derived)
        return work._replace(new_values=made)

    def _derived(
        self, works: Sequence[Work], scale: float, memory: Mapping[str, float]
    ) -> tuple[list[Work], Mapping[str, float]]:
        """Return the work with the scalars that are made of sums, and the coming memory."""
        buckets = self.state.buckets
        for work in works:
            for parameter in buckets[work.number].copied(work.gradients.active):
                parameter.gather()
        updates = [
            Update(
                *(buckets[w.number], self.kernels[w.number], w.gradients, w.plan, scale),
                self.other_parts,
            )
            for w in works
        ]
        found, memory = passes.run(updates, memory)
        pairs = zip(works, found, strict=True)
        return [w._replace(derived=d.scalars, memory=d.memory) for w, d in pairs], memory

    def commit(self, prepared: Prepared) -> Outcome:
        """Make the step that was prepared; does not fail, and holds interrupts back."""
        works, verdict, memory, some, estimates, scale = prepared
        counts = self.state.counts
        with Deferred():  # an interrupt comes when all of it is written
            counts.grad_norm = verdict.norm
            if verdict.each is not None:
                members.count(self.state, verdict)
            if not verdict.made:
                counts.skipped += 1
                return _outcome(verdict)
            if estimates and self._estimates is not None:
                self._estimates.take(estimates, scale)
            for work in works:
                self._update(work, verdict.scale)
            for write in some:
                write()
            self.state.memory.take(memory)
            counts.steps += 1
        return _outcome(verdict)

    def _update(self, work: Work, scale: float) -> None:
        number, gradients, plan, derived, memory, new_values = work
        if not len(plan.table):  # all gradients are missing
            return
        bucket, kernel = self.state.buckets[number], self.kernels[number]
        if new_values:
            whole.write(bucket, new_values)
        else:
            copied = bucket.copied(gradients.active)
            for parameter in copied:
                parameter.gather()
            kernel.update(gradients, plan.table, plan.row_numbers, scale, derived)
            for parameter in copied:
                parameter.scatter()
        if memory is not None:
            bucket.memory[...] = memory
        bucket.advance(gradients.active, 1)

    def _step_fused(
        self,
        fused: Fused,
        grads: Any,
        given: list[Any] | None,
        grad_scale: float,
        limit: float | None,
        asked: dict[int, Options],
        loss: tuple[float, ...],
    ) -> bool:
        """Make the whole step in one call; False, with nothing done, if it cannot be made so.

        ``given`` are the gradients in the order of the leaves, where they have been transformed;
        ``loss`` is that of the step, scaled and signed as they are, if it is handed one.
        """
        if limit is not None and self._by_member:
            return False
        rows: list[Any] = []
        step_count = self.state.counts.steps.item(0)
        for bucket, scalars, group in self._fused_parts:
            if not bucket.steps_equal:
                return False
            t = bucket.steps.item(0) + 1
            if group.foreseeable:
                rows.append(scalars.next_row(t, step_count))
            else:
                rows.append(scalars.whole_row(self._options(bucket.group, asked), t))
        if loss:
            rows = [row + loss for row in rows]
        tree = self.state.tree
        if given is None:
            given = tree.match(grads)
            if self._outdated:
                self._refuse_outdated(given)
            if self._buffers is not None:
                self._buffers.are(given)  # raises if only some are
        return fused(tree.current(), given, rows, grad_scale, limit)

    # What a step is made of ---------------------------------------------------------------------

    def matched(self, grads: Any) -> list[Any]:
        """Return gradients in the order of the leaves; none if nothing is trained."""
        trained = next(self.trained(), None) is not None
        return self.state.tree.match(grads) if trained else []

    def transformed(self, given: list[Any], grad_scale: Any) -> list[Any]:
        """Return what whole gradients (``matched``) become before a step goes by them."""
        if self.transforms is None or not given:
            return given
        if self._outdated:
            self._refuse_outdated(given)
        if self._buffers is not None:
            self._buffers.are(given)  # raises if only some are
        return self.transforms(given, grad_scale)

    def bind(
        self, given: list[Any], copying: bool = True, besides: Collection[int] = ()
    ) -> list[tuple[int, Gradients]]:
        """Return the checked gradients of the buckets that are trained, with their numbers.

        ``given`` is in the order of the leaves (``matched``), and ``transformed``. Without
        ``copying`` gradients that would have to be copied are refused. Buckets are left out of
        which all leaves are among those that are seen to ``besides``.
        """
        active = [*self.trained()]
        if besides:
            buckets = self.state.buckets
            active = [n for n in active if not all(p in besides for p in buckets[n].positions)]
        if not active:
            return []
        now = self.state.tree.current()  # the arrays that the user's tree of parameters holds
        if self._outdated:
            self._refuse_outdated(given)
        buffers = self._buffers if self.transforms is None else None  # or they are others by now
        if buffers is not None and buffers.are(given):
            return [(number, self._bind_buffers(number, now, given)) for number in active]
        return [(number, self._bind_bucket(number, now, given, copying)) for number in active]

    def gradient_buffers(self) -> Any:
        """Return the tree of gradient buffers, which are made when they are asked for first."""
        if self._buffers is None:
            self._buffers = GradientBuffers(self.state, self.backend)
        return self.state.tree.nest(self._buffers.arrays)

    def drop_buffers(self) -> list[ref[Any]]:
        """Forget the gradient buffers; return all that steps refuse from now on."""
        if self._buffers is not None:
            self._outdated += [ref(one) for one in self._buffers.arrays if one is not None]
            self._buffers = None
        return self._outdated

    def refuse_buffers(self, outdated: list[ref[Any]]) -> None:
        """Refuse the gradient buffers of an engine that was there before."""
        self._outdated = outdated

    def _refuse_outdated(self, given: Sequence[Any]) -> None:
        """Raise ValueError for a gradient buffer of parameters that are no longer there."""
        self._outdated = [one for one in self._outdated if one() is not None]
        outdated = {id(one()) for one in self._outdated}
        for leaf, grad in zip(self.state.tree.leaves, given, strict=True):
            if id(grad) in outdated:
                raise ValueError(
                    f"grads{leaf.place} is a gradient buffer of the parameters that were there "
                    "before rebind, resize or add_param_group; ask for those of today's: "
                    "opt.gradient_buffers()"
                )

    def _bind_buffers(self, number: int, now: list[Any], given: list[Any]) -> Gradients:
        """Return a bucket's gradients, which are the buffers: only its parameters are looked at."""
        bucket = self.state.buckets[number]
        known = self._buffered.get(number)
        if known is None:
            known = self._buffered[number] = self._bind_bucket(number, now, given, True)
        for parameter, param in zip(bucket.parameters, bucket.of_leaves(now), strict=True):
            if self.device is None or param is not parameter.leaf.array:
                parameter.check_array(param)
        return known

    def _bind_bucket(
        self, number: int, now: list[Any], given: list[Any], copying: bool
    ) -> Gradients:
        bucket = self.state.buckets[number]
        params, grads = bucket.of_leaves(now), bucket.of_leaves(given)
        gradients = self.kernels[number].bind(params, grads)
        if gradients is not None:
            return gradients
        if not copying:
            raise RuntimeError(
                "some of the gradients are not of their parameters' dtype, shape and order in "
                "memory, or are on another device; a step that is captured copies nothing, so "
                "hand in arrays like the parameters"
            )
        return bucket.bind(params, grads, self.extents)

    def trained(self) -> Iterator[int]:
        """Yield the numbers of the buckets that steps update."""
        frozen = self._frozen
        if not frozen:
            yield from range(len(self.state.buckets))
            return
        for number, bucket in enumerate(self.state.buckets):
            if bucket.group not in frozen:
                yield number

    def _options(self, number: int, asked: dict[int, Options]) -> Options:
        """Return a group's hyperparameters in the coming step: schedules are asked once."""
        group = self.state.groups[number]
        if not group.scheduled:
            return group
        if number not in asked:
            asked[number] = group.at(self.state.counts.steps.item(0))
        return asked[number]

    def _parts(
        self, bound: Sequence[tuple[int, Gradients]], some: Sequence[Rows]
    ) -> Sequence[Measured]:
        """Return all gradients of a step, those of whole arrays before those of rows."""
        buckets = self.state.buckets
        parts = [Measured(buckets[n], self.kernels[n], gradients) for n, gradients in bound]
        return parts + [Measured(one.bucket, one.kernel, one.gradients) for one in some]

    def _judge(
        self,
        bound: Sequence[tuple[int, Gradients]],
        some: Sequence[Rows],
        given: Sequence[Any],
        grad_scale: float,
        policy: Policy,
    ) -> Verdict:
        if not policy.measures:
            return Verdict(True, grad_scale, None)
        if self.state.counts.members is not None:
            return members.judge(self.state, bound, given, policy, grad_scale)
        parts = self._parts(bound, some)
        measured = total_norm(partial(_squares, parts))
        in_single = any(one.bucket.averages_squares_in_single(one.gradients) for one in parts)
        verdict = judge(policy, measured, grad_scale, in_single)
        if not verdict.made and policy.on_nonfinite == "raise":
            name, norm = _worst(parts, verdict.finite)
            step_count = int(self.state.counts.steps[0])
            raise refusal(name, norm * abs(verdict.scale), verdict, step_count)
        return verdict

    # Other parameters ---------------------------------------------------------------------------

    def before_other_parameters(self) -> None:
        """Get ready for parameters that are other arrays; RuntimeError if they cannot be."""

    def follow_parameters(self) -> None:
        """Go on with the arrays that the state's tree and buckets hold now."""
        self.extents = Extents(self.state.tree.leaves)
        self.drop_buffers()
        self.invalidate()

    # Settings -----------------------------------------------------------------------------------

    def follow_settings(self) -> None:
        """Go over to what the groups ask for: another rule, other groups that are trained."""
        changes = self._changes.besides_lr
        if self._settings_seen == changes:
            return
        state = self.state
        for number, bucket in enumerate(state.buckets):
            rule = bucket.rule_for(state.groups[bucket.group])
            if rule != bucket.rule:
                bucket.rule = rule
            if self._rules[number] != rule:
                self._is_fused = False  # first: an interrupt can come after any line
                self.kernels[number] = self.kernel_of(bucket)
                self._estimates = self._new_estimates()
                self._rules[number] = rule
        frozen = frozenset(n for n, group in enumerate(state.groups) if not group["trainable"])
        if frozen != self._frozen:
            self._is_fused = False
            self._frozen = None  # until the tree is ready: an interrupt can come in between
            state.tree.ignore(p for n in frozen for p in state.groups[n].positions)
            self._frozen = frozen
        self.transforms = transforms_of(state, self.extents)
        if not self._is_fused:
            self._set_up_fused()
            self._is_fused = True
        self._settings_seen = changes

    def _set_up_fused(self) -> None:
        """Prepare steps in one call of the buckets that are trained."""
        state, numbers = self.state, [*self.trained()]
        self._fused = self._fuse(numbers)
        buckets = [state.buckets[number] for number in numbers]
        self._fused_parts = [
            (bucket, self.scalars[number], state.groups[bucket.group])
            for number, bucket in zip(numbers, buckets, strict=True)
        ]

    def _fuse(self, numbers: Sequence[int]) -> Fused | None:
        """Return what makes whole steps of these buckets in one call, if anything does."""
        buckets = [self.state.buckets[number] for number in numbers]
        if any(isinstance(bucket.rule, ArrayRule) for bucket in buckets):
            return None
        kernels = [self.kernels[number] for number in numbers]
        return self.backend.fused(kernels, buckets, self.state.counts, self.state.memory)

    def warm_up(self, policy: Policy) -> None:
        """Compile what the coming steps need; changes nothing."""
        if self.later is not None:
            self._go_over(self.later, policy)
        self.follow_settings()
        for kernel in self.kernels:
            kernel.warm_up(policy.measures)
        if self._estimates is not None:
            self._estimates.warm_up(policy.on_nonfinite != "propagate")

    def scale_memory(self, policy: ScalePolicy) -> ScaleMemory:
        """Return memory of the parameters' device for the scale of a loss."""
        raise RuntimeError("these parameters are on no device that decides on their steps")

    def refresh(self, policy: Policy) -> None:
        """Captured steps alone have something to refresh."""

    def synchronize(self, norm: bool = False) -> None:
        """The host's counts are always up to date."""

    def forget_norm(self) -> None:
        """No norm is waiting to be read."""

    def before_load(self, steps: Mapping[str, int]) -> None:
        """Any step counts can be set here."""

    def after_load(self, policy: Policy) -> None:
        """Nothing is kept of step counts."""
