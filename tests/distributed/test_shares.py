"""Who has what: every number has one owner, cuts lie between tiles, and loads are even."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastopt.core.norms import TILE
from fastopt.distributed import shares
from fastopt.distributed.shares import Described, Part, messages_of, sections_of, size_of
from fastopt.distributed.sums import LARGE, _places

described = st.builds(
    lambda size, dtype, whole: Described(size, size * np.dtype(dtype).itemsize, dtype, whole),
    st.one_of(st.integers(0, 3), st.integers(0, 40 * TILE)),
    st.sampled_from(["float32", "float64", "float16"]),
    st.booleans(),
)


@settings(max_examples=200)
@given(
    st.lists(described, min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 1 << 20),
    st.randoms(use_true_random=False),
)
def test_every_number_has_one_owner_and_cuts_lie_between_tiles(
    given_: list[Described], ranks: int, section: int, chance: random.Random
) -> None:
    forward = [*range(len(given_))]
    chance.shuffle(forward)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "SECTION", section)
        patch.setattr(shares, "SHARE", 1)
        sections = sections_of(given_, ranks, forward)
    positions = [position for one in sections for position in one.positions]
    assert positions == [*reversed(forward)]
    owners: dict[int, list[Part]] = {}
    for one in sections:
        assert len({given_[position].dtype for position in one.positions}) == 1
        before = [given_[position].nbytes for position in one.positions[:-1]]
        assert sum(before) < max(section, ranks), "the last one was not to be sent with these"
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
    for section in sections_of(given_, ranks, range(len(given_))):
        for rank, parts in enumerate(section.parts):
            load[rank] += sum(part.size for part in parts)
    assert sum(load) == sum(sizes)
    assert max(load) - min(load) <= max(sizes)


@given(st.lists(st.integers(1, 60), max_size=8), st.sampled_from([2, 4, 8]), st.integers(64, 400))
def test_messages_have_every_number_once_and_none_is_too_long(
    sizes: list[int], itemsize: int, longest: int
) -> None:
    parts = [Part(position, 7, 7 + size) for position, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "DIRECT", 64)
        messages = messages_of(parts, itemsize, longest)
    seen = [np.zeros(size, int) for size in sizes]
    for message in messages:
        assert message
        assert size_of(message) * itemsize <= longest
        for part in message:
            seen[part.position][part.start - 7 : part.stop - 7] += 1
            assert len(message) == 1 or part.size * itemsize < 64  # small ones alone are packed
        at = 0
        for part, first, last in _places(message):
            assert (first, last - first) == (at, part.size)
            at = last
    assert all((one == 1).all() for one in seen)


def test_no_message_is_longer_than_mpi_counts_to() -> None:
    whole = [Part(0, 0, 3 << 30)]
    messages = messages_of(whole, 8, LARGE)
    assert all(size_of(message) * 8 <= LARGE < 1 << 31 for message in messages)
    assert sum(map(size_of, messages)) == 3 << 30
