"""Whether steps are decided on a device, and what is taken as the scale of the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import arrays
from fastopt.arrays import Array
from fastopt.errors import BackendMismatchError
from fastopt.gradient_policy import Seen
from fastopt.grouping import Grouping
from fastopt.hyperparameters import FINITE

if TYPE_CHECKING:
    from fastopt.on_device import OnDevice


def deciding_device(
    groupings: Sequence[Grouping], clock: Array, seen: Seen, capturable: bool
) -> OnDevice | None:
    """Return what steps are decided with, if all parameters are on one device that can; or None."""
    buckets = [
        bucket for grouping in groupings for group in grouping.groups for bucket in group.buckets
    ]
    places = [arrays.device(bucket.parameters[0].flat) for bucket in buckets]
    if capturable and len(set(places)) > 1:
        raise ValueError(
            "capturable=True takes parameters on one CUDA device, or all on the host; these are "
            f"on {' and '.join(sorted('the host' if p is None else f'device {p}' for p in places))}"
        )
    control = buckets[0].backend.control(buckets[0].parameters[0].flat)
    if control is None or len(set(places)) > 1:
        return None
    from fastopt.captured_steps import CapturableSteps  # milliseconds, for CuPy alone
    from fastopt.on_device import OnDevice

    return (CapturableSteps if capturable else OnDevice)(groupings, clock, seen, control)


def checked_scale(scale: Any, deciding: OnDevice | None, on_nonfinite: str) -> tuple[Any, bool]:
    """Return what gradients are multiplied by, checked, and whether it is on the device."""
    if arrays.kind(scale) != "cupy":
        return FINITE("grad_scale", scale), False
    if deciding is None or on_nonfinite == "raise":
        raise TypeError(
            "grad_scale can be an array on a device where all parameters are CuPy arrays of one "
            "device and on_nonfinite is not 'raise'; here it must be a number"
        )
    if scale.shape != () or scale.dtype not in (np.float32, np.float64):
        raise TypeError(
            "grad_scale must be a number, or a CuPy array of shape () and dtype float32 or "
            f"float64; got {scale.dtype} {scale.shape}"
        )
    if arrays.device(scale) != deciding.device:
        raise BackendMismatchError(
            f"grad_scale must be on device {deciding.device}, as the parameters are; got one on "
            f"device {arrays.device(scale)}"
        )
    return scale, True
