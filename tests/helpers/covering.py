"""Few points of a product in which all its values meet, so many at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations


def covering(points: Sequence[tuple[Hashable, ...]], together: int) -> set[int]:
    """Return which points suffice so that all values that meet in one of them do, so many at once.

    The greedy choice: always the point with the most that is missing.
    """
    sets = [set(combinations(enumerate(point), together)) for point in points]
    missing = set().union(*sets)
    waiting = [(-len(some), k) for k, some in enumerate(sets)]
    heapify(waiting)
    chosen = set()
    while missing:
        count, k = heappop(waiting)
        now = len(sets[k] & missing)
        if now == -count:
            chosen.add(k)
            missing -= sets[k]
        elif now:
            heappush(waiting, (-now, k))
    return chosen
