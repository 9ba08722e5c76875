"""Steps that are decided on a device: nothing is copied to the host, and nothing waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fastopt.backends.interface import Control, Counts, DeviceSide, ScaleMemory
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket
from fastopt.core.loss_scale import ScalePolicy
from fastopt.core.signals import Deferred
from fastopt.engine.build import Group, Grouping
from fastopt.engine.policy import Seen
from fastopt.engine.tables import Active, DeviceTables, Limits

if TYPE_CHECKING:
    from fastopt.wrappers.loss_scaler import Scaling

# -------------------------------------------------------------------------------------------------
# How many steps were made, where a device decides on it: what the host knows without asking.


class DeviceCounts:
    """The device's counts, and the host's, which follow when somebody reads them.

    Where no step can be skipped, and none is replayed from a graph, the host counts for itself.
    Otherwise it knows two bounds of the device's step count, ``low`` and ``high``, which come
    closer whenever counts that were asked for have come in.
    """

    def __init__(
        self, buckets: Sequence[Bucket], clock: Array, seen: Seen, control: Control
    ) -> None:
        self._buckets = buckets
        self._clock, self._seen = clock, seen
        self._control = control
        self.active: Active | None = None
        """Which parameters the steps are counted for."""
        self.leads = False
        """Whether the device's counts go on from the host's."""
        self.behind = False
        """Whether the host's counts may be behind the device's."""
        self.replays = False
        """Whether steps may be made that the host knows nothing of."""
        self.low = self.high = 0
        self._norm_is_there = False  # the last norm is still to be read
        self._since_request = 0

    @property
    def clock(self) -> int:
        """The host's step count."""
        return int(self._clock[0])

    def lead(self) -> None:
        """Have the device count on from the host's counts."""
        if self.leads:
            return
        norm = -1.0 if self._seen.norm is None else self._seen.norm
        self._control.send_counts(Counts(self.clock, self._seen.skipped, 0, norm))
        self.low = self.high = self.clock
        self.leads = True
        self.behind = self._norm_is_there = self.replays

    def launched(self, measures: bool, skips: bool) -> None:
        """Count a step that was launched."""
        self._norm_is_there = measures
        if not measures:
            self._seen.norm = None
        self.high += 1
        self._since_request += 1
        self.behind |= skips
        if not self.behind:
            self._add(1)
            self.low = self.high

    def captured(self) -> None:
        """Take note that a step was captured: from now on the device may count by itself."""
        self.behind = self.replays = self._norm_is_there = True

    def changed(self) -> None:
        """Take note that the host's counts are no longer the device's."""
        self.leads = self.behind = self._norm_is_there = False

    # What the device says ----------------------------------------------------------------------

    def request(self) -> None:
        """Have the counts sent, if they are needed and not on their way."""
        if self.behind and not self._control.requested:
            self._control.request()
            self._since_request = 0

    def look(self) -> None:
        """Take over counts that have come in by themselves."""
        if (counts := self._control.arrived()) is not None:
            refuse_overrun(counts)
            self.low = counts.clock
            self.high = counts.clock + self._since_request

    def settle(self, norm: bool = False, refuse: bool = True) -> None:
        """Wait for the device's counts and take them over, if the host's may be behind.

        With ``norm`` also if the norm of the last step's gradients has not been read. Raises
        RuntimeError for steps that were left out for want of scalars, if those are refused.
        """
        if self.leads and (self.behind or (norm and self._norm_is_there)):
            self._take_over(refuse)

    def forget_norm(self) -> None:
        """Leave the last norm unread."""
        self._norm_is_there = False

    def _take_over(self, refuse: bool) -> None:
        with self._control.here():
            if self._control.capturing():
                raise RuntimeError(
                    "what a device counts cannot be read while a stream is captured in a CUDA "
                    "graph; read it before or after"
                )
            counts = self._control.fetch()
        with Deferred():
            self._add(counts.clock - self.clock)
            self._seen.skipped = counts.skipped
            if self._norm_is_there:
                self._seen.norm = None if counts.norm == -1.0 else counts.norm
            self.low = self.high = counts.clock
            self.behind = self.replays
            self._norm_is_there &= self.replays
        if refuse:
            refuse_overrun(counts)

    def _add(self, steps: int) -> None:
        for bucket, active in zip(self._buckets, self.active or (), strict=True):
            bucket.count(active, steps)
        self._clock += steps


def refuse_overrun(counts: Counts) -> None:
    """Raise RuntimeError if steps were left out for want of scalars."""
    if counts.overrun:
        raise RuntimeError(
            f"{counts.overrun} replays of a captured step did nothing: the scalars that were "
            "worked out ahead for them are used up. Call opt.refresh() now, and from now on before "
            "that happens (see Optimizer.refresh)"
        )


# -------------------------------------------------------------------------------------------------
# Steps that are decided on a device: nothing is copied to the host, nothing waits.
#
# The host looks at the arrays, keeps a table of the scalars of the coming steps on the device, and
# launches; the device sums the squares, decides whether the step is made and by which row of the
# table, and counts.


