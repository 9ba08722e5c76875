"""The scalars of the coming steps in tables, worked out on the host and looked up by a device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastopt.backends.interface import Control, Settings
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket
from fastopt.core.dtypes import FLUSH_EVERY
from fastopt.engine.build import Group

# -------------------------------------------------------------------------------------------------
# The scalars of the coming steps, worked out on the host for a device that looks them up.
#
# A table has a row for each of the coming steps, for parameters of one bucket that have made the
# same number of steps. Rows are those of the steps that the host decides on, to the bit. A schedule
# is asked for the values of steps that are still to come; what it raises there counts only when its
# step has come.

FIRST = FLUSH_EVERY
"""Rows that are worked out after a change of settings; it may be followed by another at once."""

_FAR = (2**20, 2**40)
"""Rows that are still the same so much later (in multiples of FLUSH_EVERY) never change again: all
that depends on the step count without a schedule goes one way."""

Active = tuple[Sequence[int] | None, ...]
"""For each bucket the parameters that have a gradient; None: all."""

Row = tuple[float, ...]
"""The scalars of a step: those common to all rules, then the rule's own."""


@dataclass
class Table:
    """The parameters of a bucket that have missed the same number of steps, and their rows."""

    name: tuple[int, ...]
    group: Group
    number: int  # of the bucket in the group
    bucket: Bucket
    members: list[int]
    mine: Array | None  # which parameters they are; None: all that have a gradient
    lag: int
    rows: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def row(self, clock: int) -> Row:
        """Return the scalars of the step that is made at a step count."""
        return self.group.row(self.number, self.lag, clock)

    def rounded(self, rows: Sequence[Row]) -> Array:
        """Return rows in the precision in which they are used."""
        with np.errstate(all="ignore"):  # beyond float32 is inf, as in NumPy
            return np.array(rows, self.bucket.real)

    def steps(self) -> dict[str, int]:
        """Return the step counts, by the parameters' names."""
        leaves = [self.bucket.parameters[i].leaf for i in self.members]
        steps: list[int] = self.bucket.steps[self.members].tolist()
        return {leaf.name: step for leaf, step in zip(leaves, steps, strict=True)}


def tables(groups: Iterable[Group], active: Active, clock: int) -> list[Table]:
    """Sort the parameters that have a gradient by bucket and step count."""
    made: list[Table] = []
    members_of = iter(active)
    for place, group in enumerate(groups):
        for number, bucket in enumerate(group.buckets):
            chosen = next(members_of)
            by_lag: dict[int, list[int]] = {}
            for i in range(len(bucket.steps)) if chosen is None else chosen:
                by_lag.setdefault(clock - int(bucket.steps[i]), []).append(i)
            for lag, members in by_lag.items():
                mine = None
                if len(by_lag) > 1:
                    mine = np.isin(np.arange(len(bucket.steps)), members)
                name = (place, number, len(made))
                made.append(Table(name, group, number, bucket, members, mine, lag))
    return made


