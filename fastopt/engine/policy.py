"""What is done with gradients that are too long, not finite, or too large to be squared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast, get_args

from fastopt.core.hyperparameters import Flag, OneOf, positive_or_inf
from fastopt.core.norms import clip_factor
from fastopt.core.options import NonfinitePolicy
from fastopt.core.signals import Deferred

if TYPE_CHECKING:
    from fastopt.engine.build import Group

# -------------------------------------------------------------------------------------------------
# When the squares of finite gradients overflow float32: judged by the norm, everywhere alike.

LIMIT = 2.0**63
"""From this norm on of all gradients, scaled and clipped, a step counts as not finite, if a rule
averages their squares in float32.

Below it the square of no element overflows, nor does the sum of the squares of a complex number's
parts: the first numbers with such squares are 2**64 and 2**63.5. From it on they may.
"""


# -------------------------------------------------------------------------------------------------
# What an optimizer does with gradients that are too long, or not finite.

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


# -------------------------------------------------------------------------------------------------
# Gradients that a step should not take: not finite, or with squares that float32 does not hold.


class Misfit(NamedTuple):
    """What is wrong with a gradient, beginning with its name, and what to do."""

    what: str
    advice: str


def nonfinite(groups: Sequence[Group]) -> Misfit:
    """Return where the first NaN or infinity in a step's gradients stands."""
    places = (group.nonfinite() for group in groups)
    return Misfit(
        f"{next(filter(None, places))} holds NaN or infinity",
        "Look at the loss and at what it divides by; on_nonfinite='skip' leaves such steps out.",
    )


def too_large(groups: Sequence[Group], scale: float) -> Misfit:
    """Return which gradient is the longest of a step in which squares overflow.

    ``scale`` is what multiplies the gradients: grad_scale and clipping.
    """
    path, norm = max((one for group in groups for one in group.norms()), key=lambda one: one[1])
    return Misfit(
        f"{path} has a norm of {norm * abs(scale):.3g}, after grad_scale and clipping, the largest "
        "of all: it is finite, but its squares overflow float32",
        "Choose a smaller grad_scale, set max_grad_norm, or construct the optimizer with "
        "state_dtype='float64'; on_nonfinite='skip' leaves such steps out.",
    )
