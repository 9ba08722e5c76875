"""Sums of gradients over micro-batches that are numbered over all ranks, added in this order.

The sum of floating numbers depends on its order. So each rank is sent its share of the gradients
of every micro-batch, from whatever rank that is on, and adds them one after another: the bits are
those of a single process that is handed all micro-batches in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastopt.backends import array_namespace
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.distributed.ranks import Pending, Ranks
from fastopt.distributed.shares import DIRECT, Message, Part, Section, messages_of, size_of

LONGEST = 1 << 21
"""Bytes of a message: long enough for MPI, short enough that adding begins soon."""

MANY = 8
"""Ranks from which on messages are shorter, so that their memory does not grow with the ranks."""

UNDER_WAY = 3
"""How many messages to each rank are under way, while those before them are added."""


def longest_for(ranks: int) -> int:
    """Return the bytes of a message where there are so many ranks."""
    return max(LONGEST * MANY // max(ranks, MANY), min(DIRECT, LONGEST))


class Contribution(NamedTuple):
    """What a rank adds in a round: its factor, and which parameters it has gradients of."""

    factor: float
    given: Sequence[bool]


Contributions = Sequence[Contribution | None]
"""Those of all ranks in one round; None for one that has no micro-batch in it."""


class Rooms:
    """Memory for messages, kept for the next ones, in the place of an array."""

    def __init__(self, like: Array) -> None:
        self._like = like
        self._rooms: dict[Any, Array] = {}

    def room(self, what: str, turn: int, rank: int, dtype: np.dtype[Any], size: int) -> Array:
        """Return memory for so many numbers; the same for equal arguments but for the size."""
        key = what, turn % (UNDER_WAY + 1), rank, dtype
        found = self._rooms.get(key)
        if found is None or found.size < size:
            with arrays.on_device_of(self._like):
                found = self._rooms[key] = array_namespace(self._like).empty(size, dtype)
        return found[:size]


class Sums:
    """This rank's share of the sums.

    ``own`` are flat arrays by position that the sums of this rank's parts are kept in; ``given``
    says of which parameters there is one.
    """

    def __init__(self, ranks: Ranks, sections: Sequence[Section], own: Sequence[Array]) -> None:
        self.ranks = ranks
        self.sections = sections
        self.own = own
        self.given: list[bool] = [False] * len(own)
        self.rooms: Rooms = Rooms(own[0])
        # Where this rank's parts begin, as all that travels is named by the place in the parameter.
        self.starts: dict[int, int] = {
            p.position: p.start for one in sections for p in one.parts[ranks.rank]
        }

    def clear(self) -> None:
        """Begin anew."""
        self.given = [False] * len(self.own)

    def complete(self) -> None:
        """Bring together what the ranks have: nothing, as every round does that."""

    def begin(self, said: Contributions) -> Round:
        """Begin a round: a micro-batch of each rank that has one, in the order of the ranks."""
        return Round(self, said)

    def add(
        self, flats: Sequence[Array | None], dtypes: Sequence[Any], said: Contributions
    ) -> None:
        """Add a whole round.

        ``flats`` are this rank's gradients by position, flat real numbers of these ``dtypes``, in
        which they are sent.
        """
        adding = self.begin(said)
        for section in self.sections:
            adding.send(section, flats, dtypes[section.positions[0]])
        adding.finish()
        for one in said:
            if one is not None:
                self.given = [a or b for a, b in zip(self.given, one.given, strict=True)]


class _UnderWay(NamedTuple):
    """A message of every rank to every other one, and what this rank has of its own."""

    message: Message
    mine: Array | None
    incoming: Sequence[Array | None]
    pending: Pending


class Round:
    """The gradients of a micro-batch of each rank, on their way to the sums."""

    def __init__(self, sums: Sums, said: Contributions) -> None:
        self._sums, self._said = sums, said
        self._under_way: list[_UnderWay] = []
        self._turn = 0

    def send(self, section: Section, flats: Sequence[Array | None], dtype: Any) -> None:
        """Send a section's gradients to those whose shares they are, and add what has come."""
        sums, said, dtype = self._sums, self._said, np.dtype(dtype)
        rank = sums.ranks.rank
        messages = section.messages(dtype.itemsize, longest_for(len(said)))
        mine = messages[rank]
        has = said[rank] is not None
        for number in range(max(map(len, messages)) if has else len(mine)):
            outgoing: list[Array | None] = [None] * len(said)
            for other, of in enumerate(messages):
                if has and number < len(of):
                    outgoing[other] = self._packed(of[number], other, flats, dtype)
            own, outgoing[rank] = outgoing[rank], None
            incoming: list[Array | None] = [None] * len(said)
            message: Message = mine[number] if number < len(mine) else ()
            for other, one in enumerate(said):
                if message and one is not None and other != rank:
                    where = "in", self._turn, other, dtype, size_of(message)
                    incoming[other] = sums.rooms.room(*where)
            pending = sums.ranks.exchange(outgoing, incoming)
            self._under_way.append(_UnderWay(message, own, incoming, pending))
            self._turn += 1
            if len(self._under_way) > UNDER_WAY:
                self._take()

    def finish(self) -> None:
        """Add all that is still to come."""
        while self._under_way:
            self._take()

    def _packed(
        self, message: Message, other: int, flats: Sequence[Array | None], dtype: np.dtype[Any]
    ) -> Array:
        """Return a message's numbers: where they lie, or packed; zeros where there are none."""
        if len(message) == 1 and (flat := flats[message[0].position]) is not None:
            return flat[message[0].start : message[0].stop]
        room = self._sums.rooms.room("out", self._turn, other, dtype, size_of(message))
        with arrays.on_device_of(room):
            for part, first, last in _places(message):
                flat = flats[part.position]
                room[first:last] = 0 if flat is None else flat[part.start : part.stop]
        return room

    def _take(self) -> None:
        """Wait for the first message, and add what has come and what is here, in ranks' order."""
        message, mine, incoming, pending = self._under_way.pop(0)
        pending.wait()
        sums = self._sums
        for part, first, last in _places(message):
            begin = sums.starts[part.position]
            total = sums.own[part.position][part.start - begin : part.stop - begin]
            adds = sums.given[part.position]
            for rank, one in enumerate(self._said):
                if one is None or not one.given[part.position]:
                    continue
                there = mine if rank == sums.ranks.rank else incoming[rank]
                assert there is not None
                _add(total, there[first:last], one.factor, adds)
                adds = True


