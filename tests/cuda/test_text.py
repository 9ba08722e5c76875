"""The CUDA text gives NumPy's bits, on a device and where CUDA is emulated.

What the emulation cannot see, NVRTC's reading of the text, is in test_compile.py and test_ptx.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastopt
import fastopt_kernels
from fastopt.backends.cupy.launch import Kernels
from fastopt.core.buckets import Parameter
from fastopt.core.norms import TILE
from fastopt_kernels import Rule
from helpers.cuda.device import no_waiting
from helpers.cuda.emulation.cuda import Cuda
from helpers.cuda.planted import planted
from helpers.cuda.runs import (
    COMPLEX,
    DENSE,
    DTYPES,
    HALVES,
    ODD,
    STEPS,
    Cuts,
    difference_of,
    differences,
    halves_of,
    on_host,
    run,
    run_of,
    some_values,
)
from helpers.variants import ONE_PASS, VARIANT_OF, VARIANTS, Variant

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

# The same bits -------------------------------------------------------------------------------


@each_dtype
@each_variant
def test_every_rule_ends_in_the_bits_of_numpy(cupy: Any, variant: Variant, dtype: Any) -> None:
    assert difference_of(variant, cupy, dtype) == {}


@each_dtype
@each_variant
def test_so_it_does_with_decay_scale_maximize_and_missing_gradients(
    cupy: Any, variant: Variant, dtype: Any
) -> None:
    more = {"weight_decay": 0.03, "maximize": True, "grad_scale": 0.37, "missing": True}
    assert difference_of(variant, cupy, dtype, cuts=[*DENSE, *ODD], **more) == {}


@each_variant
def test_half_precision_with_master_weights_does_so_too(cupy: Any, variant: Variant) -> None:
    cuts = [*DENSE, *ODD]
    assert difference_of(variant, cupy, ml_dtypes.bfloat16, cuts=cuts, missing=True) == {}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("grad_dtype", [None, np.float32, np.float64])
@pytest.mark.parametrize("master_weights", [True, False])
def test_so_does_every_way_to_store_halves(
    cupy: Any, dtype: Any, grad_dtype: Any, master_weights: bool
) -> None:
    more = {"grad_dtype": grad_dtype, "master_weights": master_weights, "max_grad_norm": 300.0}
    for name in ("adam", "sgd"):
        assert difference_of(VARIANT_OF[name], cupy, dtype, cuts=[*DENSE, *ODD], **more) == {}


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_read_and_rounded_to_as_numpy_does(cupy: Any, dtype: Any) -> None:
    assert differences(halves_of(np, dtype), halves_of(cupy, dtype)) == {}


@pytest.mark.parametrize("dtype", COMPLEX)
@each_variant
def test_complex_parameters_are_pairs_of_real_ones(cupy: Any, variant: Variant, dtype: Any) -> None:
    more = {"weight_decay": 0.03, "missing": True, "max_grad_norm": 300.0}
    assert difference_of(variant, cupy, dtype, cuts=[*DENSE, *ODD], **more) == {}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["sgd_momentum", "adam"])
def test_bounds_are_kept_in_the_same_bits(cupy: Any, name: str, dtype: Any) -> None:
    cuts = [*DENSE, *ODD]
    for bounds in ((-0.5, 3.0), ([-0.5] * len(cuts), [float(k) for k in range(len(cuts))])):
        more = {"bounds": bounds, "reset_at_bounds": True, "lr": 0.1, "missing": True}
        assert difference_of(VARIANT_OF[name], cupy, dtype, cuts=cuts, **more) == {}


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.float16])
def test_arrays_with_gaps_are_updated_where_they_are(cupy: Any, cuda: Cuda, dtype: Any) -> None:
    memory = cupy.asarray(some_values(4000, dtype, 0))
    params = [memory[:70:2], memory[100:3700].reshape(10, 18, 20)[::-2, 3:9, ::3]]
    before = memory.get()
    opt = fastopt.SGD(params, lr=0.5)
    launches = launches_of(cuda, opt, params_like(cupy, params))
    assert [name for name in launches if name.startswith("fastopt")] == ["fastopt_sgd"]
    assert np.array_equal(memory.get(), before)
    opt.step([cupy.asarray(np.ones(param.shape, dtype)) for param in params])
    changed = np.zeros(4000, bool)
    changed[:70:2] = True
    changed[100:3700].reshape(10, 18, 20)[::-2, 3:9, ::3] = True
    assert np.array_equal(memory.get() != before, changed)


def test_usual_arrays_are_not_looked_at_one_by_one(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parameter, "flat_gradient", None)
    short = (run_of(1), lambda buffer: buffer[:10:20])  # the stride of an axis of one says nothing
    run(VARIANT_OF["adam"], cupy, np.float32, cuts=[*DENSE, short], missing=True)
    with pytest.raises(TypeError, match="not callable"):
        run(VARIANT_OF["adam"], cupy, np.float32, cuts=ODD)


@each_dtype
def test_gradients_of_another_dtype_are_converted(cupy: Any, dtype: Any) -> None:
    ends = []
    for xp in (np, cupy):
        params = [xp.asarray(some_values(70, dtype, k)) for k in range(2)]
        opt = VARIANT_OF["adam"](params)
        for step in range(STEPS):
            halves = [np.random.default_rng(step).standard_normal(70).astype(t) for t in "ed"]
            opt.step([xp.asarray(half) for half in halves])
        ends.append({str(k): on_host(param) for k, param in enumerate(params)})
    assert differences(*ends) == {}


@each_dtype
@pytest.mark.parametrize("limit", [100.0, 1e9])
def test_clipping_by_the_global_norm_does_so_too(cupy: Any, dtype: Any, limit: float) -> None:
    sizes = (1, 63, 64, 65, 0, TILE - 1, TILE, TILE + 1, 3 * TILE + 100)
    cuts = [*((run_of(n), run_of(n, 1)) for n in sizes), *ODD, *DENSE, *DENSE, *DENSE]
    more = {"missing": True, "max_grad_norm": limit, "grad_scale": -0.5}
    assert difference_of(VARIANT_OF["adam"], cupy, dtype, cuts=cuts, **more) == {}


def test_a_norm_that_overflows_on_the_way_is_right(cupy: Any) -> None:
    for size in (1e-200, 1.0, 1e200):
        opt = fastopt.SGD([cupy.zeros(4)], max_grad_norm=1.0).warmup()
        opt.step([cupy.asarray(np.full(4, size))])
        assert opt.grad_norm == 2 * size
    opt.step([None])
    assert opt.grad_norm == 0.0


def test_a_run_goes_on_where_numpy_left_off(cupy: Any) -> None:
    start = some_values(1000, np.float32, 0)
    grads = [some_values(1000, np.float32, k) for k in range(20)]
    one = fastopt.Adam([start.copy()], backend="numpy")
    for grad in grads[:10]:
        one.step([grad])
    moved = cupy.asarray(one.param_groups[0]["params"][0])
    two = fastopt.Adam([moved])
    two.load_state_dict(one.state_dict())
    for grad in grads[10:]:
        one.step([grad])
        two.step([cupy.asarray(grad)])
    assert two.step_count == 20
    assert np.array_equal(moved.get(), one.param_groups[0]["params"][0])


# Launches ------------------------------------------------------------------------------------


def launches_of(cuda: Cuda, opt: Any, grads: Any) -> list[str]:
    cuda.clear()
    with no_waiting():
        opt.step(grads)
    return [launch.name for launch in cuda.launches]


@pytest.mark.parametrize("variant", ONE_PASS, ids=str)
def test_a_step_is_one_launch(cupy: Any, cuda: Cuda, variant: Variant) -> None:
    params = [cupy.zeros(n, np.float32) for n in (3, 1024, 5000, 1)]
    opt = variant(params, backend="cupy")
    for _ in range(3):
        assert len(launches_of(cuda, opt, [cupy.zeros(p.shape, p.dtype) for p in params])) == 1


@pytest.mark.parametrize(
    ("arrays", "launches"), [(1, 1), (192, 1), (193, 1), (1_500, 1), (1_501, 2)]
)
def test_1500_arrays_fit_a_launch(cupy: Any, cuda: Cuda, arrays: int, launches: int) -> None:
    params = [cupy.zeros(2, np.float32) for _ in range(arrays)]
    opt = fastopt.SGD(params)
    assert launches_of(cuda, opt, params_like(cupy, params)) == ["fastopt_sgd"] * launches


@pytest.mark.parametrize("older", [{"driver": 12_000}, {"compiler": (12, 0)}, {"device": "61"}])
@pytest.mark.parametrize(("arrays", "launches"), [(192, 1), (193, 2), (385, 3)])
def test_192_do_where_arguments_are_small(
    cupy: Any,
    cuda: Cuda,
    older: dict[str, Any],
    arrays: int,
    launches: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before CUDA 12.1 and Volta the arguments of a kernel are 4 KB at most."""
    kernels = Kernels(cupy)
    versions = {"driver": 12_090, "compiler": (12, 9), "device": "90"} | older
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: versions["driver"])
    monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", lambda: versions["compiler"])
    monkeypatch.setattr(cupy.cuda, "Device", old_device(cupy.cuda.Device, versions["device"]))
    kernels.addresses(1_000)  # asked here, and remembered
    monkeypatch.undo()
    monkeypatch.setattr("fastopt.backends.cupy.backend._KERNELS", kernels)
    params = [cupy.zeros(2, np.float32) for _ in range(arrays)]
    opt = fastopt.SGD(params)
    assert launches_of(cuda, opt, params_like(cupy, params)) == ["fastopt_sgd"] * launches


