"""What is done with a step's gradients: scaled, clipped by their norm, refused if not finite.

A step's gradients are judged before anything is written. The verdict says whether the step is made
and what multiplies the gradients; the outcome says it to whoever made the step.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, cast, get_args

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.hyperparameters import FINITE, POSITIVE_OR_INF, OneOf
from fastopt.core.norms import CLIP_EPS, SQUARES_OVERFLOW, Norm, clip_factor
from fastopt.core.options import NonfinitePolicy

_POLICIES = OneOf(get_args(NonfinitePolicy))


class Policy(NamedTuple):
    """What a step's gradients are held to: a norm (None: any), and whether to be finite."""

    max_grad_norm: float | None = None
    on_nonfinite: NonfinitePolicy = "propagate"

    @property
    def measures(self) -> bool:
        """Whether the norm has to be known."""
        return self.limit is not None

    @property
    def limit(self) -> float | None:
        """The norm that gradients are scaled down to; infinite: it is only measured; None: not."""
        looks = self.on_nonfinite != "propagate"
        return math.inf if looks and self.max_grad_norm is None else self.max_grad_norm

    @property
    def skips(self) -> bool:
        """Whether a step can be left out."""
        return self.on_nonfinite == "skip"


def checked_limit(name: str, value: Any) -> float | None:
    """Return a value for max_grad_norm: None, or a number above 0, which may be infinite."""
    if callable(value):
        raise TypeError(
            f"{name} must be a number or None; got {value!r}. For a limit that changes set "
            "opt.max_grad_norm between steps."
        )
    return None if value is None else POSITIVE_OR_INF(name, value)


def checked_policy(name: str, value: Any, capturable: bool) -> NonfinitePolicy:
    """Return a value for on_nonfinite; ValueError for one that a captured step cannot have."""
    checked = cast(NonfinitePolicy, _POLICIES(name, value))
    if checked == "raise" and capturable:
        raise ValueError(
            f"{name} must be propagate or skip for an optimizer that is capturable, since an "
            'error can only be raised on the host, which does not look; got "raise"'
        )
    return checked


class EachMember(NamedTuple):
    """Of each member whether its step is made, what multiplies its gradients, and their norm."""

    made: Array
    scale: Array
    norm: Array
    finite: Array


class Verdict(NamedTuple):
    """Whether a step is made, what multiplies its gradients, and their norm (None: unknown).

    Where there are members that are judged by themselves, ``each`` says it of each of them, the
    step is made if that of any is, and gradients have been multiplied by what ``each`` says.
    """

    made: bool
    scale: float
    norm: float | None
    finite: bool = True
    """Whether all elements of all gradients are."""
    each: EachMember | None = None


def judge(policy: Policy, measured: Norm, grad_scale: float, in_single: bool) -> Verdict:
    """Judge gradients by their norm before they are scaled: what scales or refuses a whole step.

    Fused steps of NumPy (``_judged`` in backends/numpy/fused.py) and of Numba (``step`` in
    backends/numba/compiled.py) and a step that a device decides on (backends/cupy/decide.cuh) say
    the same in their own languages; change all four.

    ``in_single``: float32 averages squares of them somewhere, which holds no large ones. The norm
    in the verdict is that after ``grad_scale`` and before clipping.
    """
    norm = measured.value * abs(grad_scale)
    looks = policy.on_nonfinite != "propagate"
    if looks and not measured.finite:
        return Verdict(False, grad_scale, norm, finite=False)
    factor = 1.0 if policy.max_grad_norm is None else clip_factor(policy.max_grad_norm, norm)
    too_large = looks and in_single and norm * factor >= SQUARES_OVERFLOW
    return Verdict(not too_large, grad_scale * factor, norm)


def judge_members(
    policy: Policy, norms: Array, finite: Array, grad_scale: float, in_single: bool
) -> Verdict:
    """Judge the gradients of each member by their norms, as ``judge`` does those of a step."""
    looks, limit = policy.on_nonfinite != "propagate", policy.max_grad_norm
    with np.errstate(all="ignore"):
        norms = norms * abs(grad_scale)
        factors = np.ones(len(norms))
        if limit is not None and limit != math.inf:
            factors = limit / (norms + CLIP_EPS)
            factors[factors > 1.0] = 1.0
        made = np.ones(len(norms), bool)
        if looks:
            made = finite.copy()
            if in_single:
                made &= ~(norms * factors >= SQUARES_OVERFLOW)
    each = EachMember(made, grad_scale * factors, norms, finite)
    return Verdict(bool(made.any()), 1.0, None, bool(finite.all()), each)


class Outcome:
    """What became of a step: its truth value is ``made``, with members that all of them made it.

    Attributes are fetched when they are read where a device decided on the step.
    """

    __slots__ = ("_grad_norm", "_made")

    # It is equal to a bool, which a device may know.
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __init__(self, made: Any, grad_norm: Any = None) -> None:
        self._made = made
        self._grad_norm = grad_norm

    @property
    def made(self) -> bool:
        """Whether the step was made; False if it was skipped (``on_nonfinite="skip"``).

        With members, an array of one truth value for each of them.
        """
        return self._made  # type: ignore[no-any-return]

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients before clipping; None where nothing asked for it.

        With members, an array of the norm of each of them.
        """
        return self._grad_norm  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        made: Any = self.made
        return bool(made.all()) if isinstance(made, np.ndarray) else bool(made)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, bool | Outcome):
            return bool(self) == bool(other)
        return NotImplemented

    def __repr__(self) -> str:
        made: Any = self.made
        if isinstance(made, np.ndarray):
            return f"<Outcome: made for {np.count_nonzero(made)} of {len(made)} members>"
        norm = "" if self.grad_norm is None else f", grad_norm={self.grad_norm:.6g}"
        return f"<Outcome: {'made' if made else 'skipped'}{norm}>"


MADE = Outcome(True)
"""The outcome of every step that nothing can skip, and whose norm nobody asked for."""


def refusal(name: str, norm: float, verdict: Verdict, step_count: int) -> FloatingPointError:
    """Return what is raised under ``on_nonfinite="raise"``; ``name`` is that of the gradient."""
    if not verdict.finite:
        return FloatingPointError(
            f"{name} holds NaN or infinity at step {step_count}; nothing was changed. Look at the "
            "loss and at what it divides by; on_nonfinite='skip' leaves such steps out."
        )
    return FloatingPointError(
        f"{name} has a norm of {norm:.3g}, after grad_scale and clipping, the largest of all: it "
        f"is finite, but its squares overflow float32 at step {step_count}; nothing was changed. "
        "Choose a smaller grad_scale, set max_grad_norm, or construct the optimizer with "
        "state_dtype='float64'; on_nonfinite='skip' leaves such steps out."
    )


def checked_scale(scale: Any) -> float:
    """Return what gradients are multiplied by, a finite number."""
    if arrays.kind(scale) == "cupy":
        raise TypeError(
            "grad_scale can be an array on a device where all parameters are CuPy arrays and "
            "on_nonfinite is not 'raise'; here it must be a number"
        )
    return FINITE("grad_scale", scale)
