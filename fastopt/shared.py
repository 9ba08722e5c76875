"""The keyword arguments that every optimizer takes beside its own."""

from __future__ import annotations

from typing import Any, TypedDict

from fastopt.gradient_policy import NonfinitePolicy
from fastopt.hyperparameters import Scheduled


class Shared(TypedDict, total=False):
    """What every optimizer takes; all are optional.

    maximize: go up instead of down (False). A hyperparameter: it can differ between groups.

    trainable: whether steps are made (True). Parameters of a group where it is False are left
        alone, with their state and step counts, and their gradients are not looked at: they can be
        None or anything, and count neither in the norm nor as not finite. A hyperparameter:
        it can differ between groups, and be set between steps.

    bounds: a pair (lower, upper) that every parameter is kept between, each a number, None for no
        bound, or a tree nested as the parameters of numbers, None and arrays in the shape of the
        parameter; None (the default) for none. The update is cut off at the bound, in the units of
        the parameter; bounds that the parameter's dtype does not have are rounded inwards. A
        hyperparameter: it can differ between groups; numbers can be set to others between steps.

    reset_at_bounds: whether the averages of gradients (m, the momentum) of a parameter that a step
        leaves at a bound become 0 (False), so that it leaves the bound as soon as a gradient points
        inwards. Averages of squares stay: they are the gradient's scale.

    max_grad_norm: scale all gradients together by min(1, max_grad_norm / (norm + 1e-6)), where
        norm is the 2-norm of all of them, in float64; > 0, in units of the gradient; None (the
        default) leaves them alone, math.inf only measures. Or a function of the step number, which
        with CuPy is asked for steps that are still to come.

    on_nonfinite: what a NaN or an infinity in a step's gradients does. "propagate" (the default)
        does not look; "skip" leaves everything as it is and adds 1 to ``skipped_steps``; "raise"
        leaves everything as it is and raises FloatingPointError with the parameter's name. With
        CuPy "raise" waits for the device in every step; the others do not where all parameters
        are on one device, see ``Optimizer.step``.

    capturable: whether a step can be captured in a CUDA graph and replayed (False), see
        ``Optimizer.refresh``; not together with on_nonfinite="raise". On NumPy arrays it changes
        nothing.

    master_weights: keep float16 and bfloat16 parameters in float32 too, as a part of the state
        (True), so that updates too small for the parameter's dtype add up; False saves these 4
        bytes per parameter and loses such updates. Other dtypes need none.

    backend: "auto", "numpy", "numba" or "cupy"; None (the default) for what is set elsewhere.
    """

    maximize: bool
    trainable: bool
    bounds: Any
    reset_at_bounds: bool
    max_grad_norm: Scheduled | None
    on_nonfinite: NonfinitePolicy
    capturable: bool
    master_weights: bool
    backend: str | None


SHARED_DEFAULTS = {"maximize": False, "trainable": True, "bounds": None, "reset_at_bounds": False}
"""Those of them that are hyperparameters of a group."""
