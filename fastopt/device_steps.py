"""What an optimizer hands over to a device that decides on its steps, and asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from fastopt.gradient_policy import GradientPolicy, NonfinitePolicy

if TYPE_CHECKING:
    from fastopt.device_tables import Limits
    from fastopt.on_device import OnDevice
    from fastopt.scale_on_device import Scaling


class DeviceSteps(GradientPolicy):
    """Steps that a device decides on, where there is one for all parameters."""

    _device: OnDevice | None = None

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured in a CUDA graph."""
        return self._capturable

    def refresh(self) -> Self:
        """Let steps that were captured in a CUDA graph go on by what has been set since.

        A captured step (``capturable=True``, and ``step`` between begin_capture and end_capture of
        a CuPy stream) reads on the device what it goes by: the step count, which every replay adds
        to, and the scalars of the coming steps. Call this after setting a hyperparameter,
        ``max_grad_norm`` or ``on_nonfinite``, and otherwise at least once in 65 536 replays (never,
        if no hyperparameter is a schedule, nothing is rounded by chance and the bias corrections
        have come to their end): a replay without scalars does nothing, and
        makes the next read of ``step_count`` or ``state_dict`` raise RuntimeError. It waits for the
        device.

        A graph keeps the addresses of the gradients, so write into the same arrays; and it keeps
        ``grad_scale``, unless that is a 0-d CuPy array. Without ``capturable`` nothing happens.

        Raises RuntimeError if the captured step cannot do what is asked for now, or while a
        stream is captured.
        """
        if self._device is not None:
            self._device.refresh(self._limits(self.on_nonfinite))
        return self

    def _step_on_device(
        self,
        device: OnDevice,
        parts: Sequence[Any],
        grad_scale: Any,
        on_nonfinite: NonfinitePolicy,
        there: bool,
        scaling: Scaling,
    ) -> bool:
        """Make a step that is decided on the device, if it is; return whether it was.

        ``there``: the gradients' scale is on the device. ``scaling``: that of the loss is, and
        follows the step.
        """
        limits = self._limits(on_nonfinite)
        decides = there or self._capturable or limits.measures
        if on_nonfinite == "raise" or not decides:
            device.hand_over()
            return False
        device.step(parts, grad_scale, limits, scaling)
        return True

    def _warm_up_device(self) -> bool:
        """Prepare a device that decides; return whether there is one."""
        if self._device is None or self.on_nonfinite == "raise":
            return False
        self._device.warm_up(self._limits(self.on_nonfinite))
        return True

    @contextmanager
    def _setting_steps(self, saved: Any) -> Iterator[None]:
        """Let step counts be set on the host, to those of a state_dict, and hand them over."""
        if self._device is None:
            yield
            return
        entries = saved.get("state") if isinstance(saved, Mapping) else None
        pairs = entries.items() if isinstance(entries, Mapping) else ()
        # Whatever else is wrong with it is found where it is taken over.
        steps = {name: e["step"] for name, e in pairs if isinstance(e, Mapping) and "step" in e}
        self._settle(norm=True)
        self._device.refuse_steps(steps)
        yield
        self._device.take_steps(self._limits(self.on_nonfinite))

    def _limits(self, on_nonfinite: NonfinitePolicy) -> Limits:
        from fastopt.device_tables import Limits

        return Limits(self._max_grad_norm, on_nonfinite == "skip")

    def _settle(self, norm: bool = False) -> None:
        if self._device is not None:
            self._device.counts.settle(norm)

    def _forget_norm(self) -> None:
        if self._device is not None:
            self._device.counts.forget_norm()
