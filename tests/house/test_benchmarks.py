"""What the benchmarks do, by counting and structure: no test here depends on how long it takes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.cli import bench, timing
from fastopt.cli import main as cli
from fastopt.cli.timing import QUICK, Effort, Turn, take_turns
from helpers.variants import CPU_BACKENDS, HAS_NUMBA

pytestmark = pytest.mark.xdist_group("benchmarks")  # one worker measures, for all of them

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = [path.stem for path in BENCHMARKS.glob("*.py")]


# fastopt bench ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``fastopt bench --quick --json`` writes."""
    path = tmp_path_factory.mktemp("bench") / "numbers.json"
    assert cli.main(["bench", "--quick", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_bench_times_every_backend_that_can_run_at_every_size(numbers: Any) -> None:
    usable = {name for name, reason in fastopt.available_backends().items() if reason is None}
    assert usable >= set(CPU_BACKENDS)
    assert numbers.keys() == {"machine", "bandwidth", "rows"}
    assert numbers["bandwidth"].keys() == usable
    found = [(row["backend"], row["arrays"], row["elements"]) for row in numbers["rows"]]
    wanted = [(name, *size) for size in bench.QUICK_SIZES for name in usable]
    assert sorted(found) == sorted(wanted)


def test_all_numbers_of_bench_are_finite_and_positive(numbers: Any) -> None:
    rates = list(numbers["bandwidth"].values())
    values = [value for row in numbers["rows"] for key, value in row.items() if key != "backend"]
    assert all(math.isfinite(value) and value > 0 for value in [*rates, *values])


def test_the_numbers_of_a_row_fit_together(numbers: Any) -> None:
    highest = max(numbers["bandwidth"][name] for name in CPU_BACKENDS)
    for row in numbers["rows"]:
        parameters = row["arrays"] * row["elements"]
        assert row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert row["steps"] >= QUICK.least
        assert row["nanoseconds_per_parameter"] == pytest.approx(row["seconds"] * 1e9 / parameters)
        assert row["bytes_per_second"] == pytest.approx(28 * parameters / row["seconds"])
        if row["backend"] in CPU_BACKENDS:
            assert row["of_bandwidth"] == pytest.approx(row["bytes_per_second"] / highest)


def test_the_table_has_a_line_for_every_row(numbers: Any) -> None:
    told = bench.report(numbers).splitlines()
    for row in numbers["rows"]:
        start = [str(row["arrays"]), str(row["elements"]), row["backend"]]
        assert sum(line.split()[:3] == start for line in told) == 1


def test_bench_says_on_which_machine(numbers: Any) -> None:
    found = numbers["machine"]
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["threads"] >= 1
    assert found["versions"]["fastopt"] == fastopt.__version__
    assert ("numba" in found["versions"]) is HAS_NUMBA


def test_tables_are_aligned() -> None:
    found = bench.aligned(("n", "name", "s"), [("1", "ab", "0.5"), ("10", "c", "12.0")])
    assert found == [" n  name     s", "--  ----  ----", " 1  ab     0.5", "10  c     12.0"]


# The bare traffic -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_the_bare_traffic_touches_all_that_adam_does(backend: str) -> None:
    params = [np.full(5, 2.0, np.float32), np.full((100, 700), 2.0, np.float32)]
    grads = [np.full_like(param, 0.5) for param in params]
    opt = bench.Traffic(params, lr=1.0, backend=backend)
    for _ in range(3):
        opt.step(grads)
    assert all((param == 0.5).all() for param in params)
    for entry in opt.state_dict()["state"].values():
        assert (entry["m"] == 1.5).all()
        assert (entry["v"] == 1.5).all()


def test_the_bare_traffic_is_as_many_arrays_as_adams() -> None:
    adam = fastopt.Adam([np.ones(1)]).state_dict()["state"]["0"]
    bare = bench.Traffic([np.ones(1)]).state_dict()["state"]["0"]
    assert bare.keys() == adam.keys() == {"step", "m", "v"}
    assert 3 + 2 * len(bench.RULE.state) == bench.ADAM_ARRAYS_MOVED


# Taking turns -----------------------------------------------------------------------------------


@pytest.fixture
def ticking(monkeypatch: Any) -> list[float]:
    """Let time pass only where a test says so; ``ticking[0]`` is now."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)
    return now


def passing(now: list[float], seconds: float, log: list[str], name: str) -> Callable[[], None]:
    def run() -> None:
        log.append(name)
        now[0] += seconds

    return run


def test_contenders_take_turns_and_only_steps_are_timed(ticking: list[float]) -> None:
    log: list[str] = []
    turns = {
        name: Turn(passing(ticking, 1.0, log, name), passing(ticking, 7.0, log, f"{name} ready"))
        for name in ("a", "b")
    }
    times = take_turns(turns, Effort(16.0, rounds=1, least=2))
    once = {name: [f"{name} ready", name] for name in turns}
    assert log == 3 * once["a"] + 3 * once["b"]  # the first of the three does not count
    for name in turns:
        found = times[name]
        assert (found.low, found.median, found.high, found.count) == (1.0, 1.0, 1.0, 2)


def test_slow_contenders_get_more_turns_until_they_have_enough_steps(ticking: list[float]) -> None:
    log: list[str] = []
    turns = {"quick": Turn(passing(ticking, 1.0, log, "quick"))}
    turns["slow"] = Turn(passing(ticking, 100.0, log, "slow"))
    times = take_turns(turns, Effort(10.0, rounds=2, least=5))
    assert times["quick"].count == 10
    assert times["slow"].count == 5
    assert log.count("slow") == 10  # one of two in each turn does not count


def test_the_collector_is_off_in_a_turn_and_on_again_after_it() -> None:
    import gc

    seen: list[bool] = []
    assert gc.isenabled()
    take_turns({"a": Turn(lambda: seen.append(gc.isenabled()))}, Effort(0.0, rounds=5))
    assert not any(seen)
    assert gc.isenabled()


# The benchmark against peers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def cpu() -> Iterator[Any]:
    """``benchmarks/cpu.py`` as a module, and what the processes that it starts need.

    Threads that still spin do not matter here: nothing waits for them to go to sleep.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "PAUSE", 0.0)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("cpu")
        for name in MODULES:
            sys.modules.pop(name, None)


BRIEF = Effort(0.0, rounds=2, least=2)


def ours(cpu: Any) -> list[Any]:
    peers = cpu.contenders
    numba = [peers.FastoptNumba, peers.FastoptClipped] if HAS_NUMBA else []
    return [*numba, peers.FastoptNumpy, peers.NumpyLoop]


def test_what_needs_no_peers_takes_part(cpu: Any) -> None:
    ready, absent = cpu.checks.taking_part(ours(cpu))
    assert ready == ours(cpu), absent


def test_a_contender_that_computes_something_else_is_left_out(cpu: Any) -> None:
    class Lazy(cpu.contenders.NumpyLoop):
        name = "lazy"
        calls = 0

        def step(self) -> None:
            self.calls += 1
            if self.calls != 2:
                super().step()

    class Wrong(cpu.contenders.FastoptNumpy):
        name = "wrong"
        options = {"betas": (0.9, 0.99)}

    class Missing(cpu.contenders.NumpyLoop):
        name = "missing"
        needs = ("a_library_that_nobody_has",)

    ready, absent = cpu.checks.taking_part([Lazy, Wrong, Missing])
    assert ready == []
    assert "not Adam" in absent["lazy"]
    assert "not Adam" in absent["wrong"]
    assert "not installed" in absent["missing"]


def test_a_contender_that_stops_moving_is_found(cpu: Any) -> None:
    class Tired(cpu.contenders.NumpyLoop):
        name = "tired"

        def step(self) -> None:
            if self._t < 4:
                super().step()

    with pytest.raises(RuntimeError, match="tired has moved by"):
        cpu.steps.measure([Tired], 2, 50, Effort(0.0, rounds=20))


@pytest.fixture(scope="module")
def results(cpu: Any) -> dict[str, Any]:
    """What a run with our own contenders alone would give, at sizes of a few numbers."""
    adam = [contender for contender in ours(cpu) if contender is not cpu.contenders.FastoptClipped]
    sizes = [cpu.steps.measure(adam, *size, BRIEF) for size in ((1, 10), (10, 10))]
    return {
        "machine": cli.machine(),
        "threads": 1,
        "versions": cpu.report.peers_versions(),
        "absent": {"a peer": "not installed"},
        "others": 0.5,
        "startup": cpu.startup.measure(1, lambda text: None),
        "sizes": sizes,
        "bandwidth": 1e9,
        "clipping": [],
        "storage": [cpu.storage.measure(5_000, BRIEF, adam, lambda text: None)]
        if HAS_NUMBA
        else [],
        "rules": cpu.rules.measure(10, BRIEF, CPU_BACKENDS[-1], lambda text: None),
        "denormals": cpu.denormals.measure(adam, lambda text: None, parameters=10),
    }


def test_the_benchmark_measures_prints_writes_and_draws(
    cpu: Any, results: dict[str, Any], capsys: Any, tmp_path: Path
) -> None:
    for row in results["sizes"]:
        for mode in ("same", "fresh"):
            assert all(times["median"] > 0 for times in row[mode].values())
    assert {row["name"]: row["bytes_per_parameter"] for row in results["rules"]}.items() >= {
        "SGD": 12,
        "SGD, momentum=0.9": 20,
        "AdamW": 28,
        "Adam, amsgrad=True": 36,
    }.items()
    verdicts = cpu.targets(results)
    cpu.report.say_where(results)
    cpu.report.show(results, verdicts)
    told = capsys.readouterr().out
    assert "without a peer: not installed" in told
    assert "NOT QUIET" in told
    assert "NumPy loop" in told
    if HAS_NUMBA:
        sizes = results["storage"][0]["state_bytes"]
        assert sizes["fastopt"] == 2 * sizes["fastopt, state bfloat16"] == 40_000
        assert 3.8 < sizes["fastopt"] / sizes["fastopt, state int8"] < 4.0
        assert "fastopt, state int8" in told
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    cpu.report.draw(results, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_targets_are_pass_short_or_not_measured(cpu: Any, results: dict[str, Any]) -> None:
    def times(**seconds: float) -> dict[str, Any]:
        return {
            name.replace("_", " "): {"median": value, "low": 0.9 * value, "high": 1.8 * value}
            for name, value in seconds.items()
        }

    row = {"arrays": 1, "elements": 100}
    row["same"] = times(fastopt=1.0, torch_fused=5.0, NumPy_loop=0.9)  # type: ignore[assignment]
    row["fresh"] = times(fastopt=1.0, torch_fused=2.9, NumPy_loop=1.1)  # type: ignore[assignment]
    found = {t.text: t for t in cpu.targets({**results, "sizes": [row]})}
    assert found["torch fused / fastopt, 1 x 100, same gradient arrays"].spread == pytest.approx(2)
    verdict = {text: target.verdict for text, target in found.items()}
    assert verdict["torch fused / fastopt, 1 x 100, same gradient arrays"] == "pass"
    assert verdict["torch fused / fastopt, 1 x 100, fresh gradient arrays"] == "short"
    assert verdict["torch fused / fastopt, 10 x 1 000, same gradient arrays"] == "not measured"
    assert verdict["NumPy loop / fastopt, the worst of all sizes (1 x 100, same)"] == "short"


def test_every_number_of_the_issue_is_a_target(cpu: Any, results: dict[str, Any]) -> None:
    limits = [(target.limit, target.at_least) for target in cpu.targets(results)]
    assert limits.count((60.0, False)) == 1
    assert limits.count((150.0, False)) == 2
    assert limits.count((1.15, False)) == 2  # elementwise rules, rules with sums
    assert limits.count((1.6, False)) == 1  # those with a cube root or an arctangent
    assert limits.count((80.0, False)) == 4  # a script of a small model
    assert limits.count((0.0, False)) == 2  # which has no use for numba
    assert limits.count((1.3, True)) == limits.count((2.5, True)) == 3
    assert limits.count((2.0, True)) == limits.count((3.9, True)) == 1


def test_memory_decides_who_takes_part_in_the_largest_size(cpu: Any, monkeypatch: Any) -> None:
    loop = cpu.contenders.NumpyLoop
    monkeypatch.setattr(cpu.steps, "_available_memory", lambda: 20_000_000)
    ready, left_out = cpu.steps.fitting([loop] * 20, 100_000)
    assert len(ready) == 7  # 0.9 * 20 MB, of which 4 MB for all, is 7 times 2 MB
    assert left_out == [loop.name] * 13
    monkeypatch.setattr(cpu.steps, "_available_memory", lambda: None)
    assert cpu.steps.fitting([loop], 10**12) == ([loop], [])


# Inside a training loop -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_the_loop(cpu: Any) -> Any:
    """``benchmarks/in_the_loop.py`` as a module."""
    return importlib.import_module("in_the_loop")


@pytest.fixture(scope="module")
def loop_run(in_the_loop: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run with few rounds at the smallest size prints, and the folder of what it writes."""
    folder = tmp_path_factory.mktemp("loop")
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.setattr(in_the_loop.command_line, "use_threads", lambda number: None)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(in_the_loop, "CLIP_SIZES", (10,))
        words = ["--sizes", "10", "--rounds", "3", "--repetitions", "2", "--threads", "1"]
        paths = ["--out", str(folder / "loop.json"), "--picture", str(folder / "loop.png")]
        in_the_loop.main([*words, *paths])
    return told.getvalue(), folder


def test_the_loop_times_all_who_take_part_and_says_what_is_wanted(
    in_the_loop: Any, loop_run: Any
) -> None:
    told, folder = loop_run
    found = json.loads((folder / "loop.json").read_text())
    groups = in_the_loop.GROUPS
    assert len(found["rows"]) == 2 * (len(groups) + 1)
    for group in groups.values():
        (times, again) = (row["loop"] for row in found["rows"] if row["group"] == group.title)
        assert times.keys() == again.keys()
        wanted = {each.name for each in group.classes if not each.needs}
        if HAS_NUMBA:
            wanted |= {each.name for each in group.classes if each.needs == ("numba",)}
        assert times.keys() >= wanted, found["absent"]
        assert all(each["median"] > 0 and each["count"] == 3 for each in times.values())
        assert group.title in told or not times
    ratios = {(ratio["group"], ratio["text"]) for ratio in found["ratios"]}
    assert ("clip_grad_norm_", "clip_grad_norm_ / by hand") in ratios
    assert ("Adam", "hand / NumPy backend") in ratios
    if HAS_NUMBA:
        assert len([text for group, text in ratios if group == "Adam in other ways"]) == 5
    assert (folder / "loop.png").read_bytes().startswith(b"\x89PNG")


def test_networks_have_as_many_parameters_as_asked_for(in_the_loop: Any) -> None:
    for size in (4, 10, 11, *in_the_loop.SIZES):
        inputs, hidden, outputs = in_the_loop.widths(size)
        assert hidden * (inputs + 1) + outputs * (hidden + 1) == size


def test_the_gradients_by_hand_are_those_of_the_loss(in_the_loop: Any) -> None:
    rng = np.random.default_rng(0)
    inputs, hidden, outputs = in_the_loop.widths(50)
    shapes = (inputs, hidden), (hidden,), (hidden, outputs), (outputs,)
    params = [rng.standard_normal(shape) for shape in shapes]
    x, y = rng.standard_normal((6, inputs)), rng.standard_normal((6, outputs))

    def loss() -> float:
        w1, b1, w2, b2 = params
        return float((((np.tanh(x @ w1 + b1) @ w2 + b2) - y) ** 2).sum() / len(x))

    for param, grad in zip(params, in_the_loop.gradients(params, x, y, 3.0), strict=True):
        for index in np.ndindex(param.shape):
            kept = param[index]
            ends = []
            for change in (1e-5, -1e-5):
                param[index] = kept + change
                ends.append(loss())
            param[index] = kept
            assert grad[index] == pytest.approx(3.0 * (ends[0] - ends[1]) / 2e-5, rel=1e-5)


def _loop_results(default: bool, **seconds: tuple[float, ...]) -> dict[str, Any]:
    names = {"hand": "hand", "plain": "fastopt", "lr": "fastopt, lr set"}
    rows = [
        {
            "group": "Adam",
            "parameters": 50_000,
            "loop": {names[key]: {"median": values[run]} for key, values in seconds.items()},
        }
        for run in range(3)
    ]
    return {"rows": rows, "blas_threads_default": default}


def test_ratios_are_medians_of_the_repetitions_and_pass_or_are_short(in_the_loop: Any) -> None:
    ratios = in_the_loop.loop_report.ratios
    times = {
        "hand": (2.5e-5, 9e-5, 2.8e-5),
        "plain": (1e-5, 1e-5, 1e-5),
        "lr": (1.2e-5, 2e-5, 1.3e-5),
    }
    hand, lr = ratios(_loop_results(False, **times))
    assert (hand.text, hand.limit, hand.verdict) == ("hand / fastopt", 2.7, "pass")
    assert (hand.least, hand.measured, hand.most) == pytest.approx((2.5, 2.8, 9.0))
    assert (lr.text, lr.limit, lr.verdict) == ("lr set / plain", 1.2, "short")
    hand, lr = ratios(_loop_results(True, **times))
    assert (hand.limit, hand.verdict, lr.limit, lr.verdict) == (1.3, "pass", None, "")
    times["lr"] = (1.24e-5, 1.24e-5, 1.24e-5)
    (_, lr) = ratios(_loop_results(False, **times))
    assert lr.measured == pytest.approx(1.24)
    assert lr.verdict == "pass"  # 2.4 microseconds more


# Fits --------------------------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``benchmarks/fits.py`` as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("fits")
    for name in MODULES:
        sys.modules.pop(name, None)


def test_fits_are_measured_beside_scipys_with_the_same_iterations(
    fits: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(fits, "SIZES", {10: (5, 1)})
    path = tmp_path / "fits.json"
    assert fits.main(["--sizes", "10", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [row["bounded"] for row in found["lbfgs"]] == [False, True]
    for row in found["lbfgs"]:
        assert row["iterations"] == row["scipy_iterations"] == 5
        assert row["evaluations"] <= 1.5 * row["scipy_evaluations"]
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    counted = found["evaluations"]
    assert len(counted["functions"]) == 51
    assert counted["geometric mean"] <= 1.2
    assert counted["median"] <= 1.1
    assert [row["parameters"] for row in found["overhead"]] == [10]
    assert "Evaluations until a minimum of 51 functions" in capsys.readouterr().out


# Ranks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distributed() -> Iterator[Any]:
    """``benchmarks/distributed.py`` as a module, and what the ranks that it starts need."""
    pytest.importorskip("mpi4py.MPI", exc_type=ImportError)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("distributed")
        for name in MODULES:
            sys.modules.pop(name, None)


def test_ranks_are_timed_beside_torch_and_the_rest_of_the_file_stays(
    distributed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    small = {"1M": (40_000, 64, 3), "20M": (40_001, 64, 3)}
    monkeypatch.setattr(distributed, "SIZES", small)
    monkeypatch.setattr(distributed, "RANKS", (2,))
    path = tmp_path / "ranks.json"
    for parts in (["1M", "link"], ["overlap"]):
        distributed.main(["--json", str(path), "--parts", *parts])
    assert "WARNING" not in capsys.readouterr().out  # all end in the same parameters
    found = json.loads(path.read_text())
    assert found.keys() == {"machine", "rows", "overlap", "link"}
    assert [row["parameters"] for row in found["rows"]] == [40_000]
    names = [*distributed.OURS]
    if importlib.util.find_spec("torch"):
        names += distributed.THEIRS.values()
    for row in found["rows"]:
        assert {*names} <= row["seconds"].keys()
        assert not row.get("left out")
        for name, ratio in row["ratios"].items():
            theirs = row["seconds"][distributed.THEIRS[name]]["median"]
            assert ratio == theirs / row["seconds"][name]["median"]
    assert found["link"]["found"].keys() == {"seconds", "bytes_per_second"}
    assert found["overlap"][0]["found"].keys() == {*distributed.OURS}


def test_what_the_memory_has_no_room_for_is_left_out(
    distributed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ranks.json"
    distributed.main(["--json", str(path), "--parts", "200M", "--spare", "1e6"])
    for row in json.loads(path.read_text())["rows"]:
        assert not row["seconds"]
        assert all("GB" in why for why in row["left out"].values())


def test_what_a_rank_holds_is_the_formulas(distributed: Any, tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    command = ["--parameters", "16e6", "--ranks", "2", "--steps", "1", "--rows", "4"]
    importlib.import_module("billion").main([*command, "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["parameters"] == 3 * 2048**2
    for one in found["of_ranks"]:
        assert one["state"] == pytest.approx(found["formula"]["state"], rel=0.01)
        assert one["peak"] - one["before"] > sum(found["formula"].values())
        assert one["moved"] > 0.0
