"""What a step is handed beside its gradients: the loss, an estimate of the Hessian."""

from __future__ import annotations

from math import isfinite, nan
from typing import Any, NamedTuple

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import Formula, as_float
from fastopt.engine.policy import Policy, Verdict
from fastopt.errors import BackendMismatchError


class Extra(NamedTuple):
    """What a step is handed beside its gradients.

    ``value`` is the loss: a number, or where the parameters are on a device a 0-d array there.
    ``hessian`` are estimates of the Hessian's diagonal, nested as the parameters.
    """

    value: Any = None
    hessian: Any = None


NOTHING = Extra()


def extra_of(value: Any, hessian: Any) -> Extra:
    """Return what a step is handed; NOTHING if there is neither."""
    return NOTHING if value is None and hessian is None else Extra(value, hessian)


def check_taken(formula: type[Formula], extra: Extra) -> None:
    """Raise TypeError for what the optimizer does not take, and for what it lacks."""
    name, takes = formula.__name__, formula._takes_value
    if extra.value is not None and not takes:
        raise TypeError(
            f"{name} takes no value: its steps do not depend on the loss. Leave value away"
        )
    if extra.hessian is not None and formula._estimate is None:
        raise TypeError(
            f"{name} takes no hessian: its steps do not depend on one. Leave hessian away"
        )
    if extra.value is None and takes:
        raise TypeError(
            f"{name} needs the loss of every step: opt.step(grads, value=loss); got none"
        )


def checked_value(value: Any, device: int | None) -> Any:
    """Return a loss as a float, or as the 0-d array that it is on the device of the parameters.

    NaN and infinity are let through. ``device`` is None where the host decides on the step; then
    an array on a device, or a tensor, is fetched.
    """
    if device is not None and arrays.kind(value) == "cupy":
        if value.shape != () or value.dtype.kind != "f":
            raise TypeError(
                "value must be one real number: a CuPy array of shape () and a floating dtype; "
                f"got {value.dtype} {value.shape}"
            )
        if arrays.device(value) != device:
            raise BackendMismatchError(
                f"value must be on device {device}, as the parameters are; got one on device "
                f"{arrays.device(value)}"
            )
        return value
    number = as_float(value)
    if number is None:
        shape = getattr(value, "shape", None)
        said = f"{value!r:.100}" if shape is None else f"an array of {value.dtype} {shape}"
        raise TypeError(
            "value must be one real number, the loss and not that of each sample; got "
            f"{type(value).__name__}: {said}"
        )
    return number


def judged(policy: Policy, verdict: Verdict, value: float, step_count: int) -> Verdict:
    """Return the verdict on a step whose loss is this; raise under ``on_nonfinite="raise"``."""
    if isfinite(value) or policy.on_nonfinite == "propagate" or not verdict.made:
        return verdict
    if policy.on_nonfinite == "raise":
        raise FloatingPointError(
            f"value, the loss, is {value} at step {step_count}; nothing was changed. Look at what "
            "it divides by; on_nonfinite='skip' leaves such steps out."
        )
    return verdict._replace(made=False)


def scale_with(value: Any, grad_scale: Any) -> Any:
    """Return the gradients' scale, or NaN where the loss is not finite: such steps are skipped."""
    if arrays.kind(value) == "cupy":
        with arrays.on_device_of(value):
            return grad_scale + 0.0 * value.astype(np.float64)
    if isfinite(value):
        return grad_scale
    return nan


def scaled(value: Any, sign: float, grad_scale: Any) -> Any:
    """Return the loss times its sign and the gradients' scale, in float64."""
    there: list[Array] = [one for one in (value, grad_scale) if arrays.kind(one) == "cupy"]
    if not there:
        return value * (sign * grad_scale)
    with arrays.on_device_of(there[0]):
        wide = [one.astype(np.float64) if arrays.kind(one) else one for one in (value, grad_scale)]
        return wide[0] * (sign * wide[1])
