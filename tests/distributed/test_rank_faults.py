"""What fails on one rank fails on all: it is named, nothing has changed, and training goes on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.ranks.faults import FAULTS, around_alone, nonfinite_alone, slow_weights_alone, without
from helpers.ranks.models import digest
from helpers.ranks.runs import KINDS
from helpers.ranks.starting import on_ranks

pytestmark = [pytest.mark.usefixtures("_mpi"), pytest.mark.xdist_group("apart")]

RAISED = {
    "wrong_tree": ("ValueError", ""),
    "other_shape": ("ValueError", "matrix"),
    "other_kind": ("TypeError", "matrix"),
    "rows": ("TypeError", "RowGrad"),
    "negative_weight": ("ValueError", "weight"),
    "value_that_is_not_taken": ("TypeError", "value"),
    "read_only": ("ValueError", "read-only"),
    "other_lr": ("RankError", "ranks differ in lr"),
    "other_norm": ("RankError", "ranks differ in what multiplies the gradients"),
    "no_norm": ("RankError", ""),
    "other_decay": ("RankError", "ranks differ in hyperparameters"),
    "frozen": ("RankError", ""),
    "hook": ("ZeroDivisionError", ""),
    "schedule": ("ZeroDivisionError", ""),
    "no_memory": ("MemoryError", "planted"),
    "interrupt": ("KeyboardInterrupt", "planted"),
    "resets": ("RankError", "do the same"),
    "saves": ("RankError", "do the same"),
    "loads": ("FileNotFoundError", "not-there"),
    "begins_backward": ("RankError", "do the same"),
}
"""What the guilty rank raises, and what is said of it."""


def test_a_fault_on_one_rank_changes_nothing_on_any(tmp_path: Path) -> None:
    assert RAISED.keys() == FAULTS.keys()
    guilty = 1
    ranks = on_ranks(3, "faults.one_by_one", tmp_path, guilty=guilty)
    wrong = []
    wanted = digest(without(3))
    for kind in KINDS:
        for name, (error, said) in RAISED.items():
            for rank, seen in enumerate(ranks):
                one = seen[f"{kind} {name}"]
                kinds = (error,) if rank == guilty else ("RankError",)
                ok = one["error"] in kinds and not one["changed"] and one["count"] == 0
                if rank == guilty or error != "RankError":
                    ok = ok and said in one["message"]
                if rank != guilty:  # it is named
                    ok = ok and one["ranks"] == [guilty] and f"rank {guilty}" in one["message"]
                if not ok:
                    wrong.append((kind, name, rank, one))
        assert [rank[f"{kind} digest"] for rank in ranks] == [wanted] * 3, kind
    assert wrong == []


def test_what_differs_between_ranks_is_said_when_they_are_put_together(tmp_path: Path) -> None:
    ranks = on_ranks(3, "faults.constructed", tmp_path, guilty=2)
    wanted = {
        "shape": r"parameter 7: rank 0 has 'wide float32 \(300, 50\)', and rank 2",
        "dtype": "parameter 7: rank 0 has 'wide float32 .*, and rank 2 'wide float64",
        "name": r"parameter \d: rank 0 has 'matrix float32 .*, and rank 2 'mat float32",
        "count": "number of parameters: rank 0 has 8, and rank 2 7",
        "optimizer": "optimizers: rank 0 has 'Adam', and rank 2 'AdamW'",
        "setting": r"betas of group 0: rank 0 has .*0\.9, .*, and rank 2 .*0\.8",
        "lr": "lr of group 0: rank 0 has '0.1', and rank 2 '0.5'",
        "norm": "max_grad_norm: rank 0 has 1.0, and rank 2 0.5",
        "policy": "on_nonfinite: rank 0 has 'raise', and rank 2 'skip'",
        "state": "step count: rank 0 has 0, and rank 2 1",
        "state of as many steps": "the state: rank 0 has",
        "version": "the version of fastopt: rank 0 has .*, and rank 2 '0.0.1'",
    }
    wrong = []
    for kind in KINDS:
        for rank, seen in enumerate(ranks):
            for name, said in wanted.items():
                error, message = seen[f"{kind} {name}"]
                if error != "RankError" or not re.search(f"^ranks differ in {said}", message):
                    wrong.append((kind, rank, name, error, message))
            assert seen[f"{kind} order"] == ["NoneType", "None"]
            error, message = seen[f"{kind} no optimizer"]
            assert error == ("TypeError" if rank == 2 else "RankError")
            assert "takes an optimizer" in message
    assert wrong == []


@pytest.mark.parametrize("guilty", [0, 2])
def test_nan_on_one_rank_is_met_alike_on_all(guilty: int, tmp_path: Path) -> None:
    policies = ["propagate", "skip", "raise"]
    ranks = on_ranks(3, "faults.nonfinite", tmp_path, guilty=guilty, policies=policies)
    for kind in KINDS:
        for policy in policies:
            wanted, norm, last = nonfinite_alone(policy)
            for seen in ranks:
                one = seen[f"{kind} {policy}"]
                assert (one["digest"], one["norm"], one["last norm"]) == (wanted, norm, last)
                assert one["error"] == ("FloatingPointError" if policy == "raise" else None)
                assert ("matrix" in one["message"]) == (policy == "raise")
                assert one["nan"] == (policy == "propagate")
                assert one["skipped"] == (policy == "skip")


def test_what_stands_around_an_optimizer_stands_around_ranks(tmp_path: Path) -> None:
    wanted = around_alone(3)
    assert [made for made, _, _ in wanted[2]] == [True, True, False, True, True]
    for seen in on_ranks(3, "faults.around", tmp_path):
        for kind in KINDS:
            assert seen[kind] == wanted, kind


def test_slow_weights_are_of_all_parameters_on_every_rank(tmp_path: Path) -> None:
    wanted = dict.fromkeys(KINDS, slow_weights_alone(3))
    assert on_ranks(3, "faults.slow_weights", tmp_path) == [wanted] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_in_the_middle_of_sending_is_the_end(kind: str, tmp_path: Path) -> None:
    ranks = on_ranks(3, "faults.in_the_middle", tmp_path, aborts=True, kind=kind, guilty=1)
    for rank, (first, second) in enumerate(ranks):
        assert not first["changed"]
        assert not second["changed"]
        assert second["error"] == "RankError"
        assert "ranks were lost before" in second["message"]
        if rank == 1:
            assert (first["error"], first["message"]) == ("MemoryError", "planted")
        else:
            assert (first["error"], first["ranks"]) == ("RankError", [1])
