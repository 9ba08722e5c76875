"""A checkpoint of many ranks is that of one process: its bytes, its errors, its guarantees."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import fastopt
from helpers.ranks.checkpoints import NOTES, SIZE, saved_alone
from helpers.ranks.runs import KINDS
from helpers.ranks.starting import on_ranks, start

pytestmark = [pytest.mark.usefixtures("_mpi"), pytest.mark.xdist_group("apart")]
RUNS = [
    *("float32", "bfloat16", "complex64", "int8", "several_dtypes", "LAMB", "Muon"),
    *("Adafactor", "Prodigy", "group_list", "group_pattern", "NovoGrad"),
]


@cache
def expected(folder: Path) -> dict[str, str]:
    return {name: saved_alone(folder, name) for name in RUNS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_bytes_are_those_of_one_process_whose_file_goes_on_in_its_bits(
    size: int, folder: Path
) -> None:
    """So a file of any number of ranks is loaded on any other."""
    wanted = expected(folder)
    for rank in on_ranks(
        size, "checkpoints.there_and_back", folder, folder=str(folder), names=RUNS
    ):
        for name in RUNS:
            for kind in KINDS:
                assert rank[f"{kind} {name}"] == [wanted[name], NOTES], (kind, name)
    for name in RUNS:
        alone = (folder / f"{name}.safetensors").read_bytes()
        for kind in KINDS:
            file = folder / f"{kind}-{name}.safetensors"
            assert file.read_bytes() == alone, (kind, name)
            file.unlink()


RAISED = {
    "full disk": ("OSError", "No space left", [0]),
    "notes that cannot be": ("TypeError", "note:x", [0]),
    "missing on all": ("FileNotFoundError", "none", [0, 1, 2]),
    "missing on one": ("FileNotFoundError", "none", [1]),
    "damaged": ("CheckpointError", "damaged", [0, 1, 2]),
    "other": ("CheckpointError", "SGD", [0, 1, 2]),
    "few": ("CheckpointError", "matrix", [0, 1, 2]),
}


def test_what_fails_on_one_rank_fails_on_all_and_changes_nothing(tmp_path: Path) -> None:
    ranks = on_ranks(3, "checkpoints.faults", tmp_path, folder=str(tmp_path), guilty=1)
    wrong = []
    for kind in KINDS:
        for rank, seen in enumerate(ranks):
            for name, (error, said, where) in RAISED.items():
                one = seen[f"{kind} {name}"]
                ok = one["error"] == (error if rank in where else "RankError")
                ok = ok and said in one["message"] and not one["changed"]
                if not ok:
                    wrong.append((kind, rank, name, one))
            assert seen[f"{kind} kept"]
            assert seen[f"{kind} few, not strict"]["error"] is None
            same, digest = seen[f"{kind} also"]
            assert same
            assert digest == ranks[0]["DataParallel also"][1]
        memory = ["MemoryError" if rank == 1 else "RankError" for rank in range(3)]
        assert [seen["Sharded no memory"] for seen in ranks] == memory
    assert wrong == []


def check_kill(seed: int, folder: Path) -> None:
    arguments = {"folder": str(folder), "victim": seed % 3, "seed": seed}
    ended = start(3, "checkpoints.until_killed", folder, arguments)
    assert ended.returncode != 0
    assert ended.left_over == []
    params = {"p": np.zeros(SIZE, np.float32), "q": np.zeros(1000)}
    number = fastopt.Adam(params).load(folder / "run").notes["number"]
    for one in params.values():
        assert one.min() == one.max() == number
    if (folder / "run.prev").exists():
        before = fastopt.Adam(params).load(folder / "run.prev").notes["number"]
        assert before in (number - 1, number)
        assert params["p"].min() == params["p"].max() == before


@pytest.mark.parametrize("seed", range(5))
def test_kill_9_of_a_rank_leaves_the_old_file_or_the_new_one(seed: int, tmp_path: Path) -> None:
    check_kill(seed, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(5, 25))
def test_kill_9_at_more_moments(seed: int, tmp_path: Path) -> None:
    check_kill(seed, tmp_path)
