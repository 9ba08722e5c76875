"""Processes, threads and compiled code: no crash, no deadlock, no wrong bits (RELIABILITY 2F)."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import backends
from fastopt.backends.numba import cache as code_cache
from fastopt.core.buckets import Parameter
from fastopt.core.dtypes import UpdateSpec
from helpers.processes import WORK, python
from helpers.variants import HAS_NUMBA

pytestmark = pytest.mark.xdist_group("apart")
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")


# Threads and processes ---------------------------------------------------------------------------


@needs_numba
@pytest.mark.parametrize("layer", ["default", "workqueue", "omp"])
def test_j1_many_threads_step_many_optimizers_at_once(cache_folder: Path, layer: str) -> None:
    code = """
expected = work()
results = []
crowd = [threading.Thread(target=lambda: results.append(work(20))) for _ in range(4)]
for thread in crowd: thread.start()
for thread in crowd: thread.join()
assert results == [work(20)] * 4
print("survived")
"""
    assert python(code, cache_folder, NUMBA_THREADING_LAYER=layer) == "survived\n"


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_j2_a_child_of_a_fork_survives_its_first_step(cache_folder: Path, layer: str) -> None:
    code = """
expected = work()
child = os.fork()
if child == 0:
    os._exit(0 if work() == expected else 3)
assert os.waitpid(child, 0)[1] == 0
assert work() == expected
print("survived")
"""
    assert python(code, cache_folder, NUMBA_THREADING_LAYER=layer) == "survived\n"


@needs_numba
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_j2_multiprocessing_ends_in_the_same_bits(
    cache_folder: Path, method: str, tmp_path: Path
) -> None:
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    (tmp_path / "job.py").write_text(WORK)
    code = f"""
if __name__ == "__main__":
    import multiprocessing
    sys.path.insert(0, {str(tmp_path)!r})
    import job
    expected = job.work()
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        assert pool.map(job.work, [4, 4, 4]) == [expected] * 3
    print("survived")
"""
    assert python(code, cache_folder, PYTHONWARNINGS="default") == "survived\n"


@needs_numba
def test_numba_num_threads_and_set_num_threads_do_not_change_the_bits(cache_folder: Path) -> None:
    told = [
        python("import hashlib; print(hashlib.sha256(work()).hexdigest())", cache_folder, **env)
        for env in ({}, {"NUMBA_NUM_THREADS": "1"}, {"NUMBA_NUM_THREADS": "2"})
    ]
    code = "fastopt.set_num_threads(1)\nimport hashlib; print(hashlib.sha256(work()).hexdigest())"
    assert len({*told, python(code, cache_folder)}) == 1


def test_set_num_threads_limits_what_a_step_uses() -> None:
    try:
        assert backends.available_threads(8) == 8
        fastopt.set_num_threads(3)
        assert (backends.available_threads(8), backends.available_threads(2)) == (3, 2)
        for bad, kind in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
            with pytest.raises(kind, match="whole number"):
                fastopt.set_num_threads(bad)  # type: ignore[arg-type]
        assert backends.available_threads(8) == 3
    finally:
        fastopt.set_num_threads(None)


@needs_numba
def test_other_threads_run_during_a_step() -> None:
    param = np.ones(4_000_000, np.float32)
    opt = fastopt.Adam(param, backend="numba").warmup()
    grad = param * 0.5
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())

    other = threading.Thread(target=tick)
    other.start()
    try:
        spans = []
        for _ in range(50):
            start = time.perf_counter()
            opt.step(grad)
            spans.append((start, time.perf_counter()))
    finally:
        stop.set()
        other.join()
    longest = max(spans, key=lambda span: span[1] - span[0])
    assert sum(longest[0] < moment < longest[1] for moment in ticks) > 10


# What a step costs, by counting -------------------------------------------------------------------


@needs_numba
@pytest.mark.parametrize(
    "options", [{}, {"max_grad_norm": 1.0}, {"on_nonfinite": "skip", "max_grad_norm": 1e9}], ids=str
)
def test_one_compiled_call_serves_all_groups(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    params = [np.ones(n, np.float32) for n in (1, 10, 1000, 3, 70_000)]
    params.append(np.ones(4))  # type: ignore[arg-type]  # of another dtype: a bucket of its own
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.1}]
    opt = fastopt.Adam(groups, backend="numba", **options).warmup()
    grads = [param * 2 for param in params]
    opt.step([grads[:3], grads[3:]])  # the first step sees what is compiled
    calls: list[str] = []
    whole: Any = opt._engine._fused
    parts: list[Any] = [
        reading.compiled
        for kernel in opt._engine.kernels
        for reading in kernel._per_dtype  # type: ignore[attr-defined]
    ]

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (calls.append(name), real(*arguments))[1]

    monkeypatch.setattr(whole, "_step", counted("whole", whole._step))
    for part in parts:
        monkeypatch.setattr(part, "run", counted("part", part.run))
    opt.step([grads[:3], grads[3:]])
    assert calls == ["whole"]
    opt.step([[None, *grads[1:3]], grads[3:]])
    norms = 3 * bool(options)
    assert calls[1:] == ["whole", *["part"] * (3 + norms)]  # it declines, because of the None
    assert opt.step_count == 3


@needs_numba
@needs_numba
@pytest.mark.parametrize("norm", [None, 1.0])
def test_no_gradient_is_copied_and_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, norm: float | None
) -> None:
    params = {"a": np.ones((300, 400), np.float32), "b": np.asfortranarray(np.ones((50, 60)))}
    grads = {name: param * 0.1 for name, param in params.items()}
    opt = fastopt.Adam(params, backend="numba", max_grad_norm=norm).warmup()
    opt.step(grads)

    def refuse(*_: Any) -> None:
        raise AssertionError("a gradient was looked at, and perhaps copied, in Python")

    monkeypatch.setattr(Parameter, "flat_gradient", refuse)
    tracemalloc.start()
    try:
        for _ in range(70):  # the scalars of coming steps are kept, always of as many
            opt.step(grads)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(100):
            opt.step(grads)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2_000
    assert peak - before < 20_000  # the smallest array of this model has 24 000 bytes


# Compiled code on disk ----------------------------------------------------------------------------

HITS = """
from fastopt.backends.numba import backend as numba_backend
seen = []
kept = numba_backend.CodeCache.load_overload
def watch(self, *arguments):
    found = kept(self, *arguments)
    seen.append(found is not None)
    return found