def old_device(device: Any, capability: str) -> Any:
    return lambda: SimpleNamespace(compute_capability=capability, id=device().id)


def test_loads_of_16_bytes_where_none_are_allowed_are_noticed(cupy: Any, cuda: Cuda) -> None:
    cuts = [(run_of(300), run_of(300, 1))]
    with (
        planted(cupy, "(address & 15) == 0", "true"),
        pytest.raises(RuntimeError, match="aligned"),
    ):
        difference_of(VARIANT_OF["sgd"], cupy, np.float32, cuts=cuts, max_grad_norm=1.0)


def params_like(cupy: Any, params: Sequence[Any]) -> list[Any]:
    return [cupy.zeros(param.shape, param.dtype) for param in params]


def test_without_gradients_nothing_is_launched(cupy: Any, cuda: Cuda) -> None:
    params = [cupy.zeros(2, np.float32) for _ in range(200)]
    opt = fastopt.Adam(params)
    assert launches_of(cuda, opt, [None] * 200) == []
    assert launches_of(cuda, opt, [None] * 199 + [cupy.zeros(2, np.float32)]) == ["fastopt_adam"]
    empty = fastopt.Adam([cupy.zeros((0, 3), np.float32)])
    assert launches_of(cuda, empty, [cupy.zeros((0, 3), np.float32)]) == []


