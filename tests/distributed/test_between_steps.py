"""What programs do between steps, on several ranks: alike on all, and in the right bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.ranks.starting import on_ranks

pytestmark = [pytest.mark.usefixtures("_mpi"), pytest.mark.xdist_group("apart")]
KINDS = ["DataParallel", "Sharded"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_way = pytest.mark.parametrize("fast", [False, True], ids=["in_order", "fast"])


@each_way
@each_kind
def test_a_block_of_weight_0_counts_for_nothing(kind: str, fast: bool, tmp_path: Path) -> None:
    ranks = on_ranks(2, "between.weightless", tmp_path, kind=kind, fast=fast)
    assert len({one for rank in ranks for one in rank}) == 1


def test_a_loss_of_weight_0_counts_for_nothing(tmp_path: Path) -> None:
    ranks = on_ranks(2, "between.worthless", tmp_path)
    assert len({one for rank in ranks for one in rank}) == 1


@each_way
@each_kind
def test_other_arrays_go_on_in_the_same_bits(kind: str, fast: bool, tmp_path: Path) -> None:
    ranks = on_ranks(2, "between.rebound", tmp_path, kind=kind, fast=fast)
    assert len({one for rank in ranks for one in rank}) == 1


def test_other_rows_are_followed_by_ranks_without_a_micro_batch(tmp_path: Path) -> None:
    ranks = on_ranks(3, "between.resized", tmp_path)
    assert len({same for same, _ in ranks}) == 1
    for _, error in ranks:
        assert error.startswith("RankError: ranks differ in parameters")


@each_kind
def test_what_all_do_together_is_refused_within_something_else(kind: str, tmp_path: Path) -> None:
    ranks = on_ranks(2, "between.within", tmp_path, kind=kind, folder=str(tmp_path))
    for found in ranks:
        assert found.pop("saved") == "True"
        assert found.pop("after") == ""
        for call, error in found.items():
            assert error.startswith(f"RuntimeError: {kind}: {call} in the middle of backward"), call


@each_kind
def test_averages_can_be_a_hook(kind: str, tmp_path: Path) -> None:
    ranks = on_ranks(2, "between.averaged", tmp_path, kind=kind)
    assert len({one for rank in ranks for one in rank}) == 1


def test_shares_are_not_watched(tmp_path: Path) -> None:
    for rank in on_ranks(2, "between.watched", tmp_path):
        assert rank.startswith("TypeError: watch: a rank of Sharded has parts")


@each_kind
def test_a_load_that_fails_on_one_rank_changes_nothing_on_any(kind: str, tmp_path: Path) -> None:
    ranks = on_ranks(2, "between.loaded", tmp_path, kind=kind, folder=str(tmp_path))
    assert [one["error"] for one in ranks] == ["RankError", "CheckpointError"]
    assert ranks[0]["ranks"] == [1]
    assert not any(one["changed"] for one in ranks)


@each_kind
def test_what_was_half_added_is_dropped(kind: str, tmp_path: Path) -> None:
    [[found, expected, count]] = on_ranks(1, "between.interrupted", tmp_path, kind=kind)
    assert found == expected
    assert count == "0"
