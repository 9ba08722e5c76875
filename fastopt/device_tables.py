"""The tables of coming scalars, and the settings, as a device has them: when they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastopt.arrays import Array
from fastopt.backends.decisions import Control, Settings
from fastopt.buckets import Bucket
from fastopt.coming_rows import FIRST, Active, ComingRows, tables
from fastopt.group import Group

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
