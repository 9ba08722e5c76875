"""What NVRTC makes of every rule gives NumPy's bits, and touches no memory but what it should.

The instructions run in an interpreter (helpers/cuda/ptx_interpreter.py); no GPU is needed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from test_storage import LONG, WAYS

from fastopt.backends.cupy import control_source
from fastopt.backends.cupy import source as cupy_source
from fastopt.core.dtypes import UpdateSpec
from fastopt.core.norms import TILE
from fastopt.engine import tables
from fastopt.errors import BackendUnavailableError
from helpers.cuda import nvrtc
from helpers.cuda.fake_cupy import Call, FakeCupy, live_memory
from helpers.cuda.ptx_interpreter import Fault, Memory, Program
from helpers.cuda.runs import (
    DENSE,
    DTYPES,
    HALVES,
    ODD,
    difference_of,
    differences,
    halves_of,
    installed,
    run_of,
)
from helpers.cuda.scaling import POLICY, scaled, scaled_replays
from helpers.cuda.training import Training, replayed, train
from helpers.variants import ONE_PASS, VARIANT_OF, Variant

if reason := nvrtc.reason_to_skip():
    pytest.skip(reason, allow_module_level=True)

CUPY = sys.modules["cupy"]  # the real one, which is hidden while the stand-in is installed
ARCHITECTURE = 90


@cache
def ptx_of(name: str, spec: UpdateSpec, changes: tuple[tuple[str, str], ...] = ()) -> str:
    """Return the PTX of a kernel, after changes of its text."""
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "fastopt_squares": lambda: control_source.squares(spec.gradient, by_value=True),
        **{
            text()["name"]: text
            for wide in (False, True)
            for text in [partial(control_source.squares_to_decide, spec.gradient, True, wide)]
        },
        "fastopt_halves": control_source.halves,
        "fastopt_decide": control_source.decide,
        "fastopt_rescale": control_source.rescale,
        "fastopt_note": control_source.note,
    }
    if name in others:
        text = others[name]()
    else:
        from_table = name.endswith("_from_table")
        stem = name.removeprefix("fastopt_").removesuffix("_from_table")
        rule = importlib.import_module(f"fastopt_kernels.{stem}").RULE
        text = cupy_source.kernel(rule, spec, by_value=True, from_table=from_table)
    for right, wrong in changes:
        for part in {"preamble", "operation"} & text.keys():
            text[part] = text[part].replace(right, wrong)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", CUPY)
        return nvrtc.ptx(CUPY.ElementwiseKernel(**text), ARCHITECTURE)


class PtxCupy(FakeCupy):
    """The stand-in for CuPy, with kernels that run as NVRTC compiled them."""

    spec = UpdateSpec.of(np.dtype(np.float32), True)
    changes: tuple[tuple[str, str], ...] = ()

    def execute(self, call: Call) -> None:
        program = Program(ptx_of(call.name, self.spec, self.changes), call.name)
        arguments = [
            np.array([x.ctypes.data, x.size, *x.shape, *x.strides]).tobytes()  # CuPy's CArray
            if argument.is_array
            else x.tobytes()
            for argument, x in zip(call.arguments, call.values, strict=True)
        ]
        indices = np.array([call.size, call.size, 0]).tobytes()  # CuPy's CIndexer
        grid = -(-call.size // call.block)
        program.run(Memory(live_memory()), [*arguments, indices], grid, call.block)


@pytest.fixture
def cupy() -> Iterator[PtxCupy]:
    with installed(PtxCupy()) as module:
        assert isinstance(module, PtxCupy)
        yield module


FEW = DENSE[4::9]
"""Some of every kind: the interpreter takes its time."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ONE_PASS, ids=str)
def test_every_rule_ends_in_the_bits_of_numpy(cupy: PtxCupy, variant: Variant, dtype: Any) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(dtype), True)
    more = {"weight_decay": 0.03, "grad_scale": 0.37, "missing": True}
    assert difference_of(variant, cupy, dtype, cuts=[*FEW, *ODD[:3]], **more) == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_by_the_global_norm_does_so_too(cupy: PtxCupy, dtype: Any) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(dtype), True)
    sizes = (1, 63, 64, 65, TILE - 1, TILE, TILE + 1, 2 * TILE + 100)
    cuts = [(run_of(n), run_of(n, 1)) for n in sizes]
    more = {"missing": True, "max_grad_norm": 100.0}
    assert difference_of(VARIANT_OF["sgd"], cupy, dtype, cuts=cuts, **more) == {}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("variant", [VARIANT_OF["adam"], VARIANT_OF["sgd"]], ids=str)
