"""Whether parameters share memory, found out without comparing each with each.

A thousand columns of one matrix reach over one another, so where they begin and end says nothing.
But each is made of runs of bytes at distances that are multiples of a period (the length of a
row), so that the place within the period, address mod period, is the same for all its runs.
Arrays whose places there do not meet, or whose extents do not, are apart. The others are compared
exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.tree import Leaf


@dataclass(frozen=True, slots=True)
class _Span:
    """Where an array lies: runs of bytes between two addresses, a multiple of a period apart."""

    position: int
    low: int
    high: int
    run: int
    period: int  # 0: there is one run

    @classmethod
    def of(cls, position: int, array: Array) -> _Span:
        low, high = arrays.extent(array)
        return cls(position, low, high, *_runs(array))

    def within(self, period: int) -> Iterator[tuple[int, int]]:
        """Yield where the runs begin and end within a period that divides their own."""
        first = self.low % period
        last = first + self.run
        if self.run >= period:
            yield 0, period
        elif last <= period:
            yield first, last
        else:
            yield first, period
            yield 0, last - period


def _runs(array: Array) -> tuple[int, int]:
    """Return how long an array's runs of bytes are, and what divides all distances between them."""
    run, period = array.itemsize, 0
    for stride, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1 and stride == run and period == 0:
            run *= length
        elif length > 1:
            period = gcd(period, stride)
    return run, period


def check_apart(leaves: Sequence[Leaf]) -> None:
    """Raise ValueError if two parameters share memory: each would be updated twice."""
    if found := sharing([leaf.array for leaf in leaves]):
        one, two = (leaves[position] for position in found)
        same = "are the same array" if one.array is two.array else "share memory"
        raise ValueError(
            f"{one.path} and {two.path} {same}, so they would be updated twice; "
            "hand in each parameter once"
        )


def sharing(given: Sequence[Array]) -> tuple[int, int] | None:
    """Return the positions of two arrays that share memory; None if no two do."""
    by_device: dict[int | None, list[_Span]] = {}
    for position, array in enumerate(given):
        if array.size:
            span = _Span.of(position, array)
            by_device.setdefault(arrays.device(array), []).append(span)
    for spans in by_device.values():
        for cluster in _clusters(spans):
            for one, two in _candidates(cluster):
                if arrays.share_memory(given[one.position], given[two.position]):
                    return one.position, two.position
    return None


def _clusters(spans: Iterable[_Span]) -> Iterator[list[_Span]]:
    """Yield the spans that reach over one another, directly or through others."""
    cluster: list[_Span] = []
    reach = 0
    for span in sorted(spans, key=lambda span: span.low):
        if cluster and span.low >= reach:
            yield cluster
            cluster = []
        cluster.append(span)
        reach = max(reach, span.high)
    yield cluster


def _candidates(cluster: Sequence[_Span]) -> Iterator[tuple[_Span, _Span]]:
    """Yield the pairs that meet both within the common period and in their extents."""
    period = reduce(gcd, (span.period for span in cluster)) or 1
    pieces = sorted(
        ((*piece, span) for span in cluster for piece in span.within(period)),
        key=lambda piece: piece[0],
    )
    reaching: list[tuple[int, _Span]] = []
    for first, last, span in pieces:
        reaching = [(end, other) for end, other in reaching if end > first]
        for _, other in reaching:
            if other.low < span.high and span.low < other.high:
                yield other, span
        reaching.append((last, span))
