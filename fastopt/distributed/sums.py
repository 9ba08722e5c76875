"""Sums of gradients over micro-batches that are numbered over all ranks, added in this order.

The sum of floating numbers depends on its order. So each rank is sent its share of the gradients
of every micro-batch, from whatever rank that is on, and adds them one after another: the bits are
those of a single process that is handed all micro-batches in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt.backends import array_namespace
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.distributed.ranks import Pending, Ranks
from fastopt.distributed.shares import Part, Section

CHUNK = 1 << 20
"""Bytes of a share that travel at a time, while those before them are added."""


class Contribution(NamedTuple):
    """What a rank adds in a round: its factor, and which parameters it has gradients of."""

    factor: float
    given: Sequence[bool]


Contributions = Sequence[Contribution | None]
"""Those of all ranks in one round; None for one that has no micro-batch in it."""


class Sums:
    """This rank's share of the sums.

    ``own`` are flat arrays by position that the sums of this rank's parts are kept in; ``given``
    says of which parameters there is one.
    """

    def __init__(self, ranks: Ranks, sections: Sequence[Section], own: Sequence[Array]) -> None:
        self._ranks = ranks
        self.sections = sections
        self.own = own
        self.given = [False] * len(own)
        self._rooms: dict[Any, Array] = {}

    def clear(self) -> None:
        """Begin anew."""
        self.given = [False] * len(self.own)

    def complete(self) -> None:
        """Bring together what the ranks have: nothing, as every round does that."""

    def add(
        self, flats: Sequence[Array | None], dtypes: Sequence[Any], said: Contributions
    ) -> None:
        """Add a round: a micro-batch of each rank that has one, in the order of the ranks.

        ``flats`` are this rank's gradients by position, flat real numbers of these ``dtypes``, in
        which they are sent.
        """
        for section in self.sections:
            self.add_section(section, flats, dtypes[section.positions[0]], said)
        for one in said:
            if one is not None:
                self.given = [a or b for a, b in zip(self.given, one.given, strict=True)]

    def add_section(
        self, section: Section, flats: Sequence[Array | None], dtype: Any, said: Contributions
    ) -> None:
        """Add what a round has of one section; ``given`` is not looked after."""
        rank = self._ranks.rank
        contributing = [k for k, one in enumerate(said) if one is not None]
        mine = section.parts[rank]
        step = max(CHUNK // np.dtype(dtype).itemsize, 1)
        shares: list[Array | None] = [None] * self._ranks.size
        for other, parts in enumerate(section.parts):
            if parts and said[rank] is not None:
                shares[other] = _share(parts, flats, dtype, self.own)
        sizes = section.sizes()
        chunks = [-(-size // step) for size in sizes]
        expected = [k for k in contributing if k != rank] if mine else []
        steps = chunks[rank] if said[rank] is None else max(chunks)
        begun: list[tuple[int, Pending, list[Array | None]]] = []
        for chunk in range(steps):
            first = chunk * step
            length = max(min(step, sizes[rank] - first), 0)
            incoming: list[Array | None] = [None] * self._ranks.size
            for other in expected if length else ():
                incoming[other] = self._room(chunk % 2, other, dtype, step)[:length]
            outgoing = [
                None if share is None or k == rank else share[first : first + step]
                for k, share in enumerate(shares)
            ]
            begun.append((first, self._ranks.exchange(outgoing, incoming), incoming))
            if len(begun) == 2:
                self._take(begun.pop(0), mine, shares[rank], step, said)
        while begun:
            self._take(begun.pop(0), mine, shares[rank], step, said)

    def _take(
        self,
        begun: tuple[int, Pending, list[Array | None]],
        mine: Sequence[Part],
        own_share: Array | None,
        step: int,
        said: Contributions,
    ) -> None:
        """Wait for a chunk, and add what has come and what this rank has, in the ranks' order."""
        first, pending, incoming = begun
        pending.wait()
        for part, at, start, stop in _within(mine, first, first + step):
            total = self.own[part.position][start:stop]
            adds = self.given[part.position]
            for rank, one in enumerate(said):
                if one is None or not one.given[part.position]:
                    continue
                if rank == self._ranks.rank:
                    assert own_share is not None
                    piece = own_share[first + at : first + at + stop - start]
                else:
                    there = incoming[rank]
                    assert there is not None
                    piece = there[at : at + stop - start]
                _add(total, piece, one.factor, adds)
                adds = True

    def _room(self, parity: int, rank: int, dtype: Any, size: int) -> Array:
        """Return memory for what comes from a rank, kept for the next time."""
        key = parity, rank, np.dtype(dtype)
        if key not in self._rooms:
            like = self.own[0]
            with arrays.on_device_of(like):
                self._rooms[key] = array_namespace(like).empty(size, dtype)
        return self._rooms[key]