numba_backend.CodeCache.load_overload = watch
result = work()
import hashlib
print(hashlib.sha256(result).hexdigest(), seen.count(True), seen.count(False))
"""


@needs_numba
def test_j10_a_second_process_compiles_nothing(cache_folder: Path) -> None:
    _, hits, misses = python(HITS, cache_folder).split()
    assert int(misses) == 0
    assert int(hits) >= 3


EVERY_OPTIMIZER = """
def work():
    for name in fastopt.optimizers.names("*"):
        params = [np.ones((3, 4), np.float32), np.ones((2, 5), np.float32)]
        opt = fastopt.optimizer(name, params, backend="numba")
        more = {"value": 1.0} if opt._takes_value else {}
        grads = [0.5 * param for param in params]
        more |= {"hessian": [2.0 * grad for grad in grads]} if opt._estimate else {}
        opt.step(grads, **more)
    return b""
"""


@needs_numba
def test_what_any_optimizer_has_compiled_is_found_by_another_process() -> None:
    """By way of the cache that this suite has anyway: another one would take minutes to fill."""
    place = code_cache.folder()
    assert place is not None
    python(EVERY_OPTIMIZER + "work()", place)
    _, hits, misses = python(EVERY_OPTIMIZER + HITS, place).split()
    assert int(hits) > 60
    assert misses == "0"


@needs_numba
def test_j6_a_damaged_cache_is_compiled_anew_to_the_same_bits(
    cache_folder: Path, tmp_path: Path
) -> None:
    expected = python(HITS, cache_folder).split()[0]
    for number, path in enumerate(sorted(cache_folder.glob("*.bin"))):
        content = bytearray(path.read_bytes())
        if number % 3 == 0:
            content[len(content) // 2] ^= 1
        elif number % 3 == 1:
            content = content[: len(content) // 2]
        else:
            content = bytearray()
        (tmp_path / path.name).write_bytes(content)
    digest, hits, misses = python(HITS, tmp_path).split()
    assert (digest, hits) == (expected, "0")
    assert int(misses) >= 3
    assert python(HITS, tmp_path).split()[2] == "0"  # and mended


def test_j6_every_flipped_byte_and_every_shorter_file_is_noticed() -> None:
    content = code_cache._HASH_BYTES * b"\0" + bytes(range(64))
    digest = code_cache.hashlib.sha256(content[code_cache._HASH_BYTES :]).digest()
    good = digest + content[code_cache._HASH_BYTES :]
    assert code_cache._verified(good) == content[code_cache._HASH_BYTES :]
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        for damaged in (bytes(bad), good[:position]):
            with pytest.raises(ValueError, match="damaged"):
                code_cache._verified(damaged)


@needs_numba
def test_j3_a_cache_folder_that_cannot_be_made_costs_no_error(
    cache_folder: Path, tmp_path: Path
) -> None:
    expected = python(HITS, cache_folder).split()[0]
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere"):
        assert python(HITS, place).split()[:2] == [expected, "0"]


@needs_numba
def test_j8_a_full_disk_costs_no_error(cache_folder: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    pytest.importorskip("resource", reason="this system has no file size limits")
    expected = python(HITS, cache_folder).split()[0]
    assert python(limit + HITS, tmp_path).split()[:2] == [expected, "0"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no file owners")
def test_j7_a_folder_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    assert code_cache.folder() == tmp_path
    for mode in (0o770, 0o702, 0o777):
        tmp_path.chmod(mode)
        assert code_cache.folder() is None
    tmp_path.chmod(0o700)


RULE_FILE = """
from dataclasses import replace
import fastopt
from fastopt_kernels import sgd
FACTOR = {factor}
def _numba(param, grad, lr):
    return (param {sign} FACTOR * lr * {body},)
