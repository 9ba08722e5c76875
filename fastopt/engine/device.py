"""Steps that are decided on a device: nothing is copied to the host, nothing waits.

The host checks the arrays, keeps a table of the scalars of the coming steps on the device, and
launches; the device sums the squares, decides whether the step is made and by which row of the
table, and counts. What the host knows of the counts follows when somebody reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastopt.backends.cupy.launch import BucketLaunch, Lookup
from fastopt.backends.interface import COMMON_SCALARS, Backend
from fastopt.core import arrays
from fastopt.core.buckets import NOT_MEASURED, Bucket, Gradients, OptimizerState
from fastopt.core.options import NonfinitePolicy
from fastopt.core.signals import Deferred
from fastopt.engine import rows, whole
from fastopt.engine.capture import Capture
from fastopt.engine.estimates import check_first
from fastopt.engine.extra import NOTHING, Extra, checked_value, scale_with, scaled
from fastopt.engine.policy import Outcome, Policy, checked_scale
from fastopt.engine.step import HostEngine
from fastopt.engine.tables import Active, ScalarTables
from fastopt.engine.whole import NewValues, Scaled, decides
from fastopt.errors import BackendMismatchError
from fastopt_kernels import ArrayRule

if TYPE_CHECKING:
    from fastopt.backends.cupy.backend import CupyKernel
    from fastopt.backends.cupy.control import Control, Counted, Place, ScaleMemory
    from fastopt.backends.cupy.passes import Passes
    from fastopt.core.loss_scale import ScalePolicy


class DeviceCounts:
    """The device's counts, and the host's, which follow when somebody reads them.

    Where no step can be skipped, and none is replayed from a graph, the host counts for itself.
    Otherwise it knows two bounds of the device's step count, ``low`` and ``high``, which come
    closer whenever counts that were asked for have come in.
    """

    def __init__(self, state: OptimizerState, control: Control) -> None:
        self._state = state
        self._control = control
        self.active: Active | None = None
        """Which parameters the steps are counted for."""
        self.uploaded: bool = False
        """Whether the device's counts go on from the host's."""
        self.behind: bool = False
        """Whether the host's counts may be behind the device's."""
        self.replays: bool = False
        """Whether steps may be made that the host knows nothing of."""
        self.low: int = 0
        self.high: int = 0
        self._norm_is_there = False  # the last norm is still to be read
        self._since_request = 0

    @property
    def step_count(self) -> int:
        """The host's step count."""
        return int(self._state.counts.steps[0])

    def upload(self) -> None:
        """Have the device count on from the host's counts."""
        if self.uploaded:
            return
        counts = self._state.counts
        norm = NOT_MEASURED if counts.grad_norm is None else counts.grad_norm
        self._control.upload_counts(self.step_count, counts.skipped, norm)
        self.low = self.high = self.step_count
        self.uploaded = True
        self.behind = self._norm_is_there = self.replays

    def launched(self, policy: Policy) -> None:
        """Count a step that was launched."""
        self._norm_is_there = policy.measures
        if not policy.measures:
            self._state.counts.grad_norm = None
        self.high += 1
        self._since_request += 1
        self.behind |= policy.skips
        if not self.behind:
            self._add(1)
            self.low = self.high

    def captured(self) -> None:
        """Take note that a step was captured: from now on the device may count by itself."""
        self.behind = self.replays = self._norm_is_there = True

    def invalidate(self) -> None:
        """Take note that the host's counts are no longer the device's."""
        self.uploaded = self.behind = self._norm_is_there = False

    def request(self) -> None:
        """Have the counts sent, if they are needed and not on their way."""
        if self.behind and not self._control.requested:
            self._control.request()
            self._since_request = 0

    def poll(self) -> None:
        """Take over counts that have come in by themselves."""
        if (counts := self._control.arrived()) is not None:
            refuse_overrun(counts)
            self.low = counts.steps
            self.high = counts.steps + self._since_request

    def synchronize(self, norm: bool = False, refuse: bool = True) -> None:
        """Wait for the device's counts and take them over, if the host's may be behind.

        With ``norm`` also if the norm of the last step's gradients has not been read. Raises
        RuntimeError for steps that were left out for want of scalars, if those are refused.
        """
        if self.uploaded and (self.behind or (norm and self._norm_is_there)):
            self._read_back(refuse)

    def forget_norm(self) -> None:
        """Leave the last norm unread."""
        self._norm_is_there = False

    def _read_back(self, refuse: bool) -> None:
        with self._control.here():
            if self._control.capturing():
                raise RuntimeError(
                    "what a device counts cannot be read while a stream is captured in a CUDA "
                    "graph; read it before or after"
                )
            counted = self._control.fetch()
        counts = self._state.counts
        with Deferred():
            self._add(counted.steps - self.step_count)
            counts.skipped = counted.skipped
            if self._norm_is_there:
                counts.grad_norm = None if counted.norm == NOT_MEASURED else counted.norm
            self.low = self.high = counted.steps
            self.behind = self.replays
            self._norm_is_there &= self.replays
        if refuse:
            refuse_overrun(counted)

    def _add(self, steps: int) -> None:
        for bucket, active in zip(self._state.buckets, self.active or (), strict=True):
            bucket.advance(active, steps)
        self._state.counts.steps += steps


