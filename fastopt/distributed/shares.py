"""Who has what: the parameters cut into a share for each rank, and what is sent together.

Arrays are cut where the tiles of sums and the blocks of 8-bit state end, so that a part is summed,
coded and rounded as it is in the whole. Numbers count real ones, two for each complex element, in
the order of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastopt.core.norms import TILE

SECTION = 4 << 20
"""Bytes of parameters that are sent together, at least."""

SHARE = 1 << 16
"""Bytes that each rank has of a section, about, where there are so many ranks."""


class Part(NamedTuple):
    """The real numbers of one parameter from ``start`` to ``stop``."""

    position: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many there are."""
        return self.stop - self.start


Message = tuple[Part, ...]
"""Numbers that travel together: a part of a parameter, or several small ones that are packed."""

DIRECT = 1 << 16
"""Bytes from which on numbers are sent from where they lie, and received where they belong."""


def messages_of(parts: Sequence[Part], itemsize: int, longest: int) -> list[Message]:
    """Return the messages in which some parts travel, each of so many bytes at most."""
    step = longest // itemsize
    found: list[Message] = []
    packed: list[Part] = []
    room = step
    for part in parts:
        if part.size * itemsize >= DIRECT:
            found += [
                (Part(part.position, first, min(first + step, part.stop)),)
                for first in range(part.start, part.stop, step)
            ]
            continue
        if part.size > room:
            found.append(tuple(packed))
            packed, room = [], step
        packed.append(part)
        room -= part.size
    return [*found, tuple(packed)] if packed else found


def size_of(message: Message) -> int:
    """Return how many numbers a message has."""
    return sum(part.size for part in message)


class Described(NamedTuple):
    """What has to be known of a parameter to share it: its real numbers, their bytes, its dtype.

    One that is ``whole`` is not cut: a single rank has all of it.
    """

    size: int
    nbytes: int
    dtype: str
    whole: bool = False


class Kept(NamedTuple):
    """How a parameter is shared out: whether one rank has all of it, and the others nothing."""

    whole: bool = True
    absent: bool = False


class Section(NamedTuple):
    """Parameters whose gradients are sent together: their positions, and the parts of each rank."""

    positions: tuple[int, ...]
    parts: tuple[tuple[Part, ...], ...]

    def messages(self, itemsize: int, longest: int) -> list[list[Message]]:
        """Return the messages in which each rank's parts travel."""
        return [messages_of(parts, itemsize, longest) for parts in self.parts]


def sections_of(given: Sequence[Described], ranks: int, forward: Sequence[int]) -> list[Section]:
    """Share parameters out, the last ones first: backward passes come to these first.

    ``forward`` are their positions in the order of the model.
    """
    sections: list[Section] = []
    enough = max(SECTION, ranks * SHARE)
    load = [0] * ranks
    together: list[int] = []
    nbytes = 0
    for position in reversed(forward):
        one = given[position]
        if together and (nbytes >= enough or given[together[-1]].dtype != one.dtype):
            sections.append(_section(together, given, ranks, load))
            together, nbytes = [], 0
        together.append(position)
        nbytes += one.nbytes
    if together:
        sections.append(_section(together, given, ranks, load))
    return sections


def _section(
    positions: Sequence[int], given: Sequence[Described], ranks: int, load: list[int]
) -> Section:
    """Return a section; ``load`` are the bytes that each rank has of all so far."""
    parts: list[list[Part]] = [[] for _ in range(ranks)]
    cut = [p for p in positions if not given[p].whole]
    tiles = [-(-given[p].size // TILE) for p in cut]
    bounds = [sum(tiles) * rank // ranks for rank in range(ranks + 1)]
    begin = 0
    for position, count in zip(cut, tiles, strict=True):
        for rank in range(ranks):
            first, last = max(bounds[rank], begin), min(bounds[rank + 1], begin + count)
            if first < last:
                stop = min((last - begin) * TILE, given[position].size)
                parts[rank].append(Part(position, (first - begin) * TILE, stop))
        begin += count
    for position in positions:
        if given[position].whole:
            rank = min(range(ranks), key=load.__getitem__)
            load[rank] += given[position].nbytes
            parts[rank].append(Part(position, 0, given[position].size))
    return Section(tuple(positions), tuple(tuple(mine) for mine in parts))
