"""What an optimizer does with gradients that are too long, or not finite."""

from __future__ import annotations

import math
from typing import Any, Literal, cast, get_args

from fastopt.hyperparameters import POSITIVE, OneOf

NonfinitePolicy = Literal["propagate", "skip", "raise"]

_POLICIES = OneOf(get_args(NonfinitePolicy))


def positive_or_inf(name: str, value: Any) -> float:
    """Return a number above 0, infinity included; raise TypeError or ValueError otherwise."""
    if isinstance(value, float) and value == math.inf:
        return math.inf
    return POSITIVE(name, value)


def clip_factor(max_norm: float, norm: float) -> float:
    """Return what scales gradients of this norm down to ``max_norm``, and 1 if they are shorter."""
    # As PyTorch's clip_grad_norm_; a norm of NaN makes everything NaN.
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1.0 else factor


class GradientPolicy:
    """The limit of the norm and the policy for NaN and infinity, and what the last step showed."""

    _grad_norm: float | None

    def _set_policy(self, max_grad_norm: float | None, on_nonfinite: NonfinitePolicy) -> None:
        self.max_grad_norm = max_grad_norm
        self.on_nonfinite = on_nonfinite
        self._skipped_steps = 0

    @property
    def max_grad_norm(self) -> float | None:
        """What the norm of all gradients together is scaled down to.

        None leaves the gradients as they are; math.inf too, but measures their norm.
        """
        return self._max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._grad_norm = None
        if value is not None:
            value = positive_or_inf(f"{type(self).__name__}: max_grad_norm", value)
        self._max_grad_norm = value

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last step's gradients, before clipping, also if that step was skipped.

        None before the first step, and where nothing asks for it: it is measured with
        max_grad_norm, and under on_nonfinite="skip" and "raise".
        """
        return self._grad_norm

    @property
    def on_nonfinite(self) -> NonfinitePolicy:
        """What a NaN or an infinity in the gradients does: "propagate", "skip" or "raise"."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: NonfinitePolicy) -> None:
        name = f"{type(self).__name__}: on_nonfinite"
        self._on_nonfinite = cast(NonfinitePolicy, _POLICIES(name, value))

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out for gradients that were not finite."""
        return self._skipped_steps

    def _clip_factor(self, norm: float) -> float:
        """Return what max_grad_norm multiplies the gradients by."""
        return 1.0 if self._max_grad_norm is None else clip_factor(self._max_grad_norm, norm)
