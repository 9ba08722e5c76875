"""Gradients that are handed in while the backward pass makes them: the bits and errors of add."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.ranks.backward import FAULTS, without
from helpers.ranks.models import digest
from helpers.ranks.runs import KINDS, RUNS, alone
from helpers.ranks.starting import on_ranks

pytestmark = [pytest.mark.usefixtures("_mpi"), pytest.mark.xdist_group("apart")]
NAMES = ["float32", "float16", "bfloat16", "complex64", "int8", "LAMB", "several_dtypes"]


@pytest.mark.parametrize("threads", ["multiple", "serialized"])
def test_any_order_ends_in_the_bits_of_add(threads: str, tmp_path: Path) -> None:
    in_threads = threads == "multiple"
    wanted = {f"{kind} {name}": digest(alone(RUNS[name])) for name in NAMES for kind in KINDS}
    program, names = "backward.handed_in", NAMES if in_threads else NAMES[:3]
    for rank in on_ranks(3, program, tmp_path, threads=threads, runs=names, in_threads=in_threads):
        assert rank == {key: wanted[key] for key in rank}
        assert len(rank) == 2 * len(names)


def test_gradients_are_sent_in_the_order_of_the_model_or_of_the_pass_before(tmp_path: Path) -> None:
    digests = set()
    for rank in on_ranks(2, "backward.taking_turns", tmp_path, threads="serialized"):
        for one in rank.values():
            digests.add(one["digest"])
            (order, model), (_, turned), (again, learned) = one["passes"]
            for seen, names in ((model, order), (learned, again)):
                for count, sent in enumerate(seen, 1):
                    assert set(sent) <= set(names[:count])
                    assert count - len(sent) <= 2, "all but a section that is not complete"
            assert turned[-2] == [], "the last layer's section, which comes last, is sent first"
    assert len(digests) == 1


RAISED = {
    "raises": ("ZeroDivisionError", "planted"),
    "other_name": ("KeyError", "did you mean 'wide'"),
    "twice": ("ValueError", "handed in before"),
    "other_shape": ("ValueError", "wide"),
    "rows": ("TypeError", "whole array"),
    "steps": ("RankError", "do the same"),
    "negative_weight": ("ValueError", "weight"),
}


@pytest.mark.parametrize("threads", ["multiple", "serialized"])
def test_an_error_in_the_block_on_one_rank_is_one_on_all(threads: str, tmp_path: Path) -> None:
    assert RAISED.keys() == FAULTS.keys()
    ranks = on_ranks(3, "backward.faults", tmp_path, threads=threads, guilty=2)
    for kind in KINDS:
        for name, (error, said) in RAISED.items():
            for rank, seen in enumerate(ranks):
                one = seen[f"{kind} {name}"]
                assert one["error"] == (error if rank == 2 else "RankError"), (kind, name, one)
                assert said in one["message"], (kind, name, one)
                assert (one["changed"], one["count"]) == (False, 0)
                assert rank == 2 or one["ranks"] == [2]
        for seen in ranks:
            assert seen[f"{kind} afterwards"]["error"] == "RuntimeError"
            assert seen[f"{kind} digest"] == without(3)