RULE = replace(sgd.RULE, numba=_numba)
class Mine(fastopt.SGD):
    @staticmethod
    def _rule(options):
        return RULE
"""


@needs_numba
def test_j5_an_edited_rule_is_never_served_from_the_cache(tmp_path: Path) -> None:
    code = f"""
sys.dont_write_bytecode = True
sys.path.insert(0, {str(tmp_path)!r})
import rule_file
param = np.ones(3)
opt = rule_file.Mine(param, lr=0.25, backend="numba")
opt.step(np.full(3, 2.0))
print(param[0])
"""
    source = tmp_path / "rule_file.py"
    cases = [(1, "-", "grad", 0.5), (2, "-", "grad", 0.0), (1, "+", "grad", 1.5)]
    cases += [(1, "-", "param", 0.75), (1, "-", "grad", 0.5)]
    for factor, sign, body, expected in cases:
        text = RULE_FILE.format(factor=factor, sign=sign, body=body)
        source.write_text(text)
        os.utime(source, (1_000_000_000, 1_000_000_000))  # as an editor that keeps the time
        assert float(python(code, tmp_path / "cache")) == expected


def test_j5_the_fingerprint_sees_code_constants_globals_helpers_and_closures() -> None:
    def made(text: str, **scope: Any) -> str:
        names: dict[str, Any] = dict(scope)
        exec(text, names)
        return code_cache.fingerprint(names["f"])

    base = "def g(x): return x + 1\ndef f(x): return g(x) * K"
    same = made(base, K=2)
    assert made(base, K=2) == same
    assert made(base, K=3) != same
    assert made(base.replace("+ 1", "+ 2"), K=2) != same
    assert made(base.replace("g(x) *", "g(x) /"), K=2) != same
    closure = "def make(k):\n    def f(x): return x + k\n    return f\nf = make({})"
    assert made(closure.format(1)) == made(closure.format(1))
    assert made(closure.format(1)) != made(closure.format(2))


@needs_numba
def test_j14_the_key_holds_the_processor_and_all_versions() -> None:
    module = importlib.import_module("fastopt.backends.numba.backend")
    rule = fastopt.Adam._rule({"amsgrad": True})
    step = module._CompiledRule(rule, UpdateSpec.of(np.dtype("f4"), True)).run
    told = repr(step._cache._identity)
    numba = importlib.import_module("numba")
    for part in (fastopt.__version__, numba.__version__, np.__version__, sys.version):
        assert repr(part)[1:-1] in told
    for part in step.targetctx.codegen().magic_tuple():
        assert repr(part) in told


@needs_numba
def test_j9_processes_that_start_together_on_an_empty_cache(tmp_path: Path) -> None:
    results: list[str] = []
    crowd = [
        threading.Thread(target=lambda: results.append(python(HITS, tmp_path))) for _ in range(3)
    ]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert len({result.split()[0] for result in results}) == 1
    assert not list(tmp_path.glob("*.tmp"))
    assert python(HITS, tmp_path).split()[2] == "0"


@pytest.fixture(autouse=True)
def _unlimited() -> Iterator[None]:
    yield
    fastopt.set_num_threads(None)
