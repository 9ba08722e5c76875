"""The scalars of a step, the scale of its gradients, and whether a device decides on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.core import arrays, hyperparameters, quantization
from fastopt.core.arrays import Array
from fastopt.core.buckets import Bucket
from fastopt.core.dtypes import FLUSH_EVERY, tiny
from fastopt.core.hyperparameters import FINITE, Formula, Options
from fastopt.errors import BackendMismatchError

if TYPE_CHECKING:
    from fastopt.engine.build import Grouping
    from fastopt.engine.device import OnDevice
    from fastopt.engine.policy import Seen

# -------------------------------------------------------------------------------------------------
# The scalars of a step: those common to all rules, the rule's, those of bounds and of chance.


class StepScalars:
    """The scalars of a bucket's update: those common to all rules, then the rule's own."""

    def __init__(self, formula: type[Formula], bucket: Bucket) -> None:
        self._formula = formula
        self._bucket = bucket

    def prepare(self, options: Options, scale: float) -> None:
        """Fix everything but the step count; the options have numbers in the place of schedules."""
        lr, weight_decay = options["lr"], options["weight_decay"]
        self._pick = _picker(self._bucket.rule.scalars)
        small = tiny(self._bucket.format.real, self._formula._floor(options))
        l2, decay = (0.0, lr * weight_decay) if self._formula._decoupled else (weight_decay, 0.0)
        scale = -scale if options["maximize"] else scale
        # Rounded here, so that what is 0 in the dtype is left out by every backend alike.
        common = np.array([scale, l2, decay, small.signed, small.positive])
        with np.errstate(all="ignore"):
            self._flushing = tuple(common.astype(self._bucket.format.real).tolist())
        self._common = (*self._flushing[:3], 0.0, 0.0)
        self._limits: tuple[float, ...] = ()
        if self._bucket.format.limit_scalars:
            self._limits = hyperparameters.numbers(options["bounds"], self._bucket.format.stored)
        self._seed = options["seed"] if self._bucket.format.random_scalars else None
        self._arguments = (options, lr, small.guard)

    def __call__(self, t: int) -> tuple[float, ...]:
        """Return the row of a parameter's t-th step (1 for the first)."""
        options, lr, guard = self._arguments
        common = self._common if t % FLUSH_EVERY else self._flushing
        row = common + self._pick(self._formula._scalars(options, lr, t, guard)) + self._limits
        return row if self._seed is None else (*row, *self._random(t, self._seed))

    @staticmethod
    def _random(t: int, seed: int) -> tuple[float, float]:
        """Return the halves of the step's random key, each exact in float32."""
        key = quantization.key(seed, t)
        return float(key >> 16), float(key & 0xFFFF)


def _picker(names: tuple[str, ...]) -> Callable[[dict[str, float]], tuple[float, ...]]:
    """Return what takes values out of a dict, in the order of the names."""
    return itemgetter(*names) if len(names) > 1 else lambda values: tuple(values[n] for n in names)


# -------------------------------------------------------------------------------------------------
# Whether steps are decided on a device, and what is taken as the scale of the gradients.


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
    from fastopt.engine.capture import CapturableSteps  # milliseconds, for CuPy alone
    from fastopt.engine.device import OnDevice

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
