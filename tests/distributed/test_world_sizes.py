"""Any number of ranks ends in the bits of one process: micro-batches are added in their order."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.ranks.models import digest
from helpers.ranks.runs import (
    KINDS,
    NOT_SHARED,
    REFUSED,
    RUNS,
    Run,
    alone,
    every_optimizer,
)
from helpers.ranks.starting import on_ranks
from helpers.variants import HAS_NUMBA

pytestmark = [pytest.mark.usefixtures("_mpi"), pytest.mark.xdist_group("apart")]
SIZES = [1, 2, 3, 4, 6]
HERE = [name for name, run in RUNS.items() if HAS_NUMBA or run.backend != "numba"]


@cache
def expected(run: str) -> str:
    return digest(alone(RUNS[run]))


@pytest.mark.parametrize("size", SIZES)
def test_runs_end_in_the_bits_of_an_accumulator(size: int, tmp_path: Path) -> None:
    wanted = {f"{kind} {name}": expected(name) for name in HERE for kind in KINDS}
    for rank in on_ranks(size, "runs.worlds", tmp_path, runs=HERE, kinds=[*KINDS]):
        assert differing(rank, wanted) == {}


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    assert found.keys() == wanted.keys()
    return {key: (found[key], wanted[key]) for key in wanted if found[key] != wanted[key]}


def check_optimizers(some: dict[str, Run], size: int, folder: Path) -> None:
    for rank in on_ranks(size, "runs.optimizers", folder, some=[*some]):
        for name, run in some.items():
            one, shared = rank[f"DataParallel {name}"], rank[f"Sharded {name}"]
            if name in REFUSED:
                assert "takes estimates of the Hessian" in one
                assert "takes estimates of the Hessian" in shared
                continue
            wanted = digest(alone(run))
            assert one == wanted, name
            if name in NOT_SHARED:
                assert "cannot be shared out" in shared
            else:
                assert shared == wanted, name


def test_every_optimizer_ends_in_the_bits_of_one_process(tmp_path: Path) -> None:
    check_optimizers(every_optimizer(), 3, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", [2, 5])
def test_every_optimizer_on_other_numbers_of_ranks(size: int, tmp_path: Path) -> None:
    check_optimizers(every_optimizer(), size, tmp_path)


def test_sums_by_mpi_are_close_and_the_same_on_all_ranks(tmp_path: Path) -> None:
    names = ["float32", "float64", "LAMB", "eleven_batches", "int8"]
    ranks = on_ranks(3, "runs.fast", tmp_path, runs=names)
    for name in names:
        wanted = np.concatenate([one.ravel() for one in alone(RUNS[name]).values()])
        for kind in KINDS:
            digests = {rank[f"{kind} {name}"][0] for rank in ranks}
            assert len(digests) == 1
            close = ranks[0][f"{kind} {name}"][1]
            tolerance = 1e-12 if wanted.dtype == np.float64 else 2e-5
            np.testing.assert_allclose(close, wanted, rtol=tolerance, atol=tolerance)


def test_a_share_is_a_part_of_the_memory(tmp_path: Path) -> None:
    for whole, own in on_ranks(3, "runs.memory", tmp_path):
        assert whole == 2 * 4 * 600_000
        assert abs(own - whole / 3) <= 2 * 4 * 4096 * 2  # a tile of each array, for two slots
