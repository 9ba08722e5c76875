"""LossScaler: scale the loss up, so that half-precision gradients do not underflow to zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np

from fastopt.core import arrays
from fastopt.core.arrays import Array
from fastopt.core.dtypes import SUPPORTED_DTYPES, real_dtype, wide
from fastopt.core.hyperparameters import POSITIVE, Number, whole
from fastopt.core.loss_scale import Scale, ScalePolicy
from fastopt.core.saved import Resumable, Saved
from fastopt.core.signals import Deferred
from fastopt.engine.extra import extra_of
from fastopt.engine.policy import Outcome
from fastopt.optimizers.base import Optimizer
from fastopt.wrappers.base import Wrapper

if TYPE_CHECKING:
    from fastopt.backends.cupy.control import ScaleMemory
    from fastopt.engine.device import DeviceOutcome
    from fastopt.engine.step import HostEngine
    from fastopt.optimizers.explain import Explanation

POLL_EVERY = 16
"""Updates after which the device is asked, without waiting, whether it has given up."""

PREPARE = "call scaler.warmup(opt) before a step is captured in a CUDA graph"

_GROWTH = Number(low=1.0, low_open=True)
_BACKOFF = Number(low=0.0, high=1.0, low_open=True, high_open=True)


class _Iteration(NamedTuple):
    """The scale, and which optimizers have stepped with it since the last update.

    With the outcome of those whose device does not keep the scale, and None for all others.
    """

    scale: Scale
    stepped: dict[Optimizer, Outcome | None]


class LossScaler(Resumable):
    """A scale for the loss that falls when gradients overflow, and grows while they do not.

    ::

        the optimizers' steps with grads / scale, then once:
        if one was skipped for NaN or infinity: scale <- max(scale * backoff_factor, min_scale)
        after every growth_interval updates without: scale <- min(scale * growth_factor, max_scale)

    In each iteration multiply the loss by ``scaler.scale`` (or hand it to the backward pass), or
    let ``scaler.multiply`` do it, which waits for no device; let ``scaler.step(opt, grads)`` make
    the step of each optimizer; then call ``scaler.update()`` once. ``max_grad_norm`` acts on the
    gradients divided by the scale. A skipped step changes nothing but ``opt.skipped_steps``,
    whatever the optimizer's ``on_nonfinite`` says; schedules do not advance.

    Example:
        >>> import numpy as np
        >>> import fastopt
        >>> x = np.zeros(2, np.float16)
        >>> opt = fastopt.SGD(x, lr=0.5)
        >>> scaler = fastopt.LossScaler(init_scale=1024.0)
        >>> for grad in ([1.0, 2.0], [np.inf, 0.0]):
        ...     scaled = np.array(grad, np.float16) * np.float16(scaler.scale)
        ...     made = bool(scaler.step(opt, scaled))
        ...     scaler.update()
        ...     print(made, x, scaler.scale)
        True [-0.5 -1. ] 1024.0
        False [-0.5 -1. ] 512.0

    Args:
        init_scale: the first scale, between min_scale and max_scale; a power of two, as are the
            factors, costs no precision.
        growth_factor: > 1.
        backoff_factor: in (0, 1).
        growth_interval: updates without a skip before the scale grows, >= 1.
        min_scale: what the scale does not fall below, > 0.
        max_scale: what it does not grow beyond.
        max_skips: updates with a skip in a row at min_scale, >= 1, after which FloatingPointError
            is raised instead of skipping for ever: by ``update``, and on a device as soon as it is
            known.

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
        self._at = _Iteration(Scale(self._range("LossScaler: init_scale", init_scale)), {})
        self._device_scale: ScaleOnDevice | None = None

    @property
    def scale(self) -> float:
        """What the loss is to be multiplied by before the next backward pass.

        Where a device keeps it, this waits for the device; ``multiply`` does not.
        """
        self._synchronize()
        return self._at.scale.value

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
        there, kind = self._device_scale, arrays.kind(loss)
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

    def step(
        self,
        opt: Optimizer | Wrapper,
        grads: Any,
        *,
        params: Any = None,
        value: Any = None,
        hessian: Any = None,
    ) -> Outcome | None:
        """Step with the gradients of the scaled loss; return the outcome of the optimizer's step.

        ``update`` then lets the scale follow. Each optimizer may step once between two updates; an
        Accumulator may take micro-batches (None is returned) until it steps. ``params`` are the
        parameters as the program has them now, as for ``Optimizer.step``; ``value`` is the scaled
        loss, for optimizers that step by it: it is divided by the scale as the gradients are. So
        are ``hessian``, estimates of the scaled loss; they are refused where the scale is kept on a
        device.

        Where all parameters are CuPy arrays, the scale is kept and changed on their device, and
        reading the outcome waits for it; the step itself waits for nothing. An optimizer with
        ``capturable=True`` and ``on_nonfinite="skip"`` can be stepped, and the scaler updated,
        inside a CUDA graph, after ``warmup``: then every replay changes the scale, and
        ``max_skips`` is noticed when something is read.

        Raises what the optimizer's ``step`` does, and RuntimeError for a second step of the same
        optimizer without ``update``, and for a capture that was not prepared.
        """
        inner = _innermost(opt, "step")
        if inner in self._at.stepped:
            raise RuntimeError(
                "this optimizer has stepped already since the scaler's last update, so its "
                "gradients belong to the scale from before; call scaler.update() once per "
                "iteration, after the steps of all optimizers"
            )
        opt._go_over(params)
        extra = extra_of(value, hessian)
        there = None if opt._host_decides else self._scale_for(inner._engine)
        if there is None:
            with Deferred():
                outcome = opt._step(grads, 1.0 / self.scale, "skip", extra=extra)
                if outcome is not None:
                    self._at.stepped[inner] = outcome
                return outcome
        if there.capturing() and inner.on_nonfinite != "skip":
            raise RuntimeError(
                "a LossScaler's step can be captured in a CUDA graph for an optimizer with "
                f"on_nonfinite='skip', which replays go by; this one has {inner.on_nonfinite!r}"
            )
        with Deferred():
            outcome = opt._step(grads, there.inverse, "skip", extra=extra)
            if outcome is not None:
                there.note(cast("DeviceOutcome", outcome))
                self._at.stepped[inner] = None
            return outcome

    def explain(
        self, opt: Optimizer | Wrapper, grads: Any, *, value: Any = None, hessian: Any = None
    ) -> Explanation:
        """Return what ``step`` would do with the gradients of the scaled loss; nothing changes.

        They are divided by the scale, and the step is skipped if they are not finite. See
        ``Optimizer.explain``. Where a device keeps the scale this waits for it.
        """
        _innermost(opt, "explain")
        return opt._explain(grads, 1.0 / self.scale, "skip", extra_of(value, hessian))

    def update(self) -> None:
        """Let the scale follow the steps since the last update, once per iteration.

        It falls if any of them was skipped, and else has made one more good update. Without a step,
        as between the micro-batches of an Accumulator, nothing happens.

        Raises FloatingPointError when a step was skipped in ``max_skips`` updates in a row at
        ``min_scale``; where a device keeps the scale that is noticed later: by reading ``scale`` or
        ``state_dict`` (and so by saving), or by one of the next updates, of which every sixteenth
        asks the device without waiting for it.
        """
        now, stepped = self._at
        if not stepped:
            return
        there, policy = self._device_scale, self._policy
        made = [outcome.made for outcome in stepped.values() if outcome is not None]
        if there is not None:
            with Deferred():
                self._at = _Iteration(now, {})
                there.update(made)
            there.refuse()
            return
        now = policy.after_step(now) if all(made) else policy.after_skip(now)
        self._at = _Iteration(now, {})  # at once: an interrupt comes before or after
        if now.skips >= policy.max_skips:
            raise policy.given_up(now.skips)

    def warmup(self, opt: Optimizer | Wrapper) -> Self:
        """Do what the first step, or a captured one, would have to wait for: ``opt.warmup``, too.

        Changes neither the scale nor the parameters. Returns the scaler.
        """
        inner = _innermost(opt, "warmup")
        inner.warmup()
        there = self._scale_for(inner._engine)
        if there is not None:
            leaves = inner._engine.state.tree.leaves
            there.warm_up([leaf.array for leaf in leaves if not leaf.is_counter])
        return self

    # On a device -------------------------------------------------------------------------------

    def _scale_for(self, engine: HostEngine) -> ScaleOnDevice | None:
        """Return the scale on an optimizer's device; None if it is kept elsewhere.

        It moves to the device of the optimizer that steps, but never in the middle of an
        iteration, and never away from a device on which a captured step uses it. Optimizers on
        other devices read it from there, and wait for it.
        """
        there = self._device_scale
        if there is not None and there.device == engine.device:
            return there
        stays = there is not None and there.captured
        if engine.device is None or self._at.stepped or stays:
            return None
        self._synchronize()
        self._device_scale = ScaleOnDevice(
            engine.scale_memory(self._policy), self._policy, self._at.scale
        )
        return self._device_scale

    def _synchronize(self, refuse: bool = True) -> None:
        """Bring the scale to the host, which waits for the device if a step was made there."""
        if self._device_scale is not None:
            self._at = self._at._replace(scale=self._device_scale.now())
            if refuse:
                self._device_scale.refuse()

    # What is remembered ------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of; between ``step`` and ``update`` there is none."""
        if self._at.stepped:
            raise RuntimeError(
                "LossScaler: a copy between step and update would not know of the step; call "
                "scaler.update() before"
            )
        return {"policy": self._policy, "saved": self.state_dict()}

    def __setstate__(self, copied: dict[str, Any]) -> None:
        """Make a copy of what another LossScaler consisted of."""
        policy: ScalePolicy = copied["policy"]
        LossScaler.__init__(self, policy.min_scale, **policy._asdict())
        self.load_state_dict(copied["saved"])

    def _remembered(self) -> dict[str, Any]:
        self._synchronize()
        now = self._at.scale
        return {"scale": now.value, "good_steps": now.good_steps, "skips": now.skips}

    def _restorer(self, saved: Any) -> Callable[[], None]:
        opened = Saved("LossScaler", saved)
        scale = opened.number("scale", self._range)
        now = Scale(scale, opened.count("good_steps"), opened.count("skips"))
        if self._device_scale is not None:
            self._device_scale.refuse_capture()

        def write() -> None:
            with Deferred():
                self._at = _Iteration(now, {})
                if self._device_scale is not None:
                    self._device_scale.write(now)

        return write

    def __repr__(self) -> str:
        self._synchronize(refuse=False)
        now = self._at.scale
        return f"<LossScaler: scale {now.value:g}, {now.good_steps} steps without overflow>"


