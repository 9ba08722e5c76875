"""Steps that are decided on a device: nothing is copied to the host, nothing waits.

The host looks at the arrays, keeps a table of the scalars of the coming steps on the device, and
launches; the device sums the squares, decides whether the step is made and by which row of the
table, and counts. With everything in its memory a step can be captured in a CUDA graph, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.backends.decisions import Control
from fastopt.coming_rows import Active
from fastopt.device_counts import DeviceCounts
from fastopt.device_tables import CAPTURED, DeviceTables, Limits
from fastopt.gradient_policy import Seen
from fastopt.group import Group
from fastopt.interrupts import Deferred


class OnDevice:
    """The steps of an optimizer whose parameters are all on one device."""

    def __init__(
        self, groups: Sequence[Group], clock: Array, seen: Seen, control: Control, capturable: bool
    ) -> None:
        self._groups = groups
        self._buckets = [bucket for group in groups for bucket in group.buckets]
        self._control = control
        self._capturable = capturable
        self._tables = DeviceTables(groups, control, capturable)
        self.counts = DeviceCounts(self._buckets, clock, seen, control)
        self._launched: set[Any] = set()  # what kinds of steps, which are thereby compiled
        self._captured: list[Any] = []  # what captured steps read, so that it stays in memory
        self._all_measure = True  # of those that were captured
        self._held: Any = None

    # Steps -------------------------------------------------------------------------------------

    def step(self, parts: Sequence[Any], grad_scale: Any, limits: Limits) -> None:
        """Check, and launch all of a step; raises with nothing changed."""
        with self._control.here():
            if self._control.capturing():
                self._capture(parts, grad_scale, limits)
                return
            self.counts.look()
            active = self._check(parts)
            self._sort(active)
            self.counts.lead()
            self._see_to_rows()
            self._tables.send_settings(limits)
            with Deferred():
                self._launch(grad_scale, limits.measures)
                self.counts.launched(limits.measures, limits.skips)
                if self._captured or self._tables.half_used(self.counts.high):
                    self.counts.request()

    def _check(self, parts: Sequence[Any], copying: bool = True) -> Active:
        for group, given in zip(self._groups, parts, strict=True):
            group.check(given, copying)
        return tuple(bucket.active for bucket in self._buckets)

    def _sort(self, active: Active) -> None:
        """Make the tables that belong to the gradients which are there."""
        if self.counts.active == active:
            return
        if self._captured:
            raise RuntimeError(
                "other gradients are None than in the step that was captured in a CUDA graph, "
                "whose replays are counted for the parameters that had one. Hand in gradients for "
                "the same parameters, or use an optimizer of its own for the others."
            )
        self.counts.settle()
        self.counts.active = active
        self._tables.sort(active, self.counts.clock)

    def _see_to_rows(self) -> None:
        """Write new rows if those that are there are outdated or used up."""
        # The host does not know how often a captured step has been replayed.
        clock = self.counts.low if self._captured else self.counts.high
        fresh = self._tables.up_to_date(clock)
        if fresh and self._tables.has(clock, CAPTURED / 2 if self._captured else 1):
            return
        if self._captured:
            self._tables.far_ahead()
        else:
            self._tables.ahead(fresh)
        self._renew(clock)

    def _renew(self, high: int) -> None:
        counts = self.counts
        try:
            self._tables.renew(counts.low, high)
        except Exception:  # a schedule's
            if not counts.behind:
                raise
            counts.settle()  # perhaps that step is not due yet
            self._tables.renew(counts.low, counts.low)

    def _launch(self, grad_scale: Any, measures: bool, always: bool = False) -> None:
        # Every driver has one: there would be no control otherwise.
        sides = [side for bucket in self._buckets if (side := bucket.device_side) is not None]
        if measures:
            self._control.measure(sides)
        self._control.decide(sides if measures else None, grad_scale)
        for bucket, side in zip(self._buckets, sides, strict=True):
            tables = self._tables.of(bucket)
            bucket.update_by(partial(self._control.update, side, tables, always))
        self._launched.add(self._kind(measures))
        self._held = grad_scale  # in memory until the next step

    def _kind(self, measures: bool) -> Any:
        return measures, tuple(bucket.rule.name for bucket in self._buckets)

    # Graphs ------------------------------------------------------------------------------------

    def _capture(self, parts: Sequence[Any], grad_scale: Any, limits: Limits) -> None:
        """Launch a step into a graph; nothing can be written for it, so all must be there."""
        if not self._capturable:
            raise RuntimeError(
                "this step would be captured in a CUDA graph; construct the optimizer with "
                "capturable=True"
            )
        if not self._control.can_capture:
            raise RuntimeError("to capture a step in a CUDA graph takes CuPy 14.1 or later")
        active = self._check(parts, copying=False)
        known = self._kind(limits.measures) in self._launched
        if not self.counts.leads or active != self.counts.active or not known:
            raise RuntimeError(
                "nothing is prepared for a step like this: before capturing it in a CUDA graph "
                "call opt.warmup(), or make one such step (with gradients for the same parameters "
                "and the same limits)"
            )
        clock = self.counts.low if self._captured else self.counts.high
        if not self._tables.ready_to_capture(clock, limits):
            raise RuntimeError(
                "settings have changed, or most of the scalars that were worked out ahead are used "
                "up: call opt.refresh() before capturing a step in a CUDA graph"
            )
        with Deferred():
            self._launch(grad_scale, limits.measures)
            if not self._captured:
                for group in self._groups:
                    group.keep_rules()
            self._captured.append((parts, grad_scale))
            self._all_measure &= limits.measures
            self.counts.captured()

    def warm_up(self, limits: Limits) -> None:
        """Compile and write what the coming steps need, also if they are captured at once."""
        if not self._capturable and not limits.measures:
            return
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

    def refresh(self, limits: Limits) -> None:
        """Write what was set since, and the rows of the coming steps, for captured steps."""
        if not self._capturable:
            return
        if self.counts.active is None:
            self.warm_up(limits)
            return
        if limits.measures and not self._all_measure:
            raise RuntimeError(
                "the step that was captured in a CUDA graph does not measure the norm, which "
                "max_grad_norm and on_nonfinite='skip' need: construct a new optimizer, and "
                "capture again"
            )
        self._rewrite(limits)

    def _rewrite(self, limits: Limits) -> None:
        with self._control.here():
            self._refuse_capture()
            self.counts.settle(norm=True, refuse=False)
            if not self._tables.keep_sorted(self.counts.clock) and self.counts.active is not None:
                self._tables.sort(self.counts.active, self.counts.clock)
            self.counts.changed()
            self._write_all(limits)
            self._control.wait()

    def _write_all(self, limits: Limits) -> None:
        for group in self._groups:
            group.warm_up(norm=False)  # goes over to the rule that the settings ask for
        self.counts.lead()
        if self._capturable:
            self._tables.far_ahead()
        else:
            self._tables.ahead(fresh=False)
        self._renew(self.counts.high)
        self._tables.send_settings(limits)

    def _refuse_capture(self) -> None:
        if self._control.capturing():
            raise RuntimeError(
                "this takes copies between host and device, which cannot be made while a stream is "
                "captured in a CUDA graph; do it before or after"
            )

    # What the optimizer tells ------------------------------------------------------------------

    def hand_over(self) -> None:
        """Let the host make the coming step, after the device's."""
        if self.counts.leads:
            self.counts.settle(norm=True)
            self.changed()

    def refuse_steps(self, steps: Mapping[str, int]) -> None:
        """Raise RuntimeError for step counts, by the parameters' names, that captured steps lack.

        While a stream is captured, for all.
        """
        with self._control.here():
            self._refuse_capture()
        if self._captured and not self._tables.stay_sorted(steps):
            raise RuntimeError(
                "parameters that were at the same step when a step was captured in a CUDA graph "
                "would no longer be; construct a new optimizer, load, and capture again"
            )

    def take_steps(self, limits: Limits) -> None:
        """Take over the host's step counts, which were set."""
        self.changed()
        if self._captured:
            self._rewrite(limits)

    def changed(self) -> None:
        """Take note that the host's step counts are no longer the device's."""
        self.counts.changed()
        if not self._captured:
            self.counts.active = None

    @property
    def device(self) -> int | None:
        """The number of the device."""
        return arrays.device(self._buckets[0].parameters[0].flat)
