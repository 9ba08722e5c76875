"""The keyword arguments that every optimizer takes beside its own."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

MODULUS = "modulus"
ComplexMoment = Literal["parts", "modulus"]


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
        default) leaves them alone, math.inf only measures. It can be set between steps. (In float32
        a norm that is 8.5e37 times the limit, or more, asks for a factor that is 0 on a GPU, where
        denormal numbers are.)

    on_nonfinite: what a NaN or an infinity in a step's gradients does. "propagate" (the default)
        does not look; "skip" leaves everything as it is and adds 1 to ``skipped_steps``; "raise"
        leaves everything as it is and raises FloatingPointError with the parameter's name. With
        CuPy "raise" waits for the device in every step; the others do not where all parameters are
        on one device, see ``Optimizer.step``. "skip" and "raise" do the same for finite gradients
        whose norm, after grad_scale and clipping, is 2^63 = 9.2e18 or more, where squares of
        gradients are averaged in float32, which they overflow; "raise" names the parameter whose
        gradient has the largest norm.

    capturable: whether a step can be captured in a CUDA graph and replayed (False), see
        ``Optimizer.refresh``; not together with on_nonfinite="raise". On NumPy arrays it changes
        nothing.

    master_weights: keep float16 and bfloat16 parameters in float32 too, as a part of the state
        (True), so that updates too small for the parameter's dtype add up; False saves these 4
        bytes per parameter and loses such updates. Other dtypes need none.

    state_dtype: how the optimizer's state (its averages; not the parameters) is kept between steps:
        None (the default) in the precision of the arithmetic, "bfloat16" in half of its memory,
        "int8" in a quarter: 8-bit floats with a scale for every 256 of them; parameters of fewer
        than 4096 numbers keep float32 then. Steps compute in float32 all the same, and state is
        rounded stochastically, so that averages follow what is too small for them at a single step.
        For float32, float16, bfloat16 and complex64 parameters. In 8 bits state that is NaN,
        infinite or above 1.6e38 makes its whole block NaN; on_nonfinite looks at gradients alone.
        It can differ between groups, and not change.

    stochastic_rounding: round float16 and bfloat16 parameters that have no master weights (set
        master_weights=False) up or down with the probability that keeps their mean (False), so that
        small updates add up. Other dtypes are not affected. It can differ between groups, and not
        change.

    complex_moment: of what the squares of a complex gradient are averaged: "parts" (the default) of
        the real and of the imaginary part, each on its own, as PyTorch does, or "modulus" of
        |g|^2, which does not depend on where the phase begins, as optax and imaging codes do; the
        average then stands in both parts of the state. For Adagrad, RMSprop (not centered), Adam
        and AdamW; no matter to real parameters. It can differ between groups, and not change.

    seed: of the random bits of both, a whole number from 0 to 2**64 - 1 (0). They depend on
        nothing else than a parameter's name, its step count and the place in it.

    backend: "auto", "numpy", "numba" or "cupy"; None (the default) for what is set elsewhere.
    """

    maximize: bool
    trainable: bool
    bounds: Any
    reset_at_bounds: bool
    max_grad_norm: float | None
    on_nonfinite: NonfinitePolicy
    capturable: bool
    master_weights: bool
    state_dtype: str | None
    stochastic_rounding: bool
    complex_moment: ComplexMoment
    seed: int
    backend: str | None


SHARED_DEFAULTS: dict[str, Any] = {
    "maximize": False,
    "trainable": True,
    "bounds": None,
    "reset_at_bounds": False,
    "state_dtype": None,
    "stochastic_rounding": False,
    "complex_moment": "parts",
    "seed": 0,
}
"""Those of them that are hyperparameters of a group."""

STORAGE = ("state_dtype", "stochastic_rounding")
"""Those that say how numbers are stored, which ``convert=True`` changes."""

FIXED = (*STORAGE, "complex_moment")
"""Those that an optimizer keeps from its construction on."""


NonfinitePolicy = Literal["propagate", "skip", "raise"]
