"""Scalar tables: the scalars of the coming steps, prefetched to a device that looks them up.

A table has a row for each of the coming steps, for parameters of one bucket that have made the same
number of steps. Rows are those of the steps that the host decides on, to the bit. A schedule is
asked for the values of steps that are still to come; what it raises there counts only when its step
has come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastopt.backends.cupy.launch import Lookup
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket, OptimizerState
from fastopt.core.denormals import FLUSH_EVERY
from fastopt.core.param_groups import ParamGroup
from fastopt.core.passes import derived_of
from fastopt.engine.policy import Policy
from fastopt.engine.scalars import Row, Scalars

if TYPE_CHECKING:
    from fastopt.backends.cupy.control import Control
    from fastopt.backends.cupy.control_source import Settings

Active = tuple[Sequence[int] | None, ...]
"""For each bucket the parameters that have a gradient; None: all."""

FIRST = FLUSH_EVERY
"""Rows that are worked out after a change of settings; it may be followed by another at once."""

MOST = 4_096
"""Rows that are worked out ahead, at most, of all members together; twice as many each time while
no setting changes."""

CAPTURED = 65_536
"""Rows that captured steps find: so often they are replayed before they need new ones."""

_FAR = (2**20, 2**40)
"""Rows that are still the same so much later (in multiples of FLUSH_EVERY) never change again:
without a schedule, every scalar is a monotone function of the step count."""


@dataclass
class Table:
    """The parameters of a bucket that have missed the same number of steps, and their rows."""

    name: tuple[int, ...]
    group: ParamGroup
    bucket: Bucket
    scalars: Scalars
    indices: list[int]  # of its parameters in the bucket
    chosen: Array | None  # which parameters they are; None: all that have a gradient
    lag: int
    rows: tuple[Array, Array] = field(default_factory=lambda: (np.zeros((0, 0)), np.zeros((0, 0))))

    def row(self, step_count: int) -> Row | Array:
        """Return the scalars of the step at a step count, and what a memory is given in it."""
        return self.scalars.row_at(step_count, self.lag)

    def rounded(self, rows: Sequence[Row | Array]) -> tuple[Array, Array]:
        """Return rows as they are used: the scalars, and in float64 what a memory is given."""
        values = np.array(rows, float).reshape(len(rows), -1)
        width = values.shape[1] - derived_of(self.bucket.rule, self.bucket.spec).inputs
        with np.errstate(all="ignore"):  # beyond float32 is inf, as in NumPy
            return values[:, :width].astype(self.bucket.spec.real), values[:, width:]

    def same(self, rows: Sequence[Row | Array], other: tuple[Array, Array]) -> bool:
        """Return whether rows are used as these others are."""
        pairs = zip(self.rounded(rows), other, strict=True)
        return all(one.tobytes() == two.tobytes() for one, two in pairs)

    def steps(self) -> dict[str, int]:
        """Return the step counts, by the parameters' names."""
        leaves = [self.bucket.parameters[i].leaf for i in self.indices]
        steps: list[int] = self.bucket.steps[self.indices].tolist()
        return {leaf.name: step for leaf, step in zip(leaves, steps, strict=True)}


class Prefetched(NamedTuple):
    """The steps whose rows are there: ``length`` of them, from step count ``base`` on.

    If ``period`` is not 0, the last so many rows come again and again, for ever.
    """

    base: int = 0
    length: int = 0
    period: int = 0

    def left(self, step_count: int) -> float:
        """Return how many rows there are from a step count on."""
        return float("inf") if self.period else self.base + self.length - step_count