def test_halves_with_master_weights_do_so_too(cupy: PtxCupy, variant: Variant, dtype: Any) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(dtype), True)
    more = {"missing": True, "max_grad_norm": 100.0}
    assert difference_of(variant, cupy, dtype, cuts=[*FEW, *ODD], **more) == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["adam", "sgd_momentum", "adadelta"])
def test_state_in_codes_and_rounding_by_chance_do_so_too(
    cupy: PtxCupy, name: str, way: str
) -> None:
    dtype, options = WAYS[way]
    state = options.get("state_dtype", "real")
    chance = options.get("stochastic_rounding", False)
    cupy.spec = UpdateSpec.of(np.dtype(dtype), not chance, state=state, stochastic=chance)
    # One bucket: int8 is for long arrays alone.
    assert (
        difference_of(VARIANT_OF[name], cupy, dtype, cuts=LONG[:5], missing=True, **options) == {}
    )


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("dtype", [np.float32, *HALVES, np.complex64])
def test_arithmetic_in_float64_does_so_too(cupy: PtxCupy, dtype: Any, given: Any) -> None:
    spec = UpdateSpec.of(np.dtype(dtype), True, state_dtype="float64")
    cupy.spec = spec.with_gradients(np.dtype(given))
    grad_dtype = np.result_type(given, 1j).type if dtype is np.complex64 else given
    more = {"missing": True, "max_grad_norm": 100.0, "state_dtype": "float64"}
    more |= {"grad_dtype": grad_dtype, "cuts": [*FEW, *ODD]}
    assert difference_of(VARIANT_OF["adam"], cupy, dtype, **more) == {}


CODE_FAULTS = {
    "no first barrier": ("= largest[n];\n    __syncthreads();", "= largest[n];"),
    "no second barrier": ("        }\n    }\n    __syncthreads();", "        }\n    }"),
    "threads leave before": (
        "    share_largest(s",
        "    if (count <= 0) return;\n    share_largest(s",
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", CODE_FAULTS)
def test_a_fault_in_the_barriers_of_codes_is_noticed(cupy: PtxCupy, fault: str) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(np.float32), True, state="int8")
    cupy.changes = (CODE_FAULTS[fault],)
    with pytest.raises((Fault, BackendUnavailableError), match=r"barrier|one thread writes"):
        difference_of(VARIANT_OF["adam"], cupy, np.float32, cuts=LONG[:2], state_dtype="int8")


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_read_and_rounded_to_as_numpy_does(cupy: PtxCupy, dtype: Any) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(dtype), False).with_gradients(np.dtype(np.float32))
    assert differences(halves_of(np, dtype), halves_of(cupy, dtype)) == {}


def test_a_limit_that_is_set_between_steps_is_what_numpy_goes_by(cupy: PtxCupy) -> None:
    limits = {k: lambda opt, k=k: setattr(opt, "max_grad_norm", 20.0 / (1 + k)) for k in range(11)}
    training = Training(11, ((5,), (70, 3)), bad=(1, 6), before=limits)
    options = {"on_nonfinite": "skip"}
    ends = [train(training, VARIANT_OF["adam"], xp, **options) for xp in (np, cupy)]
    assert differences(*ends) == {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ONE_PASS, ids=str)
def test_what_is_decided_on_the_device_is_what_numpy_decides(
    cupy: PtxCupy, variant: Variant, dtype: Any
) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(dtype), True)
    training = Training(11, ((5,), (70, 3), (0, 4), (4099,)), [dtype], bad=(1, 6))
    options = {"max_grad_norm": 20.0, "on_nonfinite": "skip", "weight_decay": 0.01}
    assert (
        differences(
            train(training, variant, np, **options), train(training, variant, cupy, **options)
        )
        == {}
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_steps_with_squares_that_overflow_float32_are_left_out(cupy: PtxCupy, dtype: Any) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(dtype), True)
    below = float(np.nextafter(np.float32(2.0**63), np.float32(0)))
    sizes = {1: below, 2: 2.0**63, 5: -1e25}
    training = Training(8, ((5,), (70, 3), (4099,)), [dtype], large=sizes)
    ends = [train(training, VARIANT_OF["adam"], xp, on_nonfinite="skip") for xp in (np, cupy)]
    assert differences(*ends) == {}
    skipped = {"float64": 0, "bfloat16": 3}.get(dtype, 2)  # to which the first is rounded up
    assert ends[1]["counts"].tolist() == [8 - skipped, 8 - skipped, skipped]


