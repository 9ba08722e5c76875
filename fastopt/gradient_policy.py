"""What an optimizer does with gradients that are too long, or not finite."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from fastopt.hyperparameters import POSITIVE, Flag, OneOf
from fastopt.interrupts import Deferred

if TYPE_CHECKING:
    from fastopt.misfits import Misfit

NonfinitePolicy = Literal["propagate", "skip", "raise"]

_POLICIES = OneOf(get_args(NonfinitePolicy))


@dataclass
class Seen:
    """What the gradients have shown: the norm of the last step's, and how many steps it skipped."""

    norm: float | None = None
    skipped: int = 0


class GradientPolicy(ABC):
    """The limit of the norm and the policy for NaN and infinity, and what the last step showed."""

    @property
    @abstractmethod
    def step_count(self) -> int:
        """How many steps have been made."""

    def _set_policy(
        self,
        max_grad_norm: float | None,
        on_nonfinite: NonfinitePolicy,
        capturable: bool,
    ) -> None:
        self._seen = Seen()
        self._capturable = Flag()(f"{type(self).__name__}: capturable", capturable)
        self.max_grad_norm = max_grad_norm
        self.on_nonfinite = on_nonfinite

    @abstractmethod
    def _settle(self, norm: bool = False) -> None:
        """Bring what a device may have counted, and the norm if it is asked for, to the host."""

    @abstractmethod
    def _forget_norm(self) -> None:
        """Leave a norm unread that a device may have measured."""

    @property
    def max_grad_norm(self) -> float | None:
        """What the norm of all gradients together is scaled down to.

        None leaves the gradients as they are; math.inf too, but measures their norm. It can be set
        between steps.
        """
        return self._max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        name = f"{type(self).__name__}: max_grad_norm"
        if callable(value):
            raise TypeError(
                f"{name} must be a number or None; got {value!r}. Set opt.max_grad_norm between "
                "steps for another limit"
            )
        limit = None if value is None else positive_or_inf(name, value)
        self._forget_norm()
        self._seen.norm = None
        self._max_grad_norm = limit

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last step's gradients, before clipping, also if that step was skipped.

        None before the first step, and where nothing asks for it: it is measured with
        max_grad_norm, and under on_nonfinite="skip" and "raise". On a device it is fetched when it
        is read here, which waits for the step.
        """
        self._settle(norm=True)
        return self._seen.norm

    @property
    def on_nonfinite(self) -> NonfinitePolicy:
        """What gradients that do not fit do: "propagate", "skip" or "raise".

        They hold NaN or infinity, or their norm is so large that squares overflow float32.
        """
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: NonfinitePolicy) -> None:
        name = f"{type(self).__name__}: on_nonfinite"
        checked = cast(NonfinitePolicy, _POLICIES(name, value))
        if checked == "raise" and self._capturable:
            raise ValueError(
                f"{name} must be propagate or skip for an optimizer that is capturable, since an "
                'error can only be raised on the host, which does not look; got "raise"'
            )
        self._on_nonfinite = checked

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out for gradients that were not finite, or too large to square.

        On a device it is fetched when it is read here, which waits for the steps so far.
        """
        self._settle()
        return self._seen.skipped

    def _refuse(
        self, norm: float, on_nonfinite: NonfinitePolicy, find: Callable[[], Misfit]
    ) -> None:
        """Skip a step, or raise what is found, for gradients that should not be taken."""
        if on_nonfinite == "raise":
            misfit = find()
            raise FloatingPointError(
                f"{misfit.what} at step {self.step_count}; nothing was changed. {misfit.advice}"
            )
        with Deferred():
            self._seen.skipped += 1
            self._seen.norm = norm

    def _clip_factor(self, norm: float) -> float:
        """Return what max_grad_norm multiplies the gradients by."""
        limit = self.max_grad_norm
        return 1.0 if limit is None else clip_factor(limit, norm)


def positive_or_inf(name: str, value: Any) -> float:
    """Return a number above 0, which may be infinite; raise TypeError or ValueError otherwise."""
    return value if isinstance(value, float) and value == math.inf else POSITIVE(name, value)


def clip_factor(max_norm: float, norm: float) -> float:
    """Return what scales gradients of this norm down to ``max_norm``, and 1 if they are shorter."""
    # As PyTorch's clip_grad_norm_; a norm of NaN makes everything NaN.
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1.0 else factor