class ScalarTables:
    """The rows that a device looks up, and the settings that it decides by.

    ``long``: there is room for CAPTURED rows, so that the memory never has to be another.
    """

    def __init__(
        self, state: OptimizerState, scalars: Sequence[Scalars], control: Control, long: bool
    ) -> None:
        self._state = state
        self._scalars = scalars
        self._control = control
        self._long = long
        self._tables: list[Table] = []
        self._lookups: list[Lookup] = []  # of the tables, in the same order
        self._prefetched = Prefetched()
        self._made_for: int | None = None  # the revision of the settings; None: outdated
        self._ahead = 0
        self._settings: Settings | None = None  # as the device has them

    def make_tables(self, active: Active, step_count: int) -> None:
        """Make empty tables for these gradients, by bucket and step count.

        ``upload_rows`` fills them.
        """
        made: list[Table] = []
        state = self._state
        for number, (bucket, there) in enumerate(zip(state.buckets, active, strict=True)):
            by_lag: dict[int, list[int]] = {}
            for i in range(len(bucket.steps)) if there is None else there:
                by_lag.setdefault(step_count - int(bucket.steps[i]), []).append(i)
            for lag, indices in by_lag.items():
                chosen = None
                if len(by_lag) > 1:
                    chosen = np.isin(np.arange(len(bucket.steps)), indices)
                name, group = (number, len(made)), state.groups[bucket.group]
                scalars = self._scalars[number]
                made.append(Table(name, group, bucket, scalars, indices, chosen, lag))
        self._tables = made
        self.invalidate()

    def invalidate(self) -> None:
        """Take the rows for outdated."""
        self._made_for = None

    def keep_tables(self, step_count: int) -> bool:
        """Take over new step counts without another table; return whether that can be done."""
        if not self.tables_fit({}):
            return False
        for table in self._tables:
            table.lag = step_count - next(iter(table.steps().values()))
        self.invalidate()
        return True

    def tables_fit(self, steps: Mapping[str, int]) -> bool:
        """Return whether other step counts, by the parameters' names, need no other tables."""
        present = [table.steps() for table in self._tables]
        return all(len({steps.get(name, now[name]) for name in now}) == 1 for now in present)

    def of(self, bucket: Bucket) -> list[Lookup]:
        """Return where the parameters of a bucket find their scalars."""
        pairs = zip(self._tables, self._lookups, strict=True)
        return [lookup for table, lookup in pairs if table.bucket is bucket]

    def has(self, step_count: int, least: float = 1) -> bool:
        """Return whether so many rows are there from a step count on."""
        found = self._prefetched
        return step_count >= found.base and found.left(step_count) >= least

    def up_to_date(self, step_count: int) -> bool:
        """Return whether the rows are those of the settings, and of what the schedules say now."""
        if self._made_for != self._state.groups.changes.count:
            return False
        at = step_count - self._prefetched.base
        scheduled = [table for table in self._tables if table.group.scheduled]
        if not scheduled or not 0 <= at < self._prefetched.length:
            return True
        try:
            return all(
                table.same([table.row(step_count)], (table.rows[0][at], table.rows[1][at]))
                for table in scheduled
            )
        except Exception:  # a schedule's; perhaps that step is not due yet
            return False

    def half_used(self, step_count: int) -> bool:
        """Return whether half of the rows or more are before a step count."""
        return self._prefetched.left(step_count) <= self._prefetched.length / 2

    def ready_to_capture(self, step_count: int, policy: Policy) -> bool:
        """Return whether captured steps find what they need for a long time."""
        enough = self.has(step_count, CAPTURED / 2) and self.up_to_date(step_count)
        return enough and self._settings == self._wanted(policy)

    def plan_ahead(self, fresh: bool) -> None:
        """Choose how many rows ``upload_rows`` works out next: few if they are not ``fresh``.

        Something has changed then, and may change again.
        """
        members = self._state.buckets[0].members or 1
        most = CAPTURED if self._long else max(MOST // members, FIRST)
        first = CAPTURED if self._long and not self._lookups else FIRST
        self._ahead = min(2 * self._ahead, most) if fresh else first

    def plan_for_capture(self) -> None:
        """Have ``upload_rows`` work out as many rows next as captured steps need."""
        self._ahead = CAPTURED

    def upload_rows(self, low: int, high: int) -> None:
        """Work out the rows from ``low`` to ``high`` and those that come, and upload them.

        Raises what a schedule raises up to ``high``; then nothing has changed. Of the others those
        that cannot be worked out yet are left out.
        """
        found, period = self._rows(low, high, high + self._ahead)
        for number, table in enumerate(self._tables):
            table.rows = table.rounded([rows[number] for rows in found])
        self._prefetched = Prefetched(low, len(found), period)
        self._made_for = self._state.groups.changes.count
        room = CAPTURED if self._long else 0
        self._lookups = [self._uploaded(table, room) for table in self._tables]

    def _uploaded(self, table: Table, room: int) -> Lookup:
        scalars, for_memory = table.rows
        rows = self._control.table((*table.name, "scalars"), scalars, room)
        if not for_memory.shape[1]:
            return Lookup(table.chosen, rows, None)
        name = (*table.name, "for memory")
        return Lookup(table.chosen, rows, self._control.table(name, for_memory, room))

    def _rows(self, low: int, high: int, end: int) -> tuple[list[list[Row | Array]], int]:
        """Return each step's rows, one for each table, and the period in which they come again."""
        found: list[list[Row | Array]] = []
        for step_count in range(low, end):
            try:
                found.append([table.row(step_count) for table in self._tables])
            except Exception:  # whatever a schedule raises
                if step_count <= high:
                    raise
                break
            count = len(found)
            now = count >= FLUSH_EVERY and count & (count - 1) == 0  # at powers of two
            if now and self._constant(found, step_count + 1):
                return found, FLUSH_EVERY
        return found, 0

    def _constant(self, found: list[list[Row | Array]], end: int) -> bool:
        """Return whether the last rows, before step count ``end``, come again for ever."""
        if any(group.scheduled for group in self._state.groups):
            return False
        for number, table in enumerate(self._tables):
            last = table.rounded([rows[number] for rows in found[-FLUSH_EVERY:]])
            for far in _FAR:
                first = end + (far - 1) * FLUSH_EVERY
                later = [table.row(first + k) for k in range(FLUSH_EVERY)]
                if not table.same(later, last):
                    return False
        return True

    def upload_settings(self, policy: Policy) -> None:
        """Write the settings, if the device has others."""
        settings = self._wanted(policy)
        if settings != self._settings:
            self._control.upload_settings(settings)
            self._settings = settings

    def _wanted(self, policy: Policy) -> Settings:
        from fastopt.backends.cupy.control_source import Settings

        return Settings(
            *self._prefetched,
            policy.max_grad_norm is not None,
            policy.skips,
            math.inf if policy.max_grad_norm is None else policy.max_grad_norm,
        )
