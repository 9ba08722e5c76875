"""What NVRTC makes of every rule gives NumPy's bits, and touches no memory but what it should.

The instructions run in an interpreter (helpers/cuda/ptx_interpreter.py); no GPU is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
from test_storage import LONG, WAYS

from fastopt.core.arrays import Array
from fastopt.core.norms import TILE
from fastopt.engine import tables
from helpers.cuda import nvrtc
from helpers.cuda.emulation.cuda import Cuda
from helpers.cuda.emulation.kernels import Compiled
from helpers.cuda.ptx_interpreter import Fault, Memory, Program
from helpers.cuda.runs import (
    DENSE,
    DTYPES,
    HALVES,
    ODD,
    difference_of,
    differences,
    halves_of,
    run_of,
)
from helpers.cuda.scaling import POLICY, scaled, scaled_replays
from helpers.cuda.training import Training, replayed, train
from helpers.variants import ONE_PASS, VARIANT_OF, Variant

if reason := nvrtc.reason_to_skip():
    pytest.skip(reason, allow_module_level=True)


class Interpreter:
    """Runs fastopt's launches as NVRTC compiled their text, after a change of it."""

    def __init__(self, cuda: Cuda, right: str = "", wrong: str = "") -> None:
        self._cuda = cuda
        self._change = right, wrong
        self.changed = False

    def __call__(self, kernel: Compiled, grid: int, block: int, arguments: list[bytes]) -> bool:
        source = kernel.source
        found = re.search(r"__global__ void (fastopt_\w+)", source)
        if found is None:  # CuPy's own
            return False
        right, wrong = self._change
        if right:
            self.changed |= right in source
            source = source.replace(right, wrong)
        program = program_of(found[1], source, kernel.options)
        program.run(Memory(self._cuda.memory()), arguments, grid, block)
        return True


@cache
def program_of(name: str, source: str, options: tuple[str, ...]) -> Program:
    return Program(nvrtc.ptx_of(source, options, architecture=90), name)


@pytest.fixture(autouse=True)
def interpreted(cuda: Cuda) -> Iterator[None]:
    with cuda.running(Interpreter(cuda)):
        yield


@contextmanager
def planted(cuda: Cuda, right: str, wrong: str) -> Iterator[None]:
    """Have kernels be made of another text; one of those that run must hold what is replaced."""
    interpreter = Interpreter(cuda, right, wrong)
    with cuda.running(interpreter):
        yield
    assert interpreter.changed, f"no kernel that ran holds {right!r}"