class FastSums(Sums):
    """Sums that each rank makes of its own micro-batches, added up as MPI or NCCL do it: at once.

    Their order, and so the last bits, depend on the number of ranks. ``full`` are flat arrays of
    whole parameters, of which ``own`` are this rank's parts; ``everywhere`` says whether all ranks
    want all of the sums.
    """

    def __init__(
        self,
        ranks: Ranks,
        sections: Sequence[Section],
        own: Sequence[Array],
        full: Sequence[Array],
        everywhere: bool,
    ) -> None:
        super().__init__(ranks, sections, own)
        self._full = full
        self._everywhere = everywhere
        self._here = [False] * len(own)  # which this rank has added something to

    def clear(self) -> None:
        """Begin anew."""
        super().clear()
        self._here = [False] * len(self.own)

    def add_section(
        self, section: Section, flats: Sequence[Array | None], dtype: Any, said: Contributions
    ) -> None:
        """Add what this rank has of one section."""
        mine = said[self._ranks.rank]
        for position in section.positions if mine is not None else ():
            assert mine is not None
            flat = flats[position]
            if flat is not None and mine.given[position] and flat.size:
                _add(self._full[position], flat, mine.factor, self._here[position])
                self._here[position] = True

    def complete(self) -> None:
        """Add up what all ranks have."""
        for section in self.sections:
            for rank, parts in enumerate(section.parts):
                for part in parts:
                    if not self.given[part.position]:
                        continue
                    total = self._full[part.position]
                    if not self._here[part.position]:
                        with arrays.on_device_of(total):
                            total[...] = 0
                        self._here[part.position] = True
                    root = None if self._everywhere else rank
                    step = LONGEST // total.dtype.itemsize
                    for first in range(part.start, part.stop, step):
                        piece = total[first : min(first + step, part.stop)]
                        self._ranks.sum_up(piece, root)


def _within(parts: Sequence[Part], first: int, last: int) -> Iterator[tuple[Part, int, int, int]]:
    """Yield the parts that reach into a chunk of the share: where in it, and from where to where.

    The last two count from the beginning of the part.
    """
    begin = 0
    for part in parts:
        low, high = max(first, begin), min(last, begin + part.size)
        if low < high:
            yield part, low - first, low - begin, high - begin
        begin += part.size


def _share(
    parts: Sequence[Part], flats: Sequence[Array | None], dtype: Any, own: Sequence[Array]
) -> Array:
    """Return a rank's share of the gradients as one flat array; zeros where there is none."""
    with arrays.on_device_of(own[0]):
        xp = array_namespace(own[0])
        pieces = []
        for part in parts:
            flat = flats[part.position]
            piece = xp.zeros(part.size, dtype) if flat is None else flat[part.start : part.stop]
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else xp.concatenate(pieces)


def _add(total: Array, piece: Array, factor: float, adds: bool) -> None:
    """Add a factor times a piece to a sum, or begin the sum with it."""
    with arrays.on_device_of(total), np.errstate(all="ignore"):
        values = piece.astype(total.dtype, copy=False)
        if factor != 1.0:
            values = values * factor
        if adds:
            total += values
        else:
            total[...] = values


def gather(
    ranks: Ranks, sections: Sequence[Section], flats: Sequence[Array], wanted: Sequence[bool]
) -> None:
    """Complete flat arrays, of which each rank has its parts, for the parameters that are wanted.

    ``flats`` are by position, whole; this rank's parts of them are sent to all others.
    """
    rank = ranks.rank
    for section in sections:
        parts = [[p for p in of if wanted[p.position]] for of in section.parts]
        shares: list[Array | None] = []
        for other, of in enumerate(parts):
            shares.append(_place_for(of, flats, filled=other == rank) if of else None)
        outgoing = [shares[rank] if other != rank else None for other in range(ranks.size)]
        incoming = [share if other != rank else None for other, share in enumerate(shares)]
        for first, last in _messages(shares):
            ranks.exchange(
                [None if one is None else one[first:last] for one in outgoing],
                [None if one is None else one[first:last] for one in incoming],
            ).wait()
        for other, of in enumerate(parts):
            share = shares[other]
            if other == rank or share is None or len(of) == 1:
                continue
            first = 0
            for part in of:
                with arrays.on_device_of(share):
                    place = flats[part.position][part.start : part.stop]
                    place[...] = share[first : first + part.size]
                first += part.size


LONGEST = 1 << 28
"""Bytes of one message, well below the 2 GiB that MPI counts to."""


def _messages(shares: Sequence[Array | None]) -> Iterator[tuple[int, int]]:
    there = [one for one in shares if one is not None]
    size = max((one.size for one in there), default=0)
    step = LONGEST // (there[0].dtype.itemsize if there else 1)
    for first in range(0, size, step):
        yield first, first + step


def _place_for(parts: Sequence[Part], flats: Sequence[Array], filled: bool) -> Array:
    """Return one array for some parts: where they lie if there is one, else a copy or memory."""
    views = [flats[part.position][part.start : part.stop] for part in parts]
    if len(views) == 1:
        return views[0]
    with arrays.on_device_of(views[0]):
        xp = array_namespace(views[0])
        if filled:
            return xp.concatenate(views)  # type: ignore[no-any-return]
        place: Array = xp.empty(sum(view.size for view in views), views[0].dtype)
        return place