class OnDevice:
    """The steps of an optimizer whose parameters are all on one device."""

    long_tables = False

    def __init__(
        self, groupings: Sequence[Grouping], clock: Array, seen: Seen, control: Control
    ) -> None:
        self._groupings = groupings
        groups = [group for grouping in groupings for group in grouping.groups]
        self._groups = groups
        self._buckets = [bucket for group in groups for bucket in group.buckets]
        self._control = control
        self._tables = DeviceTables(groups, control, self.long_tables)
        self.counts = DeviceCounts(self._buckets, clock, seen, control)
        self._held: Any = None
        self._launched: set[Any] = set()  # what kinds of steps, which are thereby compiled

    @property
    def device(self) -> int | None:
        """The number of the device."""
        return arrays.device(self._buckets[0].parameters[0].flat)

    # Steps -------------------------------------------------------------------------------------

    def step(self, parts: Sequence[Any], grad_scale: Any, limits: Limits, scaling: Scaling) -> None:
        """Check, and launch all of a step; raises with nothing changed.

        ``scaling`` is the scale of the loss that follows the decision.
        """
        with self._control.here():
            if self._control.capturing():
                self._capture(parts, grad_scale, limits, scaling)
                return
            self.counts.look()
            self._sort(self._check(parts))
            self.counts.lead()
            self._see_to_rows()
            self._tables.send_settings(limits)
            with Deferred():
                self._launch(grad_scale, limits.measures, scaling=scaling)
                self.counts.launched(limits.measures, limits.skips)
                if self._wants_counts():
                    self.counts.request()

    def _capture(
        self, parts: Sequence[Any], grad_scale: Any, limits: Limits, scaling: Scaling
    ) -> None:
        raise RuntimeError(
            "this step would be captured in a CUDA graph; construct the optimizer with "
            "capturable=True"
        )

    def _check(self, parts: Sequence[Any], copying: bool = True) -> Active:
        updated: list[Group] = []
        for grouping, given in zip(self._groupings, parts, strict=True):
            updated += grouping.check(given, copying)
        for group in self._groups:
            for bucket in group.buckets if group not in updated else ():
                bucket.take_nothing()
        return tuple(bucket.active for bucket in self._buckets)

    def _sort(self, active: Active) -> None:
        """Make the tables that belong to the gradients which are there."""
        if self.counts.active != active:
            self.counts.settle()
            self.counts.active = active
            self._tables.sort(active, self.counts.clock)

    def _see_to_rows(self) -> None:
        """Write new rows if those that are there are outdated or used up."""
        fresh = self._tables.up_to_date(self.counts.high)
        if not fresh or not self._tables.has(self.counts.high):
            self._tables.ahead(fresh)
            self._renew(self.counts.high)

    def _renew(self, high: int) -> None:
        counts = self.counts
        try:
            self._tables.renew(counts.low, high)
        except Exception:  # a schedule's
            if not counts.behind:
                raise
            counts.settle()  # perhaps that step is not due yet
            self._tables.renew(counts.low, counts.low)

    def _launch(
        self, grad_scale: Any, measures: bool, always: bool = False, scaling: Scaling = None
    ) -> None:
        sides = self._sides()
        if measures:
            self._control.measure(sides)
        squares = any(bucket.averages_squares_in_float32 for bucket in self._buckets)
        self._control.decide(grad_scale, measures, squares)
        if scaling is not None:
            scaling.follow(self._control)
        for bucket, side in zip(self._buckets, sides, strict=True):
            tables = self._tables.of(bucket)
            bucket.update_by(partial(self._control.update, side, tables, always))
        self._held = grad_scale  # in memory until the next step
        self._launched.add(self._kind(measures))

    def _kind(self, measures: bool) -> Any:
        return measures, tuple(bucket.rule.name for bucket in self._buckets)

    def _sides(self) -> list[DeviceSide]:
        # Every driver has one: there would be no control otherwise.
        return [side for bucket in self._buckets if (side := bucket.device_side) is not None]

    def _wants_counts(self) -> bool:
        return self._tables.half_used(self.counts.high)

    # Between steps -----------------------------------------------------------------------------

    def warm_up(self, limits: Limits) -> None:
        """Compile and write what the coming steps need."""
        if limits.measures:
            self._warm_up(limits)

    def _warm_up(self, limits: Limits) -> None:
        with self._control.here():
            self._refuse_capture()
            self.counts.settle(norm=True)
            if self.counts.active is None:
                self._sort((None,) * len(self._buckets))
            self._write_all(limits)
            for bucket in self._buckets:
                bucket.take_nothing()
            self._launch(1.0, limits.measures, always=True)
            self.counts.changed()  # that was no step
            self.counts.lead()
            self._control.wait()

    def _write_all(self, limits: Limits) -> None:
        for group in self._groups:
            group.warm_up(norm=False)  # goes over to the rule that the settings ask for
        self.counts.lead()
        self._write_rows()
        self._tables.send_settings(limits)

    def _write_rows(self) -> None:
        self._tables.ahead(fresh=False)
        self._renew(self.counts.high)

    def refresh(self, limits: Limits) -> None:
        """Write what captured steps need; there are none."""

    def scale(self, policy: ScalePolicy) -> ScaleMemory:
        """Return memory of this device for the scale of a loss."""
        with self._control.here():
            if self._control.capturing():
                raise RuntimeError(f"the scale of the loss is not on the device yet: {PREPARE}")
            return self._control.scale(policy)

    def hand_over(self) -> None:
        """Let the host make the coming step, after the device's."""
        if self.counts.leads:
            self.counts.settle(norm=True)
            self._start_over()

    def refuse_steps(self, steps: Mapping[str, int]) -> None:
        """Raise RuntimeError if step counts, by the parameters' names, cannot be set now."""
        with self._control.here():
            self._refuse_capture()

    def take_steps(self, limits: Limits) -> None:
        """Go on from the host's step counts, which were set."""
        self._start_over()

    def _start_over(self) -> None:
        self.counts.changed()
        self.counts.active = None

    def _refuse_capture(self) -> None:
        if self._control.capturing():
            raise RuntimeError(
                "this takes copies between host and device, which cannot be made while a stream is "
                "captured in a CUDA graph; do it before or after"
            )


PREPARE = "call scaler.warmup(opt) before a step is captured in a CUDA graph"
