"""The state of a bucket's parameters by name: what each row of the arena holds of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastopt.arena import Arena
from fastopt.arrays import Array
from fastopt.formats import Format
from fastopt.parameters import Parameter

SCALE = "_scale"
"""What the name of a slot in 8 bits goes on with where its scales are meant."""


class Slots:
    """The rows of an arena, whose rule has ``state``."""

    def __init__(self, state: Sequence[str], format: Format, arena: Arena) -> None:
        self._state = state
        self._limits = format.limits
        self._arena = arena
        of_rule = state if format.state == "real" else ()
        names = (*of_rule, *format.masters, *format.limits)
        self._exact = dict(zip(names, arena.exact, strict=True))

    def limit(self, name: str) -> Array:
        """Return the row of a bound."""
        row: Array = self._exact[name]
        return row

    def views(self, parameter: Parameter) -> Iterator[tuple[str, Array]]:
        """Yield a parameter's state by name, in its shape: codes, their scales, then the others."""
        arena = self._arena
        if arena.codes is not None:
            yield from zip(self._state, map(parameter.code_view, arena.codes), strict=True)
        if arena.scales is not None:
            for slot, row in zip(self._state, arena.scales, strict=True):
                yield slot + SCALE, parameter.scale_view(row)
        for name, row in self._exact.items():
            if name not in self._limits:
                yield name, parameter.state_view(row)