def _innermost(opt: Any, method: str) -> Optimizer:
    if not isinstance(opt, (Optimizer, Wrapper)):
        raise TypeError(f"LossScaler.{method} takes an optimizer; got {type(opt).__name__}")
    inner = opt.innermost if isinstance(opt, Wrapper) else opt
    if inner._members is not None:
        raise ValueError(
            f"LossScaler.{method}: members are skipped each by itself, and have no loss with a "
            "scale of their own; leave out members=, or the scaler"
        )
    return inner


class ScaleOnDevice:
    """A scale in a device's memory, which updates made there bring up to date."""

    def __init__(self, memory: ScaleMemory, policy: ScalePolicy, now: Scale) -> None:
        self._memory = memory
        self._policy = policy
        self._given_up = 0  # skips that somebody is still to be told of
        self._updates = 0
        self.captured: bool = False
        """Whether replays of a CUDA graph may change the scale."""
        self._now, self._behind = now, False
        with memory.here():
            memory.upload(now)

    @property
    def device(self) -> int | None:
        """The number of the device."""
        return self._memory.device

    @property
    def inverse(self) -> Array:
        """What gradients are multiplied by, on the device."""
        return self._memory.inverse

    def warm_up(self, params: Sequence[Array]) -> None:
        """Multiply once what a loss can be, so that nothing is compiled while a step is captured.

        That is a number, a row or a table in float32 or a parameter's dtype.
        """
        xp = arrays.namespace_of(params[0])
        with self._memory.here():
            for dtype in {np.dtype(np.float32), *(param.dtype for param in params)}:
                for shape in ((), (2,), (2, 2)):
                    zeros: Array = xp.zeros(shape, dtype)
                    self.times(zeros, None)
                    self.times(zeros, zeros)
                    self.times(zeros, xp.zeros(shape, dtype))

    def times(self, loss: Array, out: Array | None) -> Array:
        """Return an array of the device times the scale, see ``LossScaler.multiply``."""
        with self._memory.here():
            return times(loss, self._memory.factor, out)

    def capturing(self) -> bool:
        """Return whether what is launched now goes into a graph instead of being run."""
        with self._memory.here():
            return self._memory.capturing()

    def note(self, outcome: DeviceOutcome) -> None:
        """Have the device note whether a step was made, right after it was decided on."""
        with self._memory.here():
            self._memory.note(outcome.control)
        if outcome.capture is not None:
            outcome.capture.hold(self._memory)
            self.captured = True
        self._behind = True

    def update(self, elsewhere: Sequence[bool]) -> None:
        """Have the scale follow what was noted since the last update, here and ``elsewhere``."""
        memory = self._memory
        with memory.here():
            memory.update(elsewhere)
            capturing = memory.capturing()
            self.captured |= capturing
            self._behind = True
            if capturing:
                return
            if (read := memory.arrived()) is not None:
                self._record_given_up(read.given_up)
            self._updates += 1
            if self._updates % POLL_EVERY == 0:
                memory.request()

    def now(self) -> Scale:
        """Return the scale; waits for the device if a step was made since."""
        self.refuse_capture()  # whatever is captured would keep what is returned
        if self._behind:
            with self._memory.here():
                read = self._memory.fetch()
                self._now, self._behind = read.scale, self.captured
                self._record_given_up(read.given_up)
        return self._now

    def refuse(self) -> None:
        """Raise FloatingPointError, once, if too many updates in a row had a skip."""
        skips, self._given_up = self._given_up, 0
        if skips:
            raise self._policy.given_up(skips)

    def write(self, now: Scale) -> None:
        """Go on from another scale; waits for the device."""
        with self._memory.here():
            self._memory.fetch()  # nothing older is on its way after that
            self._memory.upload(now)
        self._now, self._behind, self._given_up = now, self.captured, 0

    def refuse_capture(self) -> None:
        """Raise RuntimeError while a stream is captured."""
        if self.capturing():
            raise RuntimeError(
                "the scale of the loss cannot be read or set while a stream is captured in a "
                "CUDA graph; do it before or after"
            )

    def _record_given_up(self, given_up: int) -> None:
        if given_up:
            self._given_up = given_up
            self._memory.forget_given_up()


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