def test_parameters_at_different_steps_take_a_launch_per_step_count(cupy: Any, cuda: Cuda) -> None:
    params = [cupy.zeros(2, np.float32) for _ in range(3)]
    adam, sgd = fastopt.Adam(params), fastopt.SGD([p.copy() for p in params])
    for opt, launches in ((adam, 2), (sgd, 1)):  # SGD's scalars are the same in every step
        assert len(launches_of(cuda, opt, [*params_like(cupy, params[:2]), None])) == 1
        assert len(launches_of(cuda, opt, params_like(cupy, params))) == launches


def test_each_dtype_and_group_has_a_launch_of_its_own(cupy: Any, cuda: Cuda) -> None:
    params = [cupy.zeros(5, dtype) for dtype in (np.float32, np.float64, np.float32)]
    params.append(cupy.zeros(70, np.float32)[::2])
    strided = cupy.asarray(np.ones(35, np.float32))
    opt = fastopt.Adagrad(params, initial_accumulator_value=0.5)
    assert len(launches_of(cuda, opt, [*params_like(cupy, params[:3]), strided])) == 2
    opt.load_state_dict(opt.state_dict())
    assert params[3].get()[0] != 0.0
    groups = [{"params": params[:1]}, {"params": params[2:3], "lr": 0.5}]
    two = fastopt.SGD(groups)
    grads = [params_like(cupy, params[:1]), params_like(cupy, params[2:3])]
    assert len(launches_of(cuda, two, grads)) == 2


