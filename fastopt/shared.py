"""The keyword arguments that every optimizer takes beside its own."""

from __future__ import annotations

from typing import TypedDict

from fastopt.gradient_policy import NonfinitePolicy


class Shared(TypedDict, total=False):
    """What every optimizer takes; all are optional.

    maximize: go up instead of down (False). A hyperparameter: it can differ between groups.

    max_grad_norm: scale all gradients together by min(1, max_grad_norm / (norm + 1e-6)), where
        norm is the 2-norm of all of them, in float64; > 0, in units of the gradient; None (the
        default) leaves them alone, math.inf only measures.

    on_nonfinite: what a NaN or an infinity in a step's gradients does. "propagate" (the default)
        does not look; "skip" leaves everything as it is and adds 1 to ``skipped_steps``; "raise"
        leaves everything as it is and raises FloatingPointError with the parameter's name. With
        CuPy "raise" waits for the device in every step; the others never do, see
        ``Optimizer.step``.

    capturable: whether a step can be captured in a CUDA graph and replayed (False), see
        ``Optimizer.refresh``; not together with on_nonfinite="raise". On NumPy arrays it changes
        nothing.

    backend: "auto", "numpy", "numba" or "cupy"; None (the default) for what is set elsewhere.
    """

    maximize: bool
    max_grad_norm: float | None
    on_nonfinite: NonfinitePolicy
    capturable: bool
    backend: str | None