class ComingRows:
    """The rows of all tables, from step count ``base`` on.

    If ``period`` is not 0, the last so many rows come again and again, for ever.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self.tables: list[Table] = []
        self.base = self.length = self.period = 0
        self._made_for: Any = None

    def forget(self) -> None:
        """Take the rows for outdated."""
        self._made_for = None

    @property
    def _settings(self) -> tuple[int, ...]:
        return tuple(group.options.revision for group in self._groups)

    @property
    def _scheduled(self) -> bool:
        return any(group.options.scheduled for group in self._groups)

    def up_to_date(self, clock: int) -> bool:
        """Return whether the rows are those of the settings, and of what the schedules say now.

        Raises what a schedule raises.
        """
        if self._made_for != self._settings:
            return False
        at = clock - self.base
        if not self._scheduled or not 0 <= at < self.length:
            return True
        return all(
            table.rounded([table.row(clock)]).tobytes() == table.rows[at].tobytes()
            for table in self.tables
            if table.group.options.scheduled
        )

    def left(self, clock: int) -> float:
        """Return how many rows there are from a step count on."""
        return float("inf") if self.period else self.base + self.length - clock

    def fill(self, low: int, high: int, ahead: int) -> None:
        """Work out the rows from ``low`` to ``high``, and so many from ``high`` on.

        Raises what a schedule raises up to ``high``; then nothing has changed. Of the others those
        that cannot be worked out yet are left out.
        """
        found, period = self._rows(low, high, high + ahead)
        for number, table in enumerate(self.tables):
            table.rows = table.rounded([rows[number] for rows in found])
        self.base, self.length, self.period = low, len(found), period
        self._made_for = self._settings

    def _rows(self, low: int, high: int, end: int) -> tuple[list[list[Row]], int]:
        found: list[list[Row]] = []
        for clock in range(low, end):
            try:
                found.append([table.row(clock) for table in self.tables])
            except Exception:  # whatever a schedule raises
                if clock <= high:
                    raise
                break
            count = len(found)
            now = count >= FLUSH_EVERY and count & (count - 1) == 0  # at powers of two
            if now and self._constant(found, clock + 1):
                return found, FLUSH_EVERY
        return found, 0

    def _constant(self, found: list[list[Row]], clock: int) -> bool:
        """Return whether the last rows, which end before a step count, come again for ever."""
        if self._scheduled:
            return False
        for number, table in enumerate(self.tables):
            last = table.rounded([rows[number] for rows in found[-FLUSH_EVERY:]]).tobytes()
            for far in _FAR:
                first = clock + (far - 1) * FLUSH_EVERY
                later = [table.row(first + k) for k in range(FLUSH_EVERY)]
                if table.rounded(later).tobytes() != last:
                    return False
        return True


# -------------------------------------------------------------------------------------------------
# The tables of coming scalars, and the settings, as a device has them: when they are written.

MOST = 4_096
"""Rows that are worked out ahead, at most; twice as many each time while no setting changes."""

CAPTURED = 65_536
"""Rows that captured steps find: so often they are replayed before they need new ones."""


class Limits(NamedTuple):
    """What the gradients of a step are held to: a norm (None: any), and whether to be finite."""

    norm: float | None
    skips: bool

    @property
    def measures(self) -> bool:
        """Whether the norm has to be known."""
        return self.norm is not None or self.skips


class DeviceTables:
    """The rows that the device looks up, and the settings that it decides by.

    ``long``: there is room for CAPTURED rows, so that the memory never has to be another.
    """

    def __init__(self, groups: Sequence[Group], control: Control, long: bool) -> None:
        self._groups = groups
        self._control = control
        self._long = long
        self._rows = ComingRows(groups)
        self._memory: list[Array] = []  # of the tables, in the same order
        self._ahead = 0
        self._settings: Settings | None = None  # as the device has them

    def sort(self, active: Active, clock: int) -> None:
        """Make the tables for these gradients; ``renew`` fills them."""
        self._rows.tables = tables(self._groups, active, clock)
        self._rows.forget()

    def keep_sorted(self, clock: int) -> bool:
        """Take over new step counts without another table; return whether that can be done."""
        if not self.stay_sorted({}):
            return False
        for table in self._rows.tables:
            table.lag = clock - next(iter(table.steps().values()))
        self._rows.forget()
        return True

    def stay_sorted(self, steps: Mapping[str, int]) -> bool:
        """Return whether other step counts, by the parameters' names, need no other tables."""
        present = [table.steps() for table in self._rows.tables]
        return all(len({steps.get(name, now[name]) for name in now}) == 1 for now in present)

    def of(self, bucket: Bucket) -> list[tuple[Array | None, Array]]:
        """Return the tables of a bucket: which parameters, and the memory."""
        pairs = zip(self._rows.tables, self._memory, strict=True)
        return [(table.mine, memory) for table, memory in pairs if table.bucket is bucket]

    def has(self, clock: int, least: float = 1) -> bool:
        """Return whether so many rows are there from a step count on."""
        return clock >= self._rows.base and self._rows.left(clock) >= least

    def up_to_date(self, clock: int) -> bool:
        """Return whether the rows are what they would be if they were worked out now."""
        try:
            return self._rows.up_to_date(clock)
        except Exception:  # a schedule's; perhaps that step is not due yet
            return False

    def half_used(self, clock: int) -> bool:
        """Return whether half of the rows or more are before a step count."""
        return self._rows.left(clock) <= self._rows.length / 2

    def ready_to_capture(self, clock: int, limits: Limits) -> bool:
        """Return whether captured steps find what they need for a long time."""
        enough = self.has(clock, CAPTURED / 2) and self.up_to_date(clock)
        return enough and self._settings == self._wanted(limits)

    def ahead(self, fresh: bool) -> None:
        """Say how many rows the next ``renew`` works out: few if something has just changed."""
        most = CAPTURED if self._long else MOST
        first = CAPTURED if self._long and not self._memory else FIRST
        self._ahead = min(2 * self._ahead, most) if fresh else first

    def far_ahead(self) -> None:
        """Have the next ``renew`` work out what captured steps need."""
        self._ahead = CAPTURED

    def renew(self, low: int, high: int) -> None:
        """Work out the rows from ``low`` to ``high`` and those that come, and write them."""
        self._rows.fill(low, high, self._ahead)
        room = CAPTURED if self._long else 0
        self._memory = [
            self._control.table(table.name, table.rows, room) for table in self._rows.tables
        ]

    def send_settings(self, limits: Limits) -> None:
        """Write the settings, if the device has others."""
        settings = self._wanted(limits)
        if settings != self._settings:
            self._control.send_settings(settings)
            self._settings = settings

    def _wanted(self, limits: Limits) -> Settings:
        rows = self._rows
        clips = limits.norm is not None
        limit = -1.0 if limits.norm is None else limits.norm
        return Settings(rows.base, rows.length, rows.period, clips, limits.skips, limit)