def _places(message: Message) -> Iterator[tuple[Part, int, int]]:
    """Yield the parts of a message, and from where to where in it they are."""
    at = 0
    for part in message:
        yield part, at, at + part.size
        at += part.size


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

    def begin(self, said: Contributions) -> Round:
        """Begin a round, in which each rank adds what it has itself."""
        return _FastRound(self, said)

    def add_here(self, section: Section, flats: Sequence[Array | None], mine: Contribution) -> None:
        """Add what this rank has of one section."""
        for position in section.positions:
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
                    for (one,) in messages_of([part], total.dtype.itemsize, LARGE):
                        self.ranks.sum_up(total[one.start : one.stop], root)


def views_of(full: Sequence[Array], parts: Mapping[int, Part]) -> list[Array]:
    """Return the parts of flat arrays of whole parameters, empty where there is none."""
    ranges = [parts.get(position, Part(position, 0, 0)) for position in range(len(full))]
    return [one[part.start : part.stop] for one, part in zip(full, ranges, strict=True)]


class _FastRound(Round):
    """A round in which nothing is sent."""

    _sums: FastSums

    def send(self, section: Section, flats: Sequence[Array | None], dtype: Any) -> None:
        """Add what this rank has of a section."""
        mine = self._said[self._sums.ranks.rank]
        if mine is not None:
            self._sums.add_here(section, flats, mine)


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


LARGE = 1 << 28
"""Bytes of the longest message, well below the 2 GiB that MPI counts to."""


def gather(sums: Sums, flats: Sequence[Array], wanted: Sequence[bool]) -> None:
    """Complete flat arrays, of which each rank has its parts, for the parameters that are wanted.

    ``flats`` are by position, whole; this rank's parts of them are sent to all others.
    """
    under_way: list[tuple[Pending, list[tuple[Message, Array]]]] = []
    rank, turn = sums.ranks.rank, 0
    for section in sums.sections:
        dtype = flats[section.positions[0]].dtype
        messages = [
            messages_of([p for p in parts if wanted[p.position]], dtype.itemsize, LARGE)
            for parts in section.parts
        ]
        for number in range(max(map(len, messages))):
            there: list[Array | None] = [None] * len(messages)
            packed: list[tuple[Message, Array]] = []
            for other, of in enumerate(messages):
                if number >= len(of):
                    continue
                message = of[number]
                if len(message) == 1:
                    there[other] = flats[message[0].position][message[0].start : message[0].stop]
                    continue
                room = sums.rooms.room("gathered", turn, other, dtype, size_of(message))
                there[other] = room
                if other != rank:
                    packed.append((message, room))
                    continue
                with arrays.on_device_of(room):
                    for part, first, last in _places(message):
                        room[first:last] = flats[part.position][part.start : part.stop]
            mine, there[rank] = there[rank], None
            outgoing = [None if other == rank else mine for other in range(len(there))]
            under_way.append((sums.ranks.exchange(outgoing, there), packed))
            turn += 1
            if len(under_way) > UNDER_WAY:
                _unpack(*under_way.pop(0), flats)
    for one in under_way:
        _unpack(*one, flats)


def _unpack(
    pending: Pending, packed: Sequence[tuple[Message, Array]], flats: Sequence[Array]
) -> None:
    """Wait for messages, and put what came packed where it belongs."""
    pending.wait()
    for message, room in packed:
        with arrays.on_device_of(room):
            for part, first, last in _places(message):
                flats[part.position][part.start : part.stop] = room[first:last]


def broadcast(ranks: Ranks, flat: Array) -> None:
    """Give a flat array on all ranks the values of rank 0's."""
    step = LARGE // flat.dtype.itemsize
    for first in range(0, flat.size, step):
        piece = flat[first : first + step]
        nothing: list[Array | None] = [None] * ranks.size
        if ranks.rank == 0:
            outgoing: Sequence[Array | None] = [None, *[piece] * (ranks.size - 1)]
            ranks.exchange(outgoing, nothing).wait()
        else:
            ranks.exchange(nothing, [piece, *nothing[1:]]).wait()
