"""State in 16 and 8 bits and rounding by chance: the CUDA text gives NumPy's bits.

See test_text.py for the same of plain state; test_ptx.py runs what NVRTC makes of both.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
from fastopt.engine import tables
from helpers.cuda.emulation.cuda import Cuda
from helpers.cuda.planted import planted
from helpers.cuda.runs import (
    ODD,
    Cuts,
    difference_of,
    differences,
    run_of,
    some_values,
    transposed,
)
from helpers.cuda.training import Training, replayed, train
from helpers.variants import VARIANT_OF, VARIANTS, Variant

SEED = 2**40 + 7
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bfloat16": (np.float32, {"state_dtype": "bfloat16"}),
    "int8": (np.float32, {"state_dtype": "int8"}),
    "chance": (np.float16, {"stochastic_rounding": True, "master_weights": False}),
    "both": (
        ml_dtypes.bfloat16,
        {"state_dtype": "int8", "stochastic_rounding": True, "master_weights": False},
    ),
}
MORE: dict[str, tuple[Any, dict[str, Any]]] = {
    "masters": (np.float16, {"state_dtype": "int8"}),
    "complex": (np.complex64, {"state_dtype": "int8"}),
    "bounded": (np.float32, {"state_dtype": "int8", "bounds": (-0.5, 3.0)}),
    "float16 bounded": (np.float16, {"state_dtype": "bfloat16", "bounds": (-0.5, 3.0)}),
}
LONG: Cuts = (
    (run_of(5000), run_of(5000)),
    (run_of(4097, 1), run_of(4097, 3)),
    (lambda buffer: buffer[:8200:2], run_of(4100)),
    (lambda buffer: buffer[:4900].reshape(70, 70).T,) * 2,
    (run_of(4096 + 255, 2), run_of(4096 + 255, 2)),
    (run_of(100), run_of(100)),
    (run_of(0), run_of(0)),
    (transposed, transposed),
)


@pytest.mark.parametrize(
    "way", [*WAYS, *(pytest.param(way, marks=pytest.mark.exhaustive) for way in MORE)]
)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_rule_ends_in_the_bits_of_numpy(cupy: Any, variant: Variant, way: str) -> None:
    dtype, options = (WAYS | MORE)[way]
    options = {"cuts": [*LONG, *ODD], "missing": True, "seed": SEED, **options}
    if "mask_zero" in variant.options and options.get("state_dtype") == "int8":
        with pytest.raises(ValueError, match="mask_zero cannot be used with state_dtype='int8'"):
            difference_of(variant, cupy, dtype, **options)
        return
    assert difference_of(variant, cupy, dtype, **options) == {}


@pytest.mark.parametrize("way", MORE)
def test_so_it_does_with_masters_bounds_and_complex_numbers(cupy: Any, way: str) -> None:
    dtype, options = MORE[way]
    if "bounds" in options:
        options = {**options, "reset_at_bounds": True}
    for name in ("adam", "sgd_momentum"):
        more = {"cuts": [*LONG, *ODD], "max_grad_norm": 300.0, "seed": SEED, **options}
        assert difference_of(VARIANT_OF[name], cupy, dtype, **more) == {}


@pytest.mark.parametrize("way", WAYS)
def test_steps_that_the_device_decides_on_draw_the_same(cupy: Any, way: str) -> None:
    dtype, options = WAYS[way]
    training = Training(14, ((5,), (70, 3), (4099,), (9, 500)), [dtype], bad=(1, 6))
    more = {"max_grad_norm": 20.0, "on_nonfinite": "skip", "seed": SEED, **options}
    adam = VARIANT_OF["adam"]
    ends = [train(training, adam, xp, **more) for xp in (np, cupy)]
    assert differences(*ends) == {}


@pytest.mark.parametrize("way", WAYS)
def test_replays_of_a_captured_step_draw_anew(
    cupy: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CAPTURED", 64)
    dtype, options = WAYS[way]
    training = Training(20, ((5,), (4099,)), [dtype], bad=(4,))
    more = {"max_grad_norm": 1.0, "on_nonfinite": "skip", "seed": SEED, **options}
    adam = VARIANT_OF["adam"]
    ends = [train(training, adam, np, **more), replayed(training, adam, cupy, **more)]
    assert differences(*ends) == {}


def backend_of(xp: Any) -> dict[str, Any]:
    return {"backend": "numpy" if xp is np else "cupy"}


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e-37, 3e38, 0.0, -0.0])
def test_blocks_with_odd_numbers_do_so_too(cupy: Any, odd: float) -> None:
    ends = []
    for xp in (np, cupy):
        param = xp.asarray(some_values(4500, np.float32, 1))
        opt = fastopt.SGD([param], momentum=0.9, state_dtype="int8", seed=3, **backend_of(xp))
        grad = some_values(4500, np.float32, 2)
        grad[300] = odd
        grad[600:1000] = 0.0
        for _ in range(3):
            opt.step([xp.asarray(grad)])
        state = opt.state_dict()["state"]
        slots = {f"{n}.{slot}": np.asarray(x) for n, e in state.items() for slot, x in e.items()}
        found = {name: np.nan_to_num(x) if x.dtype.kind == "f" else x for name, x in slots.items()}
        ends.append(found)
    assert differences(*ends) == {}


FAULTS = {
    "the largest of half a warp": ("other = WARP / 2;", "other = WARP / 4;"),
    "the last block of a tail is left": (
        "block.count - first,",
        "block.count / 256 * 256 - first,",
    ),
    "no scale is kept": ("CODES)] = scale_of", "CODES)]; scale_of"),
    "the draw of another element": ("random_bits(counter + k", "random_bits(counter + (k ^ 1)"),
    "the other half of a word": ("bits0 >> 13", "bits0 & 0x7ffffu"),
    "nothing never becomes zero": ("above < 1 << 19 ? above : 1 << 19", "0"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_text_is_noticed(cupy: Any, cuda: Cuda, fault: str) -> None:
    options = {"state_dtype": "int8"}
    with planted(cupy, *FAULTS[fault]):
        assert difference_of(VARIANT_OF["adam"], cupy, np.float32, cuts=LONG[:3], **options)


def test_a_thread_that_leaves_before_the_barrier_is_noticed(cupy: Any, cuda: Cuda) -> None:
    right = "        store_pack(param_at + l, more.param);\n"
    stuck = pytest.raises(cupy.cuda.driver.CUDADriverError, match="barrier")
    with planted(cupy, right, right + "        if (lane == 3) return;\n"), stuck:
        difference_of(VARIANT_OF["adam"], cupy, np.float32, cuts=LONG[:1], state_dtype="int8")


def test_a_narrow_that_forgets_nan_is_noticed(cupy: Any, cuda: Cuda) -> None:
    right, wrong = "? 0x7fc0u : (bits + draw) >> 16", "? (bits + draw) >> 16 : (bits + draw) >> 16"
    ends = []
    for xp in (np, cupy):
        param = xp.asarray(np.zeros(8, ml_dtypes.bfloat16))
        grad = np.zeros(8, np.float32)
        grad.view(np.uint32)[:] = 0x7FFFFFFF
        options = {"master_weights": False, "stochastic_rounding": True, **backend_of(xp)}
        with planted(cupy, right, wrong) if xp is cupy else nullcontext():
            fastopt.SGD([param], **options).step([xp.asarray(grad)])
        ends.append(np.isnan((param if xp is np else param.get()).astype(np.float32)).all())
    assert ends == [True, False]