FEW = DENSE[4::9]
"""Some of every kind: the interpreter takes its time."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ONE_PASS, ids=str)
def test_every_rule_ends_in_the_bits_of_numpy(cupy: Any, variant: Variant, dtype: Any) -> None:
    more = {"weight_decay": 0.03, "grad_scale": 0.37, "missing": True}
    assert difference_of(variant, cupy, dtype, cuts=[*FEW, *ODD[:3]], **more) == {}


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_by_the_global_norm_does_so_too(cupy: Any, dtype: Any) -> None:
    sizes = (1, 63, 64, 65, TILE - 1, TILE, TILE + 1, 2 * TILE + 100)
    cuts = [(run_of(n), run_of(n, 1)) for n in sizes]
    more = {"missing": True, "max_grad_norm": 100.0}
    assert difference_of(VARIANT_OF["sgd"], cupy, dtype, cuts=cuts, **more) == {}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("variant", [VARIANT_OF["adam"], VARIANT_OF["sgd"]], ids=str)
def test_halves_with_master_weights_do_so_too(cupy: Any, variant: Variant, dtype: Any) -> None:
    more = {"missing": True, "max_grad_norm": 100.0}
    assert difference_of(variant, cupy, dtype, cuts=[*FEW, *ODD], **more) == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["adam", "sgd_momentum", "adadelta"])
def test_state_in_codes_and_rounding_by_chance_do_so_too(cupy: Any, name: str, way: str) -> None:
    dtype, options = WAYS[way]
    # One bucket: int8 is for long arrays alone.
    assert (
        difference_of(VARIANT_OF[name], cupy, dtype, cuts=LONG[:5], missing=True, **options) == {}
    )


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("dtype", [np.float32, *HALVES, np.complex64])
def test_arithmetic_in_float64_does_so_too(cupy: Any, dtype: Any, given: Any) -> None:
    grad_dtype = np.result_type(given, 1j).type if dtype is np.complex64 else given
    more = {"missing": True, "max_grad_norm": 100.0, "state_dtype": "float64"}
    more |= {"grad_dtype": grad_dtype, "cuts": [*FEW, *ODD]}
    assert difference_of(VARIANT_OF["adam"], cupy, dtype, **more) == {}


CODE_FAULTS = {
    "no barrier": ("__syncwarp();", ""),
    "threads leave before": (
        "store_pack(param_at + l, more.param);",
        "store_pack(param_at + l, more.param); if (lane == 3) return;",
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", CODE_FAULTS)
def test_a_fault_in_the_barriers_of_codes_is_noticed(cupy: Any, cuda: Cuda, fault: str) -> None:
    noticed = pytest.raises(Fault, match=r"barrier|maximum|one thread writes")
    with noticed, planted(cuda, *CODE_FAULTS[fault]):
        difference_of(VARIANT_OF["adam"], cupy, np.float32, cuts=LONG[:2], state_dtype="int8")


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_read_and_rounded_to_as_numpy_does(cupy: Any, dtype: Any) -> None:
    assert differences(halves_of(np, dtype), halves_of(cupy, dtype)) == {}


def test_a_limit_that_is_set_between_steps_is_what_numpy_goes_by(cupy: Any) -> None:
    limits = {k: lambda opt, k=k: setattr(opt, "max_grad_norm", 20.0 / (1 + k)) for k in range(11)}
    training = Training(11, ((5,), (70, 3)), bad=(1, 6), before=limits)
    options = {"on_nonfinite": "skip"}
    ends = [train(training, VARIANT_OF["adam"], xp, **options) for xp in (np, cupy)]
    assert differences(*ends) == {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ONE_PASS, ids=str)
def test_what_is_decided_on_the_device_is_what_numpy_decides(
    cupy: Any, variant: Variant, dtype: Any
) -> None:
    training = Training(11, ((5,), (70, 3), (0, 4), (4099,)), [dtype], bad=(1, 6))
    options = {"max_grad_norm": 20.0, "on_nonfinite": "skip", "weight_decay": 0.01}
    assert (
        differences(
            train(training, variant, np, **options), train(training, variant, cupy, **options)
        )
        == {}
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_steps_with_squares_that_overflow_float32_are_left_out(cupy: Any, dtype: Any) -> None:
    below = float(np.nextafter(np.float32(2.0**63), np.float32(0)))
    sizes = {1: below, 2: 2.0**63, 5: -1e25}
    training = Training(8, ((5,), (70, 3), (4099,)), [dtype], large=sizes)
    ends = [train(training, VARIANT_OF["adam"], xp, on_nonfinite="skip") for xp in (np, cupy)]
    assert differences(*ends) == {}
    skipped = {"float64": 0, "bfloat16": 3}.get(dtype, 2)  # to which the first is rounded up
    assert ends[1]["counts"].tolist() == [8 - skipped, 8 - skipped, skipped]


@pytest.mark.parametrize("size", [1e-170, 1e170])
def test_so_it_is_for_squares_beyond_float64(cupy: Any, size: float) -> None:
    training = Training(3, [(n,) for n in range(1, 140)], [np.float64], size)
    options = {"max_grad_norm": 1e200, "lr": 0.5}
    ends = [train(training, VARIANT_OF["sgd"], xp, **options) for xp in (np, cupy)]
    assert differences(*ends) == {}


def test_replays_of_a_captured_step_are_steps(cupy: Any) -> None:
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
def test_a_scale_follows_as_it_does_on_numpy(cupy: Any, dtype: Any) -> None:
    training = Training(20, ((5,), (70, 3)), [dtype], bad=(1, 6, 7, 8, 9, 12))
    policy = {**POLICY, "min_scale": 200.0, "max_scale": 5000.0}
    more: dict[str, Any] = {"policy": policy, "max_grad_norm": 20.0}
    ends = [scaled(training, VARIANT_OF["adam"], xp, **more) for xp in (np, cupy)]
    assert differences(*ends) == {}


def test_a_scale_follows_in_replays(cupy: Any) -> None:
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
    "an answer outside": ("&outcomes[2 * index]", "&outcomes[2 * index + (1ll << 40)]"),
    "the inverse in single precision": ("inverse = 1.0 / scale", "inverse = 1.0f / float(scale)"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", SCALE_FAULTS)
def test_a_fault_in_the_scale_is_noticed(cupy: Any, cuda: Cuda, fault: str) -> None:
    training = Training(12, ((5,), (70, 3)), bad=(1, 6))
    assert noticed(
        cuda,
        SCALE_FAULTS[fault],
        lambda: [scaled(training, VARIANT_OF["sgd"], x) for x in (np, cupy)],
    )


def noticed(cuda: Cuda, fault: tuple[str, str], ends: Callable[[], list[dict[str, Array]]]) -> Any:
    """Return what differs between two ends with a fault in the text, or what stopped the run."""
    try:
        with planted(cuda, *fault):
            return differences(*ends())
    except Fault as error:
        return error


DECISION_FAULTS = {
    "no first barrier": ("int mine) {\n    __syncthreads();", "int mine) {"),
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
        "int mine) {\n    __syncthreads();",
        "int mine) { if (threadIdx.x) __syncthreads();",
    ),
    "a thread reads the clock late": ("__syncthreads();  // all have read", "// all have read"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", DECISION_FAULTS)
def test_a_fault_in_the_decision_is_noticed(cupy: Any, cuda: Cuda, fault: str) -> None:
    training = Training(10, [(3,)] * 130, bad=(3,))
    more = {"max_grad_norm": 1.0, "on_nonfinite": "skip"}
    momentum = VARIANT_OF["momentum"]
    assert noticed(
        cuda,
        DECISION_FAULTS[fault],
        lambda: [train(training, momentum, xp, **more) for xp in (np, cupy)],
    )


UPDATE_FAULTS = {
    "a tail too long": (
        "threadIdx.x; k < count; k += UNIT",
        "threadIdx.x; k <= count; k += UNIT",
        "outside of all",
    ),
    "a pack too long": ("(first < packed)", "(packed && first < count)", "outside of all"),
    "packs of unaligned arrays": ("(PACK * sizeof(stored))", "4", "misaligned"),
    "threads that overlap": ("threadIdx.x * PACK", "threadIdx.x / 2 * PACK", "one thread writes"),
    "a tail twice": ("int k = packed +", "int k = 0 +", "one thread writes"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", UPDATE_FAULTS)
def test_a_fault_in_the_update_is_noticed(cupy: Any, cuda: Cuda, fault: str) -> None:
    right, wrong, noticed = UPDATE_FAULTS[fault]
    with pytest.raises(Fault, match=noticed), planted(cuda, right, wrong):
        difference_of(VARIANT_OF["adam"], cupy, np.float32, cuts=DENSE)
