"""On a GPU, real launches of CuPy give NumPy's bits: ``pytest -m gpu``; skipped without one."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.runs import DENSE, DTYPES, ODD, difference_of, differences, run_of
from cuda.training import Training, replayed, train
from safetensors.numpy import load_file
from test_around_cupy import check_clipping, check_training
from variants import VARIANT_OF, VARIANTS, Variant

import fastopt

if reason := fastopt.available_backends()["cupy"]:
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.gpu

EXAMPLE = Path(__file__).parent.parent / "examples" / "cuda_graph.py"
CUPY = importlib.import_module("cupy")
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@each_dtype
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_rule_ends_in_the_bits_of_numpy(variant: Variant, dtype: Any) -> None:
    more = {"weight_decay": 0.03, "maximize": True, "grad_scale": 0.37, "missing": True}
    assert difference_of(variant, CUPY, dtype, cuts=DENSE) == {}
    assert difference_of(variant, CUPY, dtype, cuts=[*DENSE, *ODD], **more) == {}


@each_dtype
def test_three_hundred_arrays_and_clipping_do_so_too(dtype: Any) -> None:
    cuts = [(run_of(k % 9), run_of(k % 9)) for k in range(300)]
    cuts += [(run_of(n), run_of(n, 1)) for n in (4095, 4096, 4097, 12_388)]
    more = {"missing": True, "max_grad_norm": 100.0}
    assert difference_of(VARIANT_OF["adam"], CUPY, dtype, cuts=cuts, **more) == {}


def test_a_checkpoint_goes_from_numpy_to_the_gpu_and_back(tmp_path: Path) -> None:
    ends = []
    for kinds in ((np, np, np), (np, CUPY, np)):
        for number, xp in enumerate(kinds):
            params = {"W": xp.ones((40, 50))[::2].T, "b": xp.ones(3, "f4"), "s": xp.asarray(1.0)}
            opt = fastopt.Adam(params)
            if number:
                opt.load(tmp_path / "a")
            for step in range(4):
                opt.step({name: p * (step - 1.5) for name, p in params.items()})
            opt.save(tmp_path / "a")
        ends.append(load_file(tmp_path / "a"))
    np.testing.assert_equal(*ends)


def test_a_step_may_run_on_another_stream_than_the_construction() -> None:
    param, grad = CUPY.ones(1 << 24, "f4"), CUPY.ones(1 << 24, "f4")
    CUPY.cuda.Device().synchronize()  # these two are the user's
    opt = fastopt.Momentum([param], lr=0.5, beta=0.5)
    with CUPY.cuda.Stream(non_blocking=True) as stream:
        opt.step([grad])
        stream.synchronize()
    assert bool((param == 0.75).all())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_gradients_are_clipped_in_the_bits_of_numpy(dtype: str) -> None:
    check_clipping(CUPY, dtype, 0)


@each_dtype
def test_averages_sums_and_slow_weights_end_in_the_bits_of_numpy(dtype: Any) -> None:
    check_training(CUPY, dtype, 0)


@each_dtype
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_clipped_and_skipped_steps_and_replays_end_in_the_bits_of_numpy(
    variant: Variant, dtype: Any
) -> None:
    training = Training(50, dtypes=[dtype], bad=(0, 7, 8, 30, 49))
    options = {"max_grad_norm": 20.0, "on_nonfinite": "skip", "lr": lambda t: 0.1 / (1 + t)}
    expected = train(training, variant, np, **options)
    assert differences(expected, train(training, variant, CUPY, **options)) == {}
    assert differences(expected, replayed(training, variant, CUPY, **options)) == {}


def test_a_scale_on_the_device_is_read_in_every_replay() -> None:
    param, grad = CUPY.zeros(3), CUPY.ones(3)
    scale = CUPY.asarray(np.array(2.0, np.float32))
    opt = fastopt.SGD([param], lr=1.0, capturable=True).warmup()
    CUPY.cuda.Device().synchronize()
    with CUPY.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        opt.step([grad], grad_scale=scale)
        graph = stream.end_capture()
        graph.launch(stream)
        scale[...] = 0.5
        graph.launch(stream)
        stream.synchronize()
    assert param.get().tolist() == [-2.5] * 3
    assert opt.step_count == 2


def test_the_example_trains_by_a_graph(capsys: Any) -> None:
    spec = importlib.util.spec_from_file_location("cuda_graph", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    graph = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(graph)
    told = []
    for backend in ("numpy", "cupy"):
        with fastopt.use_backend(backend):
            graph.main(["--epochs", "5"])
        told.append([float(word) for word in capsys.readouterr().out.split()[1:7:5]])
    assert told[1] == pytest.approx(told[0], abs=1e-3)
