"""How many steps were made, where a device decides on it: what the host knows without asking."""

from __future__ import annotations

from collections.abc import Sequence

from fastopt.arrays import Array
from fastopt.backends.decisions import Control, Counts
from fastopt.buckets import Bucket
from fastopt.coming_rows import Active
from fastopt.gradient_policy import Seen
from fastopt.interrupts import Deferred


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
