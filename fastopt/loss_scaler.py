"""LossScaler: scale the loss up, so that half-precision gradients do not underflow to zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastopt.hyperparameters import POSITIVE, Number, whole
from fastopt.interrupts import Deferred
from fastopt.optimizer import Optimizer
from fastopt.resumable import Resumable
from fastopt.saved import Saved
from fastopt.wrapper import Wrapper

_GROWTH = Number(low=1.0, low_open=True)
_BACKOFF = Number(low=0.0, high=1.0, low_open=True, high_open=True)


class LossScaler(Resumable):
    """A scale for the loss that falls when gradients overflow, and grows while they do not.

    ::

        the optimizer's step with grads / scale
        if it was skipped for NaN or infinity:  scale <- max(scale * backoff_factor, min_scale)
        after every growth_interval steps in a row:  scale <- min(scale * growth_factor, max_scale)

    Multiply the loss by ``scaler.scale`` (or hand it to the backward pass), and let
    ``scaler.step(opt, grads)`` make the steps. ``max_grad_norm`` acts on the gradients divided by
    the scale. A skipped step changes nothing but ``opt.skipped_steps``, whatever the optimizer's
    ``on_nonfinite`` says; schedules do not advance.

    Args:
        init_scale: the first scale, between min_scale and max_scale; a power of two, as are the
            factors, costs no precision.
        growth_factor: > 1.
        backoff_factor: in (0, 1).
        growth_interval: steps without a skip before the scale grows, >= 1.
        min_scale: what the scale does not fall below, > 0.
        max_scale: what it does not grow beyond.
        max_skips: skips in a row at min_scale, >= 1, after which ``step`` raises instead of
            skipping for ever.

    Raises:
        ValueError, TypeError: for arguments out of range.

    Source: Micikevicius et al., "Mixed Precision Training" (ICLR 2018), section 3.2, with the
    policy of torch.amp.GradScaler, which has neither limit: there the scale reaches 0.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        *,
        min_scale: float = 2.0**-14,
        max_scale: float = 2.0**24,
        max_skips: int = 10,
    ) -> None:
        self._growth_factor = _GROWTH("LossScaler: growth_factor", growth_factor)
        self._backoff_factor = _BACKOFF("LossScaler: backoff_factor", backoff_factor)
        self._growth_interval = whole("LossScaler: growth_interval", growth_interval, 1)
        self._min_scale = POSITIVE("LossScaler: min_scale", min_scale)
        self._max_scale = Number(low=self._min_scale)("LossScaler: max_scale", max_scale)
        self._max_skips = whole("LossScaler: max_skips", max_skips, 1)
        self._range = Number(low=self._min_scale, high=self._max_scale)
        self._scale = self._range("LossScaler: init_scale", init_scale)
        self._good_steps = 0  # since the scale last changed
        self._skips = 0  # in a row, at min_scale

    @property
    def scale(self) -> float:
        """What the loss is to be multiplied by before the next backward pass."""
        return self._scale

    def step(self, opt: Optimizer | Wrapper, grads: Any) -> bool:
        """Step with the gradients of the scaled loss; return whether the optimizer has stepped.

        Through an ``Accumulator`` only the calls that end in a step of the optimizer, or in a
        skipped one, change the scale. Raises what the optimizer's ``step`` does, and
        FloatingPointError when ``max_skips`` steps in a row were skipped at ``min_scale``.
        """
        if not isinstance(opt, Optimizer | Wrapper):
            raise TypeError(f"LossScaler.step takes an optimizer; got {type(opt).__name__}")
        made, skipped = opt.step_count, opt.skipped_steps
        with Deferred():
            opt._step(grads, 1.0 / self._scale, "skip")
            if opt.skipped_steps > skipped:
                self._back_off()
            elif opt.step_count > made:
                self._count_good_step()
        return opt.step_count > made

    def _count_good_step(self) -> None:
        self._skips = 0
        self._good_steps += 1
        if self._good_steps >= self._growth_interval:
            self._scale = min(self._scale * self._growth_factor, self._max_scale)
            self._good_steps = 0

    def _back_off(self) -> None:
        self._skips = self._skips + 1 if self._scale == self._min_scale else 0
        self._scale = max(self._scale * self._backoff_factor, self._min_scale)
        self._good_steps = 0
        if self._skips >= self._max_skips:
            raise FloatingPointError(
                f"{self._skips} steps in a row were skipped at the smallest scale, "
                f"{self._min_scale:g}: the gradients are not finite whatever the scale. Look at "
                "the loss and at what it divides by; on_nonfinite='raise' without a scaler names "
                "the parameter."
            )

    def _remembered(self) -> dict[str, Any]:
        return {"scale": self._scale, "good_steps": self._good_steps, "skips": self._skips}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("LossScaler", saved)
        scale = opened.number("scale", self._range)
        good_steps, skips = opened.count("good_steps"), opened.count("skips")

        def write() -> None:
            with Deferred():
                self._scale, self._good_steps, self._skips = scale, good_steps, skips

        return write

    def __repr__(self) -> str:
        return f"<LossScaler: scale {self._scale:g}, {self._good_steps} steps without overflow>"
