"""Why no CUDA device answers, and what to do: no driver, too old a driver, or no device to see."""

from __future__ import annotations

import os
from typing import Any

INSUFFICIENT_DRIVER = 35
"""CUDA's code of an error; it stands for a driver that is missing as well as for one too old."""

NO_DEVICE = 100


def check_device(cupy: Any) -> None:
    """Raise RuntimeError, which says what is wrong and what to do, if no device answers."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        what, remedy = _explained(runtime, getattr(error, "status", None))
        raise RuntimeError(_message(cupy, f"{what}: {error}", remedy)) from error
    if not count:
        raise RuntimeError(_message(cupy, *_no_device()))


def _message(cupy: Any, what: str, remedy: str) -> str:
    return (
        f"CuPy {cupy.__version__} imports, but {what}. {remedy}; or use NumPy arrays with "
        "FASTOPT_BACKEND=auto."
    )


def _explained(runtime: Any, status: int | None) -> tuple[str, str]:
    """Return what an error of the runtime means, and what to do."""
    if status == INSUFFICIENT_DRIVER:
        return _no_driver_or_old(_version(runtime.driverGetVersion), runtime)
    if status == NO_DEVICE:
        return _no_device()
    return (
        "no device answers",
        "Look at nvidia-smi: a driver must run that is new enough for this CuPy's CUDA, and "
        "CUDA_VISIBLE_DEVICES must not hide the device",
    )


def _no_driver_or_old(driver: str | None, runtime: Any) -> tuple[str, str]:
    if driver is None:
        return (
            "no NVIDIA driver is installed, or this container does not see it",
            "Install the driver, until nvidia-smi shows the device (a container needs the option "
            "that passes GPUs on, as docker run --gpus all)",
        )
    return (
        f"the NVIDIA driver is too old: it knows CUDA up to {driver}, and this CuPy is made for "
        f"CUDA {_version(runtime.runtimeGetVersion) or 'of a later version'}",
        "Update the driver (nvidia-smi shows its version and its CUDA), or install a CuPy for an "
        "earlier CUDA (pip install 'fastopt[cuda12]' is the earliest)",
    )


def _no_device() -> tuple[str, str]:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "not set" if hidden is None else repr(hidden)
    return (
        f"the NVIDIA driver shows it no device (CUDA_VISIBLE_DEVICES is {shown})",
        "Look at nvidia-smi for the devices of this machine, and set CUDA_VISIBLE_DEVICES to the "
        "number of one, or not at all",
    )


def _version(ask: Any) -> str | None:
    """Return CUDA's version as "12.4"; None for the 0 of a driver that is not there."""
    number = int(ask())
    return f"{number // 1000}.{number % 1000 // 10}" if number else None