def test_interleaved_parameters_and_gradients_are_stepped(cupy: Any) -> None:
    whole, grads = cupy.zeros((5, 4), np.float32), cupy.asarray(np.arange(20.0).reshape(5, 4))
    opt = fastopt.SGD([whole[:, 0], whole[:, 2], whole[:, 3]], lr=1.0)
    opt.step([grads[:, 0], whole[:, 1], grads[:, 3]])
    expected = np.zeros((5, 4))
    expected[:, [0, 3]] = -grads.get()[:, [0, 3]]
    np.testing.assert_array_equal(whole.get(), expected)
    with pytest.raises(ValueError, match="share memory"):
        fastopt.SGD([whole[:, 0], whole[3]])


def test_groups_by_pattern_of_one_dtype_have_a_launch_each(cupy: Any, cuda: Cuda) -> None:
    params = {"W": cupy.zeros(5, np.float32), "b": cupy.zeros(3, np.float32)}
    opt = fastopt.SGD(fastopt.groups(params, {"b": {"lr": 0.5}}), lr=1.0)
    grads = {name: cupy.asarray(np.ones(param.shape, "f4")) for name, param in params.items()}
    assert len(launches_of(cuda, opt, grads)) == 2
    opt.param_groups[1]["trainable"] = False
    assert len(launches_of(cuda, opt, {**grads, "b": None})) == 1
    assert [params[name].get()[0] for name in ("W", "b")] == [-2.0, -0.5]


def test_all_rule_files_are_run_here(cupy: Any, cuda: Cuda) -> None:
    for make in (*VARIANTS, fastopt.LAMB, fastopt.Prodigy):
        make([cupy.zeros(1, np.float32)])  # construction tries the kernel out
    folder = Path(fastopt_kernels.__file__).parent
    modules = [importlib.import_module(f"fastopt_kernels.{p.stem}") for p in folder.glob("*.py")]
    held = [one for module in modules for one in vars(module).values() if isinstance(one, Rule)]
    rules = {f"fastopt_{rule.name}" for rule in held}  # those on whole arrays have no kernels
    names = {launch.name for launch in cuda.launches}
    assert {name for name in names if name.startswith("fastopt")} == rules


# Faults that must not pass ---------------------------------------------------------------------

FAULTS = {
    "the tail is dropped": (
        "packed + UNIT * threadIdx.x; k < count;",
        "packed + UNIT * threadIdx.x; k < packed;",
    ),
    "the tail ends early": (
        "packed + UNIT * threadIdx.x; k < count;",
        "packed + UNIT * threadIdx.x; k < count - 1;",
    ),
    "the last pack is dropped": ("if (first < packed)", "if (first + 4 < packed)"),
    "packs of unaligned arrays": ("(PACK * sizeof(stored))", "4"),
    "half of the alignment check": ("grad_address % (PACK * sizeof(gradient)) == 0", "true"),
    "blocks begin at the first element": ("(grad_address) + start", "(grad_address)"),
    "two slots are one": ("arena + 1 * memory.pitch", "arena + 0 * memory.pitch"),
    "coefficients are swapped": ("m + one_minus_beta1", "m + one_minus_beta2"),
    "nothing is flushed": ("fabs(m) < tiny_signed", "fabs(m) < 0"),
    "gradients are not scaled": ("plain_grad = grad_scale * grad", "plain_grad = grad"),
    "decay is left out": ("l2 != real(0) ? grad", "false ? grad"),
    "arithmetic in double": ("sqrt(v) + eps", "sqrt((double)v) + eps"),
}


def in_shape(buffer: Any) -> Any:
    return buffer[:1080].reshape(30, 9, 4)


