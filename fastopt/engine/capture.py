"""Steps that can be captured in a CUDA graph, and replayed without the host knowing of it.

A captured step finds all that it needs in the device's memory, which stays where it is: tables of
CAPTURED rows, settings, counts. The host writes there when it makes a step of its own, and when it
is asked to (``refresh``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastopt.core.signals import Deferred
from fastopt.engine.device import OnDevice
from fastopt.engine.tables import CAPTURED, Active, Limits

if TYPE_CHECKING:
    from fastopt.wrappers.loss_scaler import Scaling

_OUT_OF_STEP = (
    "parameters that were at the same step when a step was captured in a CUDA graph would no "
    "longer be; construct a new optimizer, load, and capture again"
)


class CapturableSteps(OnDevice):
    """The steps of an optimizer with ``capturable=True``."""

    long_tables = True

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self._captured: list[Any] = []  # what captured steps read, so that it stays in memory
        self._all_measure = True  # of those that were captured
        self._scales = False  # the scale of a loss follows one of them

    # The capture -------------------------------------------------------------------------------

    def _capture(
        self, parts: Sequence[Any], grad_scale: Any, limits: Limits, scaling: Scaling
    ) -> None:
        """Launch a step into a graph; nothing can be written for it, so all must be there."""
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
        if not self._tables.ready_to_capture(self._clock, limits):
            raise RuntimeError(
                "settings have changed, or most of the scalars that were worked out ahead are used "
                "up: call opt.refresh() before capturing a step in a CUDA graph"
            )
        with Deferred():
            self._launch(grad_scale, limits.measures, scaling=scaling)
            if not self._captured:
                for group in self._groups:
                    group.keep_rules()
            gradients = [side.gradients() for side in self._sides()]
            self._captured.append((grad_scale, gradients, scaling))
            self._all_measure &= limits.measures
            self._scales |= scaling is not None
            self.counts.captured()

    @property
    def _clock(self) -> int:
        """A step count that the device has come to at least; nobody knows of the replays since."""
        return self.counts.low if self._captured else self.counts.high

    # Steps after a capture ---------------------------------------------------------------------

    def _sort(self, active: Active) -> None:
        if self._captured and self.counts.active != active:
            raise RuntimeError(
                "other gradients are None than in the step that was captured in a CUDA graph, "
                "whose replays are counted for the parameters that had one. Hand in gradients for "
                "the same parameters, or use an optimizer of its own for the others."
            )
        super()._sort(active)

    def _see_to_rows(self) -> None:
        if not self._captured:
            super()._see_to_rows()
        elif not self._tables.up_to_date(self._clock) or not self._tables.has(
            self._clock, CAPTURED / 2
        ):
            self._write_rows()

    def _write_rows(self) -> None:
        self._tables.far_ahead()
        self._renew(self._clock)

    def _wants_counts(self) -> bool:
        return bool(self._captured) or super()._wants_counts()

    # Between steps -----------------------------------------------------------------------------

    def warm_up(self, limits: Limits) -> None:
        """Compile and write what the coming steps need, also if they are captured at once."""
        self._warm_up(limits)

    def refresh(self, limits: Limits) -> None:
        """Write what was set since, and the rows of the coming steps, for captured steps."""
        if self.counts.active is None:
            self.warm_up(limits)
            return
        if limits.measures and not self._all_measure:
            raise RuntimeError(
                "the step that was captured in a CUDA graph does not measure the norm, which "
                "max_grad_norm and on_nonfinite='skip' need: construct a new optimizer, and "
                "capture again"
            )
        if self._scales and not limits.skips:
            raise RuntimeError(
                "a LossScaler's step was captured in a CUDA graph, which leaves out steps that are "
                "not finite: set on_nonfinite to 'skip' again, or construct a new optimizer"
            )
        self._rewrite(limits)

    def _rewrite(self, limits: Limits) -> None:
        with self._control.here():
            self._refuse_capture()
            self.counts.settle(norm=True, refuse=False)
            if not self._tables.keep_sorted(self.counts.clock):
                self._sort_again()
            self.counts.changed()
            self._write_all(limits)
            self._control.wait()

    def _sort_again(self) -> None:
        if self._captured or self.counts.active is None:
            raise RuntimeError(_OUT_OF_STEP)
        self._tables.sort(self.counts.active, self.counts.clock)

    def refuse_steps(self, steps: Mapping[str, int]) -> None:
        """Raise RuntimeError for step counts, by the parameters' names, that do not fit."""
        super().refuse_steps(steps)
        if self._captured and not self._tables.stay_sorted(steps):
            raise RuntimeError(_OUT_OF_STEP)

    def take_steps(self, limits: Limits) -> None:
        """Go on from the host's step counts, which were set."""
        if self._captured:
            self.counts.changed()
            self._rewrite(limits)
        else:
            super().take_steps(limits)