@pytest.mark.parametrize("size", [1e-170, 1e170])
def test_so_it_is_for_squares_beyond_float64(cupy: PtxCupy, size: float) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(np.float64), True)
    training = Training(3, [(n,) for n in range(1, 140)], [np.float64], size)
    options = {"max_grad_norm": 1e200, "lr": 0.5}
    ends = [train(training, VARIANT_OF["sgd"], xp, **options) for xp in (np, cupy)]
    assert differences(*ends) == {}


def test_replays_of_a_captured_step_are_steps(cupy: PtxCupy) -> None:
    training = Training(20, ((5,), (70, 3)), bad=(4,))
    options = {"max_grad_norm": 1.0, "on_nonfinite": "skip", "lr": lambda t: 0.1 / (1 + t)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "CAPTURED", 64)
        ends = [
            train(training, VARIANT_OF["adam"], np, **options),
            replayed(training, VARIANT_OF["adam"], cupy, **options),
        ]
    assert differences(*ends) == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_follows_as_it_does_on_numpy(cupy: PtxCupy, dtype: Any) -> None:
    cupy.spec = UpdateSpec.of(np.dtype(dtype), True)
    training = Training(20, ((5,), (70, 3)), [dtype], bad=(1, 6, 7, 8, 9, 12))
    policy = {**POLICY, "min_scale": 200.0, "max_scale": 5000.0}
    more: dict[str, Any] = {"policy": policy, "max_grad_norm": 20.0}
    ends = [scaled(training, VARIANT_OF["adam"], xp, **more) for xp in (np, cupy)]
    assert differences(*ends) == {}


def test_a_scale_follows_in_replays(cupy: PtxCupy) -> None:
    training = Training(20, ((5,), (70, 3)), bad=(1, 6, 7, 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "CAPTURED", 64)
        ends = [
            scaled(training, VARIANT_OF["adam"], np),
            scaled_replays(training, VARIANT_OF["adam"], cupy),
        ]
    assert differences(*ends) == {}


SCALE_FAULTS = {
    "the scale stays": ("    scales[SCALE] = scale", "    scales[0] = scales[0]"),
    "an answer outside": ("&outcomes[2 * index]", "&outcomes[2 * index + 4096]"),
    "the inverse in single precision": ("inverse = 1.0 / scale", "inverse = 1.0f / float(scale)"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", SCALE_FAULTS)
def test_a_fault_in_the_scale_is_noticed(cupy: PtxCupy, fault: str) -> None:
    cupy.changes = (SCALE_FAULTS[fault],)
    training = Training(12, ((5,), (70, 3)), bad=(1, 6))
    try:
        ends = [scaled(training, VARIANT_OF["sgd"], xp) for xp in (np, cupy)]
        found: Any = differences(*ends)
    except Fault as error:
        found = error
    assert found


DECISION_FAULTS = {
    "no first barrier": (
        "lane[threadIdx.x] = sum;\n    __syncthreads();",
        "lane[threadIdx.x] = sum;",
    ),
    "no barrier between halves": ("+ width];\n        __syncthreads();", "+ width];"),
    "a barrier for some threads": (
        "+ width];\n        __syncthreads();",
        "+ width]; if (threadIdx.x < width) __syncthreads();",
    ),
    "all threads write": ("if (threadIdx.x == 0)", "if (threadIdx.x < 2)"),
    "lanes in another order": ("k < count; k += LANES", "k < count; k += 1"),
    "a sum that is too long": ("k < count; k += LANES", "k <= count; k += 64"),
    "the last update is left out": ("if (counts[0] >= 0)", "if (counts[0] > 0)"),
    "a row too far": ("table[counts[0] *", "table[(counts[0] + 8) *"),
    "a skipped step counts": ("if (row >= 0) counts", "if (true) counts"),
    "a first barrier for some threads": (
        "= sum;\n    __syncthreads();",
        "= sum; if (threadIdx.x) __syncthreads();",
    ),
    "a thread reads the clock late": ("__syncthreads();  // all have read", "// all have read"),
}
