"""What is known of steps that were captured in CUDA graphs, which replay them on their own.

A captured step finds all that it needs in the device's memory, which stays where it is: scalar
tables of CAPTURED rows, settings, counts. The host writes there when it makes a step of its own,
and when it is asked to (``refresh``).
"""

from __future__ import annotations

from typing import Any

from fastopt.engine.policy import Policy
from fastopt.engine.tables import CAPTURED, ScalarTables


class Capture:
    """The captured steps of one optimizer: what they read, and what they cannot do."""

    def __init__(self) -> None:
        self._held: list[Any] = []  # what captured steps read, so that it stays in memory
        self._all_measure = True
        self._must_skip = False

    def __bool__(self) -> bool:
        return bool(self._held)

    def add(self, reads: Any, measures: bool) -> None:
        """Take note of a captured step and of what it reads."""
        self._held.append(reads)
        self._all_measure &= measures

    def hold(self, reads: Any) -> None:
        """Keep the memory of a loss's scale alive, which is updated after each captured step."""
        self._held.append(reads)
        self._must_skip = True

    def enough(self, tables: ScalarTables, step_count: int) -> bool:
        """Return whether replays find the rows that they need for a long time."""
        return tables.up_to_date(step_count) and tables.has(step_count, CAPTURED / 2)

    def check_policy(self, policy: Policy) -> None:
        """Raise RuntimeError for a policy that the captured steps cannot follow."""
        if not self:
            return
        if policy.measures and not self._all_measure:
            raise RuntimeError(
                "the step that was captured in a CUDA graph does not measure the norm, which "
                "max_grad_norm and on_nonfinite='skip' need: construct a new optimizer, and "
                "capture again"
            )
        if self._must_skip and not policy.skips:
            raise RuntimeError(
                "a LossScaler's step was captured in a CUDA graph, which leaves out steps that are "
                "not finite: set on_nonfinite to 'skip' again, or construct a new optimizer"
            )

    def refuse_others(self) -> None:
        """Raise RuntimeError, if a step was captured, for gradients of other parameters."""
        if self:
            raise RuntimeError(
                "other gradients are None than in the step that was captured in a CUDA graph, "
                "whose replays are counted for the parameters that had one. Hand in gradients for "
                "the same parameters, or use an optimizer of its own for the others."
            )

    def refuse_others_counts(self) -> None:
        """Raise RuntimeError, if a step was captured, for step counts that need other tables."""
        if self:
            raise RuntimeError(
                "parameters that were at the same step when a step was captured in a CUDA graph "
                "would no longer be; construct a new optimizer, load, and capture again"
            )