HALF_FAULTS = {
    "rounds up in the middle": ("+ odd) >>", "+ 1u) >>"),
    "cuts off": ("fffu + odd) >>", "fffu * 0u) >>"),
    "keeps a master that is outdated": (
        "if (Stored::widen(Stored::narrow(master)) !=",
        "if (false &&",
    ),
    "forgets the master": ("master.x[k] = number;", ""),
    "takes every gap for the first": ("start + k, axes", "k, axes"),
    "takes axes in the other order": ("axes[2 * axis]", "axes[2 * (axes[0] + 1 - axis)]"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", HALF_FAULTS)
def test_a_fault_in_the_text_for_halves_and_gaps_is_noticed(
    cupy: Any, cuda: Cuda, fault: str
) -> None:
    apart: Cuts = [
        (lambda buffer: buffer[:5100].reshape(30, 17, 10)[:, ::2, ::3], in_shape),
        *DENSE,
    ]
    with planted(cupy, *HALF_FAULTS[fault]):
        found = difference_of(VARIANT_OF["adam"], cupy, ml_dtypes.bfloat16, cuts=apart)
        assert found or any(differences(halves_of(np, d), halves_of(cupy, d)) for d in HALVES)


CLIP_FAULTS = {
    "nothing is cut off below": ("grad < -clip_value ? -clip_value :", "false ? -clip_value :"),
    "nothing is cut off above": ("raised > clip_value ? clip_value :", "false ? clip_value :"),
    "nothing is scaled": ("kept = grad * factor;", "kept = grad;"),
    "squares are not squares": ("sums[0] += static_cast<double>(squares) *", "sums[0] +="),
    "short gradients are made longer": ("ratio > 1.0 ||", "false ||"),
    "more is added to the norm": ("(sqrt(squares) + 1e-6)", "(sqrt(squares) + 1e-3)"),
    "the L2 term is added to another gradient": (
        "l2 != real(0) ? grad +",
        "l2 != real(0) ? plain_grad +",
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", CLIP_FAULTS)
def test_a_fault_in_the_text_of_clipping_is_noticed(cupy: Any, cuda: Cuda, fault: str) -> None:
    options = {"weight_decay": 0.03, "max_grad_norm": 1e9}
    with planted(cupy, *CLIP_FAULTS[fault]):
        found = [
            difference_of(VARIANT_OF["sgd_clip_both"], cupy, np.float32, clip_each=limit, **options)
            for limit in (1.0, 1e4)
        ]
    assert any(found)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_text_is_noticed(cupy: Any, cuda: Cuda, fault: str) -> None:
    options: tuple[dict[str, float], ...] = ({}, {"weight_decay": 0.03, "grad_scale": 0.37})
    with planted(cupy, *FAULTS[fault]):
        try:
            found: list[Any] = [
                difference_of(VARIANT_OF["adam"], cupy, np.float32, **o) for o in options
            ]
        except cupy.cuda.driver.CUDADriverError as error:  # a misaligned address
            found = [error]
    assert any(found)


def test_waiting_for_the_device_would_be_noticed(cupy: Any, cuda: Cuda) -> None:
    array = cupy.zeros(())
    for wait in (array.get, array.item, array.tolist, lambda: float(array), lambda: bool(array)):
        wait()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError), cuda.no_waiting():
            wait()


# What is refused -----------------------------------------------------------------------------


def test_cupy_without_a_device_is_unavailable(
    cupy: Any, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTOPT_BACKEND", raising=False)
    reason = "cudaErrorNoDevice: no CUDA-capable device is detected"
    param = cupy.zeros(3)
    with cuda.devices(0):
        assert reason in str(fastopt.available_backends()["cupy"])
        with pytest.raises(fastopt.BackendUnavailableError, match=r"nvidia-smi.*FASTOPT_BACKEND"):
            fastopt.Adam([param])
        with pytest.raises(fastopt.BackendUnavailableError), fastopt.use_backend("cupy"):
            fastopt.array_namespace()
        assert fastopt.array_namespace() is np


def test_a_kernel_that_cannot_be_built_is_an_error_of_construction(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("libnvrtc.so.12: cannot open shared object file")

    monkeypatch.setattr(Kernels, "of", lambda *_: broken)
    with pytest.raises(fastopt.BackendUnavailableError, match=r"libnvrtc.*pip install"):
        fastopt.Adam([cupy.zeros(3)])


def test_array_namespace_is_cupy_where_a_device_answers(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTOPT_BACKEND", raising=False)
    assert fastopt.array_namespace() is cupy
    assert fastopt.array_namespace(cupy.zeros(1)) is cupy
    monkeypatch.setenv("FASTOPT_BACKEND", " CuPy ")
    assert fastopt.array_namespace() is cupy
    assert fastopt.available_backends()["cupy"] is None
    monkeypatch.setenv("FASTOPT_BACKEND", "numpy")
    assert fastopt.array_namespace() is np
    with pytest.raises(fastopt.BackendMismatchError, match="numpy and cupy"):
        fastopt.array_namespace(cupy.zeros(1), np.zeros(1))


def test_the_named_backend_refuses_arrays_of_the_other_kind(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "cupy")
    with pytest.raises(fastopt.BackendMismatchError, match=r'params\["W"\] is a numpy array'):
        fastopt.Adam({"W": np.zeros(3)})
    monkeypatch.setenv("FASTOPT_BACKEND", "numpy")
    with pytest.raises(fastopt.BackendMismatchError, match=r'params\["W"\] is a cupy array'):
        fastopt.Adam({"W": cupy.zeros(3)})


def test_a_gradient_of_the_other_kind_is_named(cupy: Any) -> None:
    param = cupy.asarray(np.ones(3, np.float32))
    opt = fastopt.Adam({"W": param})
    with pytest.raises(fastopt.BackendMismatchError, match=r'grads\["W"\].*numpy, in host memory'):
        opt.step({"W": np.zeros(3, np.float32)})
    host = fastopt.Adam({"W": np.ones(3, np.float32)}, backend="numpy")
    with pytest.raises(fastopt.BackendMismatchError, match=r'grads\["W"\].*cupy, on device 0'):
        host.step({"W": cupy.zeros(3, np.float32)})
    assert param.get().tolist() == [1.0] * 3
    assert opt.step_count == 0


def test_a_gradient_that_the_step_would_write_is_refused(cupy: Any) -> None:
    memory = cupy.asarray(np.ones(12, np.float32))
    params = [memory[:4], cupy.zeros(4, np.float32)]
    opt = fastopt.SGD(params)
    for grad in (memory[:4], memory[2:6], memory[:8:2]):
        with pytest.raises(ValueError, match=r"grads\[1\] shares memory with params\[0\]"):
            opt.step([None, grad])
    opt.step([None, memory[4:8]])
    assert memory.get().tolist() == [1.0] * 12


@pytest.mark.parametrize(
    ("grad", "error"),
    [((np.float32, (4,)), ValueError), ((np.int32, (3,)), TypeError), (0.5, TypeError)],
)
def test_a_step_that_raises_has_launched_nothing(
    cupy: Any, cuda: Cuda, grad: Any, error: Any
) -> None:
    params = [cupy.zeros(3, np.float32), cupy.zeros(3, np.float64)]
    opt = fastopt.SGD(params)
    wrong = cupy.zeros(grad[1], grad[0]) if isinstance(grad, tuple) else grad
    good = cupy.zeros(3, np.float32)
    cuda.clear()
    with pytest.raises(error, match=r"grads\[1\]"):
        opt.step([good, wrong])
    assert cuda.launches == []


def test_missing_gradients_are_not_taken_for_arrays_that_are_gone(cupy: Any) -> None:
    params = [cupy.zeros(3, np.float32) for _ in range(2)]
    opt = fastopt.SGD(params, 1.0)
    for _ in range(2):
        opt.step([cupy.ones(3, np.float32) for _ in params])  # gone after the step
    opt.step([None, None])
    opt.step([cupy.ones(3, np.float32), None])
    assert [param.get().tolist() for param in params] == [[-3] * 3, [-2] * 3]
