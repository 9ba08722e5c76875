"""A rank that has died or hangs is named within the time limit, and nothing stalls or is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.ranks.runs import KINDS
from helpers.ranks.starting import on_ranks, start

pytestmark = [pytest.mark.usefixtures("_mpi"), pytest.mark.xdist_group("apart")]

LIMIT = 3.0  # seconds that ranks wait for each other


MOMENTS = [
    ("DataParallel", "exchange"),
    ("DataParallel", "backward"),
    ("Sharded", "agreement"),
    ("Sharded", "save"),
]
MORE = [
    (kind, moment)
    for kind in KINDS
    for moment in ("add", "exchange", "agreement", "backward", "save")
]


@pytest.mark.parametrize(
    ("kind", "moment"),
    [pytest.param(*one, marks=() if one in MOMENTS else pytest.mark.exhaustive) for one in MORE],
)
def test_the_others_name_a_rank_that_was_killed_and_end(
    kind: str, moment: str, tmp_path: Path
) -> None:
    """The launcher, which would end them all at once, does not come to know of it."""
    arguments = {"kind": kind, "moment": moment, "limit": LIMIT, "folder": str(tmp_path)}
    ended = start(3, "deaths.killed", tmp_path, arguments, outlived=True)
    assert ended.left_over == []
    assert ended.ranks[2] is None, "it was to be killed"
    assert ended.returncode != 0
    for one in ended.ranks[:2]:
        assert one is not None, ended
        assert "result" in one, one
        heard = one["result"]
        assert heard["error"] == "RankError", heard
        assert heard["ranks"] == [2], heard
        assert "rank 2 of 3 said nothing" in heard["message"] or "MPI says" in heard["message"]
        assert not heard["changed"]
        assert heard["again"]["error"] == "RankError"
        assert "ranks were lost before" in heard["again"]["message"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_launcher_ends_all_when_one_is_killed(kind: str, tmp_path: Path) -> None:
    arguments = {"kind": kind, "moment": "exchange", "limit": LIMIT, "folder": str(tmp_path)}
    ended = start(3, "deaths.killed", tmp_path, arguments)
    assert ended.returncode != 0
    assert ended.left_over == []


def test_a_rank_that_is_late_is_waited_for_up_to_the_limit(tmp_path: Path) -> None:
    for rank in on_ranks(2, "deaths.late", tmp_path, kind="Sharded", seconds=1.0, limit=30.0):
        assert rank["error"] is None
        assert rank["changed"]
    arguments = {"kind": "DataParallel", "seconds": 8.0, "limit": 3.0}
    ended = start(2, "deaths.late", tmp_path, arguments)
    heard = ended.ranks[0]["result"]
    assert (heard["error"], heard["ranks"]) == ("RankError", [1])
    assert "rank 1 of 2 said nothing for 3 s" in heard["message"]
    assert not heard["changed"]
    assert ended.left_over == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_does_not_come_to_the_construction_is_named(kind: str, tmp_path: Path) -> None:
    arguments = {"kind": kind, "seconds": 8.0, "limit": 3.0}
    ended = start(2, "deaths.late_at_the_start", tmp_path, arguments)
    heard = ended.ranks[0]["result"]
    assert heard["ranks"] == [1]
    assert "rank 1 of 2 said nothing for 3 s" in heard["message"]
    assert ended.left_over == []
