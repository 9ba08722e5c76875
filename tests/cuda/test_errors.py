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
from helpers.cuda.device import real_cupy
from helpers.cuda.fake_cupy import CUDARuntimeError
from helpers.cuda.fake_device import FakeDevice
from helpers.cuda.runs import installed

INSUFFICIENT = "cudaErrorInsufficientDriver: CUDA driver version is insufficient"
NO_DEVICE = "cudaErrorNoDevice: no CUDA-capable device is detected"
UNKNOWN = "cudaErrorSystemDriverMismatch: system has unsupported display driver"


def failing(status: int, text: str) -> Callable[[], int]:
    def count() -> int:
        error = CUDARuntimeError(text)
        error.status = status  # type: ignore[attr-defined]  # as CuPy's
        raise error

    return count


def reason(count: Callable[[], int], driver: int) -> str:
    """Return why no device can be used, where CUDA answers like this."""
    cupy = FakeDevice()
    cupy.cuda.runtime.getDeviceCount = count
    cupy.cuda.runtime.driverGetVersion = lambda: driver
    with installed(cupy):
        said = fastopt.available_backends()["cupy"]
        for make in (lambda: fastopt.Adam([cupy.zeros(3)]), asked_for):
            with pytest.raises(BackendUnavailableError) as caught:
                make()
            assert str(caught.value) == said
        assert fastopt.array_namespace() is np  # nothing was asked for by name
    assert said is not None
    return said


def asked_for() -> None:
    with fastopt.use_backend("cupy"):
        fastopt.array_namespace()


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTOPT_BACKEND", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


# The driver and the device -----------------------------------------------------------------------


def test_a_missing_driver_is_told_from_one_that_is_too_old() -> None:
    missing = reason(failing(35, INSUFFICIENT), driver=0)
    assert "no NVIDIA driver is installed" in missing
    assert "too old" not in missing
    assert "Install the driver" in missing
    old = reason(failing(35, INSUFFICIENT), driver=11040)
    assert "too old: it knows CUDA up to 11.4, and this CuPy is made for CUDA 12.9" in old
    assert "Update the driver" in old
    assert "fastopt[cuda12]" in old
    for said in (missing, old):
        assert "CuPy 14.2.0 imports" in said
        assert INSUFFICIENT in said
        assert "nvidia-smi" in said
        assert "FASTOPT_BACKEND=auto" in said


@pytest.mark.parametrize("count", [failing(100, NO_DEVICE), lambda: 0])
def test_without_a_device_the_variable_that_may_hide_it_is_shown(
    count: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "CUDA_VISIBLE_DEVICES is not set" in reason(count, driver=12080)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    said = reason(count, driver=12080)
    assert "shows it no device (CUDA_VISIBLE_DEVICES is '-1')" in said
    assert "set CUDA_VISIBLE_DEVICES to the number of one" in said


def test_any_other_error_is_passed_on() -> None:
    said = reason(failing(803, UNKNOWN), driver=12080)
    assert UNKNOWN in said
    assert "Look at nvidia-smi" in said


def test_a_driver_that_tells_no_version_either_is_an_error_with_its_text() -> None:
    cupy = FakeDevice()
    cupy.cuda.runtime.getDeviceCount = failing(35, INSUFFICIENT)
    cupy.cuda.runtime.driverGetVersion = failing(999, "cudaErrorUnknown: unknown error")
    with installed(cupy):
        said = fastopt.available_backends()["cupy"]
    assert said is not None
    assert "cudaErrorUnknown" in said


@pytest.mark.skipif(find_spec("cupy") is None, reason="needs CuPy, and no device")
def test_the_real_cupy_without_a_device_gives_one_of_these_reasons() -> None:
    said = fastopt.available_backends()["cupy"]
    if said is None:
        pytest.skip("a device answers here")
    words = "no NVIDIA driver is installed|too old: it knows CUDA|shows it no device"
    assert re.search(words, said), said
    assert "nvidia-smi" in said


def test_a_run_that_was_meant_for_a_device_fails_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with installed(FakeDevice(NO_DEVICE)):
        monkeypatch.delenv("FASTOPT_TEST_GPU", raising=False)
        with pytest.raises(pytest.skip.Exception, match="cudaErrorNoDevice"):
            real_cupy()
        monkeypatch.setenv("FASTOPT_TEST_GPU", "1")
        with pytest.raises(pytest.fail.Exception, match=r"TEST_GPU is set.*cudaErrorNoDev"):
            real_cupy()
    with installed(FakeDevice(1)) as cupy:
        assert real_cupy() is cupy
        with pytest.raises(pytest.skip.Exception, match="needs 2 devices"):
            real_cupy(2)


# Arrays in the wrong place -----------------------------------------------------------------------


def test_numpy_gradients_of_cupy_parameters_are_refused(xp: Any) -> None:
    params = {"W": xp.ones(3, "f4"), "b": xp.ones((), "f4")}
    opt = fastopt.Adam(params)
    good = {name: xp.ones(param.shape, "f4") for name, param in params.items()}
    words = r'grads\["W"\] must be on the same device as params\["W"\].*cupy, on device 0.*got '
    for bad in (np.ones(3, np.float32), np.ones(3)):
        with pytest.raises(BackendMismatchError, match=words + "numpy, in host memory.*Move it"):
            opt.step({**good, "W": bad})
    with pytest.raises(BackendMismatchError, match=r'grads\["b"\].*numpy'):
        opt.step({**good, "b": np.float32(1.0)})
    with pytest.raises(TypeError, match=r'grads\["b"\] must be a cupy array.*got float'):
        opt.step({**good, "b": 1.0})
    untouched(opt, params)


def test_cupy_gradients_of_numpy_parameters_are_refused(xp: Any) -> None:
    params = {"W": np.ones(3, np.float32)}
    opt = fastopt.Adam(params)
    with pytest.raises(BackendMismatchError, match=r'grads\["W"\].*numpy, in host.*got cupy, on'):
        opt.step({"W": xp.ones(3, "f4")})
    untouched(opt, params)


def untouched(opt: Any, params: Any) -> None:
    assert opt.step_count == 0
    for param in params.values():
        assert bool((param == 1.0).all())
    for entry in opt.state_dict()["state"].values():
        assert not entry["m"].any()


def test_a_gradient_on_another_device_is_refused(xp2: Any) -> None:
    params = {"W": xp2.ones(3, "f4"), "b": xp2.ones((), "f4")}
    opt = fastopt.Adam(params)
    with xp2.cuda.Device(1):
        far = xp2.ones(3, "f4")
    words = r'grads\["W"\].*params\["W"\] \(cupy, on device 0\); got cupy, on device 1.*Move it'
    with pytest.raises(BackendMismatchError, match=words):
        opt.step({"W": far, "b": xp2.ones((), "f4")})
    untouched(opt, params)


def test_parameters_on_two_devices_are_refused(xp2: Any) -> None:
    near = xp2.ones(3, "f4")
    with xp2.cuda.Device(1):
        far = xp2.ones(3, "f4")
    words = r"params\[0\] is a CuPy array on device 0 and params\[1\] is .* device 1.*one optimizer"
    for backend in ("cupy", "auto"):
        with pytest.raises(BackendMismatchError, match=words):
            fastopt.Adam([near, far], backend=backend)
