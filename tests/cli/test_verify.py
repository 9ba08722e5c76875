"""``fastopt verify``: which rules it knows, what it is held to, and the faults that it finds."""

from __future__ import annotations

import dataclasses
import functools
import json
import pkgutil
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
import fastopt_kernels
from fastopt import backends
from fastopt.cli import main as cli
from fastopt.cli import verify
from fastopt.cli.rules import cases, roundings
from fastopt.core.options import FRAGMENTS
from fastopt_kernels import adam, lamb, muon, prodigy
from golden import make_recorded
from helpers.variants import HAS_NUMBA, OF_MATRICES, VARIANTS, script

CASES = cases()
NO_VECTOR = {
    "NorMuon(adjust_lr='match_rms_adamw', update_scale='match_rms')",
    "Shampoo(power=0.5)",
    "Shampoo(power=0.5, grafting='sgd')",
}
"""Numbers and words put together of which each has a recorded run of its own."""

needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")


@pytest.fixture(autouse=True)
def without_a_device(request: pytest.FixtureRequest, monkeypatch: Any) -> None:
    """Leave CuPy out, which is emulated here, but where a test asks for it."""
    if "cupy" not in request.fixturenames:
        found = backends.available_backends()
        monkeypatch.setattr(backends, "available_backends", lambda: {**found, "cupy": "not here"})


# What there is to check --------------------------------------------------------------------------


def test_every_rule_of_the_kernels_is_found_without_a_list() -> None:
    modules = {module.name for module in pkgutil.iter_modules(fastopt_kernels.__path__)}
    assert {case.rule.name for case in CASES} == modules - {"rule", "around"}
    assert {case.optimizer.__name__ for case in CASES} == {*fastopt.optimizers.names()}
    assert len({str(case) for case in CASES}) == len(CASES)


def test_every_variant_of_the_tests_uses_one_of_these_rules() -> None:
    found = {(case.optimizer, case.rule.name) for case in CASES}
    assert {(v.optimizer, v.rule.name) for v in (*VARIANTS, *OF_MATRICES)} <= found
    around = {name for case in CASES for name, _ in case.given}
    assert {name for v in VARIANTS for name in v.options if name in FRAGMENTS} <= around


def test_the_table_is_made_of_the_recorded_vectors_and_has_a_run_of_every_rule() -> None:
    text = make_recorded.PATH.read_text("utf-8")
    assert text == make_recorded.made(), "run PYTHONPATH=tests python -m golden.make_recorded"
    assert {str(case) for case in CASES} - json.loads(text)["runs"].keys() == NO_VECTOR


# What it says of a right package -----------------------------------------------------------------

SOME = ["Adam", "LAMB", "MoMo", "Prodigy", "Sophia", "Muon", "Shampoo"]
"""With sums, with memory, with a loss, with estimates, of matrices, with decompositions."""


def test_nothing_is_wrong_with_the_right_rules() -> None:
    report = verify.verify(SOME, ["float32"])
    assert report.failed == []
    assert {row.backend for row in report.rows} == {*report.backends}
    assert {row.name for row in report.rows} == {str(case) for case in cases(SOME)}
    assert {row.check for row in report.rows} == {"error", "recorded"}


@pytest.mark.exhaustive
def test_nothing_is_wrong_with_all_rules_in_all_formats() -> None:
    report = verify.verify(formats=verify.FORMATS)
    assert report.failed == []
    # More than that, and a result without any right digit could pass.
    for row in report.rows:
        assert row.check == "recorded" or row.allowed is None or row.allowed < 2**16, row


def test_what_is_allowed_counts_what_a_rule_does() -> None:
    by = {str(case): case for case in CASES}
    count = {name: roundings(by[name], {}, 4) for name in ("SGD", "Adam", "Muon")}
    # p - lr * g; the scalar; the gradient's scale and decay.
    assert count["SGD"] == 2 + 1 + 3
    assert count["SGD"] < count["Adam"] < count["Muon"]
    capped = roundings(by["AdamW(clip_value=0.5)"], {"clip_value": 0.5}, 4)
    assert capped > roundings(by["AdamW"], {}, 4)


def test_on_a_device(cupy: Any) -> None:
    report = verify.verify(["Adam", "LAMB", "Muon"], ["float32"])
    assert "cupy" in report.backends
    assert report.failed == []
    same = {row.same_bits for row in report.rows if row.backend == "cupy" and row.rule != "muon"}
    assert same == {True}


@pytest.mark.exhaustive
def test_all_rules_on_a_device(cupy: Any) -> None:
    report = verify.verify(formats=["float32"])
    assert report.failed == []


# Faults ------------------------------------------------------------------------------------------


def scaled_numpy(right: Callable[..., Any], by: float = 1 + 2e-5) -> Callable[..., Any]:
    """Return the NumPy form of a rule with sums or without, whose parameter ends a little off."""

    @functools.wraps(right)  # with its signature, which rules look at
    def wrong(param: Any, *others: Any) -> None:
        right(param, *others)
        param *= by

    return wrong