def refuse_overrun(counts: Counted) -> None:
    """Raise RuntimeError if steps were left out for want of scalars."""
    if counts.overrun:
        raise RuntimeError(
            f"{counts.overrun} replays of a captured step did nothing: the scalars that were "
            "worked out ahead for them are used up. Call opt.refresh() now, and from now on before "
            "that happens (see Optimizer.refresh)"
        )


class DeviceOutcome(Outcome):
    """The outcome of a step that a device decided on; reading it waits for the device.

    It names where on the device the decision wrote it. That of a captured step, which is many steps
    or none, cannot be read.
    """

    __slots__ = ("_control", "_place", "capture")

    def __init__(self, control: Control, place: Place, capture: Capture | None = None) -> None:
        self._control = control
        self._place: Place | None = place
        self.capture: Capture | None = capture
        """What is known of the steps captured so far, if this is one of them."""

    @property
    def made(self) -> bool:
        """Whether the step was made."""
        self._fetch()
        return bool(self._made)

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients before clipping; None where nothing asked for it."""
        self._fetch()
        norm: float | None = self._grad_norm
        return norm

    @property
    def control(self) -> Control:
        """Where the counts are that the decision left on the device."""
        return self._control

    def __repr__(self) -> str:
        return super().__repr__() if self._place is None else "<Outcome: the device knows>"

    def _fetch(self) -> None:
        if self.capture is not None:
            raise RuntimeError(
                "this step was captured in a CUDA graph, and is made when that is launched; read "
                "opt.step_count and opt.skipped_steps then"
            )
        if self._place is not None:
            made, norm = self._control.outcome(self._place)
            self._made, self._grad_norm = made, None if norm == NOT_MEASURED else norm
            self._place = None


class DeviceEngine(HostEngine):
    """The steps of an optimizer whose parameters are all on one device.

    A step that is neither clipped nor skipped nor captured needs no decision: it is launched from
    the host with its scalars as arguments (``HostEngine.step``). So is a step under
    ``on_nonfinite="raise"``, after waiting for the norm. For all others the plan is a table of
    scalars on the device, and the verdict stays there.
    """

    def __init__(
        self, state: OptimizerState, backend: Backend, control: Control, capturable: bool
    ) -> None:
        super().__init__(state, backend)
        self.capturable = capturable
        self.device: int | None = arrays.device(state.tree.leaves[0].array)
        self._control = control
        self.counts: DeviceCounts = DeviceCounts(state, control)
        self._tables = ScalarTables(state, self.scalars, control, capturable)
        self._host_decides = any(decides(bucket.rule) for bucket in state.buckets)
        self._capture = Capture()
        self._passes: Passes | None = None
        self._memory_behind = self._passes_uploaded = False
        if self.derives:
            self._passes = control.passes(state.buckets, state.memory)
        self._held: Any = None  # what the last launch reads, in memory until the next one
        self._launched: set[Any] = set()  # what kinds of steps, which are thereby compiled

    def scale_memory(self, policy: ScalePolicy) -> ScaleMemory:
        """Return memory of this device for the scale of a loss."""
        with self._control.here():
            if self._control.capturing():
                raise RuntimeError(
                    "the scale of the loss is not on the device yet: call scaler.warmup(opt) "
                    "before a step is captured in a CUDA graph"
                )
            return self._control.scale_memory(policy)

    # Steps -------------------------------------------------------------------------------------

    def step(self, grads: Any, grad_scale: Any, policy: Policy, extra: Extra = NOTHING) -> Outcome:
        """Make a step, or launch what decides on it; raises with nothing changed."""
        about = grads, grad_scale, policy, extra
        members = self.state.counts.members
        if extra.hessian is not None:
            return self._step_on_host("a hessian", *about)
        if members is not None and (policy.measures or members.apart):
            return self._step_on_host("members that are judged by themselves", *about)
        on_device = arrays.kind(grad_scale) == "cupy"
        scaled_there = on_device and policy.on_nonfinite != "raise" and not self._host_decides
        if not (scaled_there or self._decides(policy)):
            return self._step_on_host(None, *about)
        grad_scale = self.checked_scale(grad_scale, policy.on_nonfinite)
        value = extra.value
        if value is not None:
            value = checked_value(value, self.device)
        with self._control.here():
            self.follow_settings()
            given = self.matched(grads)
            if rows.split(given)[1]:
                return self._step_on_host("gradients of rows", grads, grad_scale, policy, extra)
            if self._control.capturing():
                if value is not None:
                    raise RuntimeError(
                        "a step that is handed a value cannot be captured in a CUDA graph; make "
                        "these steps outside of it"
                    )
                return self._capture_step(given, grad_scale, policy)
            self.counts.poll()
            if self.transforms is not None:
                given = self.transformed(given, grad_scale)
            bound = self.bind(given)
            if self._estimate_first:
                check_first(self.state, bound, ())
            self._follow_missing(self._active(bound))
            self._upload()
            self._prefetch()
            self._tables.upload_settings(policy)
            with Deferred():
                if value is not None and policy.skips:
                    grad_scale = scale_with(value, grad_scale)
                place = self._launch(bound, grad_scale, policy.measures, value=value)
                self.counts.launched(policy)
                if self._capture or self._tables.half_used(self.counts.high):
                    self.counts.request()
            return DeviceOutcome(self._control, place)

    def ready_on_host(self, grads: Any, grad_scale: float) -> list[Any]:
        """Return gradients for ``prepare`` to take, after the steps that the device decided on."""
        self._refuse_on_host("gradients of several ranks", arrays.kind(grad_scale) == "cupy")
        self._continue_on_host()
        with self._control.here():
            return super().ready_on_host(grads, grad_scale)

    def _step_on_host(
        self, handed: str | None, grads: Any, grad_scale: Any, policy: Policy, extra: Extra
    ) -> Outcome:
        """Have the host decide on a step, after the device's; ``handed`` is what it has to."""
        if handed is not None:
            self._refuse_on_host(handed, arrays.kind(grad_scale) == "cupy")
        self._continue_on_host()
        return super().step(grads, grad_scale, policy, extra)

    def _refuse_on_host(self, handed: str, scaled_there: bool) -> None:
        """Raise for a step with what the host decides on, if it cannot decide there."""
        if scaled_there:
            raise TypeError(
                f"the host decides on a step that is handed {handed}, so grad_scale must be a "
                "number there; got an array on a device"
            )
        with self._control.here():
            if self._capture or self._control.capturing():
                raise RuntimeError(
                    f"a step that is handed {handed} cannot be made while one is captured in a "
                    "CUDA graph, nor afterwards"
                )

    def _decides(self, policy: Policy) -> bool:
        """Return whether the device decides on steps under a policy whose scale is a number."""
        needed = self.capturable or policy.measures or self.derives
        return needed and policy.on_nonfinite != "raise" and not self._host_decides

    def checked_scale(self, scale: Any, on_nonfinite: NonfinitePolicy) -> Any:
        """Return what gradients are multiplied by, which may stand on the device."""
        if arrays.kind(scale) != "cupy" or on_nonfinite == "raise" or self._host_decides:
            return checked_scale(scale)
        if scale.shape != () or scale.dtype not in (np.float32, np.float64):
            raise TypeError(
                "grad_scale must be a number, or a CuPy array of shape () and dtype float32 or "
                f"float64; got {scale.dtype} {scale.shape}"
            )
        if arrays.device(scale) != self.device:
            raise BackendMismatchError(
                f"grad_scale must be on device {self.device}, as the parameters are; got one on "
                f"device {arrays.device(scale)}"
            )
        return scale

    def _capture_step(self, given: list[Any], grad_scale: Any, policy: Policy) -> Outcome:
        """Launch a step into a graph; nothing can be written for it, so all must be there."""
        if not self.capturable:
            raise RuntimeError(
                "this step would be captured in a CUDA graph; construct the optimizer with "
                "capturable=True"
            )
        if not self._control.can_capture:
            raise RuntimeError("to capture a step in a CUDA graph takes CuPy 14.1 or later")
        for bucket in self.state.buckets:
            if isinstance(bucket.rule, ArrayRule):
                raise RuntimeError(
                    f"a step of {bucket.rule.name} cannot be captured in a CUDA graph: CuPy does "
                    "not capture products of matrices (cuBLAS); make these steps outside of it"
                )
        self.follow_settings()
        bound = self.bind(self.transformed(given, grad_scale), copying=False)
        known = self._launched.issuperset(self._kinds(bound, policy.measures))
        prepared = self.counts.uploaded and self._active(bound) == self.counts.active
        if not (prepared and known):
            raise RuntimeError(
                "nothing is prepared for a step like this: before capturing it in a CUDA graph "
                "call opt.warmup(), or make one such step (with gradients for the same parameters "
                "and the same limits)"
            )
        if not self._tables.ready_to_capture(self._least_count, policy):
            raise RuntimeError(
                "settings have changed, or most of the scalars that were worked out ahead are used "
                "up: call opt.refresh() before capturing a step in a CUDA graph"
            )
        with Deferred():
            place = self._launch(bound, grad_scale, policy.measures)
            if not self._capture:
                for group in self.state.groups:
                    group.freeze(self.state.formula)
            self._capture.add((bound, grad_scale, self.transforms), policy.measures)
            self.counts.captured()
        return DeviceOutcome(self._control, place, self._capture)

    def transformed(self, given: list[Any], grad_scale: Any) -> list[Any]:
        """Return what whole gradients (``matched``) become before a step goes by them."""
        if not self._control.capturing():
            return super().transformed(given, grad_scale)
        with self._control.memory_of_graphs():
            return super().transformed(given, grad_scale)

    def _active(self, bound: Sequence[tuple[int, Gradients]]) -> Active:
        """Return which parameters of each bucket have a gradient: none of those that are frozen."""
        found = {number: gradients.active for number, gradients in bound}
        return tuple(found.get(number, []) for number in range(len(self.state.buckets)))

    @property
    def _least_count(self) -> int:
        """A step count that the device has come to at least; nobody knows of the replays since."""
        return self.counts.low if self._capture else self.counts.high

    def _follow_missing(self, active: Active) -> None:
        """Make the tables that belong to the gradients which are there."""
        if self.counts.active != active:
            self._capture.refuse_others()
            self.counts.synchronize()
            self.counts.active = active
            self._tables.make_tables(active, self.counts.step_count)

    def _prefetch(self) -> None:
        """Upload new rows if those that are there are outdated or used up."""
        tables = self._tables
        if self._capture:
            if not self._capture.enough(tables, self._least_count):
                tables.plan_for_capture()
                self._renew(self._least_count)
            return
        fresh = tables.up_to_date(self.counts.high)
        if not fresh or not tables.has(self.counts.high):
            tables.plan_ahead(fresh)
            self._renew(self.counts.high)

    def _renew(self, high: int) -> None:
        counts = self.counts
        try:
            self._tables.upload_rows(counts.low, high)
        except Exception:  # a schedule's
            if not counts.behind:
                raise
            counts.synchronize()  # perhaps that step is not due yet
            self._tables.upload_rows(counts.low, counts.low)

    def _launch(
        self,
        bound: Sequence[tuple[int, Gradients]],
        grad_scale: Any,
        measures: bool,
        always: bool = False,
        value: Any = None,
    ) -> Place:
        """Launch all of a step, and return where its outcome will stand."""
        state, control = self.state, self._control
        buckets = state.buckets
        works = [
            BucketLaunch(number, self._kernel(number), gradients, self._tables.of(buckets[number]))
            for number, gradients in bound
        ]
        if measures:
            control.measure([(work.kernel, work.gradients) for work in works])
        in_single = any(buckets[n].averages_squares_in_single(gradients) for n, gradients in bound)
        place = control.decide(grad_scale, measures, in_single)
        if self._passes is not None:
            if value is not None:
                self._passes.take_value(scaled(value, self._sign, grad_scale), control.made)
            control.run_passes(self._passes, works)
        made = self._compute_whole(works)
        for number, kernel, gradients, lookups in works:
            if isinstance(buckets[number].rule, ArrayRule):
                whole.write(buckets[number], made[number], control.made)
                continue
            derived = None if self._passes is None else self._passes.derived(number)
            for lookup in lookups:
                control.update(kernel, gradients, lookup, derived, always)
        self._memory_behind = self._passes is not None
        self._held = (bound, grad_scale, value)
        self._launched.update(self._kinds(bound, measures))
        return place

    def _compute_whole(self, works: Sequence[BucketLaunch]) -> dict[int, list[NewValues]]:
        """Return what rules on whole arrays make of their buckets, by number; may raise."""
        made: dict[int, list[NewValues]] = {}
        try:
            for number, _, gradients, lookups in works:
                bucket = self.state.buckets[number]
                if not isinstance(bucket.rule, ArrayRule):
                    continue
                width = len(COMMON_SCALARS) + len(bucket.rule.scalars) + len(bucket.spec.scalars)
                derived = None if self._passes is None else self._passes.derived(number)
                made[number] = []
                for lookup in lookups:
                    indices = _indices(gradients, lookup)
                    scaled = Scaled(indices, self._control.row(lookup, width), derived)
                    made[number] += whole.computed(bucket, gradients, scaled)
        except Exception:  # no memory, for instance; nothing has been written but the counts
            self._control.undo()
            raise
        return made

    def _kernel(self, number: int) -> CupyKernel:
        return cast("CupyKernel", self.kernels[number])  # no other backend has a control

    def _kinds(self, bound: Sequence[tuple[int, Gradients]], measures: bool) -> Iterator[Any]:
        """Yield what kernels a step launches, which the first such step compiles."""
        for number, gradients in bound:
            yield measures, number, self.state.buckets[number].rule.name, gradients.dtype.name

    # Between steps -----------------------------------------------------------------------------

    def warm_up(self, policy: Policy) -> None:
        """Compile and upload what the coming steps need; changes nothing."""
        if not self._decides(policy):
            super().warm_up(policy)
            return
        super().warm_up(Policy())
        with self._control.here():
            self._refuse_capture()
            self.synchronize(norm=True)
            if self.counts.active is None:
                self._follow_missing((None,) * len(self.state.buckets))
            self._upload_all(policy)
            if self.transforms is not None:
                self.transforms.warm_up()
            # Gradients can come in any dtype that is read as it is; a capture compiles nothing.
            readable = [bucket.spec.readable for bucket in self.state.buckets]
            for turn in range(max(map(len, readable))):
                nothing = [
                    (number, _nothing(bucket, dtypes[min(turn, len(dtypes) - 1)]))
                    for number, (bucket, dtypes) in enumerate(
                        zip(self.state.buckets, readable, strict=True)
                    )
                ]
                self._launch(nothing, 1.0, policy.measures, always=True)
            self._invalidate()  # that was no step
            self._upload()
            self._control.wait()

    def _upload_all(self, policy: Policy) -> None:
        super().warm_up(Policy())  # goes over to the rules that the settings ask for
        self._upload()
        if self.capturable:
            self._tables.plan_for_capture()
        else:
            self._tables.plan_ahead(fresh=False)
        self._renew(self._least_count)
        self._tables.upload_settings(policy)

    def refresh(self, policy: Policy) -> None:
        """Upload what was set since, and the rows of the coming steps, for captured steps."""
        if not self.capturable:
            return
        if self.counts.active is None:
            self.warm_up(policy)
            return
        self._capture.check_policy(policy)
        self._rewrite(policy)

    def _rewrite(self, policy: Policy) -> None:
        with self._control.here():
            self._refuse_capture()
            self.synchronize(norm=True, refuse=False)
            if not self._tables.keep_tables(self.counts.step_count):
                self._capture.refuse_others_counts()
                assert self.counts.active is not None
                self._tables.make_tables(self.counts.active, self.counts.step_count)
            self._invalidate()
            self._upload_all(policy)
            self._control.wait()

    def synchronize(self, norm: bool = False, refuse: bool = True) -> None:
        """Bring what the device has counted and remembers to the host, and the norm if asked for.

        Raises RuntimeError for steps that were left out for want of scalars, if those are refused.
        """
        self.counts.synchronize(norm, refuse)
        if self._passes is not None and self._memory_behind:
            with self._control.here():
                self._refuse_capture()
                found, shared = self._passes.fetch()
            with Deferred():
                for bucket, memory in zip(self.state.buckets, found, strict=True):
                    bucket.memory[...] = memory
                self.state.memory.take(shared)
            self._memory_behind = bool(self._capture)

    def _upload(self) -> None:
        """Have the device go on from the host's counts and memory."""
        self.counts.upload()
        if self._passes is not None and not self._passes_uploaded:
            self._passes.upload(self.state.memory)
            self._passes_uploaded = True
            self._memory_behind = bool(self._capture)  # which replays may change at any time

    def _invalidate(self) -> None:
        """Take note that the host's counts and memory are no longer the device's."""
        self.counts.invalidate()
        self._passes_uploaded = self._memory_behind = False

    def forget_norm(self) -> None:
        """Leave a norm unread that the device may have measured."""
        self.counts.forget_norm()

    def _continue_on_host(self) -> None:
        """Let the host make the coming step, after the device's."""
        if self.counts.uploaded:
            self.synchronize(norm=True)
            self._start_over()

    def before_load(self, steps: Mapping[str, int]) -> None:
        """Get ready for step counts, by the parameters' names, that are about to be set.

        Raises RuntimeError if they cannot be set now.
        """
        self.synchronize(norm=True)
        with self._control.here():
            self._refuse_capture()
        if self._capture and not self._tables.tables_fit(steps):
            self._capture.refuse_others_counts()

    def after_load(self, policy: Policy) -> None:
        """Go on from the host's step counts, which were set."""
        if self._capture:
            self._invalidate()
            self._rewrite(policy)
        else:
            self._start_over()

    def before_other_parameters(self) -> None:
        """Bring everything to the host; RuntimeError once a step has been captured."""
        if self._capture:
            raise RuntimeError(
                "a step has been captured in a CUDA graph, with the addresses of the parameters; "
                "construct a new optimizer for others (load takes the state over) and capture again"
            )
        with self._control.here():
            self._refuse_capture()
        self.synchronize(norm=True)

    def follow_parameters(self) -> None:
        """Go on with the arrays that the state's tree and buckets hold now."""
        super().follow_parameters()
        self._launched.clear()  # they may need other kernels
        self._start_over()

    def _start_over(self) -> None:
        self._invalidate()
        self.counts.active = None

    def _refuse_capture(self) -> None:
        if self._control.capturing():
            raise RuntimeError(
                "this takes copies between host and device, which cannot be made while a stream is "
                "captured in a CUDA graph; do it before or after"
            )


def _nothing(bucket: Bucket, dtype: np.dtype[Any]) -> Gradients:
    """Return gradients of a dtype of which none is there."""
    return Gradients([None] * len(bucket.parameters), dtype, [])


def _indices(gradients: Gradients, lookup: Lookup) -> list[int]:
    """Return the parameters that have a gradient and find their scalars here."""
    chosen = lookup.chosen
    return [
        index
        for index, grad in enumerate(gradients.arrays)
        if grad is not None and (chosen is None or chosen[index])
    ]
