"""LossScaler: scale the loss up, so that half-precision gradients do not underflow to zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastopt import arrays
from fastopt.hyperparameters import POSITIVE, Number, whole
from fastopt.interrupts import Deferred
from fastopt.optimizer import Optimizer
from fastopt.resumable import Resumable
from fastopt.saved import Saved
from fastopt.scale_on_device import PREPARE, ScaleOnDevice, Stepped
from fastopt.scale_policy import Scale, ScalePolicy
from fastopt.scaled_loss import times
from fastopt.wrapper import Wrapper

if TYPE_CHECKING:
    from fastopt.on_device import OnDevice

_GROWTH = Number(low=1.0, low_open=True)
_BACKOFF = Number(low=0.0, high=1.0, low_open=True, high_open=True)


class LossScaler(Resumable):
    """A scale for the loss that falls when gradients overflow, and grows while they do not.

    ::

        the optimizer's step with grads / scale
        if it was skipped for NaN or infinity:  scale <- max(scale * backoff_factor, min_scale)
        after every growth_interval steps in a row:  scale <- min(scale * growth_factor, max_scale)

    Multiply the loss by ``scaler.scale`` (or hand it to the backward pass), or let
    ``scaler.multiply`` do it, which waits for no device, and let ``scaler.step(opt, grads)`` make
    the steps. ``max_grad_norm`` acts on the gradients divided by
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
        max_skips: skips in a row at min_scale, >= 1, after which FloatingPointError is raised
            instead of skipping for ever: by ``step``, and on a device as soon as it is known.

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
        policy = ScalePolicy(
            _GROWTH("LossScaler: growth_factor", growth_factor),
            _BACKOFF("LossScaler: backoff_factor", backoff_factor),
            whole("LossScaler: growth_interval", growth_interval, 1),
            smallest := POSITIVE("LossScaler: min_scale", min_scale),
            Number(low=smallest)("LossScaler: max_scale", max_scale),
            whole("LossScaler: max_skips", max_skips, 1),
        )
        self._policy = policy
        self._range = Number(low=policy.min_scale, high=policy.max_scale)
        self._now = Scale(self._range("LossScaler: init_scale", init_scale))
        self._there: ScaleOnDevice | None = None

    @property
    def scale(self) -> float:
        """What the loss is to be multiplied by before the next backward pass.

        Where a device keeps it, this waits for the device; ``multiply`` does not.
        """
        self._settle()
        return self._now.value

    def multiply(self, loss: Any, out: Any = None) -> Any:
        """Return ``loss`` times the scale, in its dtype: a number, or an array of any shape.

        It is the loss, or the gradient with which the backward pass begins. A CuPy array on the
        device where the scale is kept is multiplied there, and nothing waits. ``out`` is an array
        like the loss, or the loss itself, to write the product to; without it that is a new array,
        which a captured step cannot have. (Half precision is multiplied in float32, in memory of
        its own.) What is too large for the dtype becomes infinite, and the step is skipped.

        Raises TypeError for arrays that are not floating, ValueError for another ``out``, and
        RuntimeError where a CUDA graph would keep the scale as it is now.
        """
        loss = np.asarray(loss) if isinstance(loss, np.inexact) else loss
        there, kind = self._there, arrays.kind(loss)
        if kind == "cupy" and there is not None and arrays.device(loss) == there.device:
            return there.times(loss, out)
        if kind is None:
            if out is not None:
                raise TypeError(f"out is for arrays; the loss is {type(loss).__name__}")
            return loss * self.scale
        if kind == "cupy" and arrays.capturing(loss):
            raise RuntimeError(f"the scale is not on the device of the loss yet: {PREPARE}")
        scale = self.scale
        with arrays.on_device_of(loss):
            return times(loss, lambda dtype: dtype.type(scale), out)

    def step(self, opt: Optimizer | Wrapper, grads: Any) -> bool | Stepped:
        """Step with the gradients of the scaled loss; return whether the optimizer has stepped.

        Where all parameters are CuPy arrays of one device, the scale is kept and changed there, and
        the answer is an object whose truth value waits for the device; the step itself waits for
        nothing. If the answer is not looked at, ``max_skips`` is noticed later: by reading
        ``scale`` or ``state_dict`` (and so by saving), or by one of the next steps, of which every
        sixteenth asks the device without waiting for it.

        An optimizer with ``capturable=True`` and ``on_nonfinite="skip"`` can be stepped inside a
        CUDA graph, after ``warmup``: then every replay changes the scale as a step does, and
        ``max_skips`` is noticed when something is read.

        Through an ``Accumulator`` only the calls that end in a step of the optimizer, or in a
        skipped one, change the scale. Of several optimizers each step may change it, so that the
        gradients of the next one belong to another scale: give each a scaler of its own, or make
        one of them, with parameter groups.

        Raises what the optimizer's ``step`` does, FloatingPointError when ``max_skips`` steps in a
        row were skipped at ``min_scale``, and RuntimeError for a capture that was not prepared.
        """
        inner = _innermost(opt, "step")
        if inner._device is None:
            self._leave()
            return self._step_on_host(opt, grads)
        there = self._move_to(inner._device)
        if there.begin() and inner.on_nonfinite != "skip":
            raise RuntimeError(
                "a LossScaler's step can be captured in a CUDA graph for an optimizer with "
                f"on_nonfinite='skip', which replays go by; this one has {inner.on_nonfinite!r}"
            )
        with Deferred():
            opt._step(grads, there.inverse, "skip", there)
        return there.answer(self._settle)

    def warmup(self, opt: Optimizer | Wrapper) -> Self:
        """Do what the first step, or a captured one, would have to wait for: ``opt.warmup``, too.

        Changes neither the scale nor the parameters. Returns the scaler.
        """
        inner = _innermost(opt, "warmup")
        inner.warmup()
        if inner._device is not None:
            self._move_to(inner._device)
        return self

    def _step_on_host(self, opt: Optimizer | Wrapper, grads: Any) -> bool:
        made, skipped = opt.step_count, opt.skipped_steps
        policy = self._policy
        with Deferred():
            opt._step(grads, 1.0 / self._now.value, "skip")
            if opt.skipped_steps > skipped:
                self._now = policy.after_skip(self._now)
                if self._now.skips >= policy.max_skips:
                    raise policy.given_up(self._now.skips)
            elif opt.step_count > made:
                self._now = policy.after_step(self._now)
        return opt.step_count > made

    # On a device -------------------------------------------------------------------------------

    def _move_to(self, device: OnDevice) -> ScaleOnDevice:
        """Keep the scale on an optimizer's device from now on."""
        if self._there is None or self._there.device != device.device:
            self._leave()
            self._there = ScaleOnDevice(device.scale(self._policy), self._policy, self._now)
        return self._there

    def _leave(self) -> None:
        """Keep the scale on the host from now on."""
        if self._there is None:
            return
        if self._there.captured:
            raise RuntimeError(
                "this scaler belongs to a step that was captured in a CUDA graph, on another "
                "device than this optimizer's; use a scaler of its own for this one"
            )
        self._settle()
        self._there = None

    def _settle(self, refuse: bool = True) -> None:
        """Bring the scale to the host, which waits for the device if a step was made there."""
        if self._there is not None:
            self._now = self._there.now()
            if refuse:
                self._there.refuse()

    # What is remembered ------------------------------------------------------------------------

    def _remembered(self) -> dict[str, Any]:
        self._settle()
        now = self._now
        return {"scale": now.value, "good_steps": now.good_steps, "skips": now.skips}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("LossScaler", saved)
        scale = opened.number("scale", self._range)
        now = Scale(scale, opened.count("good_steps"), opened.count("skips"))
        if self._there is not None:
            self._there.refuse_capture()

        def write() -> None:
            with Deferred():
                self._now = now
                if self._there is not None:
                    self._there.write(now)

        return write

    def __repr__(self) -> str:
        self._settle(refuse=False)
        now = self._now
        return f"<LossScaler: scale {now.value:g}, {now.good_steps} steps without overflow>"


def _innermost(opt: Any, method: str) -> Optimizer:
    if not isinstance(opt, Optimizer | Wrapper):
        raise TypeError(f"LossScaler.{method} takes an optimizer; got {type(opt).__name__}")
    return opt._innermost if isinstance(opt, Wrapper) else opt
