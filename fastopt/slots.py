"""The state of a bucket's parameters by name: what each row of the arena holds of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from fastopt.arena import Arena
from fastopt.arrays import Array
from fastopt.formats import Format
from fastopt.parameters import Parameter
from fastopt.pieces import EightBits, Piece, SixteenBits

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

    def pieces(self, parameter: Parameter, names: Collection[str]) -> dict[str, Piece]:
        """Return a parameter's pieces of the rule's slots, of those that are named."""
        place = slice(parameter.offset, parameter.offset + parameter.size)
        arena = self._arena
        made: dict[str, Piece] = {}
        for slot, name in enumerate(self._state):
            if name not in names:
                continue
            if arena.scales is not None:
                made[name] = EightBits(parameter.scale_view(arena.scales[slot]))
            elif arena.codes is not None:
                made[name] = SixteenBits(arena.codes[slot, place])
            else:
                made[name] = Piece(self._exact[name][place])
        return made

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
