"""What is wrong with a GPU, its driver or where arrays are is said, with why and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt.errors import BackendMismatchError, BackendUnavailableError
from helpers.cuda import device
from helpers.cuda.device import REAL, cupy_or_skip
from helpers.cuda.emulation import build
from helpers.cuda.emulation.cuda import Cuda
from helpers.variants import script

NO_DRIVER, NO_DEVICE, OTHER, UNKNOWN = 35, 100, 803, 999
INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient"
Reason = Callable[[int, int], str]


@pytest.fixture
def reason(cupy: Any, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> Reason:
    """Say why no device can be used with so many devices and a driver's version.

    A negative number stands for an error of CUDA.
    """
    runtime, param = cupy.cuda.runtime, cupy.zeros(3)

    def answering(name: str, number: int) -> None:
        def answer() -> int:
            if number < 0:
                raise runtime.CUDARuntimeError(-number)
            return number

        monkeypatch.setattr(runtime, name, answer)

    def said_of(count: int, driver: int) -> str:
        answering("getDeviceCount", count)
        answering("driverGetVersion", driver)
        said = fastopt.available_backends()["cupy"]
        for make in (lambda: fastopt.Adam([param]), asked_for):
            with pytest.raises(BackendUnavailableError) as caught:
                make()
            assert str(caught.value) == said
        assert fastopt.array_namespace() is np  # nothing was asked for by name
        assert said is not None
        return said

    return said_of


def asked_for() -> None:
    with fastopt.use_backend("cupy"):
        fastopt.array_namespace()


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTOPT_BACKEND", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


# The driver and the device -----------------------------------------------------------------------


def test_a_missing_driver_is_told_from_one_that_is_too_old(cupy: Any, reason: Reason) -> None:
    missing = reason(-NO_DRIVER, 0)
    assert "no NVIDIA driver is installed" in missing
    assert "too old" not in missing
    assert "Install the driver" in missing
    old = reason(-NO_DRIVER, 11040)
    assert "too old: it knows CUDA up to 11.4, and this CuPy is made for CUDA 12.9" in old
    assert "Update the driver" in old
    assert "fastopt[cuda12]" in old
    for said in (missing, old):
        assert f"CuPy {cupy.__version__} imports" in said
        assert INSUFFICIENT in said
        assert "nvidia-smi" in said
        assert "FASTOPT_BACKEND=auto" in said


@pytest.mark.parametrize("count", [-NO_DEVICE, 0])
def test_without_a_device_the_variable_that_may_hide_it_is_shown(
    reason: Reason, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "CUDA_VISIBLE_DEVICES is not set" in reason(count, 12080)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    said = reason(count, 12080)
    assert "shows it no device (CUDA_VISIBLE_DEVICES is '-1')" in said
    assert "set CUDA_VISIBLE_DEVICES to the number of one" in said


def test_any_other_error_is_passed_on(reason: Reason) -> None:
    said = reason(-OTHER, 12080)
    assert "cudaErrorSystemDriverMismatch: system has unsupported display driver" in said
    assert "Look at nvidia-smi" in said


def test_a_driver_that_tells_no_version_either_is_an_error_with_its_text(reason: Reason) -> None:
    assert "cudaErrorUnknown: unknown error" in reason(-NO_DRIVER, -UNKNOWN)


@pytest.mark.skipif(REAL or find_spec("cupy") is None, reason="needs CuPy, and no device")
def test_cupy_without_a_device_gives_one_of_these_reasons() -> None:
    done = script("import fastopt; print(fastopt.available_backends()['cupy'])")
    if done.stdout.strip() == "None":
        pytest.skip("a device answers here")
    words = "no NVIDIA driver is installed|too old: it knows CUDA|shows it no device"
    assert re.search(words, done.stdout), done
    assert "nvidia-smi" in done.stdout


def test_a_run_that_was_meant_for_a_device_fails_without_one(
    cupy: Any, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cupy_or_skip() is cupy
    with cuda.devices(1), pytest.raises(pytest.skip.Exception, match="needs 2 devices"):
        cupy_or_skip(2)
    no_device = pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorNoDevice")
    with cuda.devices(0), no_device:
        cupy_or_skip()
    monkeypatch.setattr(build, "reason_to_skip", lambda: "there is no g++")
    with pytest.raises(pytest.skip.Exception, match="there is no g"):
        cupy_or_skip()
    monkeypatch.setattr(device, "REAL", True)
    with cuda.devices(0), no_device:
        cupy_or_skip()


# Arrays in the wrong place -----------------------------------------------------------------------


def test_numpy_gradients_of_cupy_parameters_are_refused(cupy: Any) -> None:
    params = {"W": cupy.ones(3, "f4"), "b": cupy.ones((), "f4")}
    opt = fastopt.Adam(params)
    good = {name: cupy.ones(param.shape, "f4") for name, param in params.items()}
    words = r'grads\["W"\] must be on the same device as params\["W"\].*cupy, on device 0.*got '
    for bad in (np.ones(3, np.float32), np.ones(3)):
        with pytest.raises(BackendMismatchError, match=words + "numpy, in host memory.*Move it"):
            opt.step({**good, "W": bad})
    with pytest.raises(BackendMismatchError, match=r'grads\["b"\].*numpy'):
        opt.step({**good, "b": np.float32(1.0)})
    with pytest.raises(TypeError, match=r'grads\["b"\] must be a cupy array.*got float'):
        opt.step({**good, "b": 1.0})
    untouched(opt, params)


def test_cupy_gradients_of_numpy_parameters_are_refused(cupy: Any) -> None:
    params = {"W": np.ones(3, np.float32)}
    opt = fastopt.Adam(params)
    with pytest.raises(BackendMismatchError, match=r'grads\["W"\].*numpy, in host.*got cupy, on'):
        opt.step({"W": cupy.ones(3, "f4")})
    untouched(opt, params)


def untouched(opt: Any, params: Any) -> None:
    assert opt.step_count == 0
    for param in params.values():
        assert bool((param == 1.0).all())
    for entry in opt.state_dict()["state"].values():
        assert not entry["m"].any()


def test_a_gradient_on_another_device_is_refused(cupy2: Any) -> None:
    params = {"W": cupy2.ones(3, "f4"), "b": cupy2.ones((), "f4")}
    opt = fastopt.Adam(params)
    with cupy2.cuda.Device(1):
        far = cupy2.ones(3, "f4")
    words = r'grads\["W"\].*params\["W"\] \(cupy, on device 0\); got cupy, on device 1.*Move it'
    with pytest.raises(BackendMismatchError, match=words):
        opt.step({"W": far, "b": cupy2.ones((), "f4")})
    untouched(opt, params)


def test_parameters_on_two_devices_are_refused(cupy2: Any) -> None:
    near = cupy2.ones(3, "f4")
    with cupy2.cuda.Device(1):
        far = cupy2.ones(3, "f4")
    words = r"params\[0\] is a CuPy array on device 0 and params\[1\] is .* device 1.*one optimizer"
    for backend in ("cupy", "auto"):
        with pytest.raises(BackendMismatchError, match=words):
            fastopt.Adam([near, far], backend=backend)
