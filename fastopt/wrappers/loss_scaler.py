"""LossScaler: scale the loss up, so that half-precision gradients do not underflow to zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastopt.backends.interface import Answer, Control, ScaleMemory
from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.dtypes import SUPPORTED_DTYPES, real_dtype, wide
from fastopt.core.hyperparameters import POSITIVE, Number, whole
from fastopt.core.loss_scale import Scale, ScalePolicy
from fastopt.core.saved import Resumable, Saved
from fastopt.core.signals import Deferred
from fastopt.engine.device import PREPARE
from fastopt.optimizers.base import Optimizer
from fastopt.wrappers.base import Wrapper

if TYPE_CHECKING:
    from fastopt.engine.device import OnDevice

# -------------------------------------------------------------------------------------------------
# An array times the scale of a loss, in the array's own dtype.


def times(
    array: Array, factor_of: Callable[[np.dtype[Any]], Any], out: Array | None = None
) -> Array:
    """Return an array times a factor, which is given in float32 or float64; write it to ``out``.

    Half precision is multiplied in float32, which holds a factor that float16 does not. What is
    too large becomes infinite, without a warning: then the step is skipped.
    """
    if array.dtype.name not in SUPPORTED_DTYPES:
        raise TypeError(
            f"LossScaler.multiply takes a number or an array of {', '.join(SUPPORTED_DTYPES)}; "
            f"got {array.dtype}"
        )
    if out is not None:
        _check_out(out, array)
    with np.errstate(all="ignore"):
        factor = factor_of(wide(real_dtype(array.dtype)))
        if out is not None and wide(array.dtype) == array.dtype:
            if out is not array:
                out[...] = array
            out *= factor  # no memory is needed, which a CUDA graph could not have
            return out
        product: Array = array.astype(wide(array.dtype), copy=False) * factor
        product = product.astype(array.dtype, copy=False)
    if out is None:
        return product
    out[...] = product
    return out


def _check_out(out: Array, array: Array) -> None:
    alike = arrays.kind(out) == arrays.kind(array) and arrays.device(out) == arrays.device(array)
    if not alike or (out.dtype, out.shape) != (array.dtype, array.shape):
        raise ValueError(
            f"LossScaler.multiply: out must be an array like the loss, {array.dtype} "
            f"{array.shape}, in the same place; got {getattr(out, 'dtype', type(out).__name__)} "
            f"{getattr(out, 'shape', '')}"
        )


# -------------------------------------------------------------------------------------------------
# The scale of a loss where a device keeps it: what the host knows of it, and when it waits.

LOOK_EVERY = 16
"""Steps after which the device is asked, without waiting, whether it has given up."""


class Stepped:
    """Whether the optimizer has stepped, where a device knows: ``bool`` of it waits for the device.

    It can be asked at any time, once or often. Raises FloatingPointError as reading the scale does,
    and RuntimeError for a step that was captured in a CUDA graph, which is many steps or none.
    """

    __hash__ = None  # type: ignore[assignment]  # it is equal to a bool, which it waits for

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._known: bool | None = None

    def __bool__(self) -> bool:
        if self._known is None:
            self._known = self._ask()
        return self._known

    def __eq__(self, other: object) -> bool:
        return bool(self) == other if isinstance(other, bool | Stepped) else NotImplemented

    def __repr__(self) -> str:
        known = "the device knows" if self._known is None else self._known
        return f"<Stepped: {known}>"


class ScaleOnDevice:
    """A scale in a device's memory, which the steps made there bring up to date."""

    def __init__(self, memory: ScaleMemory, policy: ScalePolicy, now: Scale) -> None:
        self._memory = memory
        self._policy = policy
        self._given_up = 0  # skips that somebody is still to be told of
        self._steps = 0
        self.captured = False
        """Whether replays of a CUDA graph may change the scale."""
        self._answer: Answer | None = None  # of the last step
        self._now, self._behind = now, False
        with memory.here():
            memory.send(now)

    @property
    def device(self) -> int | None:
        """The number of the device."""
        return self._memory.device

    @property
    def inverse(self) -> Array:
        """What gradients are multiplied by, on the device."""
        return self._memory.inverse

    def times(self, loss: Array, out: Array | None) -> Array:
        """Return an array of the device times the scale, see ``LossScaler.multiply``."""
        with self._memory.here():
            return times(loss, self._memory.factor, out)

    # Steps -------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Look whether the device has given up; return whether the step is being captured."""
        self._answer = None
        with self._memory.here():
            if self._memory.capturing():
                return True
            if (told := self._memory.arrived()) is not None:
                self._hear(told.given_up)
        self.refuse()
        return False

    def follow(self, control: Control) -> None:
        """Bring the scale up to date after a decision that was just launched."""
        memory = self._memory
        self.captured |= (capturing := memory.capturing())
        self._answer = memory.place_of_captured if capturing else memory.place()
        control.rescale(memory, self._answer)
        self._behind = True
        self._steps += 1
        if self._steps % LOOK_EVERY == 0 and not capturing:
            memory.request()

    def answer(self, settle: Callable[[], object]) -> bool | Stepped:
        """Return whether the step since ``begin`` was made, or what knows it."""
        answer = self._answer
        if answer is None:
            return False

        def ask() -> bool:
            if answer is self._memory.place_of_captured:
                raise RuntimeError(
                    "this step was captured in a CUDA graph, and is made when that is launched; "
                    "read opt.step_count and opt.skipped_steps then"
                )
            settle()
            return self._memory.answer(answer)

        return Stepped(ask)

    # What the device says ----------------------------------------------------------------------

    def now(self) -> Scale:
        """Return the scale; waits for the device if a step was made since."""
        self.refuse_capture()  # whatever is captured would keep what is returned
        if self._behind:
            with self._memory.here():
                told = self._memory.fetch()
                self._now, self._behind = told.scale, self.captured
                self._hear(told.given_up)
        return self._now

    def refuse(self) -> None:
        """Raise FloatingPointError, once, if too many steps in a row were skipped."""
        skips, self._given_up = self._given_up, 0
        if skips:
            raise self._policy.given_up(skips)

    def write(self, now: Scale) -> None:
        """Go on from another scale; waits for the device."""
        with self._memory.here():
            self._memory.fetch()  # nothing older is on its way after that
            self._memory.send(now)
        self._now, self._behind, self._given_up = now, self.captured, 0

    def refuse_capture(self) -> None:
        """Raise RuntimeError while a stream is captured."""
        with self._memory.here():
            if self._memory.capturing():
                raise RuntimeError(
                    "the scale of the loss cannot be read or set while a stream is captured in a "
                    "CUDA graph; do it before or after"
                )

    def _hear(self, given_up: int) -> None:
        if given_up:
            self._given_up = given_up
            self._memory.forget_given_up()


Scaling = ScaleOnDevice | None
"""The scale of a loss that follows a step, if there is one on the device that decides on it."""


# -------------------------------------------------------------------------------------------------
# LossScaler: scale the loss up, so that half-precision gradients do not underflow to zero.

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
