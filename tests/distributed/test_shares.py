"""Who has what: every number has one owner, cuts lie between tiles, and loads are even."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.core.norms import TILE
from fastopt.distributed import shares
from fastopt.distributed.shares import Described, Part, sections_of
from fastopt.distributed.sums import _messages, _within

described = st.builds(
    lambda size, dtype, whole: Described(size, size * np.dtype(dtype).itemsize, dtype, whole),
    st.one_of(st.integers(0, 3), st.integers(0, 40 * TILE)),
    st.sampled_from(["float32", "float64", "float16"]),
    st.booleans(),
)


@settings(max_examples=200)
@given(st.lists(described, min_size=1, max_size=12), st.integers(1, 9), st.integers(1, 1 << 20))
def test_every_number_has_one_owner_and_cuts_lie_between_tiles(
    given_: list[Described], ranks: int, section: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "SECTION", section)
        sections = sections_of(given_, ranks)
    positions = [position for one in sections for position in one.positions]
    assert positions == [*reversed(range(len(given_)))]
    owners: dict[int, list[Part]] = {}
    for one in sections:
        assert len({given_[position].dtype for position in one.positions}) == 1
        assert one.sizes() == [sum(part.size for part in parts) for parts in one.parts]
        before = [given_[position].nbytes for position in one.positions[:-1]]
        assert sum(before) < section, "the last one was not to be sent with these"
        cut = [given_[p] for p in one.positions if not given_[p].whole]
        tiles = sum(-(-each.size // TILE) for each in cut)
        for parts in one.parts:
            mine = [part for part in parts if not given_[part.position].whole]
            own = sum(-(-part.size // TILE) for part in mine)
            assert tiles // ranks <= own <= -(-tiles // ranks)
            assert len({part.position for part in parts}) == len(parts)
            for part in parts:
                owners.setdefault(part.position, []).append(part)
    for position, each in enumerate(given_):
        parts = sorted(owners.get(position, []), key=lambda part: part.start)
        if each.whole:
            assert parts == [Part(position, 0, each.size)]
            continue
        bounds = [0, *(part.stop for part in parts)]
        assert [part.start for part in parts] == bounds[:-1]
        assert bounds[-1] == each.size
        assert all(part.start % TILE == 0 and part.size > 0 for part in parts)


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=40), st.integers(1, 6))
def test_whole_arrays_go_to_the_rank_that_has_least(sizes: list[int], ranks: int) -> None:
    given_ = [Described(size, 4 * size, "float32", True) for size in sizes]
    load = [0] * ranks
    for section in sections_of(given_, ranks):
        for rank, parts in enumerate(section.parts):
            load[rank] += sum(part.size for part in parts)
    assert sum(load) == sum(sizes)
    assert max(load) - min(load) <= max(sizes)


@given(st.lists(st.integers(1, 50), max_size=6), st.integers(1, 40))
def test_chunks_reach_each_number_of_a_share_once(sizes: list[int], step: int) -> None:
    parts = [Part(position, 7, 7 + size) for position, size in enumerate(sizes)]
    share = np.concatenate([np.zeros(0), *(np.full(n, k) for k, n in enumerate(sizes))])
    seen = [np.zeros(size, int) for size in sizes]
    for first in range(0, sum(sizes), step):
        chunk = share[first : first + step]
        for part, at, start, stop in _within(parts, first, first + step):
            seen[part.position][start:stop] += 1
            assert (chunk[at : at + stop - start] == part.position).all()
    assert all((one == 1).all() for one in seen)


def test_no_message_is_longer_than_mpi_counts_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastopt.distributed.sums.LONGEST", 64)
    share = np.zeros(50, np.float32)
    bounds = [*_messages([None, share, share[:10]])]
    assert [first for first, _ in bounds] == [0, 16, 32, 48]
    assert all((last - first) * 4 <= 64 for first, last in bounds)
    assert [*_messages([None, None])] == []
