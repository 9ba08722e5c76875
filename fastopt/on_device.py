"""Steps that are decided on a device: nothing is copied to the host, nothing waits.

The host looks at the arrays, keeps a table of the scalars of the coming steps on the device, and
launches; the device sums the squares, decides whether the step is made and by which row of the
table, and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.backends.decisions import Control, DeviceSide
from fastopt.backends.scale_memory import ScaleMemory
from fastopt.coming_rows import Active
from fastopt.device_counts import DeviceCounts
from fastopt.device_tables import DeviceTables, Limits
from fastopt.gradient_policy import Seen
from fastopt.group import Group
from fastopt.grouping import Grouping
from fastopt.interrupts import Deferred
from fastopt.scale_on_device import PREPARE, Scaling
from fastopt.scale_policy import ScalePolicy


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