def eps_inside(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    step_size: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    return param - step_size * (m / sqrt(v + eps)), m, v


def another_order(
    param: Any,
    grad: Any,
    square: Any,
    m: Any,
    v: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    step_size: Any,
) -> tuple[Any, Any, Any]:
    m = m + one_minus_beta1 * (grad - m)
    v = v + one_minus_beta2 * (square - v)
    return param - (step_size * m) / (sqrt(v) + eps), m, v


def failing(names: list[str], formats: tuple[str, ...] = ("float32",)) -> set[tuple[str, ...]]:
    """Return which checks of which rules failed on which backends."""
    report = verify.verify(names, formats)
    return {(row.name, row.check, row.backend) for row in report.failed}


def test_a_fault_of_numpys_is_found_by_what_is_recorded(monkeypatch: Any) -> None:
    wrong = dataclasses.replace(adam.RULE, numpy=scaled_numpy(adam.RULE.numpy))
    monkeypatch.setattr(adam, "RULE", wrong)
    found = failing(["Adam", "SGD"])
    assert ("Adam", "recorded", "numpy") in found
    assert {name for name, *_ in found} == {"Adam"}
    # The reference has the fault too, so it is the backend without it that seems to be off.
    assert not HAS_NUMBA or ("Adam", "error", "numba") in found


def test_a_broken_numpy_is_found(monkeypatch: Any) -> None:
    right = np.sqrt
    monkeypatch.setattr(np, "sqrt", lambda *given, **named: right(*given, **named) * (1 + 1e-9))
    assert ("Adagrad", "recorded", "numpy") in failing(["Adagrad"])


def test_a_fault_that_half_precision_hides_is_found_in_its_masters(monkeypatch: Any) -> None:
    report = verify.verify(["Adam"], ["bfloat16"])
    assert report.failed == []
    right = verify._ends

    def wrong(opt: fastopt.Optimizer) -> dict[str, Any]:
        found = right(opt)
        return {k: x * np.float32(1 + 2e-5) if "master" in k else x for k, x in found.items()}

    monkeypatch.setattr(verify, "_ends", wrong)
    report = verify.verify(["Adam"], ["bfloat16"])
    assert {row.where.split("[")[0] for row in report.failed} <= {
        f"master of {name}" for name in ("scalar", "vector", "matrix", "large")
    }
    assert {row.backend for row in report.failed} == {*report.backends}


@needs_numba
def test_a_fault_of_numbas_is_found_there_alone(monkeypatch: Any) -> None:
    monkeypatch.setattr(adam, "RULE", dataclasses.replace(adam.RULE, numba=eps_inside))
    assert failing(["Adam", "SGD"]) == {("Adam", "error", "numba")}


@needs_numba
def test_what_rounds_otherwise_has_other_bits_and_is_no_further_off(monkeypatch: Any) -> None:
    monkeypatch.setattr(adam, "RULE", dataclasses.replace(adam.RULE, numba=another_order))
    report = verify.verify(["Adam"], ["float32", "float64"])
    problems = {row.problem for row in report.failed}
    assert problems == {"has other bits than numpy"}
    assert {row.format for row in report.failed} == {"float32", "float64"}


def test_faults_of_sums_memory_matrices_and_fragments_are_found(monkeypatch: Any) -> None:
    sums = lamb.RULE.sums
    assert sums is not None
    once = sums.numpy

    @functools.wraps(once)
    def summed(*given: Any) -> tuple[Any, ...]:
        first, second = once(*given)
        return first, second * (1 + 2e-5)

    changed = dataclasses.replace(sums, numpy=summed)
    monkeypatch.setattr(lamb, "RULE", dataclasses.replace(lamb.RULE, sums=changed))
    memory = prodigy.RULE.memory
    assert memory is not None
    host = memory.host

    def remembered(scalars: Any, memory: Any, sums: Any) -> Any:
        kept, made = host(scalars, memory, sums)
        return {**kept, "d": kept["d"] * (1 + 1e-9)}, made

    other = dataclasses.replace(memory, host=remembered)
    monkeypatch.setattr(prodigy, "RULE", dataclasses.replace(prodigy.RULE, memory=other))
    right = muon.orthogonalized
    monkeypatch.setattr(muon, "orthogonalized", lambda *given: right(*given) * (1 + 1e-9))
    found = failing(["LAMB", "Prodigy", "Muon"])
    assert {name for name, check, _ in found if check == "recorded"} >= {"LAMB", "Prodigy", "Muon"}


def test_what_raises_is_a_failure_that_says_so(monkeypatch: Any, capsys: Any) -> None:
    def compute(*given: Any, **named: Any) -> Any:
        raise FloatingPointError("planted")

    monkeypatch.setattr(muon, "orthogonalized", compute)
    assert cli.main(["verify", "--quick", "--optimizer", "muon"]) == 1
    told = capsys.readouterr()
    assert "Muon, float64 on numpy: raised FloatingPointError: planted" in told.out
    assert "Traceback" not in told.out + told.err


def test_exponents_of_other_sizes_do_not_hide_what_is_not_finite() -> None:
    exact = {"a": np.ones(3)}
    reference = verify.Reference(verify.End(exact), exact, exact)
    for wrong in (np.nan, np.inf):
        end = verify.End({"a": np.array([1.0, wrong, 1.0], np.float32)})
        found = verify._distance(end, reference, 10, np.dtype(np.float32))
        assert found.error == np.inf
        assert found.where == "a[1]"


# The command -------------------------------------------------------------------------------------


def test_a_failure_exits_with_1_and_says_what_failed_and_what_to_do(
    monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    wrong = dataclasses.replace(adam.RULE, numpy=scaled_numpy(adam.RULE.numpy))
    monkeypatch.setattr(adam, "RULE", wrong)
    path = tmp_path / "found.json"
    given = ["verify", "--quick", "--optimizer", "Adam", "--json", str(path)]
    assert cli.main(given) == 1
    told = capsys.readouterr()
    assert "Adam, float64 on numpy: is not what other libraries computed" in told.out
    assert "fastopt info" in told.out
    assert "1 of 3: Adam" in told.err
    found = json.loads(path.read_text("utf-8"))
    assert found["failed"] >= 1
    assert found["machine"]["versions"]["fastopt"] == fastopt.__version__


def test_success_exits_with_0_and_prints_a_line_for_each_rule(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    given = ["--optimizer", "SGD", "--optimizer", "lio?", "--json", str(path)]
    assert cli.main(["verify", "--quick", *given]) == 0
    told = capsys.readouterr()
    rows = json.loads(path.read_text("utf-8"))["rows"]
    names = {str(case) for case in cases(["SGD", "Lion"])}
    assert {row["name"] for row in rows} == names
    for name in names:
        assert sum(line.startswith(f"{name} ") for line in told.out.splitlines()) == 2
    assert all(row["error"] <= row["allowed"] for row in rows)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--optimizer", "Adm"], "did you mean 'Adam'"),
        (["--optimizer", "zzz*"], "names() lists all"),
        (["--format", "float8"], "float16"),
        (["--json", "missing/found.json"], "missing/found.json cannot be written"),
    ],
)
def test_a_wrong_command_line_exits_with_2(given: list[str], said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *given])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_file_that_cannot_be_written_after_all_exits_with_2(
    monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    given = ["--quick", "--optimizer", "Signum", "--json", str(tmp_path / "found.json")]
    assert cli.main(["verify", *given]) == 2
    told = capsys.readouterr()
    assert "found.json cannot be written: No space left on device" in told.err
    assert "All is as it should be." in told.out


@pytest.mark.parametrize("asked", ["cupy", "nonsense"])
def test_which_backend_is_asked_for_elsewhere_makes_no_difference(
    asked: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", asked)
    assert cli.main(["verify", "--quick", "--optimizer", "Signum"]) == 0


def test_a_backend_that_cannot_run_is_named_with_the_reason(monkeypatch: Any, capsys: Any) -> None:
    reasons = {"numpy": None, "numba": "no module", "cupy": "no  driver"}
    monkeypatch.setattr(backends, "available_backends", lambda: reasons)
    monkeypatch.setattr(verify, "find_spec", lambda name: None if name == "numba" else name)
    assert cli.main(["verify", "--quick", "--optimizer", "SGD"]) == 0
    told = capsys.readouterr().out
    assert "Left out: numba: not installed" in told
    assert "Left out: cupy: no driver" in told


@needs_numba
def test_what_another_process_compiles_is_kept_on_disk(tmp_path: Path) -> None:
    program = "from fastopt.cli import verify; verify.compile_share(['Lion'], ['float32'], 0, 1)"
    done = script(program, FASTOPT_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path for path in tmp_path.iterdir() if path.name.startswith("lion-float32")]


@needs_numba
def test_other_processes_compile_shares_and_end_with_the_block(monkeypatch: Any) -> None:
    begun: list[Any] = []

    class Process:
        def __init__(self, command: list[str], **_: Any) -> None:
            begun.append(json.loads(command[-1]))
            self.ended = False

        def kill(self) -> None:
            self.ended = True

        def wait(self) -> None:
            assert self.ended

    monkeypatch.setattr(verify.subprocess, "Popen", Process)
    monkeypatch.setattr(backends, "most_threads", lambda: 3)
    with verify.compiled_ahead(None, ["float32"]):
        assert begun == [[None, ["float32"], 0, 2], [None, ["float32"], 1, 2]]
    with verify.compiled_ahead(["Adam"], ["float32"]):
        assert len(begun) == 2  # few rules compile sooner than a process begins


def test_rich_prints_the_table_on_a_terminal(capsys: Any) -> None:
    pytest.importorskip("rich", reason="needs rich")
    report = verify.verify(["SGD"], ["float32"])
    verify._show_rich(verify.header_of(report), verify.lines_of(report))
    told = capsys.readouterr().out
    assert "SGD(momentum=0.5, nesterov=True)" in told
    assert "same bits" in told
