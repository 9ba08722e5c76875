"""benchmarks/gpu.py from its first line to its last, without a device: CUDA is emulated.

PyTorch, which would need a real one, is a stand-in.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.backends.cupy.shapes import SHAPES
from fastopt.cli import timing
from fastopt.cli.timing import Effort
from helpers.cuda.device import cupy_or_skip, emulated
from helpers.cuda.emulation.cuda import Cuda
from helpers.cuda.fake_torch import FakeTorch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = [path.stem for path in BENCHMARKS.glob("*.py")]
BRIEF = Effort(0.0, rounds=2, least=2)
PEERS = ("torch fused", "torch foreach", "torch capturable", "CuPy loop", "CuPy kernel per array")


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    cupy_or_skip()
    found = emulated()
    if found is None:
        pytest.skip("looks at the emulated CUDA")
    return found


@pytest.fixture(scope="module")
def cupy(cuda: Cuda) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", FakeTorch())
        yield cupy_or_skip()


@pytest.fixture(scope="module")
def gpu(cupy: Any) -> Iterator[Any]:
    """``benchmarks/gpu.py`` as a module, with sizes of a few numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        module = importlib.import_module("gpu")
        patch.setattr(timing, "PAUSE", 0.0)
        patch.setattr(module, "LARGE", 6_000)
        patch.setattr(module, "QUICK_LARGE", 3_000)
        patch.setattr(module, "MANY", ((2, 30), (3, 30), (4, 30)))
        patch.setattr(module, "ONE", (30, 2_000))
        patch.setattr(module, "FULL", BRIEF)
        patch.setattr(module, "QUICK", BRIEF)
        patch.setattr(module.gpu_steps, "LEAST", 5_000)
        patch.setattr(module.gpu_steps.gpu_timing, "BLOCK", 1e-9)
        yield module
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def written(gpu: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """What a run writes and draws."""
    folder = tmp_path_factory.mktemp("gpu")
    gpu.main(["--json", str(folder / "numbers.json"), "--picture", str(folder / "picture.png")])
    return json.loads((folder / "numbers.json").read_text()), folder / "picture.png"


# A whole run -------------------------------------------------------------------------------------


def test_everybody_is_timed_at_every_size(written: tuple[Any, Path]) -> None:
    results, _ = written
    sizes = [(row["arrays"], row["elements"]) for row in results["sizes"]]
    assert sizes == [(2, 30), (3, 30), (4, 30), (1, 30), (1, 2_000), (1, 6_000)]
    for row in results["sizes"]:
        assert row["left_out"] == {}
        assert row["host"].keys() == {"fastopt", *PEERS}
        extra = {"copy", "same traffic"} if row["elements"] == 6_000 else set()
        assert row["device"].keys() == {"fastopt", *PEERS} | extra
        for mode in ("host", "device"):
            for times in row[mode].values():
                assert 0 < times["low"] <= times["median"] <= times["high"] < math.inf
                assert times["count"] >= 2


def test_clipping_and_graphs_have_rows_of_their_own(written: tuple[Any, Path]) -> None:
    results, _ = written
    for row in results["clipping"]:
        assert row["device"].keys() == {"fastopt max_grad_norm", "torch clip_grad_norm_, fused"}
    for row in results["graphs"]:
        torchs = {"torch fused", "torch fused, graph", "torch capturable, graph"}
        assert row["device"].keys() >= {"fastopt", *torchs}


def test_graphs_of_fastopt_are_measured_too(written: tuple[Any, Path]) -> None:
    results, _ = written
    scaled = ("fastopt LossScaler", "fastopt LossScaler, graph")
    for name in ("fastopt capturable", "fastopt graph", *scaled):
        assert all(name in row["device"] for row in results["graphs"])


def test_the_machine_and_the_versions_are_told(written: tuple[Any, Path]) -> None:
    results, _ = written
    assert results["gpu"]["name"] == "CUDA on the CPU"
    assert results["gpu"]["compute_capability"] == "9.0"
    assert (
        results["versions"].items()
        >= {
            "fastopt": fastopt.__version__,
            "numpy": np.__version__,
            "cupy": sys.modules["cupy"].__version__,
            "torch": "2.13.0+cu129",
            "CUDA": "12.9",
        }.items()
    )
    assert results["versions"]["driver"]
    assert results["bandwidth"].keys() == {"copy", "same traffic"}
    rates = results["bandwidth"]
    large = results["sizes"][-1]["device"]
    assert rates["copy"] == pytest.approx(8 * 6_000 / large["copy"]["median"])
    assert rates["same traffic"] == pytest.approx(28 * 6_000 / large["same traffic"]["median"])


def test_the_picture_is_drawn(written: tuple[Any, Path]) -> None:
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_everything_is_printed(gpu: Any, written: tuple[Any, Path], capsys: Any) -> None:
    results, _ = written
    row = results["sizes"][0] | {"left_out": {"torch foreach": "OutOfMemoryError: too large"}}
    gpu._say_where(results | {"absent": {"a peer": "not installed"}, "others": 0.5})
    gpu.gpu_report.show(results | {"sizes": [row, *results["sizes"][1:]]}, gpu.targets(results))
    told = capsys.readouterr().out
    assert "CUDA on the CPU" in told
    assert "without a peer: not installed" in told
    assert "other processes took 50.0% of the processors" in told
    assert "2 x 30 without torch foreach: OutOfMemoryError: too large" in told
    for title in (
        "Time per step on the device",
        "Time per step on the host",
        "Share of the copy's bandwidth",
        "Clipping and step together: time per step on the host",
        "CUDA graphs: time per step on the device",
        "Targets",
    ):
        assert title in told
    for name in (*PEERS, "torch fused, graph", "same traffic"):
        assert name in told


def test_a_quick_run_is_smaller(gpu: Any, tmp_path: Path) -> None:
    gpu.main(["--quick", "--json", str(tmp_path / "numbers.json")])
    results = json.loads((tmp_path / "numbers.json").read_text())
    assert results["sizes"][-1]["elements"] == 3_000


# The contenders ----------------------------------------------------------------------------------


def test_who_computes_something_else_or_fails_is_left_out(gpu: Any) -> None:
    class Slower(gpu.gpu_contenders.KernelPerArray):
        name = "slower"

        def __init__(self, params: Any, lr: float = 1e-3) -> None:
            super().__init__(params, 0.5 * lr)

    class Full(gpu.gpu_contenders.Fastopt):
        name = "full"

        def step(self) -> None:
            raise MemoryError("no room\non the device")

    class Tired(gpu.gpu_contenders.Fastopt):
        name = "tired"
        steps = 0

        def step(self) -> None:
            self.steps += 1
            if self.steps <= 4:
                super().step()

    loop = gpu.gpu_contenders.CupyLoop
    row = gpu.gpu_steps.measure([Slower, Full, Tired, loop], (2, 50), Effort(0.0, 20))
    assert row["left_out"].keys() == {"slower", "full", "tired"}
    assert "not Adam" in row["left_out"]["slower"]
    assert row["left_out"]["full"] == "MemoryError: no room"
    assert "has moved by" in row["left_out"]["tired"]
    assert row["host"].keys() == row["device"].keys() == {loop.name}


def test_a_torch_without_a_device_takes_no_part(gpu: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch", FakeTorch(has_device=False))
    ready, absent = gpu.checks.taking_part(gpu.gpu_contenders.ADAM)
    assert len(ready) == 3
    assert "finds no CUDA device" in absent["torch fused"]
    monkeypatch.setitem(sys.modules, "torch", None)
    ready, absent = gpu.checks.taking_part(gpu.gpu_contenders.CLIPPED)
    assert [contender.name for contender in ready] == ["fastopt max_grad_norm"]
    assert absent["torch clip_grad_norm_, fused"] == "torch not installed"


@pytest.mark.parametrize("name", ["FastoptGraph", "FastoptScaled", "FastoptScaledGraph"])
def test_a_graph_launches_what_was_captured_with_the_gradients_of_now(gpu: Any, name: str) -> None:
    params = [np.arange(5, dtype=np.float32), np.ones((2, 3), np.float32)]
    plain = [param.copy() for param in params]
    graph = getattr(gpu.gpu_graphs, name)(params, 0.1)
    opt = fastopt.Adam(plain, lr=0.1, backend="numpy")
    for factor in (1.0, -2.0, 3.0):
        grads = [np.full_like(param, factor) for param in params]
        graph.hand_in(grads)
        graph.step()
        opt.step(grads)
    assert graph._opt.step_count == 3
    for index, param in enumerate(plain):
        assert np.array_equal(graph.result(index), param)


def test_memory_decides_how_large_the_largest_array_is(gpu: Any, monkeypatch: Any) -> None:
    adam = gpu.gpu_contenders.ADAM
    monkeypatch.setattr(gpu.gpu_steps, "LEAST", 100)
    monkeypatch.setattr(gpu.gpu_contenders.cupy().cuda, "Device", lambda: Memory(1_000_000))
    # 0.9 MB hold 225 000 numbers, in 44 arrays.
    assert gpu.gpu_steps.largest_fitting(adam, 256_000) == 4_000
    assert gpu.gpu_steps.largest_fitting(adam, 5_000) == 5_000


class Memory:
    def __init__(self, free: int) -> None:
        self.mem_info = (free, 2 * free)


# Targets -----------------------------------------------------------------------------------------


def test_targets_are_pass_short_or_not_measured(gpu: Any) -> None:
    def row(arrays: int, elements: int, **seconds: float) -> dict[str, Any]:
        times = {
            name.replace("_", " "): {"median": value, "low": value, "high": 1.5 * value}
            for name, value in seconds.items()
        }
        return {"arrays": arrays, "elements": elements, "host": times, "device": times}

    results = {
        "sizes": [
            row(300, 10_000, fastopt=1.0, torch_fused=3.1),
            row(1_000, 10_000, fastopt=1.0, torch_fused=2.9),
            row(1, 1_000, fastopt=1.0),
            row(1, 10**8, fastopt=3.5, copy=0.93, torch_fused=3.4),
        ],
        "clipping": [],
        "graphs": [],
        "gpu": {"peak": 8.6e8},
    }
    found = {target.text: target for target in gpu.targets(results)}
    assert found["share of the copy's bandwidth, 1 x 100 000 000"].measured == pytest.approx(0.93)
    assert found["share of the memory's peak, 1 x 100 000 000"].measured == pytest.approx(8 / 8.6)
    assert found["torch fused / fastopt, 300 x 10 000, on the host"].spread == pytest.approx(1.5)
    assert {text: target.verdict for text, target in found.items()} == {
        "share of the copy's bandwidth, 1 x 100 000 000": "pass",
        "share of the memory's peak, 1 x 100 000 000": "pass",
        "torch fused / fastopt, 300 x 10 000, on the device": "pass",
        "torch fused / fastopt, 1000 x 10 000, on the device": "pass",
        "torch fused / fastopt, 1 x 1 000, on the device": "not measured",
        "torch fused / fastopt, 1 x 100 000 000, on the device": "short",
        "torch fused / fastopt, 300 x 10 000, on the host": "pass",
        "torch fused / fastopt, 1000 x 10 000, on the host": "short",
    }
    results["sizes"][-1]["device"]["copy"]["median"] = 0.91
    assert gpu.targets(results)[0].verdict == "short"
    del results["sizes"][-1]["device"]["copy"]
    assert gpu.targets(results)[0].verdict == "not measured"
    results["gpu"] = {"peak": 9e8}
    assert gpu.targets(results)[1].verdict == "short"
    results["gpu"] = {"peak": None}
    assert gpu.targets(results)[1].verdict == "not measured"


# Timing ------------------------------------------------------------------------------------------


def test_the_host_waits_before_a_step_and_not_after_it(gpu: Any, monkeypatch: Any) -> None:
    log: list[str] = []
    monkeypatch.setattr(gpu.gpu_steps.gpu_timing, "wait", lambda: log.append("wait"))
    step = timing.Turn(lambda: log.append("step"), lambda: log.append("prepare"))
    gpu.gpu_steps.gpu_timing.host_times({"a": step}, Effort(0.0, rounds=2, least=2))
    assert log == 4 * ["prepare", "wait", "step"]


def test_the_device_is_timed_over_many_steps(gpu: Any, cupy: Any, monkeypatch: Any) -> None:
    log: list[str] = []

    class Event:
        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(cupy.cuda, "Event", Event)
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda start, end: 4.0)  # ms
    monkeypatch.setattr(gpu.gpu_steps.gpu_timing, "BLOCK", 0.0134)
    step = timing.Turn(lambda: log.append("step"))
    found = gpu.gpu_steps.gpu_timing.device_times({"a": step}, Effort(0.0, rounds=2, least=1))
    first = ["step", "event", *3 * ["step"], "event"]  # 1.333 ms each: 10 in 13.4 ms
    assert log == first + 2 * ["step", "event", *10 * ["step"], "event"]
    assert (found["a"].median, found["a"].count) == (pytest.approx(0.4e-3), 20)


# Tuning ------------------------------------------------------------------------------------------


def test_tuning_tries_every_shape_of_the_kernels(
    gpu: Any, cuda: Cuda, tmp_path: Path, capsys: Any
) -> None:
    before = dict(SHAPES)
    cuda.clear()
    gpu.main(["--tune", "--json", str(tmp_path / "numbers.json")])
    results = json.loads((tmp_path / "numbers.json").read_text())
    names = {f"update: {b} bytes, {t} threads" for b in (16, 32) for t in (128, 256, 512)}
    names |= {
        f"int8_update: 16 bytes, {t} threads{r}"
        for t in (128, 256, 512)
        for r in ("", ", 64 registers")
    }
    assert [row["elements"] for row in results["tuning"]] == [30, 30, 6_000]
    for row in results["tuning"]:
        assert row["device"].keys() - {"copy", "same traffic"} == names
    assert before == SHAPES
    assert "update: 32 bytes, 512 threads" in capsys.readouterr().out
    shapes = {(made.block, made.grid) for made in cuda.launches}
    blocks = {(t, -(-6_000 // (p * t))) for p in (4, 8) for t in (128, 256, 512)}
    assert blocks <= shapes


@pytest.mark.parametrize("kernel", ["update", "int8_update"])
def test_every_shape_ends_in_the_same_bits(gpu: Any, cupy: Any, kernel: str) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 5_003), np.float32)
    ends = []
    options, shapes = gpu.gpu_tuning.TRIED[kernel]
    for shape in shapes:
        params = [cupy.asarray(value) for value in values[0]]
        with gpu.gpu_tuning.shaped(kernel, shape):
            opt = fastopt.Adam(params, seed=1, **options)
        for _ in range(2):
            opt.step([cupy.asarray(value) for value in values[1]])
        ends.append(np.concatenate([param.get() for param in params]))
    assert len(ends) == 6
    assert all(np.array_equal(end, ends[0]) for end in ends)


# Refused -----------------------------------------------------------------------------------------


def test_without_a_device_there_is_one_clear_line(gpu: Any, cuda: Cuda, capsys: Any) -> None:
    with cuda.devices(0), pytest.raises(SystemExit) as ended:
        gpu.main([])
    text = str(ended.value.code)  # Python prints it and exits with 1
    assert text.startswith("benchmarks/gpu.py needs a GPU")
    assert "cudaErrorNoDevice" in text
    assert "\n" not in text
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "/nowhere/x.json"],
        ["--json", "/"],
        ["--tune", "--picture", "x.png"],
        ["--sizes", "3"],
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_measured(
    gpu: Any, words: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(words)
    assert ended.value.code == 2
